#!/usr/bin/env python3
"""Four radios without a common clock, as they run: `gr-localize run` with a [reference], through sockets, in real time.

The scene of examples/reference_emitter.toml with its emitter standing at several places, one run at each: clocks and
oscillators off by 20 ppm, 8 bits, and streams that come up to 0.2 s late, each by its own. A process of its own plays
what four places hear, as rtl_tcp servers or ZeroMQ senders do. Beside it the same station with perfect clocks: one
sender of four channels, and no reference.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import zmq
from localize_benchmarks import rtl_tcp_server
from localize_benchmarks.flowgraphs import free_endpoint
from localize_benchmarks.machine import Busy, describe
from localize_benchmarks.process import start_app, start_python
from localize_core.errors import LocalizeError
from localize_core.geodesy import GEOD
from localize_core.serving.control import send_command
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station, load_station
from rich.console import Console
from rich.table import Table
from scipy.stats import chi2

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "reference_emitter.toml"
PLACES = [(45.060, 7.640), (45.085, 7.650), (45.085, 7.700), (45.060, 7.700), (45.072, 7.675), (45.045, 7.665)]
PERFECT: dict[str, Any] = {"clock_drift_ppb": 0.0, "clock_offset_ns": 0.0, "shared_oscillator": False, "also": ()}
KINDS = {
    "perfect": "one ZeroMQ sender, perfect clocks",
    "rtl-tcp": "four rtl_tcp servers",
    "zmq": "four ZeroMQ senders",
}
MOST_LATE_S = 0.2
CHUNK_S = 0.02
PART_S = 0.25
STOP_S = 30.0
ANSWER_S = 10.0


@dataclass
class Run:
    """A station at one place. Errors in metres and squared distances in terms of the ellipses are those of the fixes
    from the first on that had all receivers; `four` of these had, `lock_s` after the last receiver was heard."""

    kind: str
    place: tuple[float, float]
    seed: int
    errors_m: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    after_lock: int = 0
    four: int = 0
    lock_s: float | None = None
    cores: float = 0.0
    others: float = 0.0
    dropped_windows: int = 0
    drift_ppm: dict[str, float] = field(default_factory=dict)
    true_ppm: dict[str, float] = field(default_factory=dict)
    late_s: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, Any] = field(default_factory=dict)
    receivers: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def drift_errors_ppm(self) -> dict[str, float]:
        """Told drifts against the true ones, both against the first receiver's."""
        first = next(iter(self.true_ppm), "")
        return {
            name: (told - self.drift_ppm[first]) - (self.true_ppm[name] - self.true_ppm[first])
            for name, told in self.drift_ppm.items()
        }

    @property
    def offset_errors_s(self) -> dict[str, float]:
        """Told offsets against how late the streams came, both against the first receiver's: a stream that comes late
        has stamps that are ahead."""
        first = next(iter(self.late_s), "")
        return {
            name: (self.clocks[name]["offset_s"] - self.clocks[first]["offset_s"])
            + (self.late_s[name] - self.late_s[first])
            for name in self.drift_ppm
        }


# What is heard


def heard(
    station: Station, place: tuple[float, float], seed: int, seconds: float, folder: Path, *, perfect: bool
) -> tuple[list[Path], Scene]:
    """A file of cu8 samples for each receiver, and the scene that they are from."""
    assert station.scene is not None
    changed = {"seed": seed, "track": (place,), "speed_mps": 0.0, **(PERFECT if perfect else {})}
    table = station.station
    scene = Scene(
        station.scene.model_copy(update=changed),
        station.receiver,
        sample_rate_hz=table.sample_rate_hz,
        frequency_hz=table.frequency_hz,
    )
    name = f"{'perfect' if perfect else 'off'}-{seed}-{seconds:g}s"
    paths = [folder / f"{name}-{receiver.name}.cu8" for receiver in station.receiver]
    if not all(path.exists() for path in paths):
        part = round(PART_S * table.sample_rate_hz)
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for first in range(0, round(seconds * table.sample_rate_hz), part):
                for file, samples in zip(files, scene.samples(first, part), strict=True):
                    file.write(rtl_tcp_server.to_cu8(samples).tobytes())
    return paths, scene


# Who sends it: a process of its own


def main() -> None:
    """The senders of the JSON object in `sys.argv[2]`: prints their addresses, then when the first sample of all was on
    the air, and when each was first listened to. Until its standard input ends."""
    wanted = json.loads(sys.argv[2])
    on_air = functools.cache(time.monotonic)
    senders = [
        (_RtlTcp if wanted["kind"] == "rtl-tcp" else _Zmq)(
            [Path(path) for path in paths], wanted["rate_hz"], functools.partial(_later, on_air, late_s)
        )
        for paths, late_s in zip(wanted["paths"], wanted["late_s"], strict=True)
    ]
    print(json.dumps([sender.address for sender in senders]), flush=True)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.wait(0.02):
        if all(sender.heard_s is not None for sender in senders):
            print(json.dumps({"on_air_s": on_air(), "heard_s": [sender.heard_s for sender in senders]}), flush=True)
            break
    ended.wait()
    os._exit(0)


def _later(on_air: Callable[[], float], late_s: float) -> float:
    return on_air() + late_s


class _RtlTcp:
    def __init__(self, paths: list[Path], rate_hz: float, epoch: Callable[[], float]) -> None:
        (path,) = paths
        self.heard_s: float | None = None

        def noted() -> float:
            if self.heard_s is None:
                self.heard_s = time.monotonic()
            return epoch()

        self._server = rtl_tcp_server.RtlTcpServer(path, rate_hz=rate_hz, epoch=noted)
        self.address = self._server.address


class _Zmq:
    """Sends as GNU Radio's ZMQ PUB sink does, from when there is somebody to listen."""

    def __init__(self, paths: list[Path], rate_hz: float, epoch: Callable[[], float]) -> None:
        octets = [np.fromfile(path, dtype=np.uint8) for path in paths]
        self.heard_s: float | None = None
        self._samples = np.stack([each.reshape(-1, 2) for each in octets], axis=1)  # (sample, channel, part)
        self._rate_hz, self._epoch = rate_hz, epoch
        self._socket = zmq.Context.instance().socket(zmq.XPUB)
        self._socket.bind("tcp://127.0.0.1:*")
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        self._socket.recv()
        self.heard_s = time.monotonic()
        begun_s, count = self._epoch(), round(CHUNK_S * self._rate_hz)
        for first in range(0, len(self._samples) - count + 1, count):
            time.sleep(max(begun_s + (first + count) / self._rate_hz - time.monotonic(), 0.0))
            self._socket.send(rtl_tcp_server.from_cu8(self._samples[first : first + count].reshape(-1)).tobytes())


@contextmanager
def senders(
    kind: str, paths: list[Path], rate_hz: float, late_s: list[float]
) -> Iterator[tuple[list[str], Callable[[], dict[str, Any]]]]:
    """Addresses, and what waits for all being listened to. With perfect clocks all are channels of one sender."""
    groups, late = ([paths], late_s[:1]) if kind == "perfect" else ([[path] for path in paths], late_s)
    wanted = {
        "kind": kind,
        "paths": [[str(path) for path in group] for group in groups],
        "late_s": late,
        "rate_hz": rate_hz,
    }
    process = start_python("live_reference", json.dumps(wanted), stdin=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), lambda: json.loads(process.stdout.readline())  # type: ignore[union-attr]
    finally:
        process.communicate()


# Who hears it


def station_file(kind: str, addresses: list[str], control: str, scene: Scene) -> str:
    """The example with radios. It is told what it knew of its scene: the noise, and that waves travel straight."""
    text, _, _ = EXAMPLE.read_text().partition("[scene]")
    if kind == "perfect":
        text = re.sub(r"^\[reference\].*?(?=^\[)", "", text, flags=re.DOTALL | re.MULTILINE)
    for channel in range(len(scene.receivers)):
        if kind == "perfect":
            source = f'kind = "zmq", address = "{addresses[0]}", channel = {channel}, channels = {len(scene.receivers)}'
        else:
            gain = ", gain_db = 30.0" if kind == "rtl-tcp" else ""
            source = f'kind = "{kind}", address = "{addresses[channel]}"{gain}'
        text = text.replace('{ kind = "scene" }', f"{{ {source} }}\nnoise_dbfs = {scene.config.noise_dbfs:g}", 1)
    return f'{text}[propagation]\ntiming_sigma_ns = 0.0\n[control]\nendpoint = "{control}"\n'


def run_at(
    station: Station, kind: str, place: tuple[float, float], seed: int, folder: Path, *, seconds: float, wanted: int
) -> Run:
    """Run the station until it has `wanted` fixes with all receivers, or `seconds` of samples are over."""
    run = Run(kind, place, seed)
    paths, scene = heard(station, place, seed, seconds, folder, perfect=kind == "perfect")
    names = [receiver.name for receiver in station.receiver]
    late_s = [float(late) for late in np.random.default_rng(seed).uniform(0.0, MOST_LATE_S, len(names))]
    control = free_endpoint()
    with senders(kind, paths, scene.sample_rate_hz, late_s) as (addresses, listened):
        path = folder / "station.toml"
        path.write_text(station_file(kind, addresses, control, scene))
        with (folder / f"{kind}-{seed}.log").open("w") as log:
            process = start_app("-v", "run", str(path), "--json", stderr=log)
        try:
            _follow(run, process, listened(), control, seconds, wanted)
        finally:
            process.kill()
            process.wait()
    if kind != "perfect":
        run.true_ppm = dict(zip(names, (1e6 * scene.errors.clock_drift).tolist(), strict=True))
        run.late_s = dict(zip(names, late_s, strict=True))
    return run


def _follow(
    run: Run, process: subprocess.Popen[str], told: dict[str, Any], control: str, seconds: float, wanted: int
) -> None:
    end_s, heard_s = told["on_air_s"] + seconds - 1.0, max(told["heard_s"])
    fixes: list[tuple[float, dict[str, Any]]] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            fixes.append((time.monotonic(), json.loads(line)))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    begun: tuple[float, float, Busy] | None = None
    while time.monotonic() < end_s and process.poll() is None:
        time.sleep(0.05)
        complete = sum(all_used(fix) for _, fix in list(fixes))
        if complete and begun is None:
            begun = time.monotonic(), cpu_s(process.pid), Busy()
        if complete >= wanted:
            break
    if process.poll() is not None:
        run.problem = f"ended with {process.poll()}"
        return
    if begun is not None:
        run.cores = (cpu_s(process.pid) - begun[1]) / max(time.monotonic() - begun[0], 0.1)
        run.others = begun[2].cores()[1] - run.cores
    try:
        info = send_command(control, "info", timeout_s=ANSWER_S)
    except LocalizeError as error:
        run.problem = str(error)
        info = {}
    run.clocks, run.receivers = info.get("reference", {}), info.get("receivers", {})
    run.drift_ppm = {name: one["drift_ppm"] for name, one in run.clocks.items() if one.get("locked")}
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        run.problem = f"did not end within {STOP_S:g} s of SIGTERM"
        process.kill()
    reader.join(STOP_S)
    _judge(run, fixes, heard_s)


def _judge(run: Run, fixes: list[tuple[float, dict[str, Any]]], heard_s: float) -> None:
    run.dropped_windows = sum(fix["dropped_windows"] for _, fix in fixes)
    first = next((index for index, (_, fix) in enumerate(fixes) if all_used(fix)), None)
    if first is None:
        run.problem = run.problem or f"none of {len(fixes)} fixes has all receivers"
        return
    run.lock_s = fixes[first][0] - heard_s
    after = [fix for _, fix in fixes[first:]]
    run.after_lock, run.four = len(after), sum(map(all_used, after))
    for fix in after:
        if fix["position"] is None:
            continue
        latitude, longitude = run.place
        azimuth, _, distance_m = GEOD.inv(
            fix["position"]["longitude"], fix["position"]["latitude"], longitude, latitude
        )
        off_m = distance_m * np.array([math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))])
        run.errors_m.append(float(distance_m))
        run.squares.append(float(off_m @ np.linalg.solve(np.array(fix["uncertainty"]["covariance_m2"]), off_m)))


def all_used(fix: dict[str, Any]) -> bool:
    """Whether a fix has a position that all receivers took part in."""
    return fix["position"] is not None and all(receiver["used"] for receiver in fix["receivers"])


def cpu_s(pid: int) -> float:
    """Processor time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# What came of it


@dataclass(frozen=True)
class Figures:
    """Of one kind, over all places."""

    places: int
    fixes: int
    median_m: float
    rms_m: float
    contained: float
    four: float
    lock_s: tuple[float, float]
    cores: float
    worst_drift_ppm: float | None
    dropped_windows: int


def together(runs: list[Run]) -> Figures:
    errors_m = np.concatenate([run.errors_m for run in runs])
    squares = np.concatenate([run.squares for run in runs])
    locks = [run.lock_s for run in runs if run.lock_s is not None]
    drifts = [abs(value) for run in runs for value in run.drift_errors_ppm.values()]
    return Figures(
        places=len(locks),
        fixes=len(errors_m),
        median_m=float(np.median(errors_m)),
        rms_m=float(np.sqrt(np.mean(np.square(errors_m)))),
        contained=float(np.mean(squares <= chi2.ppf(0.95, 2))),
        four=sum(run.four for run in runs) / sum(run.after_lock for run in runs),
        lock_s=(float(np.median(locks)), max(locks)),
        cores=float(np.median([run.cores for run in runs if run.lock_s is not None])),
        worst_drift_ppm=max(drifts) if drifts else None,
        dropped_windows=sum(run.dropped_windows for run in runs),
    )


@click.command()
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="All when left out.")
@click.option("--places", default=4, show_default=True, type=click.IntRange(1, len(PLACES)))
@click.option("--fixes", default=30, show_default=True, type=click.IntRange(min=1), help="At each place, after lock.")
@click.option(
    "--seconds", default=30.0, show_default=True, type=click.FloatRange(min=5.0), help="At each place, at most."
)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep samples and logs here.")
@click.option("--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="File for all figures.")
def command(
    kinds: tuple[str, ...], places: int, fixes: int, seconds: float, folder: Path | None, output: Path | None
) -> None:
    """Errors of live stations without a common clock, beside those of perfect clocks."""
    if (why := rtl_tcp_server.missing()) is not None:
        raise click.ClickException(why)
    station = load_station(EXAMPLE)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as temporary:
        at = (folder or Path(temporary)).resolve()
        at.mkdir(parents=True, exist_ok=True)
        for seed, place in enumerate(PLACES[:places], start=1):
            for kind in kinds or KINDS:
                runs.append(run_at(station, kind, place, seed, at, seconds=seconds, wanted=fixes))
                click.echo(line(runs[-1]), err=True)
    head = (
        "clocks",
        "places",
        "fixes",
        "median, rms (m)",
        "ratios",
        "in the 95 % ellipse",
        "with all four",
        "lock (s)",
    )
    table, base = Table(*head, "drifts off by (ppm)", "cores"), None
    for kind in kinds or KINDS:
        own = [run for run in runs if run.kind == kind and run.lock_s is not None]
        if not own:
            continue
        told = together(own)
        base = told if kind == "perfect" else base
        table.add_row(
            KINDS[kind],
            str(told.places),
            str(told.fixes),
            f"{told.median_m:.1f}, {told.rms_m:.1f}",
            "" if base is None else f"{told.median_m / base.median_m:.2f}, {told.rms_m / base.rms_m:.2f}",
            f"{told.contained:.0%}",
            f"{told.four:.1%}",
            f"{told.lock_s[0]:.1f}, at most {told.lock_s[1]:.1f}",
            "" if told.worst_drift_ppm is None else f"{told.worst_drift_ppm:.3f}",
            f"{told.cores:.2f}",
        )
    Console(width=160).print(table)
    if output is not None:
        output.write_text(json.dumps({"machine": describe(), "runs": [asdict(run) for run in runs]}, indent=1) + "\n")
    sys.exit(1 if any(run.problem for run in runs) else 0)


def line(run: Run) -> str:
    """A run, for people."""
    what = f"{run.kind} at {run.place}: "
    if run.lock_s is None:
        return what + run.problem
    rms_m = math.sqrt(np.mean(np.square(run.errors_m)))
    return (
        f"{what}{len(run.errors_m)} fixes, median {np.median(run.errors_m):.1f} m, rms {rms_m:.1f} m, "
        f"{run.four}/{run.after_lock} with all, lock {run.lock_s:.1f} s, {run.dropped_windows} windows dropped, "
        f"{run.cores:.2f} cores, others {run.others:.2f}, "
        f"drifts off by {max(map(abs, run.drift_errors_ppm.values()), default=0.0):.3f} ppm, "
        f"offsets by {1e3 * max(map(abs, run.offset_errors_s.values()), default=0.0):.1f} ms {run.problem}"
    )


if __name__ == "__main__":
    command()
