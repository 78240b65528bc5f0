"""Which receiver's clock or place explains what the receivers' residuals show over many windows.

A window's residuals live in the n − 3 directions in which neither the emitter's place nor its time can move them: the
parity space (Sturza 1988). There a fault of receiver k shows as its known signature, whatever the emitter did: a
constant for a cable or a clock that is off, a step at a time for a clock that jumped, a slope in time for one that
drifts, and minus the slopes of its path length times a displacement for coordinates that are wrong. As an emitter moves
the parity space turns, so that receivers which cannot be told apart in one window can be over many.

Each fault is fitted by generalised least squares over all blocks of windows, with the covariance of what is no fault:
noise, clocks as good as they are said to be (half of their variance constant, half wandering within CLOCK_TIME_S) and
paths that differ from place to place. Without a fault the reduction of the misfit by p parameters is chi-square with p
degrees of freedom. A fault counts where that happens by chance with FALSE_ALARM at most for each look, all faults that
were tried together (Bonferroni), and where it is larger than LEAST_SIZE standard deviations of what is allowed: what
the ellipses of the fixes already know of is none. Faults that explain nearly as well, with odds of less than ODDS to
one, cannot be told apart, and all their receivers are named. Between kinds of faults, each parameter costs what
Schwarz's criterion (1978) says.

A jump is told apart by more: the fixes jump with it, all the more the less the residuals do, and no emitter moves that
fast. So of the receivers that could have jumped, the one counts that leaves the emitter where it was going.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.stats import chi2

from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.sanity.geometry import ArrivalGeometry

Kind = Literal["clock_offset", "clock_jump", "clock_drift", "position_suspect"]

FALSE_ALARM = 1e-6
"""Probability that a look at a sound station finds a fault."""
LEAST_SIZE = 3.0
"""Standard deviations of a receiver's clock and path that a fault has to be large."""
ODDS = 1000.0
EVIDENCE = 2.0 * math.log(ODDS)
LARGEST_PART = 0.25
"""Of the way from emitter to receiver: coordinates that are farther off do not show in proportion."""
CLOCK_TIME_S = 60.0
PATH_LENGTH_PART = 0.05
"""Of the distance to the nearest receiver: over this way of the emitter, what a path adds becomes another."""
SPEED_CHANGE_MPS = 15.0
"""By how much an emitter may change its speed from one block to the next where little is known of it; three times that
is how fast it may go where nothing is."""
LEAST_SPEED_CHANGE_MPS = 3.0
"""The same of one that has gone straight on, or stood, all along."""
LEAST_KNOWN = 4
"""Blocks from which on an emitter's way says how it goes."""
LEAST_BLOCKS = 4
LEAST_AFTER = 2
"""Blocks before and after a jump."""
WORST_CONDITION = 1e8
"""Of a fit of several parameters: beyond it they are not told apart."""
REMEMBERED_S = 1800.0
RECENT_BLOCKS = 4
"""In which a fault has to be there still."""
MOST_ROWS = 256
MOST_BLOCKS, FEWEST_BLOCKS = 64, 16


@dataclass(frozen=True)
class Block:
    """The mean of consecutive windows with the same receivers and about the same place of the emitter.

    `time_s`: of its middle. `place_m` (2,): least squares. `residual_m` (R,): of the arrival times there, NaN for
    receivers that were not used. `noise_m2` (R, R): of that mean.
    """

    time_s: float
    place_m: np.ndarray
    residual_m: np.ndarray
    noise_m2: np.ndarray
    windows: int


@dataclass(frozen=True)
class Bias:
    """By how much a receiver's arrival times are late, if the others are right. None where nothing can be told."""

    bias_ns: float
    sigma_ns: float


@dataclass(frozen=True)
class Fault:
    """What explains the residuals best.

    `receivers`: indices of those that it may be, the likeliest first. `size`: ns (offset, jump: later is positive),
    ns/s (drift) or metres (place: (east, north) from the coordinates that were said to the true ones). `sigma`: its
    standard error, of places the larger one. `since_s`: when it began, where that is known. `rest`: whether residuals
    remain that it does not explain.
    """

    kind: Kind
    receivers: tuple[int, ...]
    size: tuple[float, ...]
    sigma: float
    since_s: float | None
    rest: bool

    @property
    def magnitude(self) -> float:
        return math.hypot(*self.size)


@dataclass(frozen=True)
class Diagnosis:
    """`biases`: of each receiver. `probability`: that a sound station's receivers disagree as much. `fault`: or None.
    `freedom`: redundant receivers in the latest block, 0 with three: nothing can be told."""

    biases: tuple[Bias | None, ...]
    probability: float
    fault: Fault | None
    freedom: int


@dataclass(frozen=True)
class _Fit:
    kind: Kind
    receiver: int
    step: int
    """Index of the block from which a jump counts, -1 for the others."""
    gain: float
    price: float
    estimate: np.ndarray
    covariance: np.ndarray

    @property
    def value(self) -> float:
        return self.gain - self.price


class FaultFinder:
    """Keeps the latest blocks of one station and looks for a fault in them."""

    def __init__(self, geometry: ArrivalGeometry) -> None:
        self._geometry = geometry
        self._blocks: list[_Kept] = []
        self._seen_jump: _Strain | None = None

    def add(self, block: Block) -> None:
        self._blocks.append(_kept(self._geometry, block))
        redundant = max(len(self._geometry.names) - 3, 1)
        most = min(max(MOST_ROWS // redundant, FEWEST_BLOCKS), MOST_BLOCKS)
        kept = [each for each in self._blocks if block.time_s - each.block.time_s <= REMEMBERED_S]
        if len(kept) > most:
            # The past is thinned out, for an emitter takes its time to be somewhere else.
            times_s = [each.block.time_s for each in kept]
            del kept[min(range(1, most // 2), key=lambda k: times_s[k + 1] - times_s[k - 1])]
        self._blocks = kept

    def forget(self) -> None:
        """Begin anew: another emitter or another stream."""
        self._blocks.clear()
        self._seen_jump = None

    def diagnose(self) -> Diagnosis:
        """What the blocks so far say."""
        receivers = len(self._geometry.names)
        freedom = len(self._blocks[-1].parity) if self._blocks else 0
        told = [kept for kept in self._blocks if len(kept.parity)]
        if not told:
            return Diagnosis((None,) * receivers, 1.0, None, freedom)
        evidence = _Evidence(self._geometry, told)
        biases = tuple(self._bias(evidence, receiver) for receiver in range(receivers))
        probability = float(chi2.sf(evidence.misfit, evidence.rows))
        fault = self._fault(evidence) if len(told) >= LEAST_BLOCKS else None
        return Diagnosis(biases, probability, fault, freedom)

    def _bias(self, evidence: _Evidence, receiver: int) -> Bias | None:
        fit = evidence.fit("clock_offset", receiver, np.ones((len(evidence.blocks), 1)), 0.0)
        if fit is None:
            return None
        to_ns = 1e9 / SPEED_OF_LIGHT_MPS
        return Bias(float(fit.estimate[0]) * to_ns, math.sqrt(fit.covariance[0, 0]) * to_ns)

    def _fault(self, evidence: _Evidence) -> Fault | None:
        fits = [fit for fit in evidence.fits() if evidence.is_significant(fit) and self._is_large(evidence, fit)]
        if not fits:
            return None
        best = max(fits, key=lambda fit: fit.value)
        strain = self._strain(evidence, best.step) if best.kind == "clock_jump" else np.zeros(len(self._geometry.names))
        # The likeliest fault of each receiver. Another jump than the best one would strain the emitter's way as much.
        by_receiver: dict[int, _Fit] = {}
        for fit in fits:
            known = by_receiver.get(fit.receiver)
            same = fit.kind == best.kind and fit.step == best.step
            if known is None or (fit.value, same) > (known.value, False):
                by_receiver[fit.receiver] = fit
        values = {receiver: fit.value - strain[receiver] for receiver, fit in by_receiver.items()}
        ranked = sorted(values, key=lambda receiver: -values[receiver])
        likely = [each for each in ranked if values[each] > values[ranked[0]] - EVIDENCE]
        chosen = by_receiver[likely[0]]
        if not self._is_present(chosen):
            return None
        remaining = evidence.misfit - chosen.gain
        rest = bool(chi2.sf(remaining, max(evidence.rows - len(chosen.estimate), 1)) < FALSE_ALARM)
        return self._told(evidence, chosen, tuple(likely), rest)

    def _told(self, evidence: _Evidence, fit: _Fit, likely: tuple[int, ...], rest: bool) -> Fault:
        to_ns = 1e9 / SPEED_OF_LIGHT_MPS
        sigma = math.sqrt(float(np.linalg.eigvalsh(fit.covariance)[-1]))
        if fit.kind == "position_suspect":
            east, north = fit.estimate.tolist()
            return Fault(fit.kind, likely, (east, north), sigma, None, rest)
        since_s = evidence.blocks[fit.step].time_s if fit.kind == "clock_jump" else None
        last = float(fit.estimate[-1])
        sigma = math.sqrt(fit.covariance[-1, -1])
        return Fault(fit.kind, likely, (last * to_ns,), sigma * to_ns, since_s, rest)

    def _strain(self, evidence: _Evidence, step: int) -> np.ndarray:
        """As the evidence has it, or had it when there were more blocks about that time."""
        known, found = self._seen_jump, evidence.strain(step)
        if known is None or abs(known.time_s - found.time_s) > known.passed_s or found.passed_s <= known.passed_s:
            self._seen_jump = known = found
        return known.squared

    def _is_present(self, fit: _Fit) -> bool:
        """Whether an offset or a jump has not been mended since: the latest blocks by themselves still show it."""
        if fit.kind not in ("clock_offset", "clock_jump"):
            return True
        latest = _Evidence(self._geometry, [kept for kept in self._blocks if len(kept.parity)][-RECENT_BLOCKS:])
        now = latest.fit("clock_offset", fit.receiver, np.ones((len(latest.blocks), 1)), 0.0)
        return now is not None and now.gain > LEAST_SIZE**2

    def _is_large(self, evidence: _Evidence, fit: _Fit) -> bool:
        """Whether a fault exceeds what clock and path of its receiver are allowed."""
        allowed_m = LEAST_SIZE * evidence.allowed_m[fit.receiver]
        if fit.kind == "position_suspect":
            return allowed_m < float(np.linalg.norm(fit.estimate)) < LARGEST_PART * evidence.distance_m[fit.receiver]
        size_m = abs(float(fit.estimate[-1]))
        return (size_m * evidence.span_s if fit.kind == "clock_drift" else size_m) > allowed_m


@dataclass(frozen=True)
class _Strain:
    """How far the emitter would have to leave its way, squared and in standard deviations, if it was each receiver that
    jumped at `time_s`, (R,). `passed_s`: between the blocks that tell."""

    time_s: float
    passed_s: float
    squared: np.ndarray


@dataclass(frozen=True)
class _Kept:
    """A block with what follows from it: `slopes` (R, 2) and `path_m2` (R,) at its place, `parity` (n − 3, R), the
    directions in which neither the emitter's place nor its time moves residuals, and `value_m` (n − 3,) with
    `noise_m2`, the residuals there. Without rows where there is no redundant receiver."""

    block: Block
    slopes: np.ndarray
    path_m2: np.ndarray
    parity: np.ndarray
    value_m: np.ndarray
    noise_m2: np.ndarray


def _kept(geometry: ArrivalGeometry, block: Block) -> _Kept:
    used = np.isfinite(block.residual_m)
    slopes = geometry.slopes(block.place_m)
    parity = np.zeros((max(int(used.sum()) - 3, 0), len(used)))
    if len(parity):
        fitted = np.column_stack([np.ones(used.sum()), slopes[used] / max(np.abs(slopes[used]).max(), 1e-12)])
        orthogonal, _ = np.linalg.qr(fitted, mode="complete")
        parity[:, used] = orthogonal[:, 3:].T
    value_m, noise_m2 = parity @ np.nan_to_num(block.residual_m), parity @ block.noise_m2 @ parity.T
    return _Kept(block, slopes, geometry.path_m2(block.place_m), parity, value_m, noise_m2)


@lru_cache(maxsize=1024)
def _critical(parameters: int, tried: int) -> float:
    """Gain that a fault must exceed which is one of so many."""
    return float(chi2.isf(FALSE_ALARM / tried, parameters))


class _Evidence:
    """The parity vectors of blocks, with the covariance that a sound station gives them, and fits of faults to them."""

    def __init__(self, geometry: ArrivalGeometry, kept: Sequence[_Kept]) -> None:
        self.blocks = [each.block for each in kept]
        self._geometry = geometry
        self._times_s = np.array([block.time_s for block in self.blocks])
        self._places_m = np.stack([block.place_m for block in self.blocks])
        self._slopes = np.stack([each.slopes for each in kept])
        self.span_s = float(np.ptp(self._times_s))
        path_m2 = np.stack([each.path_m2 for each in kept])
        self.allowed_m = np.sqrt(np.square(geometry.sigma_m) + path_m2.mean(axis=0))
        self.distance_m = geometry.lengths_m(self._places_m.mean(axis=0))
        ends = np.cumsum([0, *(len(each.parity) for each in kept)])
        self.rows = int(ends[-1])
        parity = np.zeros((len(geometry.names), self.rows, len(kept)))
        noise = np.zeros((self.rows, self.rows))
        for k, each in enumerate(kept):
            part = slice(ends[k], ends[k + 1])
            parity[:, part, k] = each.parity.T
            noise[part, part] = each.noise_m2
        self._by_receiver = parity  # (R, rows, blocks): what a receiver's delays make of parity
        self._root = cholesky(noise + self._covariance(path_m2), lower=True)
        value = np.concatenate([each.value_m for each in kept])
        self._weighed = cho_solve((self._root, True), value)
        self.misfit = float(value @ self._weighed)
        # What any delays of a receiver, one for each block, have in common with each other and with what is seen.
        self._inner = [own.T @ cho_solve((self._root, True), own) for own in self._by_receiver]
        self._pulls = [own.T @ self._weighed for own in self._by_receiver]

    def _covariance(self, path_m2: np.ndarray) -> np.ndarray:
        """What sound clocks and paths do to parity, (rows, rows)."""
        total = 1e-6 * np.eye(self.rows)
        apart_s = np.abs(self._times_s[:, None] - self._times_s)
        clock = 0.5 + 0.5 * np.exp(-apart_s / CLOCK_TIME_S)
        apart_m = np.linalg.norm(self._places_m[:, None] - self._places_m, axis=-1)
        path = np.exp(-0.5 * np.square(apart_m / (PATH_LENGTH_PART * self.distance_m.min())))
        for receiver, own in enumerate(self._by_receiver):
            deviation = np.sqrt(path_m2[:, receiver])
            between = clock * self._geometry.sigma_m[receiver] ** 2 + path * deviation[:, None] * deviation
            total += own @ between @ own.T
        return total

    def fit(self, kind: Kind, receiver: int, design: np.ndarray, price: float, step: int = -1) -> _Fit | None:
        """Fit delays `design` (blocks, p) of one receiver; None where they leave no trace."""
        information = design.T @ self._inner[receiver] @ design
        scale = np.sqrt(np.diagonal(information))
        if not (scale > 1e-9).all():
            return None
        if len(scale) > 1 and np.linalg.cond(information / np.outer(scale, scale)) > WORST_CONDITION:
            return None
        covariance = np.linalg.inv(information)
        pull = design.T @ self._pulls[receiver]
        estimate = covariance @ pull
        return _Fit(kind, receiver, step, float(pull @ estimate), price, estimate, covariance)

    def fits(self) -> Iterator[_Fit]:
        """Of every fault of every receiver."""
        count = len(self.blocks)
        each = math.log(self.rows)
        late_s = self._times_s - self._times_s[0]
        steps = range(LEAST_AFTER, count - LEAST_AFTER + 1)
        for receiver in range(len(self._geometry.names)):
            found = [self.fit("clock_offset", receiver, np.ones((count, 1)), each)]
            if self.span_s > 0.0:
                centred = np.column_stack([np.ones(count), late_s - late_s.mean()])
                found.append(self.fit("clock_drift", receiver, centred[:, 1:], each))
                found.append(self.fit("clock_drift", receiver, centred, 2.0 * each))
            # Wrong coordinates are the stronger claim: they have to explain more than a clock does.
            found.append(self.fit("position_suspect", receiver, -self._slopes[:, receiver], 2.0 * each + EVIDENCE))
            found += self._jumps(receiver, steps, each + 2.0 * math.log(max(len(steps), 1)))
            yield from (fit for fit in found if fit is not None)

    def _jumps(self, receiver: int, steps: range, price: float) -> list[_Fit | None]:
        """All at once, for there are many: a step at block k is the sum of the signatures from there on."""
        pull = np.cumsum(self._pulls[receiver][::-1])[::-1]
        inner = self._inner[receiver][::-1, ::-1]
        information = np.cumsum(np.cumsum(inner, axis=0), axis=1)[::-1, ::-1].diagonal()
        return [
            _Fit(
                "clock_jump",
                receiver,
                step,
                float(pull[step] ** 2 / information[step]),
                price,
                np.array([pull[step] / information[step]]),
                np.array([[1.0 / information[step]]]),
            )
            for step in steps
            if information[step] > 1e-12
        ]

    def is_significant(self, fit: _Fit) -> bool:
        """Whether chance gives such a gain with FALSE_ALARM at most, over all that was tried; of a drift, what time
        itself explains."""
        tried = len(self._geometry.names) * (4 + len(self.blocks))
        if fit.kind == "clock_drift" and fit.estimate[-1] ** 2 < fit.covariance[-1, -1] * _critical(1, tried):
            return False
        return fit.gain > _critical(len(fit.estimate), tried)

    def strain(self, step: int) -> _Strain:
        """What a jump between two blocks before `step` and the one after it asks of the emitter."""
        before, after = step - 2, min(step + 1, len(self.blocks) - 1)
        first, last = self.blocks[before], self.blocks[after]
        passed_s = last.time_s - first.time_s
        moved_m, spread_m = self._way(before, passed_s)
        used = np.isfinite(first.residual_m) & np.isfinite(last.residual_m)
        change = self._arrival_m(last) - self._arrival_m(first)
        expected = self._geometry.expected_m(first.place_m + moved_m) - self._geometry.expected_m(first.place_m)
        slopes = self._slopes[before][used]
        known = (first.noise_m2 + last.noise_m2)[np.ix_(used, used)]
        known += spread_m**2 * slopes @ slopes.T + 1e-3 * np.eye(len(slopes))
        precision = np.linalg.inv(known)
        row = precision.sum(axis=1)
        precision -= np.outer(row, row) / row.sum()
        value = (change - expected)[used]
        whole = float(value @ precision @ value)
        found = np.full(len(used), whole)
        for place, receiver in enumerate(np.flatnonzero(used)):
            found[receiver] = whole - (precision[place] @ value) ** 2 / precision[place, place]
        return _Strain(self.blocks[step].time_s, passed_s, found)

    def _way(self, before: int, passed_s: float) -> tuple[np.ndarray, float]:
        """How far the emitter goes on from block `before`, if it goes on as it did, and the deviation from that."""
        places, times_s = self._places_m[: before + 1], self._times_s[: before + 1]
        if before < 1:
            return np.zeros(2), 3.0 * SPEED_CHANGE_MPS * passed_s
        speed = np.diff(places, axis=0) / np.diff(times_s)[:, None]
        latest = speed[-LEAST_KNOWN:].mean(axis=0)
        if before < LEAST_KNOWN:
            return latest * passed_s, SPEED_CHANGE_MPS * passed_s
        change = float(np.sqrt(np.square(np.diff(speed, axis=0)).sum(axis=1).mean()))
        return latest * passed_s, max(3.0 * change, LEAST_SPEED_CHANGE_MPS) * passed_s

    def _arrival_m(self, block: Block) -> np.ndarray:
        return np.asarray(self._geometry.expected_m(block.place_m) + np.nan_to_num(block.residual_m))
