"""WGS84 geometry: the local tangent frame in which models answer, and its way back to degrees.

The frame `enu_m` of an origin holds (east, north) coordinates in the plane tangent to the ellipsoid there; a point
(e, n) means the place on the ellipsoid (raised by the frame's altitude) straight below or above it. Near the origin
this is the usual east-north plane, far from it an orthographic map that stays exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from pyproj import Geod, Transformer
from pyproj.enums import TransformDirection

from localize_core.errors import ConfigError

WGS84_SEMI_MAJOR_M = 6378137.0
WGS84_FLATTENING = 1.0 / 298.257223563
MEAN_RADIUS_M = 6371008.8
SPEED_OF_LIGHT_MPS = 299792458.0
GEOD = Geod(ellps="WGS84")


@lru_cache(maxsize=1)
def _geodetic_to_ecef() -> Transformer:
    return Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)


def _transform(x: np.ndarray, y: np.ndarray, z: np.ndarray, *, inverse: bool = False) -> list[np.ndarray]:
    """Longitude, latitude, altitude to Earth-centred coordinates, or back; shapes are kept."""
    # pyproj takes arrays of one element for scalars: lists it takes for what they are.
    xx, yy, zz = (np.asarray(value, float).ravel().tolist() for value in (x, y, z))
    direction = TransformDirection.INVERSE if inverse else TransformDirection.FORWARD
    results = _geodetic_to_ecef().transform(xx, yy, zz, direction=direction)
    return [np.reshape(result, np.shape(x)) for result in results]


def ecef_m(latitude: np.ndarray | float, longitude: np.ndarray | float, altitude_m: np.ndarray | float) -> np.ndarray:
    """Earth-centred coordinates of WGS84 places: shape of the broadcast inputs plus (3,), metres."""
    latitude, longitude, altitude_m = np.broadcast_arrays(latitude, longitude, altitude_m)
    return np.stack(_transform(longitude, latitude, altitude_m), axis=-1)


@dataclass(frozen=True)
class LocalFrame:
    """East-north-up frame at a WGS84 origin. `altitude_m` lifts the ellipsoid on which plane points lie."""

    latitude: float
    longitude: float
    altitude_m: float = 0.0

    def __post_init__(self) -> None:
        if not (-90.0 <= self.latitude <= 90.0 and -180.0 <= self.longitude <= 180.0):
            raise ConfigError(f"frame origin {self.latitude}, {self.longitude}: not a WGS84 place in degrees")

    @cached_property
    def axes(self) -> np.ndarray:
        """Rows are the east, north and up unit vectors in Earth-centred coordinates, shape (3, 3)."""
        lat, lon = math.radians(self.latitude), math.radians(self.longitude)
        return np.array(
            [
                [-math.sin(lon), math.cos(lon), 0.0],
                [-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)],
                [math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)],
            ]
        )

    @cached_property
    def origin_ecef_m(self) -> np.ndarray:
        return ecef_m(self.latitude, self.longitude, self.altitude_m)

    def to_enu_m(
        self, latitude: np.ndarray | float, longitude: np.ndarray | float, altitude_m: np.ndarray | float
    ) -> np.ndarray:
        """East, north, up of WGS84 places: shape (..., 3), metres."""
        return (ecef_m(latitude, longitude, altitude_m) - self.origin_ecef_m) @ self.axes.T

    def to_wgs84(self, east_north_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude in degrees of plane points, (..., 2) metres, on the lifted ellipsoid."""
        east_north_m = np.asarray(east_north_m, float)
        up = surface_up_m(self, east_north_m)
        xyz = self.origin_ecef_m + np.concatenate([east_north_m, up[..., None]], axis=-1) @ self.axes
        longitude, latitude, _ = _transform(xyz[..., 0], xyz[..., 1], xyz[..., 2], inverse=True)
        return latitude, longitude

    def to_geodetic(self, enu_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latitude and longitude in degrees and altitude in metres of points (..., 3): the way back of `to_enu_m`."""
        xyz = self.origin_ecef_m + np.asarray(enu_m, float) @ self.axes
        longitude, latitude, altitude_m = _transform(xyz[..., 0], xyz[..., 1], xyz[..., 2], inverse=True)
        return latitude, longitude, altitude_m

    @cached_property
    def quadric(self) -> tuple[np.ndarray, np.ndarray]:
        """The lifted ellipsoid in this frame, see `ellipsoid_quadric`."""
        return ellipsoid_quadric(self)

    def on_ground(
        self, east_m: float, north_m: float, covariance_m2: tuple[float, float, float]
    ) -> tuple[float, float, tuple[float, float, float]]:
        """A plane point's place, and the covariance of its plane coordinates as one of local east and north there.

        Far from the origin the local north is turned and the plane foreshortened; near it this changes nothing.
        `covariance_m2`: of east, of east with north, of north, as is the last of what is returned: latitude, longitude
        (degrees) and covariance. In plain numbers, for it is done for every fix, and arrays of two cost more than that.
        """
        (q11, q12, q13, q22, q23, q33), (g1, g2, g3), (east, north, up), origin = self._numbers
        e, n = east_m, north_m
        constant = q11 * e * e + 2.0 * q12 * e * n + q22 * n * n + 2.0 * (g1 * e + g2 * n)
        half = g3 + q13 * e + q23 * n
        u = -constant / (half + math.sqrt(max(half * half - q33 * constant, 0.0)))
        x, y, z = (origin[k] + e * east[k] + n * north[k] + u * up[k] for k in range(3))
        longitude, latitude, _ = _geodetic_to_ecef().transform(x, y, z, direction=TransformDirection.INVERSE)
        # On the surface p'Qp + 2 g'p = 0, so dp is at right angles to Qp + g: that is how fast height changes.
        steep = q13 * e + q23 * n + q33 * u + g3
        rise_e = -(q11 * e + q12 * n + q13 * u + g1) / steep
        rise_n = -(q12 * e + q22 * n + q23 * u + g2) / steep
        lat, lon = math.radians(latitude), math.radians(longitude)
        there_east = (-math.sin(lon), math.cos(lon), 0.0)
        there_north = (-math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat))
        ee, en, ne, nn = (
            sum(there[k] * (axis[k] + rise * up[k]) for k in range(3))
            for there in (there_east, there_north)
            for axis, rise in ((east, rise_e), (north, rise_n))
        )
        cee, cen, cnn = covariance_m2
        return (
            latitude,
            longitude,
            (
                ee * ee * cee + 2.0 * ee * en * cen + en * en * cnn,
                ee * ne * cee + (ee * nn + en * ne) * cen + en * nn * cnn,
                ne * ne * cee + 2.0 * ne * nn * cen + nn * nn * cnn,
            ),
        )

    @cached_property
    def _numbers(self) -> tuple[tuple[float, ...], tuple[float, ...], list[list[float]], list[float]]:
        """Quadric (upper triangle), gradient, axes and origin as plain numbers."""
        quadric, gradient = self.quadric
        upper = tuple(float(quadric[i, j]) for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
        return upper, tuple(map(float, gradient)), self.axes.tolist(), self.origin_ecef_m.tolist()


def semi_axes_m(altitude_m: float) -> tuple[float, float]:
    """Equatorial and polar semi-axis of the WGS84 ellipsoid lifted by an altitude, metres."""
    return WGS84_SEMI_MAJOR_M + altitude_m, WGS84_SEMI_MAJOR_M * (1.0 - WGS84_FLATTENING) + altitude_m


def ellipsoid_quadric(frame: LocalFrame) -> tuple[np.ndarray, np.ndarray]:
    """Quadric of the frame's lifted ellipsoid in its own coordinates: p'Qp + 2 g'p = 0.

    Returns Q (3, 3) and g (3,), scaled so that g is about (0, 0, 1): a plane point's height is the small root of
    Q33 u² + 2 (g3 + Q13 e + Q23 n) u + (quadratic in e, n) = 0. The lifted surface is taken as the ellipsoid
    with both semi-axes longer by the altitude.
    """
    a, b = semi_axes_m(frame.altitude_m)
    shape = np.diag([1.0 / a**2, 1.0 / a**2, 1.0 / b**2])
    quadric = frame.axes @ shape @ frame.axes.T
    gradient = frame.axes @ shape @ frame.origin_ecef_m
    # The gradient is the surface normal; its tangential part is rounding only.
    return quadric / gradient[2], gradient / gradient[2]


def surface_up_m(frame: LocalFrame, east_north_m: np.ndarray) -> np.ndarray:
    """Height of the lifted ellipsoid above the frame's tangent plane, metres; (..., 2) in, (...) out."""
    quadric, gradient = frame.quadric
    e, n = east_north_m[..., 0], east_north_m[..., 1]
    constant = (
        quadric[0, 0] * e**2
        + 2 * quadric[0, 1] * e * n
        + quadric[1, 1] * n**2
        + 2 * (gradient[0] * e + gradient[1] * n)
    )
    half_linear = gradient[2] + quadric[0, 2] * e + quadric[1, 2] * n
    root = np.sqrt(np.maximum(half_linear**2 - quadric[2, 2] * constant, 0.0))
    return -constant / (half_linear + root)


def path_length_m(east_north_up_m: np.ndarray, receiver_enu_m: np.ndarray, *, along_surface: bool) -> np.ndarray:
    """Path lengths from points (..., 3) to receivers (R, 3): (..., R), metres.

    `along_surface` lengthens the chord to the arc over the mean Earth: the way of ground waves. The error of the mean
    radius stays below 2 m at 500 km.
    """
    chord = np.linalg.norm(east_north_up_m[..., None, :] - receiver_enu_m, axis=-1)
    if not along_surface:
        return chord
    ratio = (chord / (2.0 * MEAN_RADIUS_M)) ** 2
    return chord * (1.0 + ratio / 6.0 + 3.0 * ratio**2 / 40.0)
