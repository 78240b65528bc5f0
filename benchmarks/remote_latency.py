#!/usr/bin/env python3
"""Measure how long a window takes on a Triton server on this machine, beside the same model in this process.

With 1, 10 and 100 windows in flight, each a request of its own. The server is the one of the wheel nvidia-pytriton with
its Python backend, which runs ONNX Runtime on one thread; client and server share the machine's cores, and no network
lies between them. Both ways take turns; figures are over all rounds, ratios are remote over in process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from localize_core.model.base import Model
from localize_core.model.golden import check_golden, golden_features
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.remote import RemoteModel
from localize_core.model.source import RemoteUri
from localize_core.model.triton_repository import export_model_repository
from rich.console import Console
from rich.table import Table
from triton_server import TritonServer, missing

ROOT = Path(__file__).resolve().parent.parent
IN_FLIGHT = (1, 10, 100)
PATIENT_S = 60.0


def latencies_s(model: Model, window: np.ndarray, count: int, in_flight: int) -> tuple[np.ndarray, float]:
    """What each of `count` windows takes with `in_flight` threads asking, and all of them together."""

    def one(_: int) -> float:
        started_s = time.perf_counter()
        model.run(window)
        return time.perf_counter() - started_s

    with ThreadPoolExecutor(in_flight) as pool:
        list(pool.map(one, range(in_flight)))  # threads and connection are there before the clock starts
        started_s = time.perf_counter()
        taken_s = np.array(list(pool.map(one, range(count))))
        return taken_s, time.perf_counter() - started_s


def figures(rounds: list[tuple[np.ndarray, float]]) -> dict[str, float]:
    taken_s = np.concatenate([each for each, _ in rounds])
    p50, p95, p99 = 1e3 * np.percentile(taken_s, (50, 95, 99))
    return {
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "worst_ms": 1e3 * taken_s.max(),
        "windows_per_s": len(taken_s) / sum(whole_s for _, whole_s in rounds),
    }


@click.command(help=__doc__)
@click.option(
    "--model",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=ROOT / "models" / "demo.onnx",
    show_default="models/demo.onnx",
    help="What to run.",
)
@click.option("--time-steps", type=click.IntRange(1), help="Frames in a window; by default those of its golden vector.")
@click.option("--windows", type=click.IntRange(10), default=300, show_default=True, help="Per round.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of either way.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per way and number in flight.")
def main(path: Path, time_steps: int | None, windows: int, rounds: int, as_json: bool) -> None:
    if (why := missing()) is not None:
        sys.exit(why)
    here = OnnxModel(path)
    contract = here.contract
    steps = time_steps or contract.time_steps or (contract.golden.time_steps if contract.golden else 100)
    window = contract.normalisation.apply(golden_features(contract, seed=1, time_steps=steps)[0])[None]
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        server = TritonServer(Path(scratch) / "triton")
        try:
            export_model_repository(
                path, server.repository, name="model", backend="python", site_packages=server.site_packages
            )
            server.start()
            server.load("model")
            host, _, port = server.address.partition(":")
            uri = RemoteUri(host, int(port), "model")
            there = RemoteModel(uri, deadline_s=PATIENT_S, max_in_flight=max(IN_FLIGHT))
            check_golden(there)
            for in_flight in IN_FLIGHT:
                ways: dict[str, Model] = {"in process": here, "remote": there}
                measured: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in ways}
                for _ in range(rounds):
                    for name, model in ways.items():
                        measured[name].append(latencies_s(model, window, windows, in_flight))
                both = {name: figures(measured[name]) for name in ways}
                ratio = {key: value / both["in process"][key] for key, value in both["remote"].items()}
                for name, values in {**both, "ratio": ratio}.items():
                    rows.append({"in_flight": in_flight, "way": name, **values})
            there.close()
        finally:
            server.stop()
    about = f"{path.name}, windows of {'×'.join(map(str, window.shape[1:]))}, {window.nbytes / 1e3:.0f} kB each"
    if as_json:
        for row in rows:
            print(json.dumps({"model": path.name, "time_steps": steps, "cores": os.cpu_count(), **row}))
        return
    table = Table(*rows[0], title=f"{about}; {os.cpu_count()} cores")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
