"""What a running station shows to those who come and ask: map, fixes and inference over HTTP, and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from localize_core.serving.engine import Engine
from localize_core.station.config import Station
from localize_core.types.fix import Fix

if TYPE_CHECKING:
    from localize_core.metrics.sinks import CountingSink

OnServing = Callable[[str, str], None]
"""What is served, `map` or `metrics`, and its URL."""


@contextmanager
def outlets(
    station: Station, engine: Engine, sinks: Mapping[str, CountingSink], on_serving: OnServing
) -> Iterator[Callable[[Fix], None]]:
    """Serve what the station's `[http]` and `[metrics]` ask for. What is yielded wants to be told of every fix.

    `sinks`: by the names that metrics are to have for them. Raises ConfigError for a token that cannot be read or an
    address that others could reach without one, PublishError for an address that cannot be had, MissingExtraError.
    """
    if station.http is None and station.metrics is None:
        yield lambda fix: None
        return
    # The packages of these are extras.
    from localize_core.metrics.metrics import Metrics

    metrics = Metrics(engine.station)
    metrics.watch(engine)
    for name, sink in sinks.items():
        metrics.watch_sink(name, sink)
    told: list[Callable[[Fix], object]] = [metrics.fix]
    with ExitStack() as serving:
        http = None if station.http is None else station.http.settings
        if http is not None:
            http.check()  # before anything is served
        if station.metrics is not None:
            from localize_core.metrics.server import MetricsServer

            scraped = MetricsServer(metrics, station.metrics.host, station.metrics.port)
            scraped.start()
            serving.callback(scraped.stop)
            on_serving("metrics", scraped.url)
        if http is not None:
            from localize_core.service.server import HttpServer
            from localize_core.service.service import station_service

            service = station_service(station, engine, metrics=metrics)
            server = HttpServer(service, http)
            server.start()
            serving.callback(server.stop)
            told.append(service.publish)
            on_serving("map", server.url)

        def tell(fix: Fix) -> None:
            for each in told:
                each(fix)

        yield tell
