"""What any model has to beat, fed with the same windows: the methods of textbooks, and models as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from scipy.signal import get_window

from localize_core.dataset.windows import Label, Windows, WindowSource
from localize_core.errors import ConfigError
from localize_core.evaluation.metrics import Answers, covariance_of
from localize_core.features.mel import MelConfig, mel_filterbank
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, path_length_m, surface_up_m
from localize_core.model.base import Model
from localize_core.model.compiled.propagation import along_surface
from localize_core.model.contract import Contract, moved_receivers

NEIGHBOURS = 5
LEAST_CONTRAST = 6.0
"""Standard deviations of noise that a pair's peak has to stand out over the quiet lags to be used."""
LEAST_SIGNAL = 0.05
"""Part of the noise power below which a signal is none: how well noise is known over a window."""
GRID_CELLS = 48
GAUSS_NEWTON_STEPS = 40
PARABOLA_LAGS = 0.05
"""How far a parabola through three values misses the peak of a band-limited correlation, lags."""
FLOOR_M = 1.0
"""Least standard deviation that a baseline claims."""
SHARPNESS = 1e-3
"""Part of a lag within which residuals count as none: where reweighting stops."""
CLOSER_M = 1e-3
"""A step below this ends the search."""
GIVEN_UP = 1e3
"""And so does damping above this: no step in any direction is better."""


class Locator(Protocol):
    """Anything that answers windows: a model or a baseline."""

    def locate(self, windows: Windows) -> Answers:
        """One answer for each window."""
        ...


class ModelLocator:
    """An ONNX model as it would run, on the channels of a source that holds its own among others.

    Answers come in the plane of the source's frame. Raises ConfigError where the source's receivers, features or number
    of frames are not what the model wants, or its frame is no plane.
    """

    def __init__(self, model: Model, source: WindowSource) -> None:
        self.model = model
        contract, given = model.contract, source.contract
        self._frame = given.frame
        _plane(given)
        name = f"the model {contract.name}"
        names, wanted = ([receiver.name for receiver in c.receivers] for c in (given, contract))
        if names != wanted:
            raise ConfigError(f"the windows are of receivers {', '.join(names)}: {name} wants {', '.join(wanted)}")
        for own, theirs, apart_m in moved_receivers(given.receivers, contract.receivers):
            raise ConfigError(
                f"receiver {own.name} of the windows at {own.latitude:g}, {own.longitude:g}: {name} was made for "
                f"{theirs.latitude:g}, {theirs.longitude:g}, {apart_m:.0f} m away"
            )
        for feature, parameters in contract.parameters.items():
            found = given.parameters.get(feature)
            if found is None:
                raise ConfigError(f"the windows have no {feature}: {name} wants it")
            for key, value in parameters.items():
                if found[key] != value:
                    raise ConfigError(f"{feature}: the windows have {key}={found[key]!r}, {name} wants {value!r}")
        steps = source.time_steps
        if contract.time_steps not in (None, steps) or steps < contract.min_time_steps:
            least = f"{contract.min_time_steps} or more" if contract.time_steps is None else contract.time_steps
            raise ConfigError(f"the windows have {steps} frames: {name} wants {least}")
        there = {(channel.feature, channel.receivers): index for index, channel in enumerate(given.channels)}
        self._channels = [there[channel.feature, channel.receivers] for channel in contract.channels]

    def locate(self, windows: Windows) -> Answers:
        contract = self.model.contract
        features = windows.features
        if self._channels != list(range(features.shape[1])):
            features = features[:, self._channels]
        if contract.normalisation.kind == "joint":
            features = np.stack([contract.normalisation.apply(window) for window in features])
        else:
            features = contract.normalisation.apply(features)
        answer = self.model.run(np.ascontiguousarray(features, np.float32))
        place, covariance = self._in_plane(answer.position.astype(float), covariance_of(answer.uncertainty))
        return Answers(place, covariance, answer.confidence[:, 0].astype(float))

    def _in_plane(self, position: np.ndarray, covariance_m2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The model's answers in the plane of the source's frame."""
        own, wanted = self.model.contract.frame, self._frame
        if own == wanted:
            return position, covariance_m2
        if own.kind == "wgs84_deg":
            latitude, longitude = position.T
            return wanted.local.to_enu_m(latitude, longitude, wanted.altitude_m)[:, :2], covariance_m2

        def carried(points_m: np.ndarray) -> np.ndarray:
            latitude, longitude = own.local.to_wgs84(points_m)
            return wanted.local.to_enu_m(latitude, longitude, wanted.altitude_m)[:, :2]

        step_m = 10.0
        place = carried(position)
        jacobian = np.stack([(carried(position + step_m * axis) - place) / step_m for axis in np.eye(2)], axis=-1)
        return place, jacobian @ covariance_m2 @ jacobian.transpose(0, 2, 1)


def _plane(contract: Contract) -> None:
    if contract.frame.kind != "enu_m":
        raise ConfigError(f"windows of the contract {contract.name}: frame enu_m is expected, found wgs84_deg")


def receivers_enu_m(contract: Contract) -> np.ndarray:
    """(R, 3) in the contract's frame."""
    _plane(contract)
    places = np.array([(r.latitude, r.longitude, r.altitude_m) for r in contract.receivers])
    return contract.frame.local.to_enu_m(*places.T)


class Levels:
    """Received levels out of windows: from the log-mel channels where there are any, else the mean power.

    `noise_dbfs` (R): receiver noise in the whole band, None for a receiver where it is unknown; or None for all. Known
    noise is taken out, and a level below LEAST_SIGNAL of it is set to that: as good as not heard.
    """

    def __init__(self, contract: Contract, noise_dbfs: Sequence[float | None] | None = None) -> None:
        self._config = contract.mel_config
        self._receivers = len(contract.receivers)
        told = noise_dbfs or (None,) * self._receivers
        self._noise = 10.0 ** (np.array([math.nan if value is None else value for value in told]) / 10.0)
        if self._config is not None:
            self._width = mel_filterbank(self._config).sum(axis=1).astype(float)
            self._full_scale = _full_scale(self._config)

    def level_db(self, windows: Windows) -> np.ndarray:
        """(n, R) dB re full scale, without noise where that is known; NaN for receivers that are missing."""
        power = self._power(windows)
        known = np.isfinite(self._noise)
        signal = np.where(known, np.maximum(power - self._noise, LEAST_SIGNAL * self._noise), power)
        with np.errstate(divide="ignore"):
            return np.where(windows.usable, 10.0 * np.log10(signal), np.nan)

    def signal(self, windows: Windows) -> np.ndarray:
        """Power over the noise, re full scale, (n, R); 0 below LEAST_SIGNAL of it, NaN for receivers that are missing.

        Unknown noise is read off the quietest quarter of the bands, which an emitter that fills the band makes too
        high; without bands it is the least power of the window's receivers.
        """
        power = self._power(windows)
        noise = np.where(np.isfinite(self._noise), self._noise, self._quiet(windows, power))
        signal = np.where(power - noise > LEAST_SIGNAL * noise, power - noise, 0.0)
        return np.where(windows.usable, signal, np.nan)

    def _power(self, windows: Windows) -> np.ndarray:
        if self._config is None:
            return 10.0 ** (windows.level_db.astype(float) / 10.0)
        mel = np.exp(windows.features[:, : self._receivers]).mean(axis=3, dtype=np.float64)
        # Bands at the ends of the scale weigh their bins less: what is in all bands stands for the whole rate.
        return np.asarray(mel.sum(axis=2) * (self._config.n_fft / self._width.sum()) / self._full_scale)

    def _quiet(self, windows: Windows, power: np.ndarray) -> np.ndarray:
        """Noise power as the windows themselves tell it, (n, R)."""
        if self._config is None:
            least = np.fmin.reduce(np.where(windows.usable, power, np.nan), axis=1, keepdims=True)
            return np.broadcast_to(least, power.shape)
        density = np.exp(windows.features[:, : self._receivers]).mean(axis=3, dtype=np.float64) / self._width
        quiet = max(density.shape[2] // 4, 1)
        lowest = np.partition(density, quiet - 1, axis=2)[:, :, :quiet].mean(axis=2)
        # The lowest of noisy values lie 1.27 of their deviations below the mean.
        frames = windows.features.shape[3] * self._config.hop / self._config.n_fft
        looks = max(frames * float(np.median(self._width)), 4.0)
        return np.asarray(lowest * (1.0 + 1.27 / math.sqrt(looks)) * self._config.n_fft / self._full_scale)


def _full_scale(config: MelConfig) -> float:
    """What a sample of magnitude 1 gives in all bands together."""
    return config.n_fft * float(np.sum(get_window(config.window, config.n_fft, fftbins=True) ** 2))


class NearestNeighbours:
    """The mean place of the k training windows whose levels are nearest, RADAR of Bahl & Padmanabhan 2000.

    Distance is the mean square over the receivers that both windows have. The ellipse is the spread of the neighbours
    (as a prediction of one more, so a factor of 1 + 1/k over their covariance). No confidence is stated. `noise_dbfs`:
    see `Levels`.
    """

    def __init__(
        self, contract: Contract, *, k: int = NEIGHBOURS, noise_dbfs: Sequence[float | None] | None = None
    ) -> None:
        if k < 2:
            raise ConfigError(f"k={k}: at least two neighbours have a spread")
        self.k = k
        self._levels = Levels(contract, noise_dbfs)
        self._known_db = np.empty((0, len(contract.receivers)))
        self._places_m = np.empty((0, 2))

    def fit(self, level_db: np.ndarray, places_m: np.ndarray) -> NearestNeighbours:
        """Remember levels (m, R), NaN where there is none, and places (m, 2). Raises ConfigError for fewer than k."""
        heard = np.isfinite(level_db).any(axis=1) & np.isfinite(places_m).all(axis=1)
        if heard.sum() < self.k:
            raise ConfigError(f"k={self.k}: needs as many training windows with an emitter, found {heard.sum()}")
        self._known_db, self._places_m = level_db[heard], places_m[heard]
        return self

    def fit_windows(
        self, source: WindowSource, *, batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> NearestNeighbours:
        """Remember the windows of a source with an emitter in the area: others would put places there that are not."""
        levels, places = [self._known_db[:0]], [self._places_m[:0]]
        for part in source.batches(batch):
            inside = part.label == Label.INSIDE
            levels.append(self._levels.level_db(part)[inside])
            places.append(part.truth_m[inside])
            if progress is not None:
                progress(len(part))
        return self.fit(np.concatenate(levels), np.concatenate(places))

    def locate(self, windows: Windows) -> Answers:
        return self.predict(self._levels.level_db(windows))

    def predict(self, level_db: np.ndarray) -> Answers:
        """Answers to levels (n, R). No position where no receiver is shared with k training windows."""
        answers = Answers.nothing(len(level_db))
        if len(self._places_m) == 0:
            raise ConfigError("nearest neighbours know no training windows yet")
        here, there = np.isfinite(level_db), np.isfinite(self._known_db)
        # About a common middle: squares of large numbers would take the digits of their differences.
        middle = np.nanmean(self._known_db)
        own, known = np.where(here, level_db - middle, 0.0), np.where(there, self._known_db - middle, 0.0)
        shared = here.astype(float) @ there.T
        squared = np.square(own) @ there.T + here @ np.square(known).T - 2.0 * own @ known.T
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.where(shared > 0.0, squared / shared, np.inf)
        nearest = np.argpartition(distance, self.k - 1, axis=1)[:, : self.k]
        found = np.isfinite(np.take_along_axis(distance, nearest, axis=1)).all(axis=1)
        places = self._places_m[nearest[found]]
        centre = places.mean(axis=1)
        offset = places - centre[:, None]
        spread = offset.transpose(0, 2, 1) @ offset / (self.k - 1) * (1.0 + 1.0 / self.k)
        answers.position_m[found] = centre
        answers.covariance_m2[found] = spread + FLOOR_M**2 * np.eye(2)
        return answers


class WeightedCentroid:
    """The receivers' mean place, weighted by received power without noise; no ellipse, no confidence.

    Source: Blumenthal et al. 2007, with received power for the weight. `noise_dbfs`: see `Levels`.
    """

    def __init__(self, contract: Contract, *, noise_dbfs: Sequence[float | None] | None = None) -> None:
        self._levels = Levels(contract, noise_dbfs)
        self._places_m = receivers_enu_m(contract)[:, :2]

    def locate(self, windows: Windows) -> Answers:
        weight = np.nan_to_num(self._levels.signal(windows))
        total = weight.sum(axis=1, keepdims=True)
        answers = Answers.nothing(len(windows))
        heard = total[:, 0] > 0.0
        answers.position_m[heard] = (weight @ self._places_m)[heard] / total[heard]
        return answers


class ClassicalTdoa:
    """Time differences from the peaks of correlation, and the place by Chan's method and Gauss–Newton.

    Each pair's lag is the peak of its correlation, averaged over the frames, with a parabola through three values.
    Peaks below LEAST_CONTRAST are dropped. Chan & Ho's two-step weighted least squares (1994) and the best cell of a
    grid over `box_m` each start a Gauss–Newton search for the least sum of absolute residuals (iteratively reweighted);
    the better result counts. Emitters have the height of the contract's frame. At least three receivers that pairs
    connect are needed, else there is no position. The ellipse is the Gauss–Newton covariance with the scatter of the
    residuals, which three receivers do not have, and at least that of PARABOLA_LAGS. No confidence is stated.

    `box_m` (2, 2): south-west and north-east corner of where an emitter may be, in the contract's plane; the search
    stays inside. Raises ConfigError without cross_correlation channels or with fewer than three receivers.
    """

    def __init__(self, contract: Contract, box_m: np.ndarray) -> None:
        config = contract.correlation_config
        if config is None or len(contract.receivers) < 3:
            raise ConfigError(
                f"{contract.name}: time differences need cross_correlation of three receivers or more, found "
                f"{len(contract.receivers)} and {', '.join(contract.parameters)}"
            )
        self._config = config
        self._first = len(contract.channels) - len(config.pairs)
        self._receivers_m = receivers_enu_m(contract)
        self._frame = contract.frame.local
        self._along_surface = contract.frequency_hz is not None and along_surface(contract.frequency_hz)
        self._step_m = config.lag_step / config.sample_rate_hz * SPEED_OF_LIGHT_MPS
        self._incidence = np.zeros((len(config.pairs), len(contract.receivers)))
        for row, (i, j) in enumerate(config.pairs):
            self._incidence[row, [i, j]] = 1.0, -1.0
        self._box_m = np.asarray(box_m, float)
        steps = (np.arange(GRID_CELLS) + 0.5) / GRID_CELLS
        east, north = np.meshgrid(*(low + steps * (high - low) for low, high in self._box_m.T))
        self._grid_m = np.stack([east.ravel(), north.ravel()], axis=-1)
        self._grid_difference_m = self._lengths_m(self._grid_m) @ self._incidence.T

    def locate(self, windows: Windows) -> Answers:
        return self.solve(*self.differences_m(windows))

    def differences_m(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Path differences t_i − t_j of the pairs in metres, (n, P), and whether each is to be used, (n, P)."""
        config = self._config
        correlation = windows.features[:, self._first :]
        power = np.square(correlation) if config.signal == "iq" else correlation
        average = power.mean(axis=3, dtype=np.float64)
        n_lags = config.n_lags
        peak = average[..., 1:-1].argmax(axis=2) + 1
        below, top, above = (
            np.take_along_axis(average, (peak + side)[..., None], axis=2)[..., 0] for side in (-1, 0, 1)
        )
        bend = below - 2.0 * top + above
        offset = np.where(bend < 0.0, 0.5 * (below - above) / np.where(bend < 0.0, bend, -1.0), 0.0).clip(-0.5, 0.5)
        # Of independent noise the squared coefficient has mean and deviation 1/N in a frame, a signed one 1/√N.
        frames = max(power.shape[3] * min(config.hop / config.n_core, 1.0), 1.0)
        noise = 1.0 / config.n_core if config.signal == "iq" else config.n_core**-0.5
        quiet = np.quantile(average, 0.25, axis=2)
        clear = top - quiet > LEAST_CONTRAST * noise / math.sqrt(frames)
        there = (windows.usable.astype(float) @ np.abs(self._incidence).T) > 1.5
        return (peak - n_lags // 2 + offset) * self._step_m, clear & there

    def solve(self, difference_m: np.ndarray, used: np.ndarray) -> Answers:
        """Places from path differences (n, P) and whether each is to be used."""
        answers = Answers.nothing(len(difference_m))
        weight = self._connected(used)
        solvable = np.flatnonzero(self._members(weight).sum(axis=1) >= 3)
        if len(solvable) == 0:
            return answers
        difference_m, weight = difference_m[solvable], weight[solvable]
        starts = np.stack([self._best_cell(difference_m, weight), self._chan(difference_m, weight)], axis=1)
        place, cost = self._gauss_newton(starts, difference_m[:, None], weight[:, None])
        best = cost.argmin(axis=1)
        place = place[np.arange(len(best)), best]
        answers.position_m[solvable] = place
        answers.covariance_m2[solvable] = self._covariance(place, difference_m, weight)
        return answers

    def _lengths_m(self, places_m: np.ndarray) -> np.ndarray:
        """Path lengths from (..., 2) to the receivers: (..., R)."""
        up = surface_up_m(self._frame, places_m)
        return path_length_m(
            np.concatenate([places_m, up[..., None]], axis=-1), self._receivers_m, along_surface=self._along_surface
        )

    def _members(self, weight: np.ndarray) -> np.ndarray:
        """Which receivers have a pair, (n, R) bool."""
        return (weight @ np.abs(self._incidence)) > 0.0

    def _connected(self, used: np.ndarray) -> np.ndarray:
        """Weights, 1 or 0, of the pairs (n, P) that belong to the largest set of receivers that pairs connect."""
        member = np.abs(self._incidence)
        count = self._incidence.shape[1]
        adjacent = np.einsum("np,pi,pj->nij", used.astype(float), member, member) + np.eye(count)
        reach = np.linalg.matrix_power(np.minimum(adjacent, 1.0), count) > 0.0
        largest = reach.sum(axis=2).argmax(axis=1)
        inside = reach[np.arange(len(used)), largest]
        return np.asarray(used * (inside @ member.T > 1.5), float)

    def _best_cell(self, difference_m: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The cell of the grid with the least sum of absolute residuals, (n, 2)."""
        cost = np.zeros((len(difference_m), len(self._grid_m)))
        for pair in range(difference_m.shape[1]):
            cost += weight[:, pair, None] * np.abs(difference_m[:, pair, None] - self._grid_difference_m[:, pair])
        return np.asarray(self._grid_m[cost.argmin(axis=1)])

    def _chan(self, difference_m: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Chan's start of each window, (n, 2); the receivers' middle where it has no real solution."""
        places = np.empty((len(difference_m), 2))
        for index, (lags, used) in enumerate(zip(difference_m, weight, strict=True)):
            member = np.flatnonzero(used @ np.abs(self._incidence) > 0.0)
            # Delays of the members that agree best with all pairs, up to a common one.
            delay_m = np.linalg.lstsq(self._incidence[:, member] * used[:, None], lags * used, rcond=None)[0]
            place = chan_ho(self._receivers_m[member], delay_m)
            places[index] = self._receivers_m[member, :2].mean(axis=0) if place is None else place
        return places

    def _gauss_newton(
        self, place: np.ndarray, difference_m: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Least absolute residuals from places (n, starts, 2): places and their costs, (n, starts)."""
        reach_m = float(np.linalg.norm(self._box_m[1] - self._box_m[0]))
        place = np.clip(place, *self._box_m)
        cost = self._cost(place, difference_m, weight)
        damping = np.full(cost.shape, 1e-3)
        for _ in range(GAUSS_NEWTON_STEPS):
            residual, slope = self._residuals(place, difference_m)
            robust = weight / np.maximum(np.abs(residual), SHARPNESS * self._step_m)
            pull = np.einsum("nspk,nsp->nsk", slope, robust * residual)
            normal = np.einsum("nspk,nsp,nspl->nskl", slope, robust, slope)
            ridge = damping * np.trace(normal, axis1=2, axis2=3) + 1e-12
            step = np.linalg.solve(normal + ridge[..., None, None] * np.eye(2), pull[..., None])[..., 0]
            length = np.linalg.norm(step, axis=-1, keepdims=True)
            step *= np.minimum(1.0, 0.25 * reach_m / np.maximum(length, 1e-12))
            trial = np.clip(place + step, *self._box_m)
            trial_cost = self._cost(trial, difference_m, weight)
            better = trial_cost < cost
            place = np.where(better[..., None], trial, place)
            cost = np.where(better, trial_cost, cost)
            damping = np.clip(np.where(better, damping / 3.0, damping * 10.0), 1e-9, 1e6)
            if not np.where(better, length[..., 0] > CLOSER_M, damping < GIVEN_UP).any():
                break
        return place, cost

    def _cost(self, place: np.ndarray, difference_m: np.ndarray, weight: np.ndarray) -> np.ndarray:
        found = self._lengths_m(place) @ self._incidence.T
        return np.asarray((weight * np.abs(difference_m - found)).sum(axis=-1))

    def _residuals(self, place: np.ndarray, difference_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals (..., P) and the slopes of path differences by east and north, (..., P, 2)."""
        residual = difference_m - self._lengths_m(place) @ self._incidence.T
        ahead, behind = (
            np.stack([self._lengths_m(place + sign * axis) for axis in np.eye(2)], axis=-1) for sign in (1.0, -1.0)
        )
        return residual, np.einsum("pr,...rk->...pk", self._incidence, 0.5 * (ahead - behind))

    def _covariance(self, place: np.ndarray, difference_m: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Covariance (n, 2, 2) from errors that are the receivers' own: pairs share them and count once each.

        All pairs of r receivers have r times the sum over the receivers, in residuals and in information alike; the
        residuals of r − 1 differences less two coordinates tell the receivers' variance.
        """
        residual, slope = self._residuals(place, difference_m)
        count = self._members(weight).sum(axis=1)
        freedom = count - 3
        scatter = (weight * np.square(residual)).sum(axis=1) / (count * np.maximum(freedom, 1))
        variance = np.maximum(np.where(freedom > 0, scatter, 0.0), (PARABOLA_LAGS * self._step_m) ** 2)
        normal = np.einsum("npk,np,npl->nkl", slope, weight, slope)
        return np.asarray((variance * count)[:, None, None] * _inverse(normal) + FLOOR_M**2 * np.eye(2))


def _inverse(normal: np.ndarray) -> np.ndarray:
    """Inverse of (n, 2, 2) with the smaller eigenvalue held above 1e-9 of the larger."""
    values, vectors = np.linalg.eigh(normal)
    values = np.maximum(values, 1e-9 * values[:, 1:] + 1e-300)
    return np.asarray(vectors / values[:, None, :] @ vectors.transpose(0, 2, 1))


def chan_ho(receivers_m: np.ndarray, delay_m: np.ndarray) -> np.ndarray | None:
    """East and north of an emitter at height 0 from path lengths up to a common one, in closed form.

    `receivers_m` (R, 3) with R >= 3, `delay_m` (R,). Returns (2,), None where there is no real solution or the
    receivers stand in one line. Errors of the path lengths are taken as equal and independent. With three receivers
    there can be two solutions: that of the smaller range to the first receiver is given.
    Source: Chan & Ho 1994, sections II.A and II.B, with the heights of the receivers known.
    """
    first, others = receivers_m[0], receivers_m[1:]
    difference = delay_m[1:] - delay_m[0]
    square = np.sum(others**2, axis=1) - np.sum(first**2)
    # (x_i − x_1) x + (y_i − y_1) y + d_i1 r_1 = (K_i − K_1 − d_i1²) / 2
    matrix = np.column_stack([others[:, :2] - first[:2], difference])
    right = 0.5 * (square - difference**2)
    if len(others) == 2:
        return _two_branches(matrix, right, first)
    noise = np.eye(len(others)) + 1.0  # covariance of differences against one receiver
    weight = np.linalg.inv(noise)
    try:
        for _ in range(2):
            normal = matrix.T @ weight @ matrix
            rough = np.linalg.solve(normal, matrix.T @ weight @ right)
            ranges = np.linalg.norm(others - [*rough[:2], 0.0], axis=1)
            scale = np.diag(1.0 / np.maximum(ranges, 1.0))
            weight = scale @ np.linalg.inv(noise) @ scale
        # Range and place are not independent: a second step ties them together.
        east, north = rough[:2] - first[:2]
        squares = np.array([east**2, north**2, rough[2] ** 2 - first[2] ** 2])
        tie = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        inverse = np.diag(1.0 / np.where(np.abs(v := np.array([east, north, rough[2]])) < 1.0, 1.0, v))
        second = inverse @ (matrix.T @ weight @ matrix) @ inverse
        found = np.linalg.solve(tie.T @ second @ tie, tie.T @ second @ squares)
    except np.linalg.LinAlgError:
        return None
    place = first[:2] + np.sign([east, north]) * np.sqrt(np.maximum(found, 0.0))
    return place if np.isfinite(place).all() else None


def _two_branches(matrix: np.ndarray, right: np.ndarray, first: np.ndarray) -> np.ndarray | None:
    """Two equations for three unknowns: the place as a line in the range, met with the range's definition."""
    try:
        base, slope = np.linalg.solve(matrix[:, :2], np.column_stack([right, -matrix[:, 2]])).T
    except np.linalg.LinAlgError:
        return None
    base = base - first[:2]
    # |base + slope r|² + height² = r²
    roots = np.roots([slope @ slope - 1.0, 2.0 * base @ slope, base @ base + first[2] ** 2])
    real = sorted(root.real for root in roots if abs(root.imag) < 1e-6 * max(abs(root), 1.0) and root.real > 0.0)
    return np.asarray(first[:2] + base + slope * real[0]) if real else None
