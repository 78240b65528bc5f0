"""A receiver's clock against another's: a Kalman filter of offset, drift, and what its carrier does besides."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]

SHARED_BIAS, SHARED_BIAS_WALK = 2e-8, 1e-11
"""Of the carrier, with one crystal: what synthesisers round differently, and how much of it changes in a second."""
GATE = 25.0
"""Squared deviations of an innovation beyond which it is an outlier."""


class ClockFilter:
    """Offset (s) and drift (s/s) of a clock, and the relative error of its carrier beyond the drift.

    With `carrier` "shared" the last is all but zero, so that the carrier tells the drift; with "independent" it wanders
    as the drift does and the delays alone tell that. `wander` is the drift's random walk in one second, `max_drift`
    what it may be at the start; `offset_sigma_s` how sure the offset is then. `carrier_gain`: by how much more than by
    its own error a carrier seems to be off per unit of drift.
    """

    def __init__(
        self,
        carrier: Literal["shared", "independent"],
        *,
        offset_s: float,
        offset_sigma_s: float,
        max_drift: float,
        wander: float,
        carrier_gain: float,
    ) -> None:
        bias, walk = (SHARED_BIAS, SHARED_BIAS_WALK) if carrier == "shared" else (2.0 * max_drift, wander)
        self.state = np.array([offset_s, 0.0, 0.0])
        self.covariance = np.diag(np.square([offset_sigma_s, max_drift, bias]))
        self._drift_variance, self._bias_variance = wander**2, walk**2
        self._carrier_row: Row = np.array([0.0, carrier_gain, 1.0])

    @property
    def offset_s(self) -> float:
        return float(self.state[0])

    @property
    def drift(self) -> float:
        return float(self.state[1])

    @property
    def bias(self) -> float:
        return float(self.state[2])

    @property
    def offset_sigma_s(self) -> float:
        return math.sqrt(self.covariance[0, 0])

    @property
    def drift_sigma(self) -> float:
        return math.sqrt(self.covariance[1, 1])

    def predict(self, span_s: float) -> None:
        """Let time pass: the offset grows by the drift. Source: Bar-Shalom, Li & Kirubarajan 2001, 6.2.2."""
        move = np.eye(3)
        move[0, 1] = span_s
        self.state = move @ self.state
        self.covariance = move @ self.covariance @ move.T
        q = self._drift_variance
        self.covariance[:2, :2] += q * np.array([[span_s**3 / 3.0, span_s**2 / 2.0], [span_s**2 / 2.0, span_s]])
        self.covariance[2, 2] += self._bias_variance * span_s

    def loosen(self, offset_s: float, span_s: float) -> None:
        """Know less: the offset may be off by so much, and the drift by as much as makes that within the span."""
        self.covariance[0, 0] += offset_s**2
        self.covariance[1, 1] += (offset_s / span_s) ** 2
        self.covariance[2, 2] += self._bias_variance + (offset_s / span_s) ** 2

    def rebase(self, base: ClockFilter) -> None:
        """From now on told against another clock, which has been told against the same as this one."""
        self.state[1:] -= base.state[1:]
        self.covariance += base.covariance

    def offset_row(self, after_s: float) -> Row:
        """What of the state an offset measured `after_s` from now sees."""
        return np.array([1.0, after_s, 0.0])

    @property
    def carrier_row(self) -> Row:
        """What of it a carrier's relative error sees."""
        return self._carrier_row

    def expected(self, row: Row, sigma: float) -> float:
        """Variance of a measurement's innovation."""
        return float(row @ self.covariance @ row) + sigma**2

    def update(self, row: Row, innovation: float, sigma: float) -> None:
        """Take in a measurement that lies `innovation` from what was expected (Joseph form)."""
        gain = self.covariance @ row / self.expected(row, sigma)
        self.state = self.state + gain * innovation
        left = np.eye(3) - np.outer(gain, row)
        self.covariance = left @ self.covariance @ left.T + sigma**2 * np.outer(gain, gain)
