"""Where the emitter is at a given time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from localize_core.geodesy import GEOD, MEAN_RADIUS_M

Floats = NDArray[np.float64]


class Track:
    """A way along points at constant speed: straight in latitude and longitude between points.

    `points`: (latitude, longitude) in degrees. With `loop` the way leads from the last point back to the first,
    again and again; without it the emitter stops at the last point.
    """

    def __init__(self, points: Sequence[tuple[float, float]], *, speed_mps: float, loop: bool) -> None:
        corners = np.asarray([*points, points[0]] if loop else points, np.float64)
        self._latitude = corners[:, 0]
        self._longitude = np.unwrap(corners[:, 1], period=360.0)
        legs_m = [
            GEOD.inv(lon, lat, next_lon, next_lat)[2] for (lat, lon), (next_lat, next_lon) in pairwise(corners.tolist())
        ]
        self._mileage_m = np.concatenate([[0.0], np.cumsum(legs_m)])
        self._speed_mps = speed_mps
        self._loop = loop

    @property
    def length_m(self) -> float:
        return float(self._mileage_m[-1])

    @property
    def moving(self) -> bool:
        return self._speed_mps > 0.0 and self.length_m > 0.0

    def position(self, elapsed_s: Floats) -> tuple[Floats, Floats]:
        """Latitude and longitude in degrees, `elapsed_s` seconds after the start; before it with a loop's past."""
        travelled_m = self._speed_mps * np.asarray(elapsed_s, np.float64)
        if self._loop and self.length_m > 0.0:
            travelled_m = travelled_m % self.length_m
        return self.along(travelled_m)

    def along(self, travelled_m: Floats) -> tuple[Floats, Floats]:
        """Latitude and longitude in degrees, so far along the way; its ends beyond them."""
        latitude = np.interp(travelled_m, self._mileage_m, self._latitude)
        longitude = np.interp(travelled_m, self._mileage_m, self._longitude)
        return latitude, (longitude + 180.0) % 360.0 - 180.0


def distance_m(latitude: Floats, longitude: Floats, altitude_m: float, other: tuple[Floats, Floats, Floats]) -> Floats:
    """Length of the path from places to `other` = (latitude, longitude, altitude_m), all broadcast, metres.

    The geodesic at the mean of both heights and the height difference at right angles: within centimetres of the
    straight line up to 30 km, and along the ground beyond the horizon.
    """
    ends = np.broadcast_arrays(longitude, latitude, other[1], other[0])
    surface_m = np.reshape(GEOD.inv(*(end.ravel().tolist() for end in ends))[2], ends[0].shape)
    mean_height_m = (altitude_m + other[2]) / 2.0
    result: Floats = np.hypot(surface_m * (1.0 + mean_height_m / MEAN_RADIUS_M), altitude_m - other[2])
    return result
