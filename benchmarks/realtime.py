"""A station in real time: four receivers at 2.4 MS/s each, log-mel of each and all six correlations, inference with the
compiled model, fixes over ZeroMQ on loopback.

IQ of the simulated scene is made before, and handed over as a receiver would do it. CPU by block is that of the threads
of GNU Radio's scheduler, by its performance counters; inference has a thread of its own beside them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from localize_apps.graph import Listener, StationGraph
from localize_benchmarks.figures import Figure, Found, Settings
from localize_benchmarks.flowgraphs import Subscriber, free_endpoint, paced_source, percentiles_ms, wait_until
from localize_benchmarks.growth import example_station
from localize_benchmarks.machine import Busy, MemoryWatch
from localize_core.simulation.scene import Scene
from localize_core.station.config import PublishTable, Station, ZmqTable

RATE_HZ = 2.4e6
CORES = 2
BUFFER_S = 0.25
"""Of the scene, repeated: 4.8 MB a receiver."""
CHUNK_S = 0.005
COUNTED_S = 20.0
"""How long performance counters are trusted: they add up nanoseconds in single precision, which then no longer notices
calls of some microseconds."""


class _Replayed(StationGraph):
    """A station whose scene was made before."""

    def _sources(self, station: Station, duration_s: float | None, live: bool) -> Iterator[tuple[Any, int]]:
        assert station.scene is not None
        scene = Scene(
            station.scene,
            station.receiver,
            sample_rate_hz=station.station.sample_rate_hz,
            frequency_hz=station.station.frequency_hz,
        )
        samples = scene.samples(0, round(BUFFER_S * RATE_HZ))
        self.source = paced_source(samples, RATE_HZ, chunk=round(CHUNK_S * RATE_HZ), tagged=True)
        self.watched.append(self.source)
        yield from ((self.source, port) for port in range(len(station.receiver)))


def _shares(graph: _Replayed, seconds: float) -> dict[str, float]:
    """Cores that each block's thread keeps busy in work()."""
    found: dict[str, float] = {}
    for block in (graph.source, *graph.localizer.blocks):
        busy_s = block.to_basic_block().pc_work_time_total() * 1e-9
        found[block.name()] = found.get(block.name(), 0.0) + busy_s / seconds
    return found


def measure(settings: Settings) -> Iterator[Found]:
    # Read when a graph starts; the usual configuration file leaves them off.
    os.environ["GR_CONF_PERFCOUNTERS_ON"] = "True"
    endpoint = free_endpoint()
    station = example_station(RATE_HZ).model_copy(update={"publish": PublishTable(zmq=[ZmqTable(endpoint=endpoint)])})
    listener = Listener(lambda fix: None, lambda status: None, lambda: None)
    graph = _Replayed(station, listener, duration_s=None, live=True)
    subscriber = Subscriber(endpoint)
    graph.start()
    try:
        # time_align gathers two seconds before it lets samples go; what is busy until then is no measure.
        wait_until(lambda: listener.fixes > 0, "the first fix")
        late_before_s, graph.source.late_s = graph.source.late_s, 0.0
        dropped_before, before = graph.localizer.inference.dropped, _shares(graph, 1.0)
        busy, began_s = Busy(), time.monotonic()
        with MemoryWatch() as memory:
            counted_s = min(settings.seconds, COUNTED_S)
            time.sleep(counted_s)
            shares = {name: (busy_s - before[name]) / counted_s for name, busy_s in _shares(graph, 1.0).items()}
            time.sleep(settings.seconds - counted_s)
        own, others = busy.cores()
        taken_s = time.monotonic() - began_s
        late_s, behind_s = graph.source.late_s, graph.source.behind_s
        dropped = graph.localizer.inference.dropped - dropped_before
        graph.finish()
    finally:
        graph.stop()
        graph.wait()
        came = subscriber.finish()
    if graph.failure is not None:
        raise graph.failure
    contract, time_steps = graph.localizer.engine.contract, graph.localizer.engine.time_steps
    window_s = time_steps * contract.hop / RATE_HZ
    inference_cores = sum(each["inference_time_ms"] for each in came) * 1e-3 / taken_s
    latency_ms = percentiles_ms([each["latency_ms"] / 1e3 for each in came]) if came else []
    details = {
        "seconds": taken_s,
        "windows": len(came),
        "dropped_windows": dropped,
        "late_ms": 1e3 * late_s,
        "late_before_ms": 1e3 * late_before_s,
        "behind_at_the_end_ms": 1e3 * behind_s,
        "cores": own,
        "cores_of_others": others,
        "cores_by_block": shares,
        "cores_of_inference": inference_cores,
        "latency_ms": latency_ms,
        "n_fft": contract.n_fft,
        "hop": contract.hop,
        "rows": contract.rows,
    }
    # What a receiver would have had to throw away while the stream waited counts as lost.
    missed = int(behind_s / window_s)
    kept_up = f"{taken_s:.0f} s, {len(came)} fixes, frames of {contract.n_fft} samples every {contract.hop}"
    yield Figure("realtime", "windows lost", dropped + missed, "", goal="≤ 0", note=kept_up, details=details)
    yield Figure("realtime", "the stream was late at the end by", 1e3 * behind_s, "ms")
    parts = ", ".join(f"{name} {share:.2f}" for name, share in sorted(shares.items(), key=lambda each: -each[1]))
    yield Figure(
        "realtime",
        f"share of {CORES} cores",
        own / CORES,
        "",
        note=f"cores by block: {parts}, inference {inference_cores:.2f}; others on this machine {others:.2f}",
        details=details,
    )
    yield Figure(
        "realtime",
        "memory at the end",
        memory.late_mib,
        "MiB",
        peer="at the start",
        peer_value=memory.early_mib,
        ratio=memory.late_mib / memory.early_mib,
        goal="≤ 1.05",
        details={"memory_mib": memory.thinned_mib()},
    )
