"""What a running station shows to those who come and ask: map, fixes and inference over HTTP, and metrics."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from localize_core.errors import PublishError
from localize_core.serving.engine import Engine
from localize_core.station.config import Station
from localize_core.types.fix import Fix

if TYPE_CHECKING:
    from localize_core.metrics.sinks import CountingSink

TCP_ENDPOINT = re.compile(r"tcp://(?P<host>\*|localhost|[\d.]+|\[[\da-fA-F:.]+\]):(?P<port>\*|\d+)")
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


def check_outlets(station: Station, before: Station | None = None) -> None:
    """Look whether a station could be served, in the place of `before` where that runs and goes on meanwhile.

    Raises ConfigError, MissingExtraError and PublishError as far as that shows: for a token, packages, and addresses
    that `before` does not have.
    """
    if station.http is not None or station.metrics is not None:
        import localize_core.metrics.metrics  # noqa: F401  of an extra
    if station.http is not None:
        station.http.settings.check()
    held = set() if before is None else {port for _, port in _addresses(before).values()}
    for key, (host, port) in _addresses(station).items():
        reason = "" if port == 0 or port in held else why_not_free(host, port)
        if reason:
            raise PublishError(f"{key}: cannot listen at {host} port {port}: {reason}")


def why_not_free(host: str, port: int) -> str:
    """Why no server can listen there, empty where one can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _addresses(station: Station) -> dict[str, tuple[str, int]]:
    """Where a station listens over TCP, by key: host and port, 0 for any."""
    found = {}
    if station.http is not None:
        found["http.port"] = (station.http.host, station.http.port)
    if station.metrics is not None:
        found["metrics.port"] = (station.metrics.host, station.metrics.port)
    endpoints = {f"publish.zmq[{index}].endpoint": table.endpoint for index, table in enumerate(station.publish.zmq)}
    if station.control is not None:
        endpoints["control.endpoint"] = station.control.endpoint
    for key, endpoint in endpoints.items():
        # An interface's name is an address to ZeroMQ, too, and nothing is known of it here.
        if parts := TCP_ENDPOINT.fullmatch(endpoint):
            host, port = parts["host"], parts["port"]
            found[key] = ("0.0.0.0" if host == "*" else host.strip("[]"), 0 if port == "*" else int(port))
    return found
