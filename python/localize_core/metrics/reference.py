"""What a reference emitter tells of receivers' clocks, as metrics. It is read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from localize_core.metrics.families import StationFamilies
from localize_core.serving.engine import Engine

FIGURES = {
    "offset_seconds": (
        "offset_s",
        1.0,
        "The common time minus its own time stamps: positive where its clock is behind.",
    ),
    "drift_ratio": ("drift_ppm", 1e-6, "How slow its clock is against the common time."),
    "residual_seconds": ("residual_ns", 1e-9, "Rms of what its measurements of delay were off."),
    "error_seconds": ("error_ns", 1e-9, "Standard error of its time."),
}
"""Metric, key of the report, what that is to be multiplied by, and meaning."""


class ReferenceCollector(Collector):
    """Metrics of the reference that the engine which is watched hears of; without one, they have no values."""

    def __init__(self, station: str) -> None:
        self._make = StationFamilies(station)
        self.engine: Engine | None = None

    def collect(self) -> Iterator[Metric]:
        told: Mapping[str, Mapping[str, Any]] = (
            None if self.engine is None else self.engine.observed("reference")
        ) or {}
        make = self._make
        locked = {name: figures["locked"] for name, figures in told.items()}
        yield make.gauge("reference_locked", "1 while a receiver's clock is known.", locked, ("receiver",))
        base = {name: figures["base"] for name, figures in told.items()}
        yield make.gauge("reference_base", "1 for the receiver that others are compared with.", base, ("receiver",))
        losses = {name: figures["losses"] for name, figures in told.items()}
        yield make.counter("reference_losses", "How often a receiver's clock was lost.", losses, ("receiver",))
        for name, (key, scale, help_text) in FIGURES.items():
            values = {each: figures[key] * scale for each, figures in told.items() if figures.get(key) is not None}
            yield make.gauge(f"reference_{name}", help_text, values, ("receiver",))
        ratios = {
            name: 10.0 ** (figures["snr_db"] / 10.0)
            for name, figures in told.items()
            if figures.get("snr_db") is not None
        }
        yield make.gauge(
            "reference_snr_ratio", "Power of the reference to the noise in its band.", ratios, ("receiver",)
        )
