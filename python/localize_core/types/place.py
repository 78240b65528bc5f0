"""Places of receivers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from localize_core.errors import ConfigError


class Placed(Protocol):
    """A receiver, as far as its place goes. Degrees on WGS84, metres."""

    @property
    def name(self) -> str: ...
    @property
    def latitude(self) -> float: ...
    @property
    def longitude(self) -> float: ...
    @property
    def altitude_m(self) -> float: ...


class Place(NamedTuple):
    """A named place; the plainest thing that is `Placed`."""

    name: str
    latitude: float
    longitude: float
    altitude_m: float = 0.0


def place_of(receiver: tuple[Any, ...]) -> Place:
    """A place of (name, latitude, longitude[, altitude_m]). Raises ConfigError."""
    try:
        name, *numbers = receiver
        place = Place(str(name), *(float(number) for number in numbers))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"receiver {receiver!r}: must be (name, latitude, longitude[, altitude_m])") from error
    if not (abs(place.latitude) <= 90.0 and abs(place.longitude) <= 180.0 and math.isfinite(place.altitude_m)):
        raise ConfigError(f"receiver {receiver!r}: latitude and longitude are WGS84 degrees, altitude_m is metres")
    return place
