"""How metrics are made: with one prefix, in base units, mostly out of what is counted elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX = "localize_"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of durations."""
UNITS = ("bytes", "metres", "ratio", "seconds")
"""That names may end in."""

Values = Mapping[Any, float]
"""By the label's value, or a tuple of the labels' values."""


def counter(name: str, help_text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """A count that only grows, `localize_NAME_total`."""
    return _filled(CounterMetricFamily(PREFIX + name, help_text, labels=labels, unit=unit_of(name)), values)


def gauge(name: str, help_text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """A value that goes up and down, `localize_NAME`."""
    return _filled(GaugeMetricFamily(PREFIX + name, help_text, labels=labels, unit=unit_of(name)), values)


def histogram(
    registry: CollectorRegistry,
    name: str,
    help_text: str,
    labels: tuple[str, ...],
    buckets: tuple[float, ...] = SECONDS,
) -> Histogram:
    """Values to be observed, `localize_NAME`, in a registry."""
    unit = unit_of(name)
    return Histogram(PREFIX + name, help_text, labels, unit=unit, buckets=buckets, registry=registry)


def unit_of(name: str) -> str:
    """Of a metric; empty for a plain number."""
    return next((unit for unit in UNITS if name.endswith(f"_{unit}")), "")


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family


class StationFamilies:
    """Makes metrics whose first label is one station. Values: one number, None for none, or as above without it."""

    def __init__(self, station: str) -> None:
        self._station = station

    def counter(self, name: str, help_text: str, values: Values | float | None, labels: tuple[str, ...] = ()) -> Metric:
        return counter(name, help_text, ("station", *labels), self._keyed(values))

    def gauge(self, name: str, help_text: str, values: Values | float | None, labels: tuple[str, ...] = ()) -> Metric:
        return gauge(name, help_text, ("station", *labels), self._keyed(values))

    def _keyed(self, values: Values | float | None) -> Values:
        if not isinstance(values, Mapping):
            return {} if values is None else {self._station: values}
        return {(self._station, *((key,) if isinstance(key, str) else key)): value for key, value in values.items()}
