from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from localize_core.geodesy import LocalFrame
from localize_core.types.fix import Fix, Position, Uncertainty

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
FRAME = LocalFrame(47.0, 8.0)


@pytest.fixture(scope="session")
def at() -> Callable[..., datetime]:
    """A time so many seconds after the start."""
    return lambda seconds: START + timedelta(seconds=float(seconds))


@pytest.fixture(scope="session")
def place() -> Callable[..., Position]:
    """Where a point east and north of 47, 8 lies."""

    def make(east_m: float, north_m: float, frame: LocalFrame = FRAME) -> Position:
        latitude, longitude = frame.to_wgs84(np.array([east_m, north_m], float))
        return Position(float(latitude), float(longitude))

    return make


@pytest.fixture(scope="session")
def plane() -> Callable[..., np.ndarray]:
    """East and north of a position there."""
    return lambda position, frame=FRAME: frame.to_enu_m(position.latitude, position.longitude, 0.0)[:2]


@pytest.fixture(scope="session")
def seen(make_fix, place, at) -> Callable[..., Fix]:
    """A fix so many seconds after the start, at a point east and north, or without a position where that is None."""

    def make(seconds, point_m, sigma_m=20.0, **changes) -> Fix:
        if point_m is None:
            return make_fix(timestamp=at(seconds), reason="no_emitter", **changes)
        ellipse = sigma_m if isinstance(sigma_m, Uncertainty) else Uncertainty(sigma_m, sigma_m, 0.0)
        return make_fix(timestamp=at(seconds), position=place(*point_m), uncertainty=ellipse, **changes)

    return make
