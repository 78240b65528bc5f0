"""From the moment a window is complete to the moment a subscriber in another process has its fix.

IQ of one receiver with log-mel, and of four with both features; 100 windows a second, a model that takes 2 ms, ZeroMQ
on loopback. The clock starts when the source hands over the window's last samples, and is the same in all processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gnuradio import localize
from localize_benchmarks.figures import Figure, Found, Settings
from localize_benchmarks.flowgraphs import (
    Subscriber,
    WindowGraph,
    calibrated_model,
    free_endpoint,
    percentiles_ms,
    wait_until,
    window_contract,
)
from localize_benchmarks.machine import Busy

MODEL_S = 0.002
GOALS_MS = {"P50": 4, "P95": 10, "P99": 25}
RECEIVERS = (1, 4)
LEAST_FIXES = 50
WARM_S = 1.0
"""Left out at the start: threads wake for the first time, the subscriber connects."""


def measure(settings: Settings) -> Iterator[Found]:
    for n_receivers in RECEIVERS:
        yield from _measure(settings, n_receivers)


def _measure(settings: Settings, n_receivers: int) -> Iterator[Found]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        contract = window_contract(n_receivers)
        calibrated_model(model, contract, MODEL_S)
        graph = WindowGraph(model, contract)
        endpoint = free_endpoint()
        sink = localize.zmq_fix_sink(endpoint)
        graph.msg_connect(graph.inference, "fix", sink, "fix")
        subscriber = Subscriber(endpoint)
        graph.start()
        try:
            wait_until(lambda: graph.inference.published > 0, "the first fix")
            time.sleep(WARM_S)
            first, busy, before = len(graph.source.stamps_s), Busy(), graph.inference.published
            time.sleep(settings.seconds)
            wait_until(lambda: graph.inference.published >= before + LEAST_FIXES, f"{LEAST_FIXES} fixes")
            own, others = busy.cores()
            graph.inference.finish(5.0)
            wait_until(lambda: sink.sent + sink.dropped >= graph.inference.published, "the last fix")
        finally:
            graph.stop()
            graph.wait()
            came = subscriber.finish()
    judged = [each for each in came if each["sequence"] >= first]
    if not judged:
        raise RuntimeError("no fix reached the subscriber")
    stamps_s = graph.source.stamps_s
    found_ms = percentiles_ms([each["arrived_s"] - stamps_s[each["sequence"]] for each in judged])
    told_ms = percentiles_ms([each["latency_ms"] / 1e3 for each in judged])
    inference_ms = float(np.median([each["inference_time_ms"] for each in judged]))
    details = {
        "fixes": len(judged),
        "dropped_windows": graph.inference.dropped,
        "windows_per_s": len(judged) / (judged[-1]["arrived_s"] - judged[0]["arrived_s"]) if len(judged) > 1 else 0.0,
        "inference_ms": inference_ms,
        "told_latency_ms": told_ms,
        "cores": own,
        "cores_of_others": others,
        "source_late_ms": 1e3 * graph.source.late_s,
    }
    for (name, goal), value in zip(GOALS_MS.items(), found_ms, strict=True):
        note = ""
        if name == "P50":
            note = (
                f"{len(judged)} fixes, {graph.inference.dropped} windows dropped, inference {inference_ms:.1f} ms; "
                f"from the window's last features to publication, which fixes say, {told_ms[0]:.1f} / {told_ms[1]:.1f} "
                f"/ {told_ms[2]:.1f} ms; {own:.2f} cores busy, others {others:.2f}"
            )
        what = f"window complete to subscriber, {n_receivers} receiver{'s' * (n_receivers > 1)}, {name}"
        yield Figure("latency", what, value, "ms", goal=f"≤ {goal}", note=note, details=details)
