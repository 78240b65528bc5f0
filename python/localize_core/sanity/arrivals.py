"""From a window's correlation channels to lags, arrival times and their noise, apart from any model.

Lags are those of the peaks of the window's mean correlation. Their noise is not assumed but seen: every frame has a
slope at the common peak, which moves it, and slopes scatter between frames. Pairs are put together to one arrival time
a receiver by least squares, with the covariance of that (the sandwich estimator of an M-estimate, Huber 1967), which
knows that pairs share receivers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localize_core.features.correlation import CorrelationConfig, peak_lag
from localize_core.geodesy import SPEED_OF_LIGHT_MPS

LEAST_CONTRAST = 6.0
"""Standard deviations of its noise that a peak stands out over the quiet lags, to be clear."""
CLOSURE_SIGMAS = 5.0
"""Beside half a lag, how far noise may keep the lags of a triangle from adding up."""
LEAST_FRAMES = 4
"""Fewer say nothing of their scatter."""
LAG_ERROR = 0.02
"""Of a lag step: what interpolation of a peak may be off."""


@dataclass(frozen=True)
class Arrivals:
    """What one window says of times.

    `lag_m` (P,): t_i − t_j of each pair as a path difference, NaN where the peak is not clear; `lag_sigma_m` (P,): its
    noise. `arrival_m` (R,): arrival times up to a common one, NaN for receivers that no clear pair connects with the
    others; `covariance_m2` (R, R): their noise, in the rows and columns of the others.
    """

    lag_m: np.ndarray
    lag_sigma_m: np.ndarray
    arrival_m: np.ndarray
    covariance_m2: np.ndarray


class ArrivalReader:
    """Reads windows of one configuration; `incidence` (P, R): from arrival times to the pairs' differences."""

    def __init__(self, config: CorrelationConfig, incidence: np.ndarray) -> None:
        self._config, self._incidence, self._member = config, incidence, np.abs(incidence)
        self._step_m = config.lag_step / config.sample_rate_hz * SPEED_OF_LIGHT_MPS
        self._signed = config.signal != "iq"

    def read(self, correlation: np.ndarray, usable: np.ndarray) -> Arrivals | None:
        """The arrivals in correlation channels (P, lags, frames), of which `usable` (P,) bool mean something.

        None where fewer than three receivers are connected, frames are too few, or clear peaks contradict each other.
        """
        config, n_lags = self._config, self._config.n_lags
        frames = correlation.shape[2]
        if frames < LEAST_FRAMES:
            return None
        # No copy of all of it: windows may be large.
        average = (
            correlation.mean(axis=2) if self._signed else np.einsum("plf,plf->pl", correlation, correlation) / frames
        )
        # Frames that overlap repeat noise.
        looks = frames * min(config.hop / config.n_core, 1.0)
        magnitude: np.ndarray = average if self._signed else np.sqrt(average)
        lags, height = peak_lag(magnitude, 1.0, signed=self._signed)
        at = lags + n_lags // 2
        # The slope over half the peak's own width, in every frame.
        middle = np.clip(np.rint(at).astype(int), 1, n_lags - 2)
        each = np.arange(len(average))
        quiet = np.partition(average, n_lags // 4, axis=1)[:, n_lags // 4]
        width = self._half_width(average, middle, quiet)
        below, above = np.clip(middle - width, 0, n_lags - 1), np.clip(middle + width, 0, n_lags - 1)
        ahead, behind = (correlation[each, side].astype(np.float64) for side in (above, below))
        slope = (ahead - behind if self._signed else ahead**2 - behind**2) / (above - below)[:, None]
        bend = (average[each, above] - 2.0 * average[each, middle] + average[each, below]) / np.square(width)
        white = 1.0 / config.n_core if not self._signed else config.n_core**-0.5
        summit = np.square(height) if not self._signed else height
        clear = usable & (summit - quiet > LEAST_CONTRAST * white / np.sqrt(looks)) & (bend < 0.0)
        clear &= (at >= width) & (at <= n_lags - 1 - width)
        if np.count_nonzero(clear) < 2:
            return None
        sharpness = np.where(clear, -bend, 0.0)  # of the mean of |ρ|² or ρ, per lag²
        moved = np.where(clear[:, None], (slope - slope.mean(axis=1, keepdims=True)), 0.0)
        scatter = np.square(moved).sum(axis=1) / (frames - 1)
        deviation = np.sqrt(scatter / looks) / np.where(clear, sharpness, 1.0)
        lag_sigma = np.hypot(deviation, LAG_ERROR)
        lag_m = np.where(clear, lags * self._step_m, np.nan)
        arrival_m, solve = self._combined(lag_m, clear, lag_sigma)
        if arrival_m is None or not self._closes(lag_m, arrival_m, lag_sigma * self._step_m):
            return None
        step_m2 = self._step_m**2
        jitter = solve @ (moved / np.where(clear, sharpness, 1.0)[:, None])
        noise = jitter @ jitter.T / ((frames - 1) * looks) * step_m2
        floor = solve @ (np.where(clear, LAG_ERROR**2, 0.0)[:, None] * solve.T) * step_m2
        return Arrivals(lag_m, np.where(clear, lag_sigma * self._step_m, np.nan), arrival_m, noise + floor)

    def _half_width(self, average: np.ndarray, middle: np.ndarray, quiet: np.ndarray) -> np.ndarray:
        """Half the way from each peak to its half height, in whole lags, (P,)."""
        n_lags = average.shape[1]
        half = 0.5 * (average[np.arange(len(average)), middle] + quiet)[:, None]
        low = np.where(average < half, np.abs(np.arange(n_lags) - middle[:, None]), n_lags).min(axis=1)
        return np.clip(low // 2, 1, n_lags // 8)

    def _combined(
        self, lag_m: np.ndarray, clear: np.ndarray, lag_sigma: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Arrival times (R,) of the largest set of receivers that clear pairs connect, and the matrix (R, P) that makes
        them of lags. None with fewer than three receivers."""
        incidence, member = self._incidence, self._member
        inside = np.ones(member.shape[1], bool)
        if not clear.all():
            reach = (member[clear].T @ member[clear] > 0.0).astype(float)
            for _ in range(len(reach).bit_length()):
                reach = np.minimum(reach @ reach, 1.0)
            inside = reach[reach.sum(axis=1).argmax()] > 0.0
        if np.count_nonzero(inside) < 3:
            return None, incidence.T
        weight = np.where(clear & (member @ ~inside < 0.5), 1.0 / np.square(lag_sigma), 0.0)
        pull = incidence.T * weight
        # Their mean is free, and so are receivers that no pair reaches: both are held at zero.
        held = np.outer(inside, inside) + np.diag((~inside).astype(float))
        solve = np.linalg.inv(pull @ incidence + weight.max() * held) @ pull
        arrival = solve @ np.where(weight > 0.0, np.nan_to_num(lag_m), 0.0)
        return np.where(inside, arrival, np.nan), solve

    def _closes(self, lag_m: np.ndarray, arrival_m: np.ndarray, sigma_m: np.ndarray) -> bool:
        """Whether lags add up round triangles: clocks and paths cannot keep them from it, false peaks do."""
        open_m = np.abs(lag_m - self._incidence @ np.nan_to_num(arrival_m))
        known = np.isfinite(lag_m) & (self._member @ np.isnan(arrival_m) == 0.0)
        return not (open_m > CLOSURE_SIGMAS * sigma_m + 0.5 * self._step_m)[known].any()
