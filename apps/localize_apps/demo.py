"""`gr-localize demo`: a simulated station, located live, with a picture at the end."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Protocol

import click
import numpy as np
from localize_core.errors import MissingExtraError, PublishError
from localize_core.geodesy import GEOD
from localize_core.score import Score, Track, score
from localize_core.simulation.scene import Scene
from localize_core.station.config import HttpTable, PublishTable, Station, ZmqTable, load_station
from localize_core.tracking.settings import TrackerSettings
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json
from localize_core.wire.text import fix_line
from rich.console import Console
from rich.live import Live

from localize_apps.demo_view import DemoView
from localize_apps.runner import run_station

PICTURE_NAME = "gr-localize-demo.png"
TRACKER = TrackerSettings(acceleration_mps2=100.0, max_speed_mps=300.0, lag_s=0.4)
"""For a car in time lapse, which turns corners at 200 m/s."""
REFRESH_HZ = 8


class Show(Protocol):
    """What becomes of each fix; `error_m` is None where there is no position."""

    def __call__(self, fix: Fix, error_m: float | None) -> None: ...


def demo_station(endpoint: str | None, http: HttpTable | None = None, *, track: bool = False) -> Station:
    """The station that ships with this command. `endpoint`: where fixes are published instead of its own; `http`: how
    its map is served, None for no map; `track`: whether fixes are followed."""
    with resources.as_file(resources.files("localize_apps") / "demo.toml") as path:
        station = load_station(path)
    publish = station.publish if endpoint is None else PublishTable(zmq=[ZmqTable(endpoint=endpoint)])
    tracker = TRACKER if track else station.tracker
    return station.model_copy(update={"publish": publish, "http": http, "tracker": tracker})


def scene_of(station: Station) -> Scene:
    """The simulation that the station's sources play, for its truth."""
    assert station.scene is not None
    return Scene(
        station.scene,
        station.receiver,
        sample_rate_hz=station.station.sample_rate_hz,
        frequency_hz=station.station.frequency_hz,
    )


def error_m(fix: Fix, scene: Scene) -> float | None:
    """Distance of a fix from the truth at its time, metres."""
    if fix.position is None:
        return None
    latitude, longitude = scene.truth(fix.timestamp.timestamp())
    return float(GEOD.inv(fix.position.longitude, fix.position.latitude, longitude, latitude)[2])


def track_error_m(fixes: list[Fix], scene: Scene) -> float | None:
    """Rms distance of tracks from the truth at their times, metres."""
    squared = []
    for fix in fixes:
        for track in fix.tracks:
            latitude, longitude = scene.truth(fix.timestamp.timestamp() - track.lag_s)
            squared.append(GEOD.inv(track.position.longitude, track.position.latitude, longitude, latitude)[2] ** 2)
    return float(np.sqrt(np.mean(squared))) if squared else None


def truth_track(scene: Scene, duration_s: float) -> Track:
    """Where the emitter went in the first `duration_s` seconds."""
    start_s = scene.time(0)[0]
    elapsed_s = np.linspace(0.0, duration_s, max(2, round(20.0 * duration_s)))
    places = np.array([scene.truth(start_s, float(seconds)) for seconds in elapsed_s])
    return Track(start_s + elapsed_s, places[:, 0], places[:, 1])


def summary_line(result: Score) -> str:
    """The run in one line."""
    if result.containment is None:
        return f"{result.fixes} fixes, none with a position"
    return (
        f"{result.fixes} fixes, median error {result.median_m:.0f} m, 90 % within {result.p90_m:.0f} m, "
        f"truth inside the 95 % ellipse {100.0 * result.containment['95']:.0f} % of the time"
    )


def _can_serve() -> bool:
    """Whether the packages of the map are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("fastapi", "uvicorn", "prometheus_client"))


def _has_screen() -> bool:
    """Whether a browser that is started has somewhere to show itself."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _display(station: Station, scene: Scene, console: Console, *, as_json: bool) -> Iterator[Show]:
    """Lines of JSON, a live view in a terminal, or plain lines elsewhere."""
    if as_json:
        yield lambda fix, _: print(fix_to_json(fix), flush=True)
    elif not console.is_terminal:

        def plain(fix: Fix, error_m: float | None) -> None:
            print(fix_line(fix) + ("" if error_m is None else f" error {error_m:.0f} m"), flush=True)

        yield plain
    else:
        view = DemoView(station, scene)
        with Live(get_renderable=view.render, console=console, refresh_per_second=REFRESH_HZ, transient=False):
            yield view.add


def _picture(station: Station, fixes: list[Fix], truth: Track, summary: str, path: Path) -> str:
    """Draw the picture; where it is, or why there is none."""
    try:
        from localize_apps.demo_picture import draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return f"no picture: {MissingExtraError('drawing', 'plot')}"
    draw(station, fixes, truth, summary, path)
    return f"picture: {path.resolve()}"


@click.command("demo")
@click.option(
    "--duration", "duration_s", type=click.FloatRange(min=3), default=30.0, show_default=True, help="Seconds of signal."
)
@click.option("--json", "as_json", is_flag=True, help="Print each fix as one line of JSON, and nothing else.")
@click.option(
    "--output",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help=f"Folder for the picture, {PICTURE_NAME}; by default the current one.",
)
@click.option("--no-picture", is_flag=True, help="Draw no picture.")
@click.option("--fast", is_flag=True, help="As fast as it goes instead of in real time.")
@click.option("--track", is_flag=True, help="Follow the emitter: fixes carry a track.")
@click.option("--zmq", "endpoint", help="Endpoint at which fixes are published meanwhile.")
@click.option(
    "--map/--no-map",
    "with_map",
    default=None,
    help="Serve the live map, and open it where there is a screen; by default in a terminal.",
)
@click.option(
    "--http", "port", type=click.IntRange(0, 65_535), default=0, help="The map's port; by default a free one."
)
def command(
    duration_s: float,
    as_json: bool,
    folder: Path,
    no_picture: bool,
    fast: bool,
    track: bool,
    endpoint: str | None,
    with_map: bool | None,
    port: int,
) -> int | None:
    """Locate a simulated emitter that drives through Zurich, heard by four receivers.

    The receivers' signals are simulated, everything behind them is what a live station runs. Fixes are published
    over ZeroMQ meanwhile: watch them with `gr-localize subscribe` in another terminal. The map stays after the end,
    until Ctrl-C.
    """
    console = Console(highlight=False)
    served = console.is_terminal and not as_json and _can_serve() if with_map is None else with_map
    station = demo_station(endpoint, HttpTable(port=port) if served else None, track=track)
    scene = scene_of(station)
    fixes: list[Fix] = []
    started_s = time.monotonic()
    hold = bool(with_map)

    def on_serving(what: str, url: str) -> None:
        nonlocal hold
        click.echo(f"{what}: {url}", err=True)
        hold |= _has_screen() and webbrowser.open(url)

    with ExitStack() as serving:
        with _display(station, scene, console, as_json=as_json) as show:

            def on_fix(fix: Fix) -> None:
                fixes.append(fix)
                show(fix, error_m(fix, scene))

            run = run_station(
                station, on_fix=on_fix, duration_s=duration_s, live=not fast, on_serving=on_serving, serving=serving
            )
        elapsed_s = time.monotonic() - started_s

        if isinstance(run.failure, BrokenPipeError):
            sys.stdout = None  # type: ignore[assignment]  # the reader is gone: nothing to flush at exit
            return None
        if run.failure is not None:
            hint = " (--zmq takes another endpoint)" if isinstance(run.failure, PublishError) else ""
            click.echo(f"gr-localize: {run.failure}{hint}", err=True)
            return 1
        truth = truth_track(scene, duration_s)
        result = score(fixes, truth)
        summary = summary_line(result)
        if (followed := track_error_m(fixes, scene)) is not None:
            summary += f"; track {followed:.0f} m rms, its fixes {result.rmse_m:.0f} m"
        click.echo(f"{summary}; {len(fixes) / elapsed_s:.1f} windows per second", err=as_json)
        if not no_picture:
            click.echo(_picture(station, fixes, truth, summary, folder / PICTURE_NAME), err=as_json)
        if hold and not run.interrupted:
            click.echo("the map stays until Ctrl-C", err=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    return 0 if result.scored else 1
