"""What the HTTP service shows: stations, their fixes, and the engine that answers requests, if there is one."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from localize_core.model.contract import Receiver
from localize_core.service.history import FixHistory
from localize_core.serving.engine import Engine
from localize_core.types.fix import Fix

if TYPE_CHECKING:
    from localize_core.station.config import Station

MAX_STATIONS = 1000
"""Names that are remembered from fixes alone."""


class RequestMetrics(Protocol):
    """Who counts requests and the fixes that answer them, see localize_core.metrics."""

    def fix(self, fix: Fix) -> None: ...

    def request_started(self, endpoint: str) -> None: ...

    def request_finished(self, endpoint: str, error_type: str | None, seconds: float) -> None: ...

    def render(self, accept: str | None) -> tuple[bytes, str]: ...


@dataclass(frozen=True)
class StationInfo:
    """A station as the map shows it. `area`: south, west, north, east in degrees."""

    name: str
    frequency_hz: float | None = None
    receivers: tuple[Receiver, ...] = ()
    area: tuple[float, float, float, float] | None = None


class Service:
    """Stations and their fixes, and an engine for requests.

    `engine`: answers requests, and tells its station's state and likelihood; None for a service that only shows fixes.
    `stations`: what is known of them beforehand; others are learned by name from their fixes. Threads may share it.
    """

    def __init__(
        self,
        *,
        engine: Engine | None = None,
        stations: tuple[StationInfo, ...] = (),
        history: FixHistory | None = None,
        metrics: RequestMetrics | None = None,
    ) -> None:
        self.engine = engine
        self.history = history or FixHistory()
        self.metrics = metrics
        self.started_s = time.monotonic()
        self._stations = {station.name: station for station in stations}
        self._learning = threading.Lock()

    def publish(self, fix: Fix) -> int:
        """Show a fix. Returns its cursor. Raises ConfigError for one that cannot be encoded."""
        if fix.station not in self._stations:
            with self._learning:
                if len(self._stations) < MAX_STATIONS:
                    self._stations.setdefault(fix.station, StationInfo(fix.station, fix.frequency_hz))
        return self.history.append(fix)

    def stations(self) -> list[dict[str, Any]]:
        """All stations as JSON has them, see `GET /stations`."""
        with self._learning:
            known = list(self._stations.values())
        return [self._as_dict(station) for station in known]

    def _as_dict(self, station: StationInfo) -> dict[str, Any]:
        own = self.engine if self.engine is not None and self.engine.station == station.name else None
        names = ("south", "west", "north", "east")
        return {
            "name": station.name,
            "frequency_hz": station.frequency_hz,
            "receivers": [receiver.model_dump() for receiver in station.receivers],
            "area": None if station.area is None else dict(zip(names, station.area, strict=True)),
            "state": "unknown" if own is None else own.health.state,
            "likelihood": own is not None and own.tells_likelihood,
        }


def station_service(station: Station, engine: Engine, *, metrics: RequestMetrics | None = None) -> Service:
    """The service of a station that runs, or whose model answers requests."""
    area = station.area
    info = StationInfo(
        name=engine.station,
        frequency_hz=station.station.frequency_hz,
        receivers=engine.contract.receivers,
        area=(area.south, area.west, area.north, area.east),
    )
    history = None if station.http is None else FixHistory(station.http.history)
    return Service(engine=engine, stations=(info,), history=history, metrics=metrics)


def model_service(engine: Engine, *, metrics: RequestMetrics | None = None) -> Service:
    """The service of a model without a station file, which knows its receivers by its contract."""
    info = StationInfo(engine.station, engine.contract.frequency_hz, engine.contract.receivers)
    return Service(engine=engine, stations=(info,), metrics=metrics)
