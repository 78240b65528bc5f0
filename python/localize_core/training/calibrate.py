"""Calibration: what the network says of its own errors, corrected on windows that it has never seen.

The ellipse: a power law between the covariance that is stated and the one that is found, by likelihood, and then one
factor with which the ellipse of 95 %, which a fix states, holds as much. Where errors have heavier tails than a normal
distribution, smaller ellipses then hold more than they say.
The confidence: a line through the logit (Platt 1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import chi2
from torch import Tensor

from localize_core.errors import ModelError
from localize_core.evaluation.metrics import PROBABILITIES
from localize_core.training.fit import scaled_truth
from localize_core.training.network import Calibrated, Layout, squared_distance
from localize_core.training.summaries import Summaries

LEAST_WINDOWS = 50
STEEPEST = 0.5
"""The power law may stretch the logarithm of stated volumes by half of it, no more."""
EXACT = 0.95
"""The probability whose ellipse holds just as much."""
WORST = 0.12
"""Another ellipse may hold less than it says by this on the calibration windows themselves; else it is no calibration.
More it may hold: a few blocks of a site far from all others are enough for that."""


@dataclass(frozen=True)
class Calibration:
    """`ellipse`, `confidence`: for `Calibrated`. `containment`: shares inside by probability, on the calibration
    windows after it. `windows`: how many had a place."""

    ellipse: tuple[float, float, float]
    confidence: tuple[float, float]
    containment: dict[str, float]
    windows: int


def calibrate(layout: Layout, said: tuple[Tensor, Tensor, Tensor], summaries: Summaries) -> Calibration:
    """Fit the calibration to what a network said of `summaries`, which it had not seen (as `predict` gives it).

    Raises ModelError where it fails: too few windows, or no scale makes the ellipses hold what they say.
    """
    inside = summaries.inside
    count = int(inside.sum())
    check_enough(count)
    position, covariance, logit = (part.double() for part in said)
    truth = scaled_truth(layout, summaries.truth_m[inside]).double()
    squared, volume = (part.numpy() for part in squared_distance(position[inside], covariance[inside], truth))
    if not np.isfinite(squared).all():
        raise ModelError("calibration: the network's answers are not finite")
    # A sound scale for windows that count each source once: repeats of one place are not independent.
    weight = _even_weights(summaries.source[inside])
    middle = float(np.average(volume, weights=weight))

    def nll(parameters: np.ndarray) -> float:
        log_scale = parameters[0] + parameters[1] * (volume - middle)
        return float(np.average(0.5 * squared * np.exp(-log_scale) + log_scale, weights=weight))

    slope = float(minimize(nll, [0.0, 0.0], method="L-BFGS-B", bounds=[(-6.0, 6.0), (-STEEPEST, STEEPEST)]).x[1])
    bent = squared * np.exp(-slope * (volume - middle))

    scale = math.log(_quantile(bent, weight, EXACT) / chi2.ppf(EXACT, 2))
    containment = {
        key: float(np.average(bent * np.exp(-scale) <= chi2.ppf(p, 2), weights=weight)) for key, p in _LEVELS
    }
    worst = min(_LEVELS, key=lambda level: containment[level[0]] - level[1])
    if containment[worst[0]] < worst[1] - WORST:
        raise ModelError(
            f"calibration: no scale makes the ellipses hold what they say: with {100.0 * EXACT:.0f} % in the one that "
            f"says so the one of {worst[0]} % holds {100.0 * containment[worst[0]]:.1f} %"
        )
    return Calibration(
        ellipse=(scale, slope, middle),
        confidence=_platt(logit[:, 0].numpy(), summaries.answerable),
        containment=containment,
        windows=count,
    )


def check_enough(count: int) -> None:
    """Raise ModelError where `count` windows with an emitter in the area cannot calibrate: better before a training."""
    if count < LEAST_WINDOWS:
        raise ModelError(f"calibration: {count} windows with an emitter in the area, at least {LEAST_WINDOWS} needed")


_LEVELS = tuple(PROBABILITIES.items())


def apply(calibration: Calibration, module: Calibrated) -> None:
    """Write a calibration into a `Calibrated` network."""
    module.ellipse.copy_(torch.tensor(calibration.ellipse))
    module.confidence.copy_(torch.tensor(calibration.confidence))


def _quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest of `values` that, with those below it, holds `share` of the weights."""
    order = np.argsort(values)
    held = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(held, share * held[-1])])


def _even_weights(source: np.ndarray) -> np.ndarray:
    _, number, counts = np.unique(source, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1.0 / counts[np.asarray(number).reshape(-1)]
    return weights


def _platt(logit: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logit, by likelihood, with Platt's targets that keep separable data finite, both kinds of
    window weighing as much."""
    if valid.all() or not valid.any():
        return 1.0, 0.0
    target = np.where(valid, (valid.sum() + 1.0) / (valid.sum() + 2.0), 1.0 / ((~valid).sum() + 2.0))

    weight = np.where(valid, 0.5 / valid.sum(), 0.5 / (~valid).sum())

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * logit + parameters[1]
        return float(np.sum(weight * (np.logaddexp(0.0, z) - target * z)))

    slope, offset = minimize(loss, [1.0, 0.0], method="L-BFGS-B", bounds=[(0.05, 5.0), (-10.0, 10.0)]).x
    return float(slope), float(offset)
