"""What becomes of a station's recording, as metrics. It is read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from localize_core.metrics.families import StationFamilies
from localize_core.recorder.stream_recorder import Phase
from localize_core.serving.engine import Engine

COUNTS = {
    "samples": ("samples", "Samples of a receiver in files."),
    "written_bytes": ("bytes", "Bytes of them in files."),
    "files": ("files", "Parts of a recording that were begun."),
    "files_removed": ("files_removed", "Parts that had to go, so that limits are kept."),
}
"""Of each receiver: metric, key of the report and meaning."""


class RecorderCollector(Collector):
    """Metrics of the recorder that the engine which is watched hears of; without one, they have no values."""

    def __init__(self, station: str) -> None:
        self._make = StationFamilies(station)
        self.engine: Engine | None = None

    def collect(self) -> Iterator[Metric]:
        told: Mapping[str, Any] = (None if self.engine is None else self.engine.observed("recorder")) or {}
        receivers: Mapping[str, Mapping[str, Any]] = told.get("receivers", {})
        make = self._make
        states = {
            (name, state): figures["state"] == state for name, figures in receivers.items() for state in get_args(Phase)
        }
        yield make.gauge(
            "recorder_state", "1 for the state that a receiver's recording is in.", states, ("receiver", "state")
        )
        for name, (key, help_text) in COUNTS.items():
            values = {receiver: figures[key] for receiver, figures in receivers.items()}
            yield make.counter(f"recorder_{name}", help_text, values, ("receiver",))
        lost = {
            (receiver, stage): figures[f"lost_{stage}"]
            for receiver, figures in receivers.items()
            for stage in ("queue", "disk")
        }
        yield make.counter(
            "recorder_samples_lost",
            "Samples that are in no file: the disk was too slow for them, or did not take them.",
            lost,
            ("receiver", "stage"),
        )
        yield make.gauge("recorder_disk_free_bytes", "Left on the disk of the recording.", told.get("free_bytes"))
