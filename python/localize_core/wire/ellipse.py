"""The error ellipse as a ring of places, for formats that know polygons only.

GeoJSON and KML readers draw the edge between two places straight in longitude and latitude, and no further than ±180.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from localize_core.errors import ConfigError
from localize_core.geodesy import GEOD, MEAN_RADIUS_M
from localize_core.types.fix import Position, Uncertainty

Ring = list[tuple[float, float]]
"""Places as (longitude, latitude) in degrees; the first is also the last."""

FARTHEST_M = 1.0e7
"""Just short of a quarter of the way round the Earth: no ellipse is drawn beyond the half that its centre is in."""
NEAREST_M = 1.0e-3
THINNEST = 1.0e-3
METRES_PER_DEGREE = 111e3
CORNERS = {180.0: [(180.0, 90.0), (-180.0, 90.0)], 360.0: [(-180.0, -90.0), (180.0, -90.0)]}


def ellipse_ring(position: Position, uncertainty: Uncertainty, points: int = 64) -> Ring:
    """The boundary of the ellipse that holds `uncertainty.probability`, counter-clockwise as seen from above.

    Each place lies on the geodesic that leaves `position` in its direction, as far along it as the ellipse reaches
    there. `points`: how many different places, evenly spaced in the ellipse's own angle; there are more where straight
    edges would leave the ellipse, as near a pole. Longitudes lie within 180 degrees of the centre's, so beyond ±180
    where the ring crosses the antimeridian. Places are rounded to a thousandth of the semi-minor axis. Semi-axes are
    drawn with at least 1 mm and at most 10 000 km, the minor with at least a thousandth of the major.

    Raises ConfigError for fewer than 3 points.
    """
    if points < 3:
        raise ConfigError(f"points={points}: wanted at least 3")
    major_m = max(uncertainty.semi_major_m, NEAREST_M)
    minor_m = max(uncertainty.semi_minor_m, NEAREST_M, THINNEST * major_m)
    angles = np.linspace(0.0, 2.0 * math.pi, points + 1)
    for _ in range(24):  # halves an edge across the pole down to nothing
        along_m, across_m = major_m * np.cos(angles), minor_m * np.sin(angles)
        azimuth_deg = uncertainty.azimuth_deg - np.degrees(np.arctan2(across_m, along_m))
        distance_m = np.minimum(np.hypot(along_m, across_m), FARTHEST_M)
        start = (np.full(angles.size, position.longitude), np.full(angles.size, position.latitude))
        longitude, latitude, _ = GEOD.fwd(*start, azimuth_deg, distance_m)
        coarse = _strayed_m(longitude, latitude) > minor_m / 50.0
        if not coarse.any():
            break
        angles = np.sort(np.concatenate([angles, (angles[:-1] + angles[1:])[coarse] / 2.0]))
    longitude = position.longitude + (longitude - position.longitude + 180.0) % 360.0 - 180.0
    digits = max(0, math.ceil(math.log10(METRES_PER_DEGREE / (min(minor_m, FARTHEST_M) / 1000.0))))
    ring = [(round(x, digits), round(y, digits)) for x, y in zip(longitude.tolist(), latitude.tolist(), strict=True)]
    return [*ring[:-1], ring[0]]


def _strayed_m(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """How far the middle of each edge, straight in degrees, is from the geodesic: an eighth of the second derivatives.

    On a sphere a geodesic has λ'' = 2 λ' φ' tan φ and φ'' = -λ'² sin φ cos φ.
    """
    east = np.abs(np.radians((np.diff(longitude) + 180.0) % 360.0 - 180.0))
    north = np.abs(np.radians(np.diff(latitude)))
    middle = np.radians((latitude[:-1] + latitude[1:]) / 2.0)
    return MEAN_RADIUS_M / 8.0 * east * np.abs(np.sin(middle)) * (2.0 * north + east * np.cos(middle))


def surrounds_pole(ring: Ring) -> bool:
    """Whether a pole lies inside a ring of `ellipse_ring`: only then its longitudes jump from one end to the other."""
    return any(abs(x1 - x0) > 180.0 for (x0, _), (x1, _) in pairwise(ring))


def cut_ring(ring: Ring) -> list[Ring]:
    """What a ring of `ellipse_ring` encloses, as counter-clockwise rings with longitudes within ±180.

    There is one, or one on each side of the antimeridian. Where a pole is inside, the ring runs along the map's edge.
    Source: RFC 7946, 3.1.9.
    """
    parts = _parts(ring)
    if len(parts) == 1:
        return parts
    parts[0] = parts.pop()[:-1] + parts[0]  # the ring began within this one
    starts = [_along_edge(part[0]) for part in parts]
    rings = []
    left = dict(enumerate(parts))
    while left:
        at = next(iter(left))
        joined: Ring = []
        while at in left:
            joined += left.pop(at)
            # From where a part leaves the map, its edge leads counter-clockwise to where the next one enters.
            end = _along_edge(joined[-1])
            way, at = min(((start - end + 1e-9) % 360.0, index) for index, start in enumerate(starts))
            for corner, places in CORNERS.items():
                joined += places if end < corner <= end + way else []
        rings.append([*joined, joined[0]])
    return [joined for joined in rings if _area(joined) > 0.0]


def _parts(ring: Ring) -> list[Ring]:
    """The ring as lines between its crossings of the antimeridian."""
    wrapped = [(round(x - 360.0 if x > 180.0 else x + 360.0 if x < -180.0 else x, 12), y) for x, y in ring]
    parts: list[Ring] = [[wrapped[0]]]
    for (x0, y0), (x1, y1) in pairwise(wrapped):
        if abs(x1 - x0) > 180.0:
            edge = math.copysign(180.0, x0)
            span = x1 + 2.0 * edge - x0
            y = round(y0 + (y1 - y0) * ((edge - x0) / span if span else 0.0), 12)
            parts[-1].append((edge, y))
            parts.append([(-edge, y)])
        parts[-1].append((x1, y1))
    return parts


def _along_edge(place: tuple[float, float]) -> float:
    """How far along the edge of the map a place on ±180 is: counter-clockwise from the south-east corner, degrees."""
    longitude, latitude = place
    return 90.0 + latitude if longitude > 0.0 else 270.0 - latitude


def _area(ring: Ring) -> float:
    """Area in square degrees, positive for counter-clockwise rings, exactly 0 for one that lies on a meridian."""
    x, y = ring[0]
    return sum((x0 - x) * (y1 - y) - (x1 - x) * (y0 - y) for (x0, y0), (x1, y1) in pairwise(ring)) / 2.0
