#!/usr/bin/env python3
"""Measure what serving costs beside bare inference, and what two hundred swaps of models do to a live station.

`engine`: windows/s of an engine on one thread, from features to fix, over those of a bare `session.run` loop on the
same model and windows; `worker`: the same through the bounded queue that streams use; `requests`: batches of 100
through `predict` beside `session.run` on batches of 100. All take turns within one run. `swaps`: a simulated station of
four receivers in real time whose model is exchanged 200 times: windows lost, the longest pause between two fixes in
windows, and resident memory after the last swap over that after the twentieth.
"""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np
import onnx
from localize_apps.runner import run_station
from localize_benchmarks.machine import resident_mib
from localize_benchmarks.turns import per_second, rates, ratio
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import Window
from localize_core.engine.worker import InferenceWorker
from localize_core.features.quality import SampleFlag
from localize_core.model.contract import METADATA_KEY, Contract
from localize_core.model.golden import golden_features
from localize_core.model.session import SessionSettings
from localize_core.model.store import compiled_model_path
from localize_core.serving.control import send_command
from localize_core.serving.engine import Engine
from localize_core.serving.requests import Request
from localize_core.serving.settings import ServingSettings
from localize_core.station.config import ControlTable, Station, load_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Fix
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
BATCH = 100


def speed(path: Path, rounds: int, windows: int) -> dict[str, float]:
    engine = Engine(ServingSettings(uri=str(path), poll_s=0.0))
    contract = engine.contract
    steps = contract.time_steps or max(STEPS, contract.min_time_steps)
    engine.prepare(steps)
    features = golden_features(contract, seed=1, time_steps=steps)
    receivers = len(contract.receivers)
    window = Window(0, features[0], np.full(receivers, -20.0), (SampleFlag(0),) * receivers, np.zeros(receivers, bool))
    session = SessionSettings().open(str(path))
    feed = {session.get_inputs()[0].name: features[:, 0] if len(session.get_inputs()[0].shape) == 3 else features}
    many = {name: np.repeat(values, BATCH, axis=0) for name, values in feed.items()}
    requests = [Request(str(n), features[0]) for n in range(BATCH)]
    outputs = ["position", "uncertainty", "confidence"]

    def context(sequence: int) -> WindowContext:
        return WindowContext("s", "t", sequence, (0, 0.0), "rx_time", 1e6, None, time.monotonic(), 0)

    def bare() -> int:
        for _ in range(windows):
            session.run(outputs, feed)
        return windows

    def served() -> int:
        for sequence in range(windows):
            engine.locate(window, context(sequence))
        return windows

    def queued() -> int:
        fixes: list[Fix] = []
        worker = InferenceWorker(
            lambda jobs, _: engine.begin([window] * len(jobs), jobs),
            lambda conclude: fixes.extend(conclude()),
            policy="block",
        )
        worker.start()
        for sequence in range(windows):
            worker.submit(context(sequence))
        worker.drain()
        worker.stop()
        return len(fixes)

    def bare_batch() -> int:
        session.run(outputs, many)
        return BATCH

    def predicted() -> int:
        return len(engine.predict(requests))

    single = {"bare": bare, "engine": served, "worker": queued}
    found = rates({name: per_second(way) for name, way in single.items()}, rounds)
    many_at_a_time = {"bare": bare_batch, "requests": predicted}
    batched = rates({name: per_second(way) for name, way in many_at_a_time.items()}, max(rounds // 5, 3))
    return {
        "bare_windows_per_s": float(np.median(found["bare"])),
        "engine": ratio(found, "engine", "bare"),
        "worker": ratio(found, "worker", "bare"),
        "bare_batch_windows_per_s": float(np.median(batched["bare"])),
        "requests": ratio(batched, "requests", "bare"),
    }


def write_version(template: Path, path: Path, version: int) -> None:
    """The same model under another version, in its place at once."""
    model = onnx.load(template)
    (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    contract = Contract.from_json(entry.value).model_copy(update={"model_version": str(version)})
    onnx.helper.set_model_props(model, {METADATA_KEY: contract.model_dump_json()})
    draft = path.with_suffix(".draft")
    onnx.save(model, draft)
    draft.replace(path)


def swaps(count: int, pause_s: float) -> dict[str, float]:
    """A live station under swaps, one every `pause_s`."""
    station = load_station(ROOT / "examples" / "four_receivers.toml")
    compiled = compiled_model_path(plan_station(station).spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        shutil.copy(compiled, path)
        control = f"ipc://{folder}/control"
        station = station.model_copy(
            update={
                "model": station.model.model_copy(update={"uri": str(path), "poll_s": 0.0}),
                "control": ControlTable(endpoint=control),
            }
        )
        return _swaps(station, control, compiled, path, count, pause_s)


def _swaps(station: Station, control: str, compiled: Path, path: Path, count: int, pause_s: float) -> dict[str, float]:
    came: list[tuple[float, Fix]] = []
    stopped, memory_mib = threading.Event(), []

    def swap() -> None:
        try:
            while len(came) < 10:
                time.sleep(0.1)
            for version in range(2, count + 2):
                write_version(compiled, path, version)
                send_command(control, "reload")
                gc.collect()
                memory_mib.append(resident_mib())
                time.sleep(pause_s)
        finally:
            stopped.set()

    swapper = threading.Thread(target=swap)
    swapper.start()
    result = run_station(station, on_fix=lambda fix: came.append((time.monotonic(), fix)), stopped=stopped)
    swapper.join()
    fixes = [fix for _, fix in came]
    gaps_s = np.diff([moment for moment, _ in came])
    sequences = [fix.sequence for fix in fixes]
    versions = [int(fix.model.version) for fix in fixes]
    return {
        "windows": len(fixes),
        "lost": result.dropped_windows + (sequences[-1] + 1 - len(sequences)),
        "out_of_order": sum(np.diff(sequences) <= 0) + sum(np.diff(versions) < 0),
        "versions_that_served": len(set(versions)),
        "longest_pause_windows": float(gaps_s.max() / fixes[0].window_duration_s),
        "usual_pause_windows": float(np.median(gaps_s) / fixes[0].window_duration_s),
        "memory_ratio": float(np.median(memory_mib[-10:]) / np.median(memory_mib[15:25])),
    }


@click.command()
@click.option("--rounds", default=40, show_default=True, help="Turns of which the median counts.")
@click.option("--windows", default=150, show_default=True, help="In a turn.")
@click.option(
    "--swaps", "count", default=200, show_default=True, help="Of the live station's model; 0 to leave it out."
)
@click.option("--pause", "pause_s", default=0.1, show_default=True, help="Seconds between two swaps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(rounds: int, windows: int, count: int, pause_s: float, as_json: bool) -> None:
    found = {path.stem: speed(path, rounds, windows) for path in sorted((ROOT / "models").glob("*.onnx"))}
    lived = swaps(count, pause_s) if count else {}
    if as_json:
        print(json.dumps({"speed": found, "swaps": lived}))
        return
    table = Table("model", "bare, windows/s", "engine", "worker", "bare in batches of 100", "requests")
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['bare_windows_per_s']:.0f}",
            f"{row['engine']:.2f}",
            f"{row['worker']:.2f}",
            f"{row['bare_batch_windows_per_s']:.0f}",
            f"{row['requests']:.2f}",
        )
    console = Console()
    console.print(table)
    for key, value in lived.items():
        console.print(f"{key}: {value:.4g}", highlight=False)


if __name__ == "__main__":
    command()
