"""Inference ten times too slow for a live stream: it runs on, memory stays, and every window is accounted for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from localize_benchmarks.figures import Figure, Found, Settings
from localize_benchmarks.flowgraphs import (
    STEPS,
    WINDOWS_PER_S,
    WindowGraph,
    calibrated_model,
    fix_listener,
    wait_until,
    window_contract,
)
from localize_benchmarks.machine import Busy, MemoryWatch

SLOWER = 10.0
LEAST_WINDOWS = 50


def measure(settings: Settings) -> Iterator[Found]:
    offered = max(round(settings.seconds * WINDOWS_PER_S), LEAST_WINDOWS)
    fixes: list[int] = []
    contract = window_contract(1)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        calibrated_model(model, contract, SLOWER / WINDOWS_PER_S)
        graph = WindowGraph(model, contract, total_windows=offered)
        listener = fix_listener(lambda fix: fixes.append(fix.dropped_windows))
        graph.msg_connect(graph.inference, "fix", listener, "fix")
        busy = Busy()
        graph.start()
        try:
            with MemoryWatch() as memory:
                wait_until(
                    lambda: graph.inference.nitems_read(0) >= offered * STEPS,
                    "the end of the stream",
                    timeout_s=3.0 * offered / WINDOWS_PER_S + 30.0,
                )
            own, others = busy.cores()
            graph.inference.finish(60.0)
            wait_until(lambda: len(fixes) >= graph.inference.published, "the last fix")
        finally:
            graph.source.ended.set()
            graph.stop()
            graph.wait()
    served, dropped, told = graph.inference.published, graph.inference.dropped, sum(fixes)
    yield Figure(
        "overload",
        "windows served and dropped",
        served + dropped,
        "",
        peer="offered",
        peer_value=offered,
        ratio=(served + dropped) / offered,
        goal="= 1",
        note=f"{served} served, {dropped} dropped; the fixes themselves tell of {told}",
        details={"offered": offered, "served": served, "dropped": dropped, "dropped_as_fixes_say": told},
    )
    yield Figure(
        "overload",
        "the stream was late by at most",
        1e3 * graph.source.late_s,
        "ms",
        note=f"{own:.2f} cores busy, others {others:.2f}",
        details={"cores": own, "cores_of_others": others},
    )
    yield Figure(
        "overload",
        "memory at the end",
        memory.late_mib,
        "MiB",
        peer="at the start",
        peer_value=memory.early_mib,
        ratio=memory.late_mib / memory.early_mib,
        goal="≤ 1.05",
        details={"memory_mib": memory.thinned_mib()},
    )
