#!/usr/bin/env python3
"""Measure how long models take for a window, on one core, in batches of 1, 10 and 100.

The shipped models, and what the example stations are compiled to. `ffts` is the first figure over the time of NumPy's
FFTs of one window's frames, one per channel: it says the same on any machine. The best of several rounds counts, and
all that is compared takes turns: others may share the machine.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from localize_core.model.compiled.compile import compile_model
from localize_core.model.golden import golden_features
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 10, 100)
EXAMPLES = {
    "four_receivers": None,
    "four_receivers, with levels": ["log_mel", "cross_correlation"],
    "four_receivers, levels only": ["log_mel"],
    "single_receiver": None,
}
"""Stations to compile, and the channels where they are not the station's own."""


def compile_examples(folder: Path) -> None:
    for name, channels in EXAMPLES.items():
        station = load_station(ROOT / "examples" / f"{name.split(',')[0]}.toml")
        if channels is not None:
            features = station.features.model_copy(update={"channels": channels})
            station = station.model_copy(update={"features": features})
        compile_model(plan_station(station).spec, folder / f"{name}.onnx")


def best_s(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Shortest time of each, taking turns."""
    taken_s = np.full((rounds, len(ways)), np.inf)
    for row in taken_s:
        for index, way in enumerate(ways):
            started_s = time.perf_counter()
            way()
            row[index] = time.perf_counter() - started_s
    return [float(value) for value in taken_s.min(axis=0)]


def speed(path: Path, against: Path | None, time_steps: int, rounds: int) -> dict[str, float]:
    models = [OnnxModel(each) for each in (path, against) if each is not None]
    contract = models[0].contract
    feature = contract.mel_config or contract.correlation_config
    assert feature is not None
    steps = contract.time_steps or time_steps
    frames = np.ones((len(contract.channels), steps, feature.n_fft), np.complex64)
    window = contract.normalisation.apply(golden_features(contract, seed=1, time_steps=steps)[0])
    figures = {}
    for batch in BATCHES:
        features = np.repeat(window[None], batch, axis=0)
        ways = [lambda model=model, features=features: model.run(features) for model in models]
        *taken_s, fft_s = best_s([*ways, lambda: np.fft.fft(frames)], max(rounds // batch, 5))
        figures[f"ms_{batch}"] = 1e3 * taken_s[0] / batch
        if batch == 1:
            figures["ffts"] = taken_s[0] / fft_s
        if against is not None:
            figures[f"ratio_{batch}"] = taken_s[0] / taken_s[1]
    return figures


@click.command(help=__doc__)
@click.option("--time-steps", type=click.IntRange(8), default=100, show_default=True, help="Frames in a window.")
@click.option("--rounds", type=click.IntRange(5), default=300, show_default=True, help="Of single windows.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to leave the compiled models in.")
@click.option("--against", type=click.Path(path_type=Path), help="Folder of such models: ratios to them are given.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per model.")
def main(time_steps: int, rounds: int, keep: Path | None, against: Path | None, as_json: bool) -> None:
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        compile_examples(folder)
        shipped = sorted((ROOT / "models").glob("*.onnx"))
        for path in [*shipped, *(folder / f"{name}.onnx" for name in EXAMPLES)]:
            name = path.stem if path not in shipped else f"models/{path.name}"
            before = against / path.name if against is not None and path not in shipped else None
            figures = speed(path, before, time_steps, rounds)
            if as_json:
                print(json.dumps({"model": name, "time_steps": time_steps, **figures}))
                continue
            rows[name] = figures
    if rows:
        columns = list(rows[list(rows)[-1]])  # of the last, which has the ratios if any has
        table = Table("model", *columns)
        for name, figures in rows.items():
            table.add_row(name, *(f"{figures[column]:.3g}" if column in figures else "" for column in columns))
        Console().print(table)


if __name__ == "__main__":
    main()
