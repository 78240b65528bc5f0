"""Fitting a line of time against sample index to time stamps that may be wrong.

Stamps come from receivers (KiwiSDR chunks, `rx_time` tags). They can be stale, jump, jitter, or be right but
step ahead, because samples were lost on the way. One fit serves recordings and live streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import ConfigError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_MAX_PAIRS = 2000
_MAX_SCORED = 4096
_MIN_SUPPORT = 3
_MIN_AGREEMENT = 0.25
_TRIM_SIGMAS = 5.0
_TRIM_FLOOR_S = 2e-9


@dataclass(frozen=True)
class Step:
    """From sample `index` on, time is later by `seconds` than the samples before it say: samples were lost."""

    index: int
    seconds: float


@dataclass(frozen=True)
class Line:
    """Least-squares line with one slope and one offset per piece, and how sure it is.

    `index_mean`, `index_spread`: mean and sum of squared deviations of the index, `used` stamps, `scatter_s`
    their standard deviation about the line; `correlation` inflates the variance of what is estimated from
    residuals that are not independent.
    """

    seconds_per_sample: float
    offsets_s: Floats
    scatter_s: float
    kept: Booleans
    index_mean: float
    index_spread: float
    correlation: float

    def standard_error_s(self, index: float) -> float:
        """Standard error of the line's time at `index`; 0 where two stamps or fewer leave nothing to tell it by."""
        used = int(np.count_nonzero(self.kept))
        if used <= 2 or self.index_spread == 0.0:
            return 0.0
        leverage = 1.0 / used + (index - self.index_mean) ** 2 / self.index_spread
        return self.scatter_s * float(np.sqrt(leverage * self.correlation))


@dataclass(frozen=True)
class ClockFit:
    """Time against sample index: `time_s(index) = offset_s + index / rate_hz + steps up to index`.

    `offset_s` is relative to the caller's base second. `scatter_s`: standard deviation of the stamps used about
    the line; `standard_error_s`: the largest standard error of the line itself within their span. `inliers`
    says for each stamp whether it was used.
    """

    rate_hz: float
    offset_s: float
    scatter_s: float
    standard_error_s: float
    inliers: Booleans
    steps: tuple[Step, ...] = ()

    @property
    def used(self) -> int:
        return int(np.count_nonzero(self.inliers))

    @property
    def rejected(self) -> int:
        return len(self.inliers) - self.used

    def time_s(self, index: Floats | Integers | float) -> Floats:
        """Time of `index` (samples) in seconds after the base second."""
        position = np.asarray(index, dtype=np.float64)
        time = self.offset_s + position / self.rate_hz
        for step in self.steps:
            time = time + np.where(position >= step.index, step.seconds, 0.0)
        return np.asarray(time)


def fit_clock(
    sample_index: Integers,
    time_s: Floats,
    nominal_rate_hz: float,
    *,
    tolerance_s: float = 20e-6,
    max_rate_error: float = 1e-4,
    max_step_s: float = 600.0,
    step_unit: int = 1,
) -> ClockFit | None:
    """Robust line through time stamps; None where less than a quarter of them agree.

    `sample_index`: rising. `time_s`: time of these samples relative to a whole base second near them, so that
    float64 keeps 0.1 ns. Stamps within `tolerance_s` of the largest consensus whose rate is within
    `max_rate_error` (relative) of `nominal_rate_hz` are fitted by least squares; up to 45 % may be wrong, at any
    place. Where a consensus follows another one later by a whole multiple of `step_unit` samples, and by
    `max_step_s` at most, samples were lost: a Step. Any other stamp is rejected. A single stamp is believed.
    Raises ConfigError if the arguments do not fit together.

    Random sample consensus (Fischler & Bolles 1981) with a fixed seed: the same stamps give the same fit.
    """
    index = np.asarray(sample_index, dtype=np.float64)
    time = np.asarray(time_s, dtype=np.float64)
    if index.shape != time.shape or index.ndim != 1:
        raise ConfigError(f"{index.shape} sample indices and {time.shape} times: must be as many")
    if not (nominal_rate_hz > 0.0 and np.isfinite(nominal_rate_hz)):
        raise ConfigError(f"nominal_rate_hz={nominal_rate_hz}: must be positive")
    if len(index) == 0:
        return None
    nominal = 1.0 / nominal_rate_hz
    if len(index) == 1:
        return ClockFit(nominal_rate_hz, float(time[0] - index[0] * nominal), 0.0, 0.0, np.ones(1, dtype=bool))

    slope = _consensus_slope(index, time - index * nominal, nominal * max_rate_error, tolerance_s)
    if slope is None:
        return None
    level = time - index * (nominal + slope)
    piece = _pieces(index, level, tolerance_s, max_step_s, step_unit * (nominal + slope))
    if np.count_nonzero(piece >= 0) < _MIN_AGREEMENT * len(index):
        return None
    line = least_squares(index, time, piece, nominal)
    offsets = line.offsets_s
    starts = [index[line.kept & (piece == k)][0] for k in range(len(offsets))]
    steps = tuple(Step(int(starts[k]), float(offsets[k] - offsets[k - 1])) for k in range(1, len(offsets)))
    ends = index[line.kept][[0, -1]]
    error = max(line.standard_error_s(float(end)) for end in ends)
    return ClockFit(1.0 / line.seconds_per_sample, float(offsets[0]), line.scatter_s, error, line.kept, steps)


def least_squares(index: Floats, time: Floats, piece: Integers, nominal: float) -> Line:
    """One slope, one offset per piece (numbers from 0; -1: left out), stamps far off the rest trimmed.

    `nominal`: the slope, seconds per sample, where no piece has two stamps to tell it by.
    """
    kept = piece >= 0
    count = int(piece.max()) + 1
    while True:
        x, y, group = index[kept], time[kept], piece[kept]
        members = np.bincount(group, minlength=count)
        x_mean = np.bincount(group, x, count) / members
        y_mean = np.bincount(group, y, count) / members
        dx, dy = x - x_mean[group], y - y_mean[group]
        spread = float(dx @ dx)
        slope = float(dx @ dy) / spread if spread > 0.0 else nominal
        residual = dy - slope * dx
        sigma = 1.4826 * float(np.median(np.abs(residual)))
        good = np.abs(residual) <= max(_TRIM_SIGMAS * sigma, _TRIM_FLOOR_S)
        if good.all() or np.bincount(group[good], minlength=count).min() == 0:
            break
        kept[np.flatnonzero(kept)[~good]] = False
    freedom = max(len(residual) - count - 1, 1)
    power = float(residual @ residual)
    neighbours = float(residual[1:] @ residual[:-1]) / power if power > 0.0 else 0.0
    neighbours = min(max(neighbours, 0.0), 0.99)
    return Line(
        slope,
        y_mean - slope * x_mean,
        float(np.sqrt(power / freedom)),
        kept,
        float(x.mean()),
        spread,
        (1.0 + neighbours) / (1.0 - neighbours),
    )


def _consensus_slope(index: Floats, excess: Floats, limit: float, tolerance: float) -> float | None:
    """Slope of the line that most stamps agree on; `excess` is time less the nominal line."""
    if len(index) <= _MAX_SCORED:
        x, y = index, excess
    else:
        chosen = np.linspace(0, len(index) - 1, _MAX_SCORED).astype(np.int64)
        x, y = index[chosen], excess[chosen]
    first, second = np.triu_indices(len(x), 1) if len(x) <= 64 else _random_pairs(len(x))
    slopes = (y[second] - y[first]) / (x[second] - x[first])
    plausible = np.abs(slopes) <= limit
    first, slopes = first[plausible], slopes[plausible]
    best, best_count = None, 1
    for start, slope in zip(first, slopes, strict=True):
        inlier = np.abs(y - y[start] - slope * (x - x[start])) <= tolerance
        count = int(np.count_nonzero(inlier))
        if count > best_count:
            best, best_count = inlier, count
    if best is None:
        # No two stamps share a line: either one stamp a piece, or none is right. The nominal rate decides nothing.
        return 0.0 if len(index) <= _MIN_SUPPORT else None
    for _ in range(3):
        line = least_squares(x, y, np.where(best, 0, -1), 0.0)
        residual = y - line.offsets_s[0] - line.seconds_per_sample * x
        best = np.abs(residual) <= tolerance
    return line.seconds_per_sample


def _random_pairs(count: int) -> tuple[Integers, Integers]:
    pairs = np.random.default_rng(0).integers(0, count, (2, _MAX_PAIRS))
    pairs = pairs[:, pairs[0] != pairs[1]]
    return pairs.min(axis=0), pairs.max(axis=0)


def _pieces(index: Floats, level: Floats, tolerance: float, max_step: float, unit: float) -> Integers:
    """Number of the piece each stamp belongs to, -1 for none.

    Stamps of one level (within `tolerance`) form a cluster. The chain of clusters that holds most stamps wins,
    where each follows the one before in index and lies higher by a credible step.
    """
    clusters = _clusters(level, tolerance)
    support = min(_MIN_SUPPORT, max(len(members) for members in clusters))
    clusters = sorted((c for c in clusters if len(c) >= support), key=lambda members: index[members[-1]])
    spans = [(index[c[0]], index[c[-1]], float(np.median(level[c])), len(c)) for c in clusters]
    weight = [0] * len(spans)
    before = [-1] * len(spans)
    for k, (start, _, height, size) in enumerate(spans):
        for earlier in range(k):
            step = height - spans[earlier][2]
            whole = abs(step - round(step / unit) * unit) <= 2.0 * tolerance
            if spans[earlier][1] < start and tolerance < step <= max_step and whole and weight[earlier] > weight[k]:
                weight[k], before[k] = weight[earlier], earlier
        weight[k] += size
    # The later one of two equal chains: what a receiver says first is stale more often than what it says last.
    last = max(range(len(spans)), key=lambda k: (weight[k], spans[k][1]))
    chain = []
    while last >= 0:
        chain.append(last)
        last = before[last]
    piece = np.full(len(index), -1, dtype=np.int64)
    for number, k in enumerate(reversed(chain)):
        piece[clusters[k]] = number
    return piece


def _clusters(level: Floats, tolerance: float) -> list[Integers]:
    """Groups of stamps within `tolerance` of their densest place, largest first; members in order of index."""
    order = np.argsort(level, kind="stable")
    clusters: list[Integers] = []
    while len(order):
        values = level[order]
        reach = np.searchsorted(values, values + 2.0 * tolerance, side="right") - np.arange(len(values))
        at = int(np.argmax(reach))
        size = int(reach[at])
        if size == 1 and clusters and len(clusters[0]) >= _MIN_SUPPORT:
            break
        clusters.append(np.sort(order[at : at + size]))
        order = np.delete(order, np.s_[at : at + size])
    return clusters
