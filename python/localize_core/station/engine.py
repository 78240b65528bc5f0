"""The engine that a station file asks for, in a flowgraph or behind a server."""

from __future__ import annotations

from pathlib import Path

from localize_core.cache.settings import CacheSettings
from localize_core.model.contract import Contract
from localize_core.model.store import compiled_model_path
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.serving.engine import Engine
from localize_core.station.config import ModelTable, Station
from localize_core.station.plan import arrival_geometry, fit_station, plan_station


def station_engine(
    station: Station, *, name: str = "", min_confidence: float | None = None, cache: CacheSettings | None
) -> tuple[Engine, int, int]:
    """The engine, still to be prepared; frames in a window, and from one window to the next.

    `name` and `min_confidence`: the station's own where left out. The model is compiled where the station asks for it.
    Raises ConfigError, ModelError, RegistryError, UnavailableError or SourceError.
    """
    settings = station.model
    plan = plan_station(station) if "compiled" in (settings.uri, settings.fallback) else None
    compiled = None if plan is None else compiled_model_path(plan.spec)
    name = name or station.station.name
    geometry = arrival_geometry(station) if plan is None else ArrivalGeometry.of_spec(plan.spec)
    engine = model_engine(
        settings, name=name, min_confidence=min_confidence, cache=cache, compiled=compiled, geometry=geometry
    )
    if plan is not None and settings.uri == "compiled":
        return engine, plan.time_steps, plan.window_hop
    return engine, *fit_station(station, engine.contract)


def station_frames(station: Station, contract: Contract) -> tuple[int, int]:
    """Frames in a window of the station, and from one window to the next. Raises as `station_engine` does."""
    if station.model.uri == "compiled":
        plan = plan_station(station)
        return plan.time_steps, plan.window_hop
    return fit_station(station, contract)


def model_engine(
    settings: ModelTable,
    *,
    name: str = "",
    min_confidence: float | None = None,
    cache: CacheSettings | None,
    compiled: Path | None = None,
    geometry: ArrivalGeometry | None = None,
) -> Engine:
    """The engine of a model. Raises as Engine does."""
    return Engine(
        settings,
        compiled=compiled,
        station=name,
        min_confidence=settings.min_confidence if min_confidence is None else min_confidence,
        probability=settings.probability,
        cache=cache,
        geometry=geometry,
    )
