"""Positions from arrival times by least squares, and whether the receivers agree: with all, and without each.

Receiver autonomous integrity monitoring as in satellite navigation (Parkinson & Axelrad 1988; Brown 1992): the squared
residual in units of its variance is chi-square with n − 3 degrees of freedom, for east, north and the time of emission
are fitted. With one degree of freedom (four receivers) a fault is seen but not whose it is, for each receiver's error
could explain it; with two or more, the set without the faulty receiver is the one that agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from localize_core.sanity.geometry import ArrivalGeometry

STEPS = 12
CLOSER_M = 0.01
"""A step below this ends the search."""
LEAST_DAMPING, GIVEN_UP = 1e-9, 1e3
"""Of the normal equations' trace; beyond the second no step in any direction is better."""


@dataclass(frozen=True)
class Solutions:
    """Places of n windows, (n, 2) in the plane; residuals (n, R) in metres, mean taken out, NaN where not used;
    `misfit` (n,): squared residual in variances; `freedom` (n,): its degrees, 0 or less where nothing is left to test.
    """

    places_m: np.ndarray
    residuals_m: np.ndarray
    misfit: np.ndarray
    freedom: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """That receivers as good as they are said to be disagree as much, (n,); 1 where nothing can be tested."""
        with np.errstate(invalid="ignore"):
            tested = chi2.sf(self.misfit, np.maximum(self.freedom, 1))
        return np.where((self.freedom > 0) & np.isfinite(self.misfit), tested, 1.0)


def solve(
    geometry: ArrivalGeometry,
    arrivals_m: np.ndarray,
    covariance_m2: np.ndarray,
    start_m: np.ndarray,
    *,
    steps: int = STEPS,
) -> Solutions:
    """Damped Gauss–Newton (Marquardt 1963) from `start_m` (n, 2).

    `arrivals_m` (n, R): arrival times up to a common one, NaN for those that are missing. `covariance_m2` (n, R, R): of
    them; rows of missing ones are not looked at.
    """
    used = np.isfinite(arrivals_m)
    precision = _precision(covariance_m2, used)
    known = np.where(used, arrivals_m, 0.0)
    places = np.array(start_m, float)
    residual = _residual(geometry, places, known, used)
    misfit = np.einsum("nr,nrs,ns->n", residual, precision, residual)
    damping = np.full(len(places), LEAST_DAMPING)
    for _ in range(steps):
        slopes = geometry.slopes(places)
        weighted = np.swapaxes(slopes, -1, -2) @ precision
        normal = weighted @ slopes
        ridge = damping * np.trace(normal, axis1=-2, axis2=-1) + 1e-30
        step = np.linalg.solve(normal + ridge[:, None, None] * np.eye(2), weighted @ residual[..., None])[..., 0]
        trial = places + step
        trial_residual = _residual(geometry, trial, known, used)
        trial_misfit = np.einsum("nr,nrs,ns->n", trial_residual, precision, trial_residual)
        better = trial_misfit < misfit
        places[better], residual[better], misfit[better] = trial[better], trial_residual[better], trial_misfit[better]
        moving = better & (np.linalg.norm(step, axis=-1) > CLOSER_M)
        damping = np.clip(np.where(better, damping * 0.1, damping * 10.0), LEAST_DAMPING, GIVEN_UP)
        if not (moving | (~better & (damping < GIVEN_UP))).any():
            break
    count = used.sum(axis=1)
    return Solutions(places, np.where(used, residual, np.nan), misfit, count - 3)


def _residual(geometry: ArrivalGeometry, places_m: np.ndarray, known_m: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(n, R), less their mean: places far from the receivers would leave it to rounding; 0 where not used."""
    residual = np.where(used, known_m - geometry.expected_m(places_m), 0.0)
    mean = residual.sum(axis=1, keepdims=True) / np.maximum(used.sum(axis=1, keepdims=True), 1)
    return np.where(used, residual - mean, 0.0)


def _precision(covariance_m2: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Precision (n, R, R) of the used arrival times without their common offset; rows of others are zero."""
    both = used[:, :, None] & used[:, None, :]
    eye = np.eye(used.shape[1])
    inverse = np.linalg.inv(np.where(both, covariance_m2, eye)) * both
    row = inverse.sum(axis=-1)
    return np.asarray(inverse - row[:, :, None] * row[:, None, :] / np.maximum(row.sum(axis=1), 1e-30)[:, None, None])
