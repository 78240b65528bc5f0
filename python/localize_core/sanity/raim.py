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
LONGEST_PART = 0.5
"""Of the distance to the farthest receiver: no step is longer."""


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
    """Gauss–Newton from `start_m` (n, 2) for arrival times (n, R) up to a common one, NaN for those that are missing.

    `covariance_m2` (n, R, R): of the arrival times; rows of missing ones are not looked at.
    """
    used = np.isfinite(arrivals_m)
    precision = _precision(covariance_m2, used)
    known = np.where(used, arrivals_m, 0.0)
    places = np.array(start_m, float)
    far = np.abs(geometry.receivers_m[:, :2]).max() + np.abs(start_m).max()
    for _ in range(steps):
        residual = np.where(used, known - geometry.expected_m(places), 0.0)
        slopes = geometry.slopes(places)
        weighted = np.swapaxes(slopes, -1, -2) @ precision
        normal = weighted @ slopes
        ridge = 1e-9 * np.trace(normal, axis1=-2, axis2=-1)[:, None, None] * np.eye(2) + 1e-30 * np.eye(2)
        step = np.linalg.solve(normal + ridge, weighted @ residual[..., None])[..., 0]
        length = np.linalg.norm(step, axis=-1, keepdims=True)
        places += step * np.minimum(1.0, LONGEST_PART * far / np.maximum(length, 1e-9))
        if length.max(initial=0.0) < CLOSER_M:
            break
    residual = np.where(used, known - geometry.expected_m(places), 0.0)
    misfit = np.einsum("nr,nrs,ns->n", residual, precision, residual)
    count = used.sum(axis=1)
    mean = residual.sum(axis=1, keepdims=True) / np.maximum(count, 1)[:, None]
    return Solutions(places, np.where(used, residual - mean, np.nan), misfit, count - 3)


def without_each(
    geometry: ArrivalGeometry, arrivals_m: np.ndarray, covariance_m2: np.ndarray, start_m: np.ndarray
) -> list[Solutions]:
    """The same without each receiver in turn. Residuals of the one left out are NaN."""
    found = []
    for receiver in range(arrivals_m.shape[1]):
        rest = arrivals_m.copy()
        rest[:, receiver] = np.nan
        found.append(solve(geometry, rest, covariance_m2, start_m))
    return found


def _precision(covariance_m2: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Precision (n, R, R) of the used arrival times without their common offset; rows of others are zero."""
    both = used[:, :, None] & used[:, None, :]
    eye = np.eye(used.shape[1])
    inverse = np.linalg.inv(np.where(both, covariance_m2, eye)) * both
    row = inverse.sum(axis=-1)
    return np.asarray(inverse - row[:, :, None] * row[:, None, :] / np.maximum(row.sum(axis=1), 1e-30)[:, None, None])
