"""From answers and truths to figures: error, containment, NEES, reliability of the confidence, and tables of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2

from localize_core.dataset.windows import Label

PROBABILITIES = {"39.35": -math.expm1(-0.5), "50": 0.5, "68": 0.68, "90": 0.9, "95": 0.95}
"""Percent and probability of the ellipses that containment is counted for. 39.35 % is 1σ in the plane."""
VALID_PROBABILITY = 0.99
"""A fix is valid when the truth lies in the ellipse of this probability: beyond it the answer is wrong, not unlucky."""
CONFIDENCE_BINS = 10
QUANTILES = (0.05, 0.5, 0.95)
SNR_STEP_DB = 5.0
SNR_RANGE_DB = (-20.0, 40.0)
"""Windows below and above share one row at either end."""
COUNT_ROWS = 8
"""More numbers of receivers than that share rows."""
CLEAR_SNR_DB = 5.0
"""Median receiver's SNR from which on a model is expected to be confident."""
HEARD_SNR_DB = 0.0
"""SNR within the emitter's own bandwidth from which on a receiver counts as hearing it."""


@dataclass(frozen=True)
class Answers:
    """What a model or a baseline says of n windows, in the plane of the windows' contract.

    `position_m` (n, 2): NaN where there is none. `covariance_m2` (n, 2, 2): NaN where none is claimed.
    `confidence` (n,): NaN where none is stated.
    """

    position_m: np.ndarray
    covariance_m2: np.ndarray
    confidence: np.ndarray

    @staticmethod
    def nothing(count: int) -> Answers:
        """No answer to any of `count` windows."""
        return Answers(np.full((count, 2), np.nan), np.full((count, 2, 2), np.nan), np.full(count, np.nan))

    @staticmethod
    def concatenate(parts: Sequence[Answers]) -> Answers:
        """All answers, in order."""
        return Answers(
            np.concatenate([part.position_m for part in parts]),
            np.concatenate([part.covariance_m2 for part in parts]),
            np.concatenate([part.confidence for part in parts]),
        )


@dataclass(frozen=True)
class Truth:
    """What is known of n windows, as `Windows` has it: `position_m` (n, 2), `label` (n,), `snr_db` (n, R),
    `bandwidth_hz` (n,), `usable` (n, R); and the `sample_rate_hz` that SNRs refer to.
    """

    position_m: np.ndarray
    label: np.ndarray
    snr_db: np.ndarray
    bandwidth_hz: np.ndarray
    usable: np.ndarray
    sample_rate_hz: float

    @property
    def inside(self) -> np.ndarray:
        """Where there is a place to be found, (n,) bool."""
        return np.asarray(self.label == Label.INSIDE)

    @property
    def median_snr_db(self) -> np.ndarray:
        """The median usable receiver's, in the whole sample rate, (n,); NaN where one is unknown or none is usable."""
        ordered = np.sort(np.where(self.usable, self.snr_db, np.inf), axis=1)
        count = self.usable.sum(axis=1)
        rows = np.arange(len(ordered))
        low, high = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, count // 2]
        # Half way between -inf and a number is -inf: half of the receivers hear nothing.
        median = np.where(np.isneginf(low), low, 0.5 * (low + high))
        unknown = (np.isnan(self.snr_db) & self.usable).any(axis=1) | (count == 0)
        return np.where(unknown, np.nan, median)

    @property
    def heard(self) -> np.ndarray:
        """How many usable receivers hear the emitter with `HEARD_SNR_DB` or more in its own bandwidth, (n,) float.

        Where the bandwidth is unknown it counts as the whole sample rate. NaN where an SNR is unknown.
        """
        with np.errstate(invalid="ignore"):
            narrow = np.where(np.isnan(self.bandwidth_hz), 1.0, self.sample_rate_hz / self.bandwidth_hz)
            count = ((self.snr_db + 10.0 * np.log10(narrow)[:, None] >= HEARD_SNR_DB) & self.usable).sum(axis=1)
        unknown = (np.isnan(self.snr_db) & self.usable).any(axis=1)
        return np.where(unknown, np.nan, count)


@dataclass(frozen=True)
class Share:
    """A share of windows, and the 95 % interval (Wilson 1927) of the probability behind it."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """Accuracy in metres, and honesty of the ellipses where there are any.

    `containment` maps the keys of PROBABILITIES to the share of truths inside the ellipse of that probability. An
    honest covariance gives a `mean_nees` (normalised estimation error squared, Bar-Shalom 2001, 5.4.2) of 2, and of
    `nees_interval` in 95 % of runs with so many independent fixes.
    """

    count: int
    median_m: float
    p90_m: float
    rmse_m: float
    containment: dict[str, Share] | None
    mean_nees: float | None
    nees_interval: tuple[float, float] | None


def share_of(inside: np.ndarray) -> Share:
    """The share of True in a mask of one or more."""
    hits, count = int(np.count_nonzero(inside)), len(inside)
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Share(hits / count, float(interval.low), float(interval.high))


def accuracy(error_m: np.ndarray, nees: np.ndarray | None) -> Accuracy | None:
    """Figures of n errors and as many squared Mahalanobis distances, None where no ellipse is claimed.

    None where there is no error at all.
    """
    count = len(error_m)
    if count == 0:
        return None
    containment = mean_nees = interval = None
    if nees is not None:
        containment = {key: share_of(nees <= chi2.ppf(p, 2)) for key, p in PROBABILITIES.items()}
        mean_nees = float(np.mean(nees))
        low, high = chi2.ppf([0.025, 0.975], 2 * count) / count
        interval = (float(low), float(high))
    return Accuracy(
        count=count,
        median_m=float(np.median(error_m)),
        p90_m=float(np.percentile(error_m, 90)),
        rmse_m=float(np.sqrt(np.mean(np.square(error_m)))),
        containment=containment,
        mean_nees=mean_nees,
        nees_interval=interval,
    )


def covariance_of(uncertainty: np.ndarray) -> np.ndarray:
    """Covariances (n, 2, 2) of (east, north) from `sigma_x`, `sigma_y` in metres and `theta` in degrees, (n, 3)."""
    sigma_x, sigma_y, theta = np.asarray(uncertainty, float).T
    cosine, sine = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    axes = np.stack(
        [np.stack([cosine, sine], -1) * sigma_x[:, None], np.stack([-sine, cosine], -1) * sigma_y[:, None]], 1
    )
    return np.asarray(axes.transpose(0, 2, 1) @ axes)


def squared_mahalanobis(offset_m: np.ndarray, covariance_m2: np.ndarray) -> np.ndarray:
    """offset' covariance⁻¹ offset of (n, 2) and (n, 2, 2): (n,). NaN where either is NaN, infinite where singular."""
    xx, xy, yy = covariance_m2[:, 0, 0], covariance_m2[:, 0, 1], covariance_m2[:, 1, 1]
    east, north = offset_m.T
    determinant = xx * yy - xy * xy
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = (east * east * yy - 2.0 * east * north * xy + north * north * xx) / determinant
    lost = np.isnan(east) | np.isnan(determinant)
    return np.where(lost, np.nan, np.where(determinant > 0.0, squared, np.inf))


@dataclass(frozen=True)
class ConfidenceBin:
    """Windows whose confidence lies in [low, high): how many, their mean confidence and the share of valid fixes."""

    low: float
    high: float
    count: int
    confidence: float
    valid: Share


@dataclass(frozen=True)
class ConfidenceGroup:
    """Confidence over one kind of window: quantiles by their probability, shares below 0.1 and above 0.9."""

    count: int
    quantiles: dict[str, float]
    below_01: float
    above_09: float


@dataclass(frozen=True)
class Reliability:
    """Whether the confidence is the probability that a fix is valid.

    `calibration_error`: expected absolute difference of confidence and share of valid fixes over the bins that hold
    windows (ECE; Naeini et al. 2015). Valid is a fix to an emitter in the area whose truth lies in the ellipse of
    VALID_PROBABILITY. `groups`: "emitter" (in the area), "emitter_clear" (its median receiver has CLEAR_SNR_DB or
    more), "no_emitter", "outside"; those without a window are left out.
    """

    calibration_error: float
    bins: tuple[ConfidenceBin, ...]
    groups: dict[str, ConfidenceGroup]


def reliability(answers: Answers, truth: Truth) -> Reliability | None:
    """None where no confidence is stated."""
    stated = np.isfinite(answers.confidence)
    if not stated.any():
        return None
    with np.errstate(invalid="ignore"):
        nees = squared_mahalanobis(answers.position_m - truth.position_m, answers.covariance_m2)
        valid = truth.inside & (nees <= chi2.ppf(VALID_PROBABILITY, 2))
        clear = truth.inside & (truth.median_snr_db >= CLEAR_SNR_DB)
    index = np.clip((answers.confidence[stated] * CONFIDENCE_BINS).astype(int), 0, CONFIDENCE_BINS - 1)
    bins = []
    for number in np.unique(index):
        of_bin = np.flatnonzero(stated)[index == number]
        bins.append(
            ConfidenceBin(
                low=number / CONFIDENCE_BINS,
                high=(number + 1) / CONFIDENCE_BINS,
                count=len(of_bin),
                confidence=float(answers.confidence[of_bin].mean()),
                valid=share_of(valid[of_bin]),
            )
        )
    kinds = {
        "emitter": truth.inside,
        "emitter_clear": clear,
        "no_emitter": truth.label == Label.NONE,
        "outside": truth.label == Label.OUTSIDE,
    }
    groups = {
        name: _confidence_group(answers.confidence[kind & stated])
        for name, kind in kinds.items()
        if (kind & stated).any()
    }
    error = sum(item.count * abs(item.confidence - item.valid.share) for item in bins) / int(stated.sum())
    return Reliability(float(error), tuple(bins), groups)


def _confidence_group(confidence: np.ndarray) -> ConfidenceGroup:
    return ConfidenceGroup(
        count=len(confidence),
        quantiles={f"{q:g}": float(np.quantile(confidence, q)) for q in QUANTILES},
        below_01=float(np.mean(confidence < 0.1)),
        above_09=float(np.mean(confidence > 0.9)),
    )


@dataclass(frozen=True)
class Row:
    """One row of a table: windows of one kind, how many were answered, and how well. `bound_rmse_m` where known."""

    label: str
    windows: int
    accuracy: Accuracy | None
    bound_rmse_m: float | None


@dataclass(frozen=True)
class Figures:
    """All figures of one model or baseline.

    `windows`: those with an emitter in the area; `answered`: those of them with a position, which `accuracy` is of.
    Tables leave out windows whose SNR is unknown.
    """

    windows: int
    answered: int
    accuracy: Accuracy | None
    reliability: Reliability | None
    by_snr: tuple[Row, ...]
    by_heard: tuple[Row, ...]
    by_usable: tuple[Row, ...]


def errors_m(answers: Answers, truth: Truth) -> np.ndarray:
    """Distance of answer and truth in the plane, (n,); NaN without an emitter in the area or without an answer."""
    return np.where(truth.inside, np.linalg.norm(answers.position_m - truth.position_m, axis=1), np.nan)


def figures(answers: Answers, truth: Truth, bound_m2: np.ndarray | None = None) -> Figures:
    """Figures over the windows with an emitter in the area, and of the confidence over all.

    `bound_m2` (n,): least mean squared error of each window, for the tables.
    """
    inside = truth.inside
    snr_db = truth.median_snr_db
    low, high = SNR_RANGE_DB
    edges = np.arange(low, high + SNR_STEP_DB / 2.0, SNR_STEP_DB)
    bins = np.digitize(snr_db, edges)
    names = [
        f"below {_signed(low)}",
        *(f"{_signed(a)} to {_signed(b)}" for a, b in itertools.pairwise(edges)),
        f"{_signed(high)} and above",
    ]
    known = inside & np.isfinite(np.where(np.isneginf(snr_db), low, snr_db))

    def row(label: str, which: np.ndarray) -> Row:
        bound = None
        if bound_m2 is not None and (finite := np.isfinite(bound_m2) & which).any():
            bound = float(np.sqrt(np.mean(bound_m2[finite])))
        return Row(label, int(which.sum()), _accuracy_of(answers, truth, which), bound)

    def by_count(count: np.ndarray) -> tuple[Row, ...]:
        counted = inside & np.isfinite(count)
        if not counted.any():
            return ()
        first, last = int(count[counted].min()), int(count[counted].max())
        width = -(-(last - first + 1) // COUNT_ROWS)
        rows = []
        for start in range(first, last + 1, width):
            which = counted & (count >= start) & (count < start + width)
            if which.any():
                rows.append(row(str(start) if width == 1 else f"{start} to {start + width - 1}", which))
        return tuple(rows)

    return Figures(
        windows=int(inside.sum()),
        answered=int((inside & np.isfinite(answers.position_m).all(axis=1)).sum()),
        accuracy=_accuracy_of(answers, truth, inside),
        reliability=reliability(answers, truth),
        by_snr=tuple(row(names[number], known & (bins == number)) for number in np.unique(bins[known])),
        by_heard=by_count(truth.heard),
        by_usable=by_count(truth.usable.sum(axis=1)),
    )


def _signed(value: float) -> str:
    """With a minus sign rather than a hyphen."""
    return f"{value:g}".replace("-", "−")


def _accuracy_of(answers: Answers, truth: Truth, which: np.ndarray) -> Accuracy | None:
    answered = which & np.isfinite(answers.position_m).all(axis=1)
    offset_m = (answers.position_m - truth.position_m)[answered]
    nees = squared_mahalanobis(offset_m, answers.covariance_m2[answered])
    claimed = not np.isnan(nees).any()
    return accuracy(np.linalg.norm(offset_m, axis=1), nees if claimed else None)


def plain(value: Any) -> Any:
    """A dataclass of this module as plain values for JSON: what is not finite becomes None."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
