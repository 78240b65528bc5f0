#!/usr/bin/env python3
"""Measure what a reference emitter makes of receivers without a common clock.

Accuracy: a simulated station of four RTL-SDRs (8 bits, clocks and oscillators off by 20 ppm, streams that begin
microseconds or tenths of a second apart) against the same station with perfect clocks, over several seeds. Load: CPU
seconds for a second of four streams.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from gnuradio import blocks, gr, localize
from gnuradio.localize.pmt_codec import fix_from_pmt
from localize_core.alignment.reference import ReferenceClock
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.alignment.reference_stream import Mark
from localize_core.geodesy import GEOD
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station, load_station
from localize_core.types.fix import Fix
from rich.console import Console
from rich.table import Table
from scipy.stats import chi2

STATION = Path(__file__).resolve().parent.parent / "examples" / "reference_emitter.toml"
PERFECT: dict[str, Any] = {"clock_drift_ppb": 0.0, "clock_offset_ns": 0.0, "shared_oscillator": False, "also": ()}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "20 ppm, 2 µs": ({}, {}),
    "20 ppm, 0.3 s": ({"clock_offset_ns": 3e8}, {}),
    "0.1 ppm a minute": ({"timing_jitter_ns": 1700.0, "timing_jitter_s": 60.0}, {}),
    "FM voice": ({"also": {"waveform": "nbfm"}}, {}),
    "independent carriers": ({}, {"carrier": "independent"}),
    "fades for 1.5 s": ({"also": {"pauses_s": ((2.0, 3.5),)}}, {}),
}
"""What is otherwise than in the example: of its scene (`also`: of the beacon), and of its [reference]."""


@dataclass(frozen=True)
class Outcome:
    """Errors in metres, and squared distances in terms of the ellipses, of the fixes with a position."""

    errors_m: np.ndarray
    squares: np.ndarray
    windows: int

    @property
    def rms_m(self) -> float:
        return float(np.sqrt(np.mean(np.square(self.errors_m))))

    @property
    def contained(self) -> float:
        """Share of truths in the 95 % ellipse."""
        return float(np.mean(self.squares <= chi2.ppf(0.95, 2)))


def variant(station: Station, seed: int, scene: dict[str, Any], reference: dict[str, Any] | None) -> Station:
    """The station with another seed and other values. `reference` None: with clocks as they should be."""
    assert station.scene is not None
    values = {"seed": seed, **scene}
    if isinstance(values.get("also"), dict):
        values["also"] = tuple(also.model_copy(update=values["also"]) for also in station.scene.also)
    changed = {"scene": station.scene.model_copy(update=values)}
    if reference is None:
        changed["reference"] = None
    elif station.reference is not None:
        changed["reference"] = station.reference.model_copy(update=reference)
    return station.model_copy(update=changed)


def located(station: Station, duration_s: float) -> Outcome:
    """Run a station's scene through a flowgraph."""
    assert station.scene is not None
    graph, table = gr.top_block(), station.station
    source = localize.scene_source(
        [(r.name, r.latitude, r.longitude, r.altitude_m) for r in station.receiver],
        table.sample_rate_hz,
        table.frequency_hz,
        duration_s=duration_s,
        **station.scene.model_dump(),
    )
    localizer, store = localize.localizer(station, n_receivers=len(station.receiver)), blocks.message_debug()
    for index in range(len(station.receiver)):
        graph.connect((source, index), (localizer, index))
    graph.msg_connect(localizer, "fix", store, "store")
    graph.run()
    if localizer.failure is not None:
        raise localizer.failure
    fixes = [fix_from_pmt(store.get_message(index)) for index in range(store.num_messages())]
    return judged(fixes, source.scene)


def judged(fixes: list[Fix], scene: Scene) -> Outcome:
    errors_m, squares = [], []
    for fix in fixes:
        if fix.position is None or fix.uncertainty is None:
            continue
        latitude, longitude = scene.truth(fix.timestamp.timestamp())
        azimuth, _, distance_m = GEOD.inv(fix.position.longitude, fix.position.latitude, longitude, latitude)
        off_m = distance_m * np.array([math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))])
        errors_m.append(distance_m)
        squares.append(float(off_m @ np.linalg.solve(np.array(fix.uncertainty.covariance_m2), off_m)))
    return Outcome(np.array(errors_m), np.array(squares), len(fixes))


def together(outcomes: list[Outcome]) -> Outcome:
    return Outcome(
        np.concatenate([one.errors_m for one in outcomes]),
        np.concatenate([one.squares for one in outcomes]),
        sum(one.windows for one in outcomes),
    )


def load(rate_hz: float, seconds: float) -> float:
    """CPU seconds of one core for a second of four streams, tracked."""
    settings = ReferenceSettings(
        latitude=0.0, longitude=0.0, frequency_hz=433.92e6 + 0.25 * rate_hz, bandwidth_hz=0.15 * rate_hz
    )
    draw, count = np.random.default_rng(1), round(rate_hz * (seconds + 2.0))
    noise = (draw.standard_normal((5, count)) + 1j * draw.standard_normal((5, count))).astype(np.complex64)
    clock = ReferenceClock(4, rate_hz, 433.92e6, settings, [0.0] * 4)
    spent_s, step = 0.0, round(0.05 * rate_hz)
    for first in range(0, count, step):
        begun_s = time.process_time()
        for stream in range(4):
            samples = noise[4, first : first + step] + 0.3 * noise[stream, first : first + step]
            clock.push(stream, samples, [Mark(0, (0, 0.0))] if first == 0 else [])
        clock.advance()
        for stream in range(4):
            clock.pull(stream, count)
        if first >= 2.0 * rate_hz:
            spent_s += time.process_time() - begun_s
    assert all(status.locked for status in clock.status)
    return spent_s / seconds


@click.command()
@click.option("--seeds", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(min=2.0))
@click.option("--case", "chosen", multiple=True, help=f"One of: {', '.join(CASES)}; all when left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of tables.")
def main(seeds: int, seconds: float, chosen: tuple[str, ...], as_json: bool) -> None:
    """Accuracy with a reference over that with perfect clocks; CPU load."""
    station = load_station(STATION)
    perfect = together([located(variant(station, seed, PERFECT, None), seconds) for seed in range(1, seeds + 1)])
    rows = [("perfect clocks", perfect)]
    for name, (scene, reference) in CASES.items():
        if not chosen or name in chosen:
            runs = [located(variant(station, seed, scene, reference), seconds) for seed in range(1, seeds + 1)]
            rows.append((name, together(runs)))
    loads = {f"{rate_hz / 1e6:g} MS/s": load(rate_hz, 3.0) for rate_hz in (0.25e6, 1e6)}
    if as_json:
        cases = {
            name: {"rms_m": o.rms_m, "ratio": o.rms_m / perfect.rms_m, "contained": o.contained, "windows": o.windows}
            for name, o in rows
        }
        click.echo(json.dumps({"cases": cases, "cpu_s_per_s": loads}))
        return
    table = Table("clocks", "windows", "rms error (m)", "ratio", "in the 95 % ellipse")
    for name, o in rows:
        table.add_row(name, str(o.windows), f"{o.rms_m:.1f}", f"{o.rms_m / perfect.rms_m:.2f}", f"{o.contained:.0%}")
    Console().print(table)
    for name, value in loads.items():
        click.echo(f"4 x {name}: {value:.2f} CPU seconds a second")


if __name__ == "__main__":
    main()
