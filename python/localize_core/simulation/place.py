"""Places of receivers."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Placed(Protocol):
    """A receiver, as far as a scene is concerned. Degrees on WGS84, metres."""

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
