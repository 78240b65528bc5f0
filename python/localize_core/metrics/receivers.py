"""What becomes of a live station's receivers, as metrics. It is read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from localize_core.metrics.families import StationFamilies
from localize_core.receivers.supervisor import State
from localize_core.serving.engine import Engine


class ReceiverCollector(Collector):
    """Metrics of the receivers that the engine which is watched hears of; without any, they have no values."""

    def __init__(self, station: str) -> None:
        self._make = StationFamilies(station)
        self.engine: Engine | None = None

    def collect(self) -> Iterator[Metric]:
        told: Mapping[str, Mapping[str, Any]] = (
            None if self.engine is None else self.engine.observed("receivers")
        ) or {}

        def by_receiver(figure: str) -> dict[str, float]:
            return {receiver: figures[figure] for receiver, figures in told.items()}

        def by_stage(receiver: str, buffer: str) -> dict[tuple[str, str], float]:
            return {
                (name, stage): figures[figure]
                for name, figures in told.items()
                for stage, figure in (("receiver", receiver), ("buffer", buffer))
            }

        make = self._make
        states = {
            (name, state): figures["state"] == state for name, figures in told.items() for state in get_args(State)
        }
        yield make.gauge("receiver_state", "1 for the state that a receiver is in.", states, ("receiver", "state"))
        yield make.counter(
            "receiver_restarts", "How often a receiver has streamed anew.", by_receiver("restarts"), ("receiver",)
        )
        yield make.counter("receiver_samples", "Samples that came.", by_receiver("taken"), ("receiver",))
        yield make.counter(
            "receiver_samples_lost",
            "Samples that never came, and those that the station had no room for.",
            by_stage("lost", "dropped"),
            ("receiver", "stage"),
        )
        yield make.counter(
            "receiver_gaps", "How often samples were lost.", by_stage("gaps", "overflows"), ("receiver", "stage")
        )
        yield make.gauge(
            "receiver_samples_waiting",
            "Samples that wait for the station's graph.",
            by_receiver("waiting"),
            ("receiver",),
        )
