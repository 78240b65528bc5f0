"""All metrics of a station: what others have counted, read when somebody scrapes, and how long things take."""

from __future__ import annotations

import threading

import onnxruntime

from localize_core import __version__
from localize_core.engine.instruments import Stage
from localize_core.errors import MissingExtraError
from localize_core.serving.engine import Engine
from localize_core.types.fix import Fix

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise MissingExtraError("metrics", "metrics") from error

from localize_core.metrics.engine import EngineCollector
from localize_core.metrics.families import PREFIX, histogram
from localize_core.metrics.fixes import FixMetrics
from localize_core.metrics.receivers import ReceiverCollector
from localize_core.metrics.recorder import RecorderCollector
from localize_core.metrics.reference import ReferenceCollector
from localize_core.metrics.sinks import CountingSink, SinkCollector

MOST_VALUES = 100
"""Of a label that comes from outside; any others are OTHER."""
OTHER = "other"


class Metrics:
    """Metrics of `station`, in a registry of their own. Threads may share them.

    `watch` an engine and its sinks, tell of each `fix` that is published and of each request to a service; `render` is
    what a scrape gets. This module raises MissingExtraError where the extra `metrics` is missing.
    """

    def __init__(self, station: str) -> None:
        self.station = station
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Gauge(
            f"{PREFIX}build_info",
            "1, with the versions that run.",
            ("station", "version", "onnxruntime"),
            registry=self.registry,
        )
        build.labels(station, __version__, onnxruntime.__version__).set(1)
        self._sinks = SinkCollector(station)
        self._of_engine = (
            EngineCollector(station),
            ReceiverCollector(station),
            ReferenceCollector(station),
            RecorderCollector(station),
        )
        for collector in (self._sinks, *self._of_engine):
            self.registry.register(collector)
        self._fixes = FixMetrics(self.registry)
        self._stages = {
            "preprocessing": self._duration("preprocessing", "From a request's samples or features to a window."),
            "queue": self._duration("queue", "From a stream's window being complete to its being taken up."),
            "inference": self._duration("inference", "From a window being taken up, or from a request, to the answer."),
        }
        self._model_run = self._durations(
            "model_run", "One run of the model, or call to an inference server.", "backend"
        )
        self._request = self._durations("request", "From a request to the service to its answer.", "endpoint")
        self._requests = Counter(
            f"{PREFIX}requests", "Requests to the service.", ("station", "endpoint"), registry=self.registry
        )
        self._request_errors = Counter(
            f"{PREFIX}request_errors",
            "Requests to the service that were answered with an error.",
            ("station", "endpoint", "type"),
            registry=self.registry,
        )
        self._active = Gauge(
            f"{PREFIX}requests_active", "Requests that are being answered.", ("station",), registry=self.registry
        ).labels(station)
        self._known: dict[str, set[str]] = {"endpoint": set(), "type": set()}
        self._lock = threading.Lock()

    def _durations(self, name: str, help_text: str, *labels: str) -> Histogram:
        return histogram(self.registry, f"{name}_duration_seconds", help_text, ("station", *labels))

    def _duration(self, name: str, help_text: str) -> Histogram:
        return self._durations(name, help_text).labels(self.station)

    # What is measured

    def watch(self, engine: Engine) -> None:
        """Export what the engine counts, and have it tell how long everything takes. One engine at a time."""
        for collector in self._of_engine:
            collector.engine = engine
        engine.instrument(self)

    def watch_sink(self, name: str, sink: CountingSink) -> None:
        """Export what a sink counts, under a name such as `redis-2`. Raises ConfigError for a name that is taken."""
        self._sinks.add(name, sink)

    def fix(self, fix: Fix) -> None:
        """A fix that is published, of a stream or a request. To be told of each once."""
        self._fixes.add(fix)

    def observe(self, stage: Stage, seconds: float, *, count: int = 1, backend: str = "") -> None:
        """As Instruments of an engine."""
        taken = self._model_run.labels(self.station, backend) if stage == "model_run" else self._stages[stage]
        for _ in range(count):
            taken.observe(seconds)

    def request_started(self, endpoint: str) -> None:
        """A request has come; `endpoint`: what was asked for, such as the path of its route."""
        self._requests.labels(self.station, self._bounded("endpoint", endpoint)).inc()
        self._active.inc()

    def request_finished(self, endpoint: str, error_type: str | None, seconds: float) -> None:
        """It was answered after so long; with an error of that type, or None."""
        endpoint = self._bounded("endpoint", endpoint)
        self._active.dec()
        self._request.labels(self.station, endpoint).observe(seconds)
        if error_type is not None:
            self._request_errors.labels(self.station, endpoint, self._bounded("type", error_type)).inc()

    def _bounded(self, label: str, value: str) -> str:
        """The value, as long as there are not too many: each has series of its own for as long as the process lives."""
        known = self._known[label]
        if value not in known:
            with self._lock:
                if len(known) >= MOST_VALUES:
                    return OTHER
                known.add(value)
        return value

    # What is shown

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """All metrics, and their content type: OpenMetrics where the header `Accept` wants it, else plain text."""
        encode, content_type = choose_encoder(accept or "")
        return encode(self.registry), content_type
