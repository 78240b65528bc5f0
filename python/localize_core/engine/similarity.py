"""Answers for windows that are like a recent one: a statistical test tells whether the emitter is still where it was.

What is tested. A window's frames are many noisy looks at one state of affairs, so everything is a mean over its time
steps and every mean comes with its own variance, by batch means (Conway 1963; batches as long as frames overlap). Few
directions of feature space say that an emitter has moved, and a test over all thousands of values would drown them.
So a window is reduced to a short vector, linear in its mean features, whose directions are set by the window that the
kept answer was inferred from (the anchor):

- of each correlation, how far its peak has shifted along the lags (the projection on its derivative: a Gauss-Newton
  step), and its height;
- where the answer is a place, these shifts put together to one displacement, east and north in the answer's own
  standard deviations: the receivers' geometry says how lags change with the place, and the two numbers have all the
  power that six, ten or fifteen lags would share;
- of each log-mel channel its level, every row counted by how much signal it holds, and how it differs from the other
  receivers' mean, in which fluctuations of the emitter's own cancel;
- coarse groups of rows of every channel, for whatever else may change.

How. Since the anchor all windows are kept in cumulated sums, so that the mean of the latest 1, 2, 3, 4 and 8 windows
can be held against the mean of those before, of which at most the first `reference_windows` count: the reference
loses its own noise and stays where the answer is, a slow drift cannot drag it along. Testing all splits of the recent
past is the likelihood ratio test for a change at an unknown time, of which Page's (1954) CUSUM is the simplest; Lai
(1995) limits it to some window lengths. The displacement is tested by Hotelling's (1931) T^2, the rest by the largest
Student t, at one level for all of it (Bonferroni).

How close is close enough. Not seeing a difference is no proof that there is none. The three latest windows together
have to lie so close that a displacement of `jump_sigma` would have been noticed with probability `power`: where noise
is as large as the answer's own standard deviation that leaves little room, and there a cache has little to give. The
same holds of a straight line through all windows since the anchor, for an emitter that has been moving all along.

An alarm may be false. A window that does not match is inferred and becomes an anchor, but the entry before it is
tried for some windows more, with the alarming one in its sums; where they speak for it after all, its reference is
not lost.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy.stats import f as f_distribution
from scipy.stats import norm
from scipy.stats import t as t_distribution

from localize_core.cache.settings import SimilaritySettings
from localize_core.engine.masking import ChannelMask
from localize_core.engine.windows import Window
from localize_core.features.quality import SampleFlag
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame
from localize_core.model.base import ModelOutput
from localize_core.model.contract import Contract

Floats = np.ndarray
Miss = Literal["empty", "model", "flags", "age", "moved", "changed", "uncertain"]
"""Why a window is inferred: nothing is kept, it is another model's or was made of other receivers, it is too old; the
emitter has moved, something else has changed, or too little is known to exclude that it has moved."""

SCALES = np.array([1, 2, 3, 4, 8])
"""Latest windows whose mean is held against the reference."""
GUARDED = 2
"""Index of the scale whose power is ensured: the three latest windows."""
MOST_BATCHES = 24
LEAST_BATCHES = 4
LEAST_UNEXPLAINED = 1e-4
"""Part of the power that a correlation leaves open; below, rounding would be taken for evidence."""
LAG_GROUPS, MEL_GROUPS = 16, 8
PEAK_PART = 0.25
"""Of a correlation's height over its floor: lags around the peak down to this part tell of its shift."""
YOUNGEST = 1.0 / math.sqrt(1.0 / 3.0 + 1.0)
"""What makes the difference of three windows' mean and the anchor as noisy as one window's."""
LEAST_ROOM = 1.5
"""Standard deviations within which the three latest windows have to lie, if anything is to be given out."""
ESTABLISHED = 8
"""Windows after which an entry is the only one."""
RETRIES = 3
"""Windows in a row that an entry may fail before it is forgotten."""
MOST_EVIDENCE = 0.5
"""By which part a window may have more or less evidence than the reference: its answer would be as much sharper."""
PROBATION = 5
"""Windows after an alarm for which what moved is expected to go on moving."""
DOUBT = 0.6
"""Part of the critical values that an entry which has failed, or is on probation, has to stay below."""
LEAST_VARIANCE = 1e-12
"""Of a statistic; below it there is only rounding."""
UNSTEADY_LEVEL = 1e-3
"""Of the test for a change inside a window."""


@dataclass(frozen=True)
class Reuse:
    """A kept answer that holds for a window. `age_s`, `age_windows`: since it was inferred."""

    output: ModelOutput
    age_s: float
    age_windows: int


class SimilarityCache:
    """Answers for windows of one stream that are like a recent one. Used by one thread.

    For every window in order: `match`; where that is None, infer, and `keep` what the model said unless inference
    failed. Windows that are lost do no harm; `forget` when something changes that features do not show, as a receiver's
    tuning, or a stream that begins anew. A cache knows one release at a time: where arms take turns on a stream, each
    has a cache of its own, which is shown the windows of that arm. It holds two anchors, a few hundred kilobytes at
    most with the settings' defaults, and takes some tenths of a millisecond for windows of 10 channels, 128 rows and 24
    steps.

    `hits`, `misses` (by reason) and `refused` (windows that `keep` would not take, by reason) count what was done.
    """

    def __init__(self, contract: Contract, settings: SimilaritySettings | None = None) -> None:
        self.settings = settings or SimilaritySettings()
        self.hits = 0
        self.misses: Counter[Miss] = Counter()
        self.refused: Counter[str] = Counter()
        self._pooling = _Pooling(contract)
        self._mask = ChannelMask(contract)
        self._entries: list[_Entry] = []
        self._wander = _Wander()
        self._alarmed = False
        self._first_frame = 0

    def match(self, window: Window, model_key: str, moment_s: float) -> Reuse | None:
        """The kept answer, if this window is close enough to the one it was inferred from; None: infer, then `keep`.

        `model_key`: of the release that would be asked. `moment_s`: time of the window, of any clock that only rises.
        """
        reason: Miss = "empty"
        state = _state(window)
        fresh = self._fresh(window)
        alive: list[_Entry] = []
        found: _Entry | None = None
        mean: Floats | None = None
        for entry in self._entries:
            age_s = moment_s - entry.moment_s
            if entry.model_key != model_key:
                reason = "model"
            elif entry.state != state:
                reason = "flags"
            elif not 0.0 <= age_s <= self.settings.max_age_s or entry.count > self.settings.max_windows:
                reason = "age"
            else:
                if mean is None:
                    mean = self._pooling.mean(window.features)
                verdict = entry.judge(self._pooling.project(mean, entry.templates)[:, 0], self._wander, fresh)
                if verdict is None:
                    if entry.is_learning:
                        entry.learn(self._pooling.project(self._pooling.batches(window.features), entry.templates))
                    found = entry
                    alive.append(entry)
                    break  # a younger entry was made on an alarm that was false
                reason = verdict
                if entry.failed < RETRIES:
                    alive.append(entry)
        if found is not None and found.count > ESTABLISHED:
            alive = [found]
        self._entries = alive
        if found is None:
            self.misses[reason] += 1
            self._alarmed = reason in ("moved", "changed")
            return None
        self.hits += 1
        return Reuse(found.output, moment_s - found.moment_s, found.count - 1)

    def keep(self, window: Window, output: ModelOutput, model_key: str, moment_s: float) -> bool:
        """Take what a model answered to `window`, to be given out for windows like it.

        `output`: of batch 1. False where the window cannot be a reference: something changes inside of it ("unsteady"),
        it is too short for that to be seen ("short"), or no channel means anything ("empty").
        """
        if window.features.shape[2] < LEAST_BATCHES:
            return self._refuse("short")
        sound = self._mask.sound(window)
        if not sound.any():
            return self._refuse("empty")
        pooling = self._pooling
        mean, batches = pooling.mean(window.features), pooling.batches(window.features)
        templates = pooling.templates(mean, batches, sound, output, self.settings.min_confidence)
        stats = pooling.project(batches, templates)
        if not _is_steady(stats, templates):
            return self._refuse("unsteady")
        origin = pooling.project(mean, templates)[:, 0]
        state = _state(window)
        entry = _Entry(output, model_key, moment_s, state, templates, origin, self.settings, self._alarmed)
        entry.learn(stats)
        # Of three the one in the middle is the least likely to be right: it was made on an alarm and failed at once.
        self._entries = [*self._entries[:1], entry]
        return True

    def forget(self) -> None:
        """Drop what is kept, and what is known of the noise."""
        self._entries.clear()
        self._wander = _Wander()

    def as_dict(self) -> dict[str, Any]:
        """Windows that were given an answer, and those that were not, by reason; what `keep` would not take."""
        misses = {str(reason): count for reason, count in dict(self.misses).items()}  # it is another thread that asks
        return {"hits": self.hits, "misses": misses, "refused": dict(self.refused)}

    def _fresh(self, window: Window) -> float:
        """Part of a window's frames that the one before did not have."""
        step, self._first_frame = window.first_frame - self._first_frame, window.first_frame
        time_steps = window.features.shape[2]
        return step / time_steps if 0 < step < time_steps else 1.0

    def _refuse(self, reason: str) -> bool:
        self.refused[reason] += 1
        return False


State = tuple[tuple[SampleFlag, ...], bytes, tuple[int, ...], bytes]


def _state(window: Window) -> State:
    """What has to be equal for two windows to be compared at all. Which channels are sound follows from it."""
    finite = b"" if window.is_finite else np.isfinite(window.features).all(axis=(1, 2)).tobytes()
    return window.flags, window.unusable.tobytes(), window.features.shape, finite


@dataclass(frozen=True)
class _Templates:
    """Directions of feature space, set by an anchor.

    `correlation`, `mel`: indices of sound channels; their templates (channels, k, rows) float32. `combine` (D, n): from
    the projections to the statistics, the displacement (if `placed`) first. `steady` (D,) bool: which of them must not
    change within a window. `heights`: which of them are correlations' heights.
    """

    correlation: Floats
    correlation_templates: Floats
    mel: Floats
    mel_templates: Floats
    combine: Floats
    placed: bool
    steady: Floats
    heights: slice


class _Pooling:
    """From windows to statistics, for one contract."""

    def __init__(self, contract: Contract) -> None:
        names = [receiver.name for receiver in contract.receivers]
        features = [channel.feature for channel in contract.channels]
        self._correlation = np.array([k for k, name in enumerate(features) if name == "cross_correlation"], np.intp)
        self._mel = np.array([k for k, name in enumerate(features) if name == "log_mel"], np.intp)
        self._pairs = np.array(
            [[names.index(name) for name in contract.channels[k].receivers] for k in self._correlation], np.intp
        ).reshape(-1, 2)
        self._contract = contract
        config = contract.correlation_config
        self._rows_per_m = 0.0
        if config is not None:
            self._rows_per_m = config.sample_rate_hz / (config.lag_step * SPEED_OF_LIGHT_MPS)
        self._first_pair = len(self._mel)  # as contracts have it
        self._reach = max(round(contract.n_fft / contract.hop), 1)  # a sliver of overlap does not matter
        self._lag_groups = _groups(contract.rows, LAG_GROUPS)
        self._mel_groups = _groups(contract.rows, MEL_GROUPS)
        self._local: LocalFrame | None = contract.frame.local if contract.frame.kind == "enu_m" else None
        self._places_m = None if self._local is None else self._places(self._local)

    def _places(self, frame: LocalFrame) -> Floats:
        receivers = self._contract.receivers
        return frame.to_enu_m(
            np.array([receiver.latitude for receiver in receivers]),
            np.array([receiver.longitude for receiver in receivers]),
            np.array([receiver.altitude_m for receiver in receivers]),
        )

    def mean(self, features: Floats) -> Floats:
        """Means over all time steps, (channels, rows, 1) float32, of correlations those of their evidence.

        That is -ln(1 - rho^2), a frame's part of the likelihood of Gaussian signals: frames weigh by what they tell, be
        it that most of them have nothing but noise.
        """
        channels, rows, time_steps = features.shape
        means = np.empty((channels, rows, 1), np.float32)
        # Products with a vector: numpy's own mean over a short last axis takes six times as long.
        plain = features[: self._first_pair].reshape(-1, time_steps) @ _averaging(time_steps, 1)
        means[: self._first_pair] = plain.reshape(-1, rows, 1)
        if self._first_pair < channels:
            # A logarithm costs more than anything else here, and the one of a product is the sum of logarithms.
            rest, steps, folded = self._unexplained(features), time_steps, 1
            while steps % 2 == 0 and folded < 8:
                steps, folded = steps // 2, 2 * folded
                rest = rest[:, :, :steps] * rest[:, :, steps:]
            evidence = self._logarithm(rest, LEAST_UNEXPLAINED**folded).reshape(-1, steps) @ _averaging(steps, 1)
            means[self._first_pair :] = evidence.reshape(-1, rows, 1) / -folded
        return means

    def batches(self, features: Floats) -> Floats:
        """The same over consecutive time steps, (channels, rows, batches) float32."""
        time_steps = features.shape[2]
        averaging = _averaging(time_steps, _batches(time_steps, self._reach))
        plain = features[: self._first_pair] @ averaging
        evidence = self._logarithm(self._unexplained(features), LEAST_UNEXPLAINED) @ -averaging
        return np.concatenate([plain, evidence])

    def _unexplained(self, features: Floats) -> Floats:
        """1 - rho^2 of the correlations."""
        with np.errstate(over="ignore"):  # in channels that are not sound, and not used
            rest = np.square(features[self._first_pair :])
        return np.subtract(1.0, rest, out=rest)

    def _logarithm(self, rest: Floats, least: float) -> Floats:
        np.maximum(rest, least, out=rest)
        return np.log(rest, out=rest)

    def project(self, batches: Floats, templates: _Templates) -> Floats:
        """The statistics of means or batches (channels, rows, n): (D, n) float64."""
        parts = []
        for channels, kernels in (
            (templates.correlation, templates.correlation_templates),
            (templates.mel, templates.mel_templates),
        ):
            if len(channels):
                values = batches[channels[0] : channels[-1] + 1] if _is_run(channels) else batches[channels]
                parts.append((kernels @ values).reshape(-1, batches.shape[2]))
        projected = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.asarray(templates.combine @ projected, np.float64)

    def templates(
        self, mean: Floats, batches: Floats, sound: Floats, output: ModelOutput, min_confidence: float
    ) -> _Templates:
        """The directions that a window's `mean` and `batches` and its answer set."""
        correlation, mel = self._correlation[sound[self._correlation]], self._mel[sound[self._mel]]
        values = mean[:, :, 0].astype(np.float64)
        lag_templates = _lag_templates(values[correlation], self._lag_groups)
        mel_templates = _mel_templates(values[mel], self._mel_groups)
        n_lag, n_mel = lag_templates.shape[1], mel_templates.shape[1]
        pairs, receivers = len(correlation), len(mel)
        size = pairs * n_lag + receivers * n_mel
        identity = np.eye(size, dtype=np.float32)
        rows, steady = [identity], [np.zeros(size, bool)]
        if pairs:
            shifts = identity[: pairs * n_lag : n_lag]
            steady[0][: pairs * n_lag : n_lag] = True
        placed = False
        if pairs > 1:
            spread = (lag_templates[:, None, 0] @ batches[correlation])[:, 0].var(axis=1)
            gradient = self._gradient(output, self._pairs[sound[self._correlation]], min_confidence)
            if gradient is not None:
                solve = _least_squares(gradient, spread)
                if solve is not None:
                    placed = True
                    rows.insert(0, solve @ shifts)
                    steady.insert(0, np.ones(2, bool))
        if receivers > 1:
            levels = identity[pairs * n_lag :: n_mel]
            rows.append(levels - levels.mean(axis=0))
            steady.append(np.ones(receivers, bool))
        elif receivers:
            steady[-1][pairs * n_lag] = True
        return _Templates(
            correlation=correlation,
            correlation_templates=lag_templates.astype(np.float32),
            mel=mel,
            mel_templates=mel_templates.astype(np.float32),
            combine=np.concatenate(rows).astype(np.float32),
            placed=placed,
            steady=np.concatenate(steady),
            heights=slice(2 * placed + 1, 2 * placed + pairs * n_lag, n_lag),
        )

    def _gradient(self, output: ModelOutput, pairs: Floats, min_confidence: float) -> Floats | None:
        """By how many rows each pair's peak shifts for one standard deviation of the answer along its axes, (P, 2).

        None where the answer is no place.
        """
        position, uncertainty = output.position[0].astype(float), output.uncertainty[0].astype(float)
        finite = np.isfinite(position).all() and np.isfinite(uncertainty).all()
        if not finite or not output.confidence[0, 0] >= min_confidence or min(uncertainty[:2]) <= 0.0:
            return None
        if self._local is not None:
            assert self._places_m is not None
            place, receivers = np.array([*position, 0.0]), self._places_m
        else:
            latitude, longitude = position
            if abs(latitude) > 90.0 or abs(longitude) > 360.0:
                return None
            frame = LocalFrame(latitude, (longitude + 180.0) % 360.0 - 180.0, self._contract.frame.altitude_m)
            place, receivers = np.zeros(3), self._places(frame)
        away = place - receivers
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1.0)
        slope = (away[pairs[:, 0], :2] - away[pairs[:, 1], :2]) * self._rows_per_m
        theta = math.radians(uncertainty[2])
        axes = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]) * uncertainty[:2]
        return np.asarray(slope @ axes)


class _Entry:
    """An answer, and the sums of all windows since the one it was inferred from: on an alarm, or not.

    `count`: windows in the sums, the anchor's included.
    """

    def __init__(
        self,
        output: ModelOutput,
        model_key: str,
        moment_s: float,
        state: State,
        templates: _Templates,
        origin: Floats,
        settings: SimilaritySettings,
        on_alarm: bool,
    ) -> None:
        self.output, self.model_key, self.moment_s = output, model_key, moment_s
        self.state, self.templates = state, templates
        self.count, self.failed, self.on_alarm = 1, 0, on_alarm
        self._settings = settings
        self._origin = origin
        self._last = np.zeros(len(origin))
        self._sums = np.zeros((settings.max_windows + 2, len(origin)))
        self._variance = np.zeros(len(origin))
        self._cross = 0.0
        self._pooled = 0
        self._dof = 0
        self._drift = _Drift()

    @property
    def is_learning(self) -> bool:
        """Whether the noise of more windows is to be pooled."""
        return self._pooled < self._settings.reference_windows

    def judge(self, stats: Floats, wander: _Wander, fresh: float) -> Miss | None:
        """Add a window's statistics (D,) to the sums and say why the answer does not hold for it, None if it does.

        `fresh`: part of its frames that are not in the window before.
        """
        settings = self._settings
        np.subtract(stats, self._origin, out=stats)
        self._sums[self.count + 1] = self._sums[self.count] + stats
        self.count += 1
        self._drift.add(float(stats[0]), float(stats[1 % len(stats)]))
        split = _splits(self.count, settings.reference_windows, fresh)
        difference = (self._sums[self.count] - self._sums[split.start]) * split.over_latest
        difference -= self._sums[split.before] * split.over_before
        verdict = self._verdict(difference, split, wander.over_sigma(self._over_sigma), fresh)
        wander.add((stats - self._last) * self._over_sigma)
        self._last = stats
        if verdict is None:
            self.failed = 0
        elif verdict != "uncertain":
            self.failed += 1
        return verdict

    def _verdict(self, difference: Floats, split: _Splits, over_sigma: Floats, fresh: float) -> Miss | None:
        """What the differences (scales, D) of the latest windows from the reference say."""
        settings, tail = self._settings, self._settings.false_alarm / (2.0 * len(SCALES))
        slack = DOUBT if self.failed or (self.on_alarm and self.count <= PROBATION) else 1.0
        difference = difference * split.over_noise  # as noisy as one window's mean
        if self.templates.placed:
            squared = np.square(difference[:, :2] @ self._whitening).sum(axis=1)
            if not squared.max() <= slack * slack * _hotelling_limit(tail, self._dof):
                return "moved"
            guarded = min(GUARDED, len(squared) - 1)
            over_noise = split.over_noise[GUARDED, 0] if guarded == GUARDED else YOUNGEST
            room = settings.jump_sigma * over_noise / self._worst - _quantile(settings.power)
            if room < LEAST_ROOM or (guarded == GUARDED and squared[GUARDED] > room * room):
                return "uncertain"
            # Of a steady drift the reference has seen the beginning: where a line through all windows leads to by now.
            travelled, over_noise = self._drift.travelled()
            if travelled > settings.jump_sigma - _quantile(settings.power) * self._worst * over_noise / fresh**0.5:
                return "uncertain"
            heights = difference[0, self.templates.heights].mean() / split.over_noise[0, 0]
            if abs(heights) > MOST_EVIDENCE:
                return "changed"
        difference *= over_sigma
        limit = slack * _skewed(_student_limit(tail / difference.shape[1], self._dof), self.state[2][2])
        if not max(difference.max(), -difference.min()) <= limit:
            return "changed"
        return None

    def learn(self, stats: Floats) -> None:
        """Pool the noise of a window's batch means (D, batches)."""
        variance, cross = _variance_of_mean(stats)
        self._pooled += 1
        self._dof = (stats.shape[1] - 1) * self._pooled
        self._variance += (np.maximum(variance, LEAST_VARIANCE) - self._variance) / self._pooled
        self._cross += (cross - self._cross) / self._pooled
        self._over_sigma = 1.0 / np.sqrt(self._variance)
        if self.templates.placed:
            covariance = np.array([[self._variance[0], self._cross], [self._cross, self._variance[1]]])
            values, vectors = np.linalg.eigh(covariance)
            values = np.maximum(values, LEAST_VARIANCE)
            self._whitening = vectors / np.sqrt(values)
            # The largest standard deviation that a displacement has in any direction, in the answer's own.
            self._worst = math.sqrt(values[1])


class _Drift:
    """The straight line through displacements since the anchor, one a window, the anchor's being zero."""

    def __init__(self) -> None:
        self._count = 1
        self._sums = [0.0, 0.0]
        self._weighted = [0.0, 0.0]

    def add(self, east: float, north: float) -> None:
        for axis, value in enumerate((east, north)):
            self._sums[axis] += value
            self._weighted[axis] += self._count * value
        self._count += 1

    def travelled(self) -> tuple[float, float]:
        """How far the line leads from the anchor to the latest window, and the noise of that over one window's."""
        last = self._count - 1
        squares = self._count * (self._count * self._count - 1) / 12.0
        slopes = (weighted - 0.5 * last * total for weighted, total in zip(self._weighted, self._sums, strict=True))
        return math.hypot(*slopes) * last / squares, last / math.sqrt(squares)


class _Wander:
    """By how much statistics differ more from window to window than the noise within windows says.

    A voice or a burst makes windows of one emitter differ. Only differences of neighbours count (von Neumann 1941): a
    slow drift adds little to them, and a jump is one of them and is cut off at `LARGEST`. Not for the displacement,
    which does not depend on what is sent.
    """

    LARGEST = 25.0
    WINDOWS = 16.0

    def __init__(self) -> None:
        self._ratio: Floats | None = None
        self._weight = 4.0

    def over_sigma(self, over_sigma: Floats) -> Floats:
        """One over the standard deviation of windows' means, out of that by the noise within windows."""
        if self._ratio is None or len(self._ratio) != len(over_sigma):
            return over_sigma
        return over_sigma / np.sqrt(np.maximum(self._ratio, 1.0))

    def add(self, difference: Floats) -> None:
        """Take the difference of two neighbours, over the noise within windows."""
        if self._ratio is None or len(self._ratio) != len(difference):
            self._ratio, self._weight = np.ones(len(difference)), 4.0
        self._weight = min(self._weight + 1.0, self.WINDOWS)
        self._ratio += (np.minimum(0.5 * np.square(difference), self.LARGEST) - self._ratio) / self._weight


@dataclass(frozen=True)
class _Splits:
    """Ways to cut an entry's windows into the latest and those before, (scales,) or (scales, 1) each.

    `start`: sums where the latest begin; `before`: where the reference ends. `over_noise`: what makes a difference of
    their means as noisy as a single window's.
    """

    start: Floats
    before: Floats
    over_latest: Floats
    over_before: Floats
    over_noise: Floats


@lru_cache(maxsize=8192)
def _splits(count: int, reference_windows: int, fresh: float) -> _Splits:
    scales = SCALES[: np.searchsorted(SCALES, count)]
    before = np.minimum(reference_windows, count - scales)
    # Windows that overlap are worth as many as their frames fill; what both sides share only makes them more alike.
    looks = 1.0 / (1.0 + (scales - 1) * fresh) + 1.0 / (1.0 + (before - 1) * fresh)
    return _Splits(
        start=count - scales,
        before=before,
        over_latest=1.0 / scales[:, None],
        over_before=1.0 / before[:, None],
        over_noise=1.0 / np.sqrt(looks)[:, None],
    )


def _variance_of_mean(stats: Floats) -> tuple[Floats, float]:
    """Variances (D,) of a window's statistics, and the covariance of the first two."""
    batches = stats.shape[1]
    deviation = stats - stats.mean(axis=1, keepdims=True)
    scale = 1.0 / (batches * (batches - 1))
    return np.einsum("db,db->d", deviation, deviation) * scale, float(deviation[0] @ deviation[1 % len(stats)]) * scale


def _is_steady(stats: Floats, templates: _Templates) -> bool:
    """Whether no split of a window's batches leaves two parts that differ.

    The noise is taken from neighbouring batches (von Neumann 1941), to which one jump adds little.
    """
    stats = stats[templates.steady]
    if not len(stats):
        return True
    batches = stats.shape[1]
    variance = np.square(np.diff(stats, axis=1)).mean(axis=1) / 2.0
    first = np.arange(1, batches)
    sums = np.cumsum(stats, axis=1)
    difference = sums[:, :-1] / first - (sums[:, -1:] - sums[:, :-1]) / (batches - first)
    squares = np.square(difference) / (
        np.maximum(variance, LEAST_VARIANCE)[:, None] * (1.0 / first + 1.0 / (batches - first))
    )
    limit = _student_limit(UNSTEADY_LEVEL / squares.size, batches - 1)
    return bool(squares.max() <= limit * limit)


def _lag_templates(mean: Floats, groups: Floats) -> Floats:
    """For correlations (P, rows): shift of the peak in rows, relative change of its height, and groups of lags.

    Returns (P, 2 + groups, rows).
    """
    pairs, rows = mean.shape
    result = np.zeros((pairs, 2 + len(groups), rows))
    if not pairs:
        return result
    result[:, 2:] = groups
    magnitude = np.abs(mean)
    floor = np.partition(mean, rows // 2, axis=1)[:, rows // 2, None]
    peak = magnitude.argmax(axis=1)
    raised = (mean - floor) * np.sign(mean[np.arange(pairs), peak])[:, None]
    below = raised < PEAK_PART * raised[np.arange(pairs), peak][:, None]
    index = np.arange(rows)
    left = np.where(below & (index < peak[:, None]), index, -1).max(axis=1)
    right = np.where(below & (index > peak[:, None]), index, rows).min(axis=1)
    inside = (index >= left[:, None]) & (index <= right[:, None])
    slope = np.where(inside, _slopes(mean), 0.0)
    height = np.where(inside, mean - floor, 0.0)
    result[:, 0] = -slope / np.maximum(np.square(slope).sum(axis=1, keepdims=True), 1e-12)
    result[:, 1] = height / np.maximum(np.square(height).sum(axis=1, keepdims=True), 1e-12)
    return result


def _mel_templates(mean: Floats, groups: Floats) -> Floats:
    """For log-mel channels (R, rows): the level, and groups of rows. Returns (R, 1 + groups, rows).

    The logarithm of signal and noise grows with the signal's level by its part S / (S + N): that weighs a row. The
    floor is the lower tenth of the rows; a little of every row remains, for a window that holds nothing but noise.
    """
    receivers, rows = mean.shape
    result = np.zeros((receivers, 1 + len(groups), rows))
    if not receivers:
        return result
    floor = np.partition(mean, rows // 10, axis=1)[:, rows // 10, None]
    weight = 0.02 + np.maximum(-np.expm1(np.minimum(floor - mean, 0.0)), 0.0) ** 2
    result[:, 0] = weight / weight.sum(axis=1, keepdims=True)
    result[:, 1:] = groups
    return result


def _least_squares(gradient: Floats, spread: Floats) -> Floats | None:
    """(2, P): from shifts to a displacement, weighted by their spread; None where lags leave a direction open."""
    weighted = gradient.T / np.maximum(spread, 1e-2 * spread.max() + 1e-12)
    normal = weighted @ gradient
    (a, b), (_, c) = normal.tolist()
    determinant = a * c - b * b
    if not determinant > 1e-8 * (a + c) ** 2:
        return None
    return np.asarray(np.array([[c, -b], [-b, a]]) @ weighted / determinant)


def _slopes(values: Floats) -> Floats:
    """Central differences along the last axis, zero at its ends."""
    slopes = np.zeros_like(values)
    slopes[:, 1:-1] = 0.5 * (values[:, 2:] - values[:, :-2])
    return slopes


def _is_run(channels: Floats) -> bool:
    return int(channels[-1] - channels[0]) + 1 == len(channels)


def _groups(rows: int, count: int) -> Floats:
    """(count, rows): means of consecutive rows."""
    edges = np.linspace(0, rows, min(count, rows) + 1).round().astype(int)
    index = np.arange(rows)
    inside = (index >= edges[:-1, None]) & (index < edges[1:, None])
    return inside / inside.sum(axis=1, keepdims=True)


def _batches(time_steps: int, reach: int) -> int:
    """Batches of a window: as far as can be no shorter than frames overlap."""
    return min(max(time_steps // max(reach, 1), LEAST_BATCHES), MOST_BATCHES)


@lru_cache(maxsize=16)
def _averaging(time_steps: int, count: int) -> Floats:
    """(time_steps, count) float32: means of consecutive steps."""
    return np.ascontiguousarray(_groups(time_steps, count).T.astype(np.float32))


@lru_cache(maxsize=1024)
def _hotelling_limit(tail: float, dof: int) -> float:
    """Critical value of T^2 for two numbers whose covariance has `dof` degrees of freedom."""
    return float(2.0 * dof / (dof - 1) * f_distribution.isf(tail, 2, dof - 1))


@lru_cache(maxsize=1024)
def _student_limit(tail: float, dof: int) -> float:
    """Critical value of |t|."""
    return float(t_distribution.isf(tail / 2.0, dof))


def _skewed(limit: float, time_steps: int) -> float:
    """A critical value for means over so many exponential values, as powers of noise are.

    Source: the first term of Cornish and Fisher 1938; a mean of n of them has a skewness of 2 / sqrt(n).
    """
    return limit + (limit * limit - 1.0) / (3.0 * math.sqrt(time_steps))


@lru_cache(maxsize=16)
def _quantile(probability: float) -> float:
    return float(norm.ppf(probability))
