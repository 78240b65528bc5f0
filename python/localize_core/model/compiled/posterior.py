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
    between,
    clip,
    const,
    diagonal,
    double,
    expand_dims,
    highest,
    single,
    spd_inverse,
    total,
    transpose_last,
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


def _surface(points: Var, spec: LikelihoodSpec) -> Var:
    """Places (batch, 3, points) in the area's frame of plane points (batch, 2, points)."""
    quadric, gradient = ellipsoid_quadric(spec.area.frame)
    # Root of the quadric in the height, see `ellipsoid_quadric`: minus the constant term, and half the linear one.
    rows = op.matmul(const(np.vstack([-quadric[:2, :2], quadric[2:, :2]])), points)
    curved, linear = op.split(rows, op.const(np.array([2, 1], np.int64)), outputs_count=2, axis=1)
    constant = total((curved - const(2.0 * gradient[:2, None])) * points, 1, keep=True)
    half_linear = linear + float(gradient[2])
    root = op.sqrt(op.relu(half_linear * half_linear + constant * float(quadric[2, 2])))
    return op.concat([points, constant / (half_linear + root)], axis=1)


def _path_lengths(places: Var, spec: LikelihoodSpec) -> Var:
    """Path lengths from places (batch, 3, points) to the receivers: (batch, R, points)."""
    offset = expand_dims(places, 1) - const(spec.receivers_enu_m[:, :, None])
    squared = total(offset * offset, 2)
    chord = op.sqrt(squared)
    if not spec.along_surface:
        return chord
    ratio = squared * (1.0 / (2.0 * MEAN_RADIUS_M) ** 2)
    return chord * (ratio * (1.0 / 6.0) + ratio * ratio * (3.0 / 40.0) + 1.0)


def _outside(places: Var, spec: LikelihoodSpec) -> Var:
    """How far places lie outside the area, in half widths of the box, below 0 inside: (batch, 1, points)."""
    area, frame = spec.area, spec.area.frame
    # Longitude from the meridian plane of the frame, which is that of the box's middle. Geodetic latitude of a point
    # on the lifted ellipsoid from its parametric form, turned by the middle's: differences of large coordinates
    # are taken here, not in the graph's single precision.
    longitude, latitude = math.radians(frame.longitude), math.radians(area.north + area.south) / 2.0
    sine, cosine = math.sin(latitude), math.cos(latitude)
    equatorial, polar = semi_axes_m(frame.altitude_m)
    radial = np.array([math.cos(longitude), math.sin(longitude), 0.0])
    east = np.array([-math.sin(longitude), math.cos(longitude), 0.0])
    axis = np.array([0.0, 0.0, (equatorial / polar) ** 2])
    turn = np.stack([radial, east, axis * cosine - radial * sine, axis * sine + radial * cosine])
    rows = op.matmul(const(turn @ frame.axes.T), places) + const((turn @ frame.origin_ecef_m)[:, None])
    x, y, north, up = op.split(rows, outputs_count=4, axis=1)
    x = op.max([x, const(1.0)])
    bulge = y * y / (op.sqrt(x * x + y * y) + x)  # how much further from the axis than in the middle's plane
    tangents = op.concat([(north - bulge * sine) / (up + bulge * cosine), y / x], axis=1)
    half = np.radians([[area.north - area.south], [area.east - area.west]]) / 2.0
    return highest(op.abs(op.atan(tangents)) * const(1.0 / half), 1, keep=True) - 1.0


def _wall(outside: Var, place: float) -> Var:
    """What points further outside than `place` lose of their log-likelihood."""
    over = op.relu(outside - place)
    return over * over * AREA_EDGE


@dataclass(frozen=True)
class Solution:
    """`centre` (batch, 2) and `covariance` (batch, 2, 2) of the posterior within the area, the latter scaled to hold
    its probability. `likelihood` (batch, 1, cells): of the cells of the whole area, summing to one, as sharp as a cell.
    `misfit` (batch, 1): least squared residual of the arrival times at any place, in variances.
    `inside` (batch, 1): probability that the place that they point to lies in the area. Both None without arrival
    times.
    """

    centre: Var
    covariance: Var
    likelihood: Var
    misfit: Var | None
    inside: Var | None


class Posterior:
    """Sums the likelihood of one batch of windows over grids. Holds graph variables only while the graph is built."""

    def __init__(self, spec: LikelihoodSpec, arrivals: ArrivalTimes | None, found: Levels | None) -> None:
        self.spec = spec
        self.arrivals = arrivals
        self.found = found
        self.area_xy_m, self.area_length_m = area_points(spec)
        side = float(np.sqrt(np.prod(np.ptp(self.area_xy_m, axis=0)))) / AREA_CELLS
        self.cell_m = side
        self.path_varies = spec.timing is not None and spec.timing.path.crossover_m > 0.0

    def _precisions(self, length_m: Var, blurs_m: list[float]) -> list[Var]:
        """For every blur the precision of arrival times without their common offset, (batch, R, R) float32.

        `length_m` (batch, R, 1): distances at which the path's variance is taken.
        """
        assert self.arrivals is not None
        assert self.spec.timing is not None
        size = len(self.spec.receivers)
        _, path_variance = self.spec.timing.path.moments(op.transpose(length_m, perm=[0, 2, 1]), op.sqrt)
        extra = double(path_variance + const(np.square(blurs_m)[:, None]))  # (batch, blurs, R)
        inverse = spd_inverse(expand_dims(self.arrivals.covariance_m2, 1) + diagonal(extra, size), size)
        reach = total(inverse, 3, keep=True)
        projected = single(inverse - op.matmul(reach, transpose_last(reach)) / total(reach, 2, keep=True))
        return [at(projected, 1, index) for index in range(len(blurs_m))]

    def _misfit(self, length_m: Var, precision: Var) -> Var:
        """r' M r of points with path lengths (batch, R, points): (batch, 1, points)."""
        assert self.arrivals is not None
        assert self.spec.timing is not None
        if self.path_varies:
            length_m = length_m + self.spec.timing.path.moments(length_m, op.sqrt)[0]
        receivers = len(self.spec.receivers)
        without_offset = const(np.eye(receivers) - 1.0 / receivers)
        residual = op.matmul(without_offset, self.arrivals.length_m - length_m)
        return total(op.matmul(precision, residual) * residual, 1, keep=True)

    def _log_likelihood(self, length_m: Var, precision: Var | None) -> tuple[Var, Var | None]:
        """Of points with path lengths (batch, R, points), and their misfit: (batch, 1, points) each."""
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
        precisions: list[Var | None] = [None] * len(blurs)
        if self.arrivals is not None:
            near = expand_dims(op.gather(const(self.area_length_m), self.arrivals.start, axis=0), 2)
            precisions = [*self._precisions(near, blurs)]
        # Points are laid as centre + root·unit with constant `unit`; `root` is a Cholesky factor of the covariance.
        scale_m = float(np.abs(self.area_xy_m).max())
        unit = self.area_xy_m.T / scale_m
        value, _ = self._log_likelihood(const(self.area_length_m.T[None]), precisions[0])
        likelihood = _weights(value)
        centre, covariance = _moments(const(unit), likelihood)
        centre = centre * scale_m
        root = _cholesky(covariance + const(np.eye(2) * (self.cell_m / scale_m) ** 2 / 3.0)) * scale_m
        misfit = inside = None
        for index, blur in enumerate(blurs[1:], start=1):
            last = index == len(blurs) - 1
            cells = FINAL_CELLS if last else ZOOM_CELLS
            steps = np.linspace(-ZOOM_SPAN, ZOOM_SPAN, cells)
            unit = const(np.stack([axis.ravel() for axis in np.meshgrid(steps, steps)]))
            places = _surface(op.matmul(root, unit) + centre, self.spec)
            if self.path_varies:
                (precisions[index],) = self._precisions(_path_lengths(_surface(centre, self.spec), self.spec), [blur])
            value, squared = self._log_likelihood(_path_lengths(places, self.spec), precisions[index])
            outside = _outside(places, self.spec)
            weights = _weights(value - _wall(outside, 0.0))
            if squared is not None:
                misfit = op.reduce_min(squared, axes=[2], keepdims=False)
                rare = op.cast(op.greater(outside, const(0.0)), to=np.float32)
                everywhere = _weights(value + rare * math.log(BEYOND_PRIOR) - _wall(outside, BEYOND))
                inside = op.relu(const(1.0) - total(everywhere * rare, 2))
                weights = weights if last else everywhere
            middle, covariance = _moments(unit, weights)
            centre = centre + op.matmul(root, middle)
            if last:
                # Cut off by the area's edge, the posterior may be narrower than a cell, down to a single point.
                covariance = covariance + const(np.eye(2) * SMALLEST)
                covariance = _calibrated(unit - middle, weights, covariance, self.spec.probability)
                covariance = op.matmul(op.matmul(root, covariance), transpose_last(root))
            else:
                # A peak narrower than a cell shows no width of its own: it may lie anywhere in the cell.
                step = 2.0 * ZOOM_SPAN / (cells - 1)
                root = op.matmul(root, _cholesky(covariance + const(np.eye(2) * step**2 / 3.0)))
        centre = op.squeeze(centre, op.const(np.array([2], np.int64)))
        return Solution(centre, covariance, likelihood, misfit, inside)


def _weights(log_likelihood: Var) -> Var:
    return op.softmax(log_likelihood, axis=2)


def _moments(points: Var, weights: Var) -> tuple[Var, Var]:
    """Mean (batch, 2, 1) and covariance (batch, 2, 2) of points (2, points) with weights (batch, 1, points)."""
    centre = total(points * weights, 2, keep=True)
    offset = points - centre
    return centre, op.matmul(offset * weights, transpose_last(offset))


def _entries(covariance: Var) -> tuple[Var, Var, Var]:
    """xx, xy and yy of (batch, 2, 2): (batch, 1) each."""
    flat = op.reshape(covariance, op.const(np.array([-1, 4], np.int64)))
    xx, xy, _, yy = op.split(flat, outputs_count=4, axis=1)
    return xx, xy, yy


def _cholesky(covariance: Var) -> Var:
    """Lower triangular root of (batch, 2, 2)."""
    xx, xy, yy = _entries(covariance)
    first = op.sqrt(xx)
    cross = xy / first
    second = op.sqrt(op.max([yy - cross * cross, yy * 1e-6]))
    return op.reshape(op.concat([first, xx * 0.0, cross, second], axis=1), op.const(np.array([-1, 2, 2], np.int64)))


def _calibrated(offset: Var, weights: Var, covariance: Var, probability: float) -> Var:
    """Scale a covariance so that its ellipse of `probability` holds just that share of the posterior.

    For a normal posterior the factor is one; for a skewed or heavy-tailed one the chi-square radius would not hold
    what it says. `offset` (batch, 2, points): from the mean.
    """
    xx, xy, yy = _entries(covariance)
    determinant = op.max([xx * yy - xy * xy, xx * yy * 1e-9])
    adjugate = op.reshape(op.concat([yy, op.neg(xy), op.neg(xy), xx], axis=1), op.shape(covariance))
    squared = total(op.matmul(adjugate / expand_dims(determinant, 2), offset) * offset, 1, keep=True)
    factors = np.geomspace(0.5, 2.0, 57)
    # The first factor whose ellipse holds a point, by its number; the share that each one holds, rising.
    first = op.ceil(op.log(squared / (chi2.ppf(probability, 2) * factors[0])) / math.log(factors[1] / factors[0]))
    first = op.cast(clip(first, 0.0, len(factors)), to=np.int64)
    empty = between(weights, 2, 0, len(factors) + 1) * 0.0
    held = op.cumsum(op.scatter_elements(empty, first, weights, axis=2, reduction="add"), op.const(np.int64(2)))
    missing = op.cast(op.less(held, const(probability)), to=np.float32)
    # Each factor that does not hold enough is passed over: the sum of steps is the first that does.
    steps = np.append(np.diff(factors), [0.0, 0.0])
    return covariance * (total(missing * const(steps), 2, keep=True) + float(factors[0]))


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
    return op.concat([major, minor, theta], axis=1)


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
    if arrivals is None or solution.inside is None or solution.misfit is None:
        return present
    present = present * solution.inside * op.sigmoid((const(2.0) - arrivals.closure) * 4.0)
    freedom = len(spec.receivers) - 3
    if freedom < 1:
        return present
    limit = float(chi2.ppf(1.0 - 1e-4, freedom))
    return present * op.sigmoid((const(1.5 * limit) - solution.misfit) * (8.0 / limit))
