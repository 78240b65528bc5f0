"""From likelihood to position, ellipse and confidence: a posterior over the area, refined by zooming.

The posterior is never linearised. It is summed over a grid of the whole area, then over grids that are laid along
the axes of the previous posterior, while the likelihood is sharpened step by step to its true width. Curved and
truncated posteriors therefore keep their real mean and spread, however small the ellipse is beside the area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import spox.opset.ai.onnx.v17 as op
from scipy.stats import chi2
from spox import Var

from localize_core.geodesy import MEAN_RADIUS_M, ellipsoid_quadric, path_length_m, semi_axes_m
from localize_core.model.compiled.algebra import (
    at,
    const,
    diagonal,
    double,
    expand_dims,
    mean,
    single,
    spd_inverse,
    total,
)
from localize_core.model.compiled.level import Levels, level_log_likelihood
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.compiled.timing import ArrivalTimes

AREA_CELLS = 48
ZOOM_CELLS = 33
FINAL_CELLS = 41
ZOOM_SPAN = 5.0  # half width of a zoomed grid in standard deviations
SHARPENING = 4.0  # how much narrower the likelihood gets from one grid to the next
AREA_EDGE = 1e6  # strength of the wall round the area
SMALLEST = 1e-4  # part of the variance along an axis that is there in any case
BEYOND = 1.0  # how far beyond the area arrival times are followed, in half sizes of the area
BEYOND_PRIOR = 0.05  # density of emitters there before anything is received, relative to that in the area


def area_points(spec: LikelihoodSpec) -> tuple[np.ndarray, np.ndarray]:
    """Cells of the whole area: their plane coordinates (cells, 2) and path lengths to the receivers (cells, R)."""
    frame = spec.area.frame
    lat, lon = spec.area.grid(AREA_CELLS)
    points = frame.to_enu_m(lat, lon, frame.altitude_m)
    return points[:, :2], path_length_m(points, spec.receivers_enu_m, along_surface=spec.along_surface)


def path_lengths(points: Var, spec: LikelihoodSpec) -> Var:
    """Path lengths from plane points (batch, points, 2) to the receivers: (batch, points, R)."""
    quadric, gradient = ellipsoid_quadric(spec.area.frame)
    e, n = at(points, 2, 0), at(points, 2, 1)
    up = _surface_up(e, n, quadric, gradient)
    squared: Var | None = None
    for axis, coordinate in enumerate((e, n, up)):
        offset = expand_dims(coordinate, 2) - const(spec.receivers_enu_m[None, None, :, axis])
        squared = offset * offset if squared is None else squared + offset * offset
    assert squared is not None
    chord = op.sqrt(squared)
    if not spec.along_surface:
        return chord
    ratio = squared * (1.0 / (2.0 * MEAN_RADIUS_M) ** 2)
    return chord * (ratio * (1.0 / 6.0) + ratio * ratio * (3.0 / 40.0) + 1.0)


def _surface_up(e: Var, n: Var, quadric: np.ndarray, gradient: np.ndarray) -> Var:
    constant = (
        e * e * float(quadric[0, 0])
        + e * n * float(2 * quadric[0, 1])
        + n * n * float(quadric[1, 1])
        + e * float(2 * gradient[0])
        + n * float(2 * gradient[1])
    )
    half_linear = e * float(quadric[0, 2]) + n * float(quadric[1, 2]) + float(gradient[2])
    root = op.sqrt(op.relu(half_linear * half_linear - constant * float(quadric[2, 2])))
    return op.neg(constant) / (half_linear + root)


def _outside(points: Var, spec: LikelihoodSpec) -> Var:
    """How far points lie outside the area, in half widths of the box, below 0 inside: (batch, points)."""
    frame = spec.area.frame
    quadric, gradient = ellipsoid_quadric(frame)
    e, n = at(points, 2, 0), at(points, 2, 1)
    up = _surface_up(e, n, quadric, gradient)
    # Longitude from the meridian plane of the frame, which is that of the box's middle.
    middle = math.radians(frame.longitude)
    turn = np.array([[math.cos(middle), math.sin(middle), 0], [-math.sin(middle), math.cos(middle), 0], [0, 0, 1]])
    axes, origin = frame.axes @ turn.T, frame.origin_ecef_m @ turn.T
    x, y, z = (
        e * float(axes[0, k]) + n * float(axes[1, k]) + up * float(axes[2, k]) + float(origin[k]) for k in range(3)
    )
    longitude = op.atan(y / op.max([x, const(1.0)]))
    # Geodetic latitude of a point on the lifted ellipsoid from its parametric form.
    equatorial, polar = semi_axes_m(frame.altitude_m)
    latitude = op.atan(z / op.sqrt(x * x + y * y) * (equatorial / polar) ** 2)
    half_lat = math.radians(spec.area.north - spec.area.south) / 2.0
    half_lon = math.radians(spec.area.east - spec.area.west) / 2.0
    centre = math.radians(spec.area.north + spec.area.south) / 2.0
    return op.max([op.abs(latitude - centre) * (1.0 / half_lat), op.abs(longitude) * (1.0 / half_lon)]) - 1.0


def _wall(outside: Var, place: float) -> Var:
    """What points further outside than `place` lose of their log-likelihood."""
    over = op.relu(outside - place)
    return over * over * AREA_EDGE


@dataclass(frozen=True)
class Solution:
    """`centre` (batch, 2) and `covariance` (batch, 2, 2) of the posterior within the area, the latter scaled to hold
    its probability. `misfit` (batch, 1): least squared residual of the arrival times at any place, in variances.
    `inside` (batch, 1): probability that the place that they point to lies in the area. Without arrival times the
    last two are 0 and 1.
    """

    centre: Var
    covariance: Var
    misfit: Var
    inside: Var


class Posterior:
    """Sums the likelihood of one batch of windows over grids. Holds graph variables only while the graph is built."""

    def __init__(self, spec: LikelihoodSpec, arrivals: ArrivalTimes | None, found: Levels | None) -> None:
        self.spec = spec
        self.arrivals = arrivals
        self.found = found
        self.area_xy_m, self.area_length_m = area_points(spec)
        side = float(np.sqrt(np.prod(np.ptp(self.area_xy_m, axis=0)))) / AREA_CELLS
        self.cell_m = side

    def _precision(self, length_m: Var, blur_m: float) -> Var:
        """Precision of arrival times without their common offset, (batch, R, R) float32.

        `length_m` (batch, R): distances at which the path's variance is taken.
        """
        assert self.arrivals is not None
        assert self.spec.timing is not None
        size = len(self.spec.receivers)
        _, path_variance = self.spec.timing.path.moments(length_m, op.sqrt)
        covariance = self.arrivals.covariance_m2 + diagonal(double(path_variance + blur_m**2), size)
        inverse = spd_inverse(covariance, size)
        ones = const(np.ones((1, size, 1)), np.float64)
        reach = op.matmul(inverse, ones)
        sum_all = total(reach, 1, keep=True)
        return single(inverse - op.matmul(reach, op.transpose(reach, perm=[0, 2, 1])) / sum_all)

    def _misfit(self, length_m: Var, precision: Var) -> Var:
        """r' M r of points, (batch, points)."""
        assert self.arrivals is not None
        assert self.spec.timing is not None
        excess, _ = self.spec.timing.path.moments(length_m, op.sqrt)
        residual = expand_dims(self.arrivals.length_m, 1) - length_m - excess
        residual = residual - mean(residual, 2, keep=True)
        return total(op.matmul(residual, precision) * residual, 2)

    def _log_likelihood(self, length_m: Var, precision: Var | None) -> tuple[Var, Var | None]:
        value: Var | None = None
        misfit: Var | None = None
        if precision is not None:
            misfit = self._misfit(length_m, precision)
            value = misfit * -0.5
        if self.found is not None:
            level = level_log_likelihood(self.found, length_m, self.spec)
            value = level if value is None else value + level
        assert value is not None
        return value, misfit

    def _blurs_m(self) -> list[float]:
        """Extra standard deviations of arrival times, grid by grid: from a cell of the area down to none."""
        if self.spec.timing is None:
            return [0.0, 0.0, 0.0]
        finest = 0.3 * min(
            math.hypot(sigma, self.spec.timing.path.floor_sigma_m) for sigma in self.spec.timing.receiver_sigma_m
        )
        blurs = [0.5 * self.cell_m]
        while blurs[-1] > finest:
            blurs.append(blurs[-1] / SHARPENING)
        return [*blurs, 0.0, 0.0]

    def solve(self) -> Solution:
        """Mean, covariance and how far they are to be trusted.

        Arrival times are followed beyond the area, where emitters are rare but real: how much of the posterior lies
        there says how sure it is that this one is in the area. Levels alone can hardly tell.
        """
        blurs = self._blurs_m()
        area_xy = const(self.area_xy_m[None])
        area_length = const(self.area_length_m[None])
        precision = None
        if self.arrivals is not None:
            near = op.gather(const(self.area_length_m), self.arrivals.start, axis=0)
            precision = self._precision(near, blurs[0])
        value, _ = self._log_likelihood(area_length, precision)
        centre, covariance = _moments(area_xy, _weights(value))
        covariance = covariance + const(np.eye(2)[None] * self.cell_m**2 / 3.0)
        misfit = mean(centre, 1, keep=True) * 0.0
        inside = misfit + 1.0
        for index, blur in enumerate(blurs[1:], start=1):
            last = index == len(blurs) - 1
            cells = FINAL_CELLS if last else ZOOM_CELLS
            points = _laid_along(centre, covariance, cells)
            if self.arrivals is not None:
                precision = self._precision(at(path_lengths(expand_dims(centre, 1), self.spec), 1, 0), blur)
            value, squared = self._log_likelihood(path_lengths(points, self.spec), precision)
            outside = _outside(points, self.spec)
            weights = _weights(value - _wall(outside, 0.0))
            if squared is not None:
                misfit = op.reduce_min(squared, axes=[1], keepdims=True)
                rare = op.cast(op.greater(outside, const(0.0)), to=np.float32)
                everywhere = _weights(value + rare * math.log(BEYOND_PRIOR) - _wall(outside, BEYOND))
                inside = op.relu(const(1.0) - total(everywhere * rare, 1, keep=True))
                weights = weights if last else everywhere
            before = covariance
            centre, covariance = _moments(points, weights)
            if last:
                # Cut off by the area's edge, the posterior may be narrower than a cell, down to a single point.
                covariance = covariance + before * SMALLEST
                covariance = _calibrated(points, weights, centre, covariance, self.spec.probability)
            else:
                # A peak narrower than a cell shows no width of its own: it may lie anywhere in the cell.
                step = 2.0 * ZOOM_SPAN / (cells - 1)
                covariance = covariance + before * (step**2 / 3.0)
        return Solution(centre, covariance, misfit, inside)


def _weights(log_likelihood: Var) -> Var:
    return op.softmax(log_likelihood, axis=1)


def _moments(points: Var, weights: Var) -> tuple[Var, Var]:
    """Mean (batch, 2) and covariance (batch, 2, 2) of weighted points."""
    centre = total(points * expand_dims(weights, 2), 1)
    offset = points - expand_dims(centre, 1)
    weighted = offset * expand_dims(weights, 2)
    return centre, op.matmul(op.transpose(weighted, perm=[0, 2, 1]), offset)


def _laid_along(centre: Var, covariance: Var, cells: int) -> Var:
    """Grid points (batch, cells², 2) along the covariance's Cholesky axes, ZOOM_SPAN deviations to each side."""
    steps = np.linspace(-ZOOM_SPAN, ZOOM_SPAN, cells)
    u, v = (axis.ravel()[None].astype(np.float32) for axis in np.meshgrid(steps, steps))
    xx, xy, yy = _entries(covariance)
    first = op.sqrt(xx)
    cross = xy / first
    second = op.sqrt(op.max([yy - cross * cross, yy * 1e-6]))
    e = at(centre, 1, 0)
    n = at(centre, 1, 1)
    east = expand_dims(e, 1) + expand_dims(first, 1) * const(u)
    north = expand_dims(n, 1) + expand_dims(cross, 1) * const(u) + expand_dims(second, 1) * const(v)
    return op.concat([expand_dims(east, 2), expand_dims(north, 2)], axis=2)


def _entries(covariance: Var) -> tuple[Var, Var, Var]:
    row_x, row_y = at(covariance, 1, 0), at(covariance, 1, 1)
    return at(row_x, 1, 0), at(row_x, 1, 1), at(row_y, 1, 1)


def _calibrated(points: Var, weights: Var, centre: Var, covariance: Var, probability: float) -> Var:
    """Scale a covariance so that its ellipse of `probability` holds just that share of the posterior.

    For a normal posterior the factor is one; for a skewed or heavy-tailed one the chi-square radius would not hold
    what it says.
    """
    xx, xy, yy = _entries(covariance)
    determinant = op.max([xx * yy - xy * xy, xx * yy * 1e-9])
    offset = points - expand_dims(centre, 1)
    e, n = at(offset, 2, 0), at(offset, 2, 1)
    squared = (
        e * e * expand_dims(yy, 1) - e * n * expand_dims(xy * 2.0, 1) + n * n * expand_dims(xx, 1)
    ) / expand_dims(determinant, 1)
    factors = np.geomspace(0.5, 2.0, 57)
    radii = const((chi2.ppf(probability, 2) * factors)[None, None, :])
    inside = op.cast(op.less_or_equal(expand_dims(squared, 2), radii), to=np.float32)
    held = total(expand_dims(weights, 2) * inside, 1)  # (batch, factors), rising
    missing = op.cast(op.less(held, const(probability)), to=np.float32)
    # Each factor that does not hold enough is passed over: the sum of steps is the first that does.
    steps = np.diff(np.append(factors, factors[-1]))
    factor = total(missing * const(steps[None]), 1) + float(factors[0])
    return covariance * expand_dims(factor, 1, 2)


def ellipse(covariance: Var) -> Var:
    """Standard deviations along the major and minor axes, metres, and the major's direction, degrees: (batch, 3)."""
    xx, xy, yy = _entries(covariance)
    middle = (xx + yy) * 0.5
    difference = (xx - yy) * 0.5
    radius = op.sqrt(difference * difference + xy * xy)
    major = op.sqrt(middle + radius)
    minor = op.sqrt(op.max([middle - radius, middle * 1e-9]))
    # atan2(xy, difference) / 2 without its branch cut: by half angles from whichever axis is the nearer one.
    from_east = op.atan(xy / op.max([radius + difference, middle * 1e-9]))
    from_north = op.atan(xy / op.max([radius - difference, middle * 1e-9]))
    theta = op.where(op.greater_or_equal(difference, const(0.0)), from_east, const(math.pi / 2.0) - from_north)
    theta = theta * (180.0 / math.pi)
    return op.concat([expand_dims(value, 1) for value in (major, minor, theta)], axis=1)


def confidence(solution: Solution, arrivals: ArrivalTimes | None, found: Levels | None, spec: LikelihoodSpec) -> Var:
    """Probability that the fix is valid, (batch, 1): something was received, and the receivers agree on a place in the
    area."""
    absent: Var | None = None
    for present in (
        None if arrivals is None else op.sigmoid(arrivals.detection - 6.0),
        None if found is None else op.sigmoid((found.detection - 6.0) * 1.5),
    ):
        if present is not None:
            missing = const(1.0) - present
            absent = missing if absent is None else absent * missing
    assert absent is not None
    present = const(1.0) - absent
    if arrivals is None:
        return present
    present = present * solution.inside * op.sigmoid((const(2.0) - arrivals.closure) * 4.0)
    freedom = len(spec.receivers) - 3
    if freedom < 1:
        return present
    limit = float(chi2.ppf(1.0 - 1e-4, freedom))
    return present * op.sigmoid((const(1.5 * limit) - solution.misfit) * (8.0 / limit))
