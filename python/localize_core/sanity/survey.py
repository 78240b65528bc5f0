"""What a station's geometry is good for, before anything is received: findings with what to do about each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from localize_core.model.compiled.spec import Area
from localize_core.sanity.geometry import POOR_HDOP, ArrivalGeometry
from localize_core.sanity.raim import solve

CELLS = 24
"""Along each side of the area."""
COLLINEAR = 0.05
"""Spread of the receivers across their line to that along it."""
CLOSE_PART = 0.05
"""Of the largest distance of two receivers: closer, they count for little more than one."""
CLUSTERED = 0.25
"""Spread of all receivers but one to that of all, below which that one stands alone."""
OTHER_ALTITUDE_M = 100.0
"""Height of all others above which 0 was most likely forgotten."""
FAR_CELLS = 3.0
"""Cells from which on a second place that fits is another one."""
FITS_SIGMA = 3.0


@dataclass(frozen=True)
class Remark:
    """`kind`: a word for the finding. `fix`: what to do about it; None where all is well."""

    kind: str
    message: str
    fix: str | None


@dataclass(frozen=True)
class Survey:
    """Over the area: HDOP's `median`, the value that 90 % stay below and the share above POOR_HDOP; `error_m`: median
    of the standard error by clocks and paths alone; `mirrored`: share with a second place that fits as well."""

    median: float
    p90: float
    poor: float
    error_m: float
    mirrored: float


def survey(geometry: ArrivalGeometry, area: Area) -> Survey:
    """HDOP and ambiguity over an area, with three receivers or more."""
    cells_m = _cells_m(geometry, area)
    hdop = geometry.hdop(cells_m)
    error_m = np.sqrt(np.trace(geometry.covariance_m2(cells_m), axis1=-2, axis2=-1))
    return Survey(
        median=float(np.median(hdop)),
        p90=float(np.quantile(hdop, 0.9, method="lower")),
        poor=float((hdop > POOR_HDOP).mean()),
        error_m=float(np.median(error_m)),
        mirrored=_mirrored(geometry, cells_m),
    )


def remarks(geometry: ArrivalGeometry, area: Area, altitudes_m: np.ndarray) -> Iterator[Remark]:
    """What is to be said of a station that locates by arrival times. `altitudes_m` (R,): as its file says."""
    yield from _placed(geometry, altitudes_m)
    count = len(geometry.names)
    if count < 3:
        yield Remark(
            "receivers",
            f"{count} receivers give one line of position at most, no place",
            "add a receiver: three give a place, four one that is checked",
        )
        return
    yield from _lined(geometry)
    found = survey(geometry, area)
    if found.mirrored > 0.01:
        yield Remark(
            "ambiguous",
            f"in {found.mirrored:.0%} of the area a second place fits the same arrival times",
            "move a receiver off the line of the others, add one, or make the area hold one of both only",
        )
    if not _encloses(geometry, area):
        yield Remark(
            "outside",
            "the area lies wholly outside the receivers: lines of position are nearly parallel there, so that the "
            "direction is known well and the distance badly",
            "put a receiver on the far side of the area",
        )
    if found.poor > 0.1:
        yield Remark(
            "hdop",
            f"HDOP is above {POOR_HDOP:g} in {found.poor:.0%} of the area (median {_figure(found.median)})",
            "put receivers round the area, or make the area smaller",
        )
    checked = "" if count > 3 else "; three receivers agree on any clocks: a fourth would show a wrong one"
    yield Remark(
        "geometry",
        f"HDOP {_figure(found.median)} (median), {_figure(found.p90)} (90 % of the area are better); clocks and paths "
        f"alone make an error of {_metres(found.error_m)} (median){checked}",
        None,
    )


def _placed(geometry: ArrivalGeometry, altitudes_m: np.ndarray) -> Iterator[Remark]:
    """What is odd about single coordinates."""
    names, places = geometry.names, geometry.receivers_m
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    if len(names) > 2:
        for i, j in geometry.pairs:
            if apart[i, j] < CLOSE_PART * apart.max():
                yield Remark(
                    "close",
                    f"{names[i]} and {names[j]} stand {_metres(apart[i, j])} apart, of {_metres(apart.max())} between "
                    "the farthest: together they tell little more of a place than one",
                    f"check their coordinates, or move one of them; as a spare for {names[i]} it is fine",
                )
    for index, name in enumerate(names):
        others = np.delete(altitudes_m, index)
        if altitudes_m[index] == 0.0 and len(others) and others.min() > OTHER_ALTITUDE_M:
            yield Remark(
                "altitude",
                f"{name} has altitude_m = 0, the others {others.min():.0f} m or more",
                f"set altitude_m of {name}, in metres above the WGS84 ellipsoid",
            )


def _lined(geometry: ArrivalGeometry) -> Iterator[Remark]:
    """What is odd about all of them together."""
    places = geometry.receivers_m[:, :2]
    along, across = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)[:2]
    if across < COLLINEAR * along:
        yield Remark(
            "collinear",
            f"the receivers stand in a line (spread {_metres(across / math.sqrt(len(places)))} across it, "
            f"{_metres(along / math.sqrt(len(places)))} along it): a place and its mirror image on the other side "
            "cannot be told apart, and along the line there is no distance",
            "move a receiver off the line, or let the area lie on one side of it",
        )
        return
    if len(places) > 3:
        for index, name in enumerate(geometry.names):
            rest = np.delete(places, index, axis=0)
            spread = np.linalg.norm(rest - rest.mean(axis=0), axis=1).max()
            if spread < CLUSTERED * np.linalg.norm(places[index] - rest.mean(axis=0)):
                yield Remark(
                    "clustered",
                    f"all receivers but {name} stand close together: with {name} they make one long baseline",
                    "spread the receivers round the area",
                )


def _encloses(geometry: ArrivalGeometry, area: Area) -> bool:
    """Whether any of the area lies among the receivers."""
    cells = _cells_m(geometry, area)
    try:
        hull = ConvexHull(geometry.receivers_m[:, :2])
    except QhullError:
        return False
    inside = (hull.equations[:, :2] @ cells.T + hull.equations[:, 2:] <= 0.0).all(axis=0)
    return bool(inside.any())


def _cells_m(geometry: ArrivalGeometry, area: Area) -> np.ndarray:
    latitude, longitude = area.grid(CELLS)
    return geometry.frame.to_enu_m(latitude, longitude, geometry.frame.altitude_m)[:, :2]


def _mirrored(geometry: ArrivalGeometry, cells_m: np.ndarray) -> float:
    """Share of cells with another place in the area that has the same differences, within what clocks and paths blur.

    From the far cell that is most alike a search starts; where it ends on a fit that is far from the first place, and
    still in the area's box, there are two.
    """
    expected = geometry.expected_m(cells_m)
    variance = np.square(geometry.sigma_m) + geometry.path_m2(cells_m)
    centred = expected - expected.mean(axis=1, keepdims=True)
    apart = np.square(centred[:, None] - centred).sum(axis=-1)
    cell_m = float(np.linalg.norm(np.ptp(cells_m, axis=0))) / CELLS
    distance = np.linalg.norm(cells_m[:, None] - cells_m, axis=-1)
    blur_m = np.sqrt(np.minimum(np.trace(geometry.covariance_m2(cells_m), axis1=-2, axis2=-1), 1e18))
    far_m = FAR_CELLS * cell_m + np.minimum(2.0 * FITS_SIGMA * blur_m, cell_m * CELLS)
    apart[distance < far_m[:, None]] = np.inf
    start = cells_m[apart.argmin(axis=1)]
    covariance = variance[:, :, None] * np.eye(variance.shape[1])
    found = solve(geometry, expected, covariance, start, steps=40)
    low, high = cells_m.min(axis=0) - cell_m, cells_m.max(axis=0) + cell_m
    within = ((found.places_m >= low) & (found.places_m <= high)).all(axis=1)
    other = np.linalg.norm(found.places_m - cells_m, axis=1) > 0.5 * far_m
    return float((np.isfinite(apart).any(axis=1) & within & other & (found.misfit < FITS_SIGMA**2)).mean())


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 100.0 else f"{value:.1e}" if math.isfinite(value) else "without bound"


def _metres(value: float) -> str:
    if not math.isfinite(value):
        return "no bound"
    return f"{value:.0f} m" if value < 1000.0 else f"{value / 1000.0:.3g} km"
