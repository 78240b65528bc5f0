"""Further places that a window points to: other emitters that are heard at the same time, and places where the same one
may be instead.

A model that measures arrival times answers with one emitter, the one that most pairs of receivers agree on. Another one
has peaks of its own in the correlations. So what the answer explains is taken out of them, and the model is asked again
what the rest comes from: its own tests of whether the receivers agree on a place then turn down what is pieced together
from peaks of different emitters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import maximum_filter, maximum_filter1d
from scipy.stats import chi2

from localize_core.geodesy import GEOD, SPEED_OF_LIGHT_MPS, LocalFrame, path_length_m
from localize_core.model.compiled.propagation import along_surface
from localize_core.model.contract import Contract, LikelihoodGrid
from localize_core.types.fix import Position, Uncertainty

GATE_SIGMAS = 3.0
"""How far from where the answer puts it, in standard deviations of the answer, a peak belongs to it."""
SEARCH_CELLS = 96
LEAST_CONTRAST = 7.0
"""Standard deviations of the noise that a pair's peak stands out by, where it counts."""
AGREEING = 0.8
"""Of the pairs: as many have to hear one emitter."""
SAME = float(chi2.ppf(0.999, 2))
SEPARATION = 0.5
"""Of the lower peak: where the way between two nowhere falls below it, they are one."""
LEAST_MASS = 0.05
"""Of the probability: what a place must have to be one."""


class PeakEraser:
    """Takes an emitter out of the correlations of windows by `contract`."""

    def __init__(self, contract: Contract) -> None:
        config = contract.correlation_config
        assert config is not None
        self._config = config
        self._channels = [k for k, each in enumerate(contract.channels) if each.feature == "cross_correlation"]
        self._receivers = contract.receivers
        self._along_surface = contract.frequency_hz is not None and along_surface(contract.frequency_hz)
        index = {receiver.name: k for k, receiver in enumerate(contract.receivers)}
        self._pairs = [tuple(index[name] for name in contract.channels[k].receivers) for k in self._channels]
        self._step_m = config.lag_step / config.sample_rate_hz * SPEED_OF_LIGHT_MPS
        self._grid, self._altitude_m = contract.likelihood, contract.frame.local.altitude_m

    @cached_property
    def _expected(self) -> tuple[np.ndarray, int]:
        """For cells of the area each pair's lag, (cells, pairs), and by how many it differs within a cell at most."""
        grid = self._grid
        assert grid is not None
        steps = (np.arange(SEARCH_CELLS) + 0.5) / SEARCH_CELLS
        latitude, longitude = np.meshgrid(
            grid.south + steps * (grid.north - grid.south), grid.west + steps * (grid.east - grid.west), indexing="ij"
        )
        middle = (grid.west + grid.east) / 2.0
        frame = LocalFrame((grid.south + grid.north) / 2.0, (middle + 180.0) % 360.0 - 180.0, self._altitude_m)
        receivers_m = np.stack([frame.to_enu_m(r.latitude, r.longitude, r.altitude_m) for r in self._receivers])
        places_m = frame.to_enu_m(latitude, longitude, self._altitude_m)
        length_m = path_length_m(places_m, receivers_m, along_surface=self._along_surface)
        lags = np.stack([length_m[..., i] - length_m[..., j] for i, j in self._pairs], axis=-1) / self._step_m
        extent = max(float(np.abs(np.diff(lags, axis=axis)).max()) for axis in (0, 1))
        middle_lag = self._config.n_lags // 2
        index = np.clip(np.rint(lags).astype(int) + middle_lag, 0, self._config.n_lags - 1)
        return index.reshape(-1, len(self._pairs)), math.ceil(extent) + 1

    def focus(self, features: np.ndarray) -> np.ndarray | None:
        """Features (channels, rows, time_steps) with nothing but what comes from the cell of the area that most pairs
        agree on; a copy. None where too few of them do, or nothing says where the area is.

        With several emitters, the highest peaks of different pairs may be those of different ones.
        """
        if self._grid is None:
            return None
        power = features[self._channels] ** 2 if self._config.signal == "iq" else features[self._channels]
        average = power.mean(axis=2)
        quiet = average <= np.median(average, axis=1, keepdims=True)
        level = np.array([each[which].mean() for each, which in zip(average, quiet, strict=True)])
        deviation = np.array([each[which].std(axis=1).mean() for each, which in zip(power, quiet, strict=True)])
        contrast = (average - level[:, None]) / (deviation[:, None] / math.sqrt(power.shape[2]) + 1e-12)
        expected, reach = self._expected
        pooled = maximum_filter1d(contrast, 2 * reach + 1, axis=1, mode="nearest")
        there = pooled[np.arange(len(self._pairs)), expected]
        best = int(np.argmax(np.log1p(np.maximum(there - LEAST_CONTRAST / 2.0, 0.0)).sum(axis=1)))
        if np.mean(there[best] > LEAST_CONTRAST) < AGREEING:
            return None
        focused = features.copy()
        for channel, lag, each in zip(self._channels, expected[best].tolist(), average, strict=True):
            low, high = max(lag - reach, 0), min(lag + reach + 1, len(each))
            low, high = _slopes(each, low + int(np.argmax(each[low:high])))
            fill = np.sort(np.argsort(each)[: len(each) // 2])
            filled = np.resize(features[channel, fill], features[channel].shape)
            filled[low:high] = features[channel, low:high]
            focused[channel] = filled
        return focused

    def erase(
        self, features: np.ndarray, latitude: float, longitude: float, altitude_m: float, sigma_m: float
    ) -> np.ndarray:
        """Features (channels, rows, time_steps) without the peaks of an emitter there; a copy.

        `sigma_m`: standard deviation of that place along the ellipse's major axis. Of each pair, the highest lag near
        where the place puts it goes, and what falls off on either side of it; what takes its place is as quiet as the
        quieter half of the lags.
        """
        frame = LocalFrame(latitude, longitude, altitude_m)
        receivers_m = np.stack([frame.to_enu_m(r.latitude, r.longitude, r.altitude_m) for r in self._receivers])
        length_m = path_length_m(np.zeros(3), receivers_m, along_surface=self._along_surface)
        erased = features.copy()
        n_lags = self._config.n_lags
        reach = math.ceil(GATE_SIGMAS * sigma_m / self._step_m) + 1
        for channel, (i, j) in zip(self._channels, self._pairs, strict=True):
            power = features[channel] ** 2 if self._config.signal == "iq" else features[channel]
            average = power.mean(axis=1)
            middle = round((length_m[i] - length_m[j]) / self._step_m) + n_lags // 2
            first, last = max(middle - reach, 0), min(middle + reach + 1, n_lags)
            if first >= last:
                continue
            peak = first + int(np.argmax(average[first:last]))
            low, high = _slopes(average, peak)
            quiet = np.argsort(average)[: n_lags // 2]
            erased[channel, low:high] = np.resize(features[channel, np.sort(quiet)], (high - low, features.shape[2]))
        return erased


def are_one(one: tuple[Position, Uncertainty], other: tuple[Position, Uncertainty]) -> bool:
    """Whether two places with their ellipses may be one and the same, by a chi-square test."""
    frame = LocalFrame(one[0].latitude, one[0].longitude)
    off_m = frame.to_enu_m(other[0].latitude, other[0].longitude, 0.0)[:2]
    together = one[1].covariance_m2 + other[1].covariance_m2
    return float(off_m @ np.linalg.solve(together, off_m)) < SAME


def separation_m(one: Position, other: Position) -> float:
    """Distance along the ground."""
    return float(GEOD.inv(one.longitude, one.latitude, other.longitude, other.latitude)[2])


def _slopes(average: np.ndarray, peak: int) -> tuple[int, int]:
    """From where to where a peak falls off without rising again: the range of its lags."""
    floor = float(np.median(average))
    low = high = peak
    while low > 0 and floor < average[low - 1] <= average[low]:
        low -= 1
    while high < len(average) - 1 and floor < average[high + 1] <= average[high]:
        high += 1
    return low, high + 1


@dataclass(frozen=True)
class Basin:
    """A peak of a likelihood: its share of the probability, its mean, covariance of east and north there."""

    mass: float
    position: Position
    covariance_m2: np.ndarray

    def uncertainty(self, probability: float) -> Uncertainty:
        (ee, en), (_, nn) = self.covariance_m2.tolist()
        return Uncertainty.of_covariances(ee, en, nn, probability)


def basins(probability: np.ndarray, grid: LikelihoodGrid) -> list[Basin]:
    """Separate peaks of a likelihood (rows, columns), the weightiest first.

    Every cell belongs to the peak that the steepest way up from it leads to. Two of them are one where the highest way
    between them does not fall below SEPARATION of the lower: the ridge of one emitter has many tops. Those with less
    than LEAST_MASS are left out. Means and covariances are those of the cells, within which a place may be anywhere.
    """
    rows, columns = probability.shape
    label = _climbed(probability)
    tops = {int(k): float(probability.ravel()[k]) for k in np.unique(label)}
    parent = {k: k for k in tops}

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    for height, one, other in _saddles(probability, label):
        a, b = root(one), root(other)
        if a != b and height >= SEPARATION * min(tops[a], tops[b]):
            low, high = sorted((a, b), key=lambda k: tops[k])
            parent[low] = high
    merged = np.array([root(k) for k in label.ravel().tolist()]).reshape(rows, columns)
    latitude = grid.south + (np.arange(rows) + 0.5) / rows * (grid.north - grid.south)
    longitude = grid.west + (np.arange(columns) + 0.5) / columns * (grid.east - grid.west)
    lat, lon = np.meshgrid(latitude, longitude, indexing="ij")
    found = []
    for k in np.unique(merged):
        inside = merged == k
        weight = probability[inside].astype(float)
        mass = float(weight.sum())
        if mass < LEAST_MASS:
            continue
        weight /= mass
        centre = float(weight @ lat[inside]), float(weight @ lon[inside])
        frame = LocalFrame(centre[0], (centre[1] + 180.0) % 360.0 - 180.0)
        places_m = frame.to_enu_m(lat[inside], lon[inside], 0.0)[:, :2]
        off_m = places_m - weight @ places_m
        cell = frame.to_enu_m(centre[0] + latitude[1] - latitude[0], centre[1] + longitude[1] - longitude[0], 0.0)[:2]
        covariance_m2 = (off_m * weight[:, None]).T @ off_m + np.diag(cell**2) / 12.0
        found.append(Basin(mass, Position(frame.latitude, frame.longitude), covariance_m2))
    return sorted(found, key=lambda basin: -basin.mass)


def _climbed(probability: np.ndarray) -> np.ndarray:
    """The flat index of the top above each cell, (rows, columns)."""
    rows, columns = probability.shape
    # Equal cells have a way up all the same: by their numbers.
    rank = np.empty(probability.size, np.int64)
    rank[np.lexsort((np.arange(probability.size), probability.ravel()))] = np.arange(probability.size)
    rank = rank.reshape(rows, columns)
    best = maximum_filter(rank, size=3, mode="constant", cval=-1)
    of_rank = np.empty(probability.size, np.int64)
    of_rank[rank.ravel()] = np.arange(probability.size)
    above = of_rank[best.ravel()]
    while not np.array_equal(above, above[above]):
        above = above[above]
    return above.reshape(rows, columns)


def _saddles(probability: np.ndarray, label: np.ndarray) -> list[tuple[float, int, int]]:
    """Heights at which neighbouring tops' cells meet, and the two tops, the highest first."""
    highest: dict[tuple[int, int], float] = {}
    for rows, columns in ((1, 0), (0, 1), (1, 1), (1, -1)):
        one, other = _beside(label, rows, columns)
        differ = one != other
        heights = np.minimum(*_beside(probability, rows, columns))[differ]
        for a, b, height in zip(one[differ].tolist(), other[differ].tolist(), heights.tolist(), strict=True):
            key = (min(a, b), max(a, b))
            highest[key] = max(highest.get(key, 0.0), height)
    return sorted(((height, *key) for key, height in highest.items()), reverse=True)


def _beside(values: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """All cells and their neighbours `rows` down and `columns` to the right, where there are any."""
    height, width = values.shape
    one = values[: height - rows, max(-columns, 0) : width - max(columns, 0)]
    return one, values[rows:, max(columns, 0) : width - max(-columns, 0)]
