"""What has become of fixes in their sinks, as metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from localize_core.errors import ConfigError
from localize_core.metrics.families import StationFamilies


class CountingSink(Protocol):
    """A FixSink as far as it counts, or a block that has one."""

    @property
    def sent(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    @property
    def backlog(self) -> int: ...


class SinkCollector(Collector):
    """Metrics of sinks, by name."""

    def __init__(self, station: str) -> None:
        self._make = StationFamilies(station)
        self._sinks: dict[str, CountingSink] = {}

    def add(self, name: str, sink: CountingSink) -> None:
        """Raises ConfigError where a sink of that name is there already."""
        if name in self._sinks:
            raise ConfigError(f"sink {name!r}: there are metrics of one with this name already")
        self._sinks[name] = sink

    def collect(self) -> Iterator[Metric]:
        sinks = dict(self._sinks)
        sent = {name: sink.sent for name, sink in sinks.items()}
        dropped = {name: sink.dropped for name, sink in sinks.items()}
        backlog = {name: sink.backlog for name, sink in sinks.items()}
        yield self._make.counter("sink_sent", "Fixes that a sink has handed over.", sent, ("sink",))
        yield self._make.counter("sink_dropped", "Fixes that were lost in a sink.", dropped, ("sink",))
        yield self._make.gauge("sink_backlog", "Fixes that wait in a sink to be handed over.", backlog, ("sink",))
