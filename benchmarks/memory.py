"""Resident memory of a whole station: the example of four receivers in real time, fixes over ZeroMQ to a subscriber."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from localize_apps.runner import run_station
from localize_benchmarks.figures import Figure, Found, Settings
from localize_benchmarks.flowgraphs import Subscriber, free_endpoint
from localize_benchmarks.growth import EXAMPLE
from localize_benchmarks.machine import MemoryWatch
from localize_core.resources import shared_file
from localize_core.station.config import PublishTable, ZmqTable, load_station
from localize_core.types.fix import Fix


def measure(settings: Settings) -> Iterator[Found]:
    endpoint = free_endpoint()
    station = load_station(shared_file(EXAMPLE)).model_copy(
        update={"publish": PublishTable(zmq=[ZmqTable(endpoint=endpoint)])}
    )
    subscriber, stopped, fixes = Subscriber(endpoint), threading.Event(), []
    watch = MemoryWatch(1.0)

    def count(fix: Fix) -> None:
        if not fixes:  # all that a start takes is there by now
            watch.__enter__()
            threading.Timer(settings.seconds, stopped.set).start()
        fixes.append(fix.sequence)

    result = run_station(station, on_fix=count, stopped=stopped)
    watch.__exit__()
    came = subscriber.finish()
    if result.failure is not None:
        raise result.failure
    yield Figure(
        "memory",
        "of a station with four receivers at the end",
        watch.late_mib,
        "MiB",
        peer="after a tenth of the time",
        peer_value=watch.early_mib,
        ratio=watch.late_mib / watch.early_mib,
        goal="≤ 1.02",
        note=f"{settings.seconds:.0f} s, {len(fixes)} fixes, {len(came)} of them with the subscriber, "
        f"{result.dropped_windows} windows dropped",
        details={"memory_mib": watch.thinned_mib(), "fixes": len(fixes)},
    )
