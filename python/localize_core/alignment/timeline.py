"""Where the samples of one live stream stand on the common time grid.

A time line is made of pieces (between them samples were lost), and a piece of segments, on which positions run
linearly. Every decision is taken at a fixed sample of the stream and from what came before a fixed sample, so the
line does not depend on how the stream arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.clock import Line, fit_clock, least_squares

UPDATE_S = 1.0
"""A line is fitted anew this often, and steered there over the same time: positions never jump."""
ON_SAMPLE = 0.01
"""Samples: what time tags of rounded nanoseconds may be off without moving the start or the end by a sample."""
FOREVER = 2**62
"""A grid step, or a sample, that is never reached."""
WINDOW_S = 30.0
"""The fit uses stamps of this span: longer averages jitter better, shorter follows a clock's wander closer."""


@dataclass(frozen=True)
class TimeTag:
    """Sample `index` of a stream was taken at `seconds` + `fraction`."""

    index: int
    seconds: int
    fraction: float


@dataclass(frozen=True)
class Segment:
    """Samples `first` up to `end`: grid step k is at sample `first + (k - grid - offset) * pace`."""

    first: int
    end: int
    grid: int
    offset: float
    pace: float
    error_s: float

    def place(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Whole sample and fraction of the grid steps `start` to `start + count - 1`."""
        position = (np.arange(start - self.grid, start - self.grid + count) - self.offset) * self.pace
        whole = np.floor(position)
        return whole.astype(np.int64) + self.first, position - whole

    def sample_of(self, step: int) -> tuple[int, float]:
        """Whole sample and fraction of one grid step, as `place` has them."""
        position = (float(step - self.grid) - self.offset) * self.pace
        whole = math.floor(position)
        return whole + self.first, position - whole

    def step_of(self, sample: int) -> tuple[int, float]:
        """Grid step of a sample, whole and fraction."""
        steps = self.offset + (sample - self.first) / self.pace
        whole = math.floor(steps)
        return self.grid + whole, steps - whole

    def first_step(self, sample: int) -> int:
        """The first grid step at `sample` or later; one earlier by a rounding error, ON_SAMPLE, is at it."""
        near, _ = self.step_of(sample)
        for step in range(near - 1, near + 3):
            whole, fraction = self.sample_of(step)
            if whole - sample + fraction >= -ON_SAMPLE:
                return step
        return near - 1


@dataclass
class Piece:
    """Samples without a loss between them; `end` is None while more may follow.

    `timed`: whether they stand where their times say. `restarted`: the stream was interrupted before them.
    """

    first: int
    end: int | None = None
    segments: deque[Segment] = field(default_factory=deque)
    timed: bool = True
    restarted: bool = False


class TimeLine:
    """Turns the time tags of one stream into pieces on a grid of `sample_rate_hz` steps a second since 1970.

    The first `acquire` samples decide the line by consensus. Later a tag
    more than `max_residual_s` off the line holds the line up for `acquire` samples: samples were lost before it if
    more of the tags that follow go with it than with the line, else it is wrong and rejected.
    """

    def __init__(self, sample_rate_hz: float, acquire: int, max_residual_s: float) -> None:
        self.pieces: deque[Piece] = deque()
        self.horizon = 0
        self.acquired = False
        self.timed = False
        self.rejected = 0
        self.gaps = self.lost_samples = self.restarts = 0
        self._grid_rate = Fraction(sample_rate_hz)
        self._acquire_n = acquire
        self._max_residual_s = max_residual_s
        self._waiting: deque[TimeTag] = deque()
        self._base_s = 0
        self._kept: deque[tuple[int, float, int]] = deque()
        self._fresh = 0
        self._line: Line | None = None
        self._line_origin = 0
        self._error_s = 0.0
        self._offset_s = 0.0
        self._piece = 0
        self._next_update = 0
        self.set_rate(sample_rate_hz)

    @property
    def rate_hz(self) -> float:
        """What its tags say of the stream's rate so far."""
        return 1.0 / self._slope

    def set_rate(self, rate_hz: float) -> None:
        """The stream's own nominal rate; without effect once acquired."""
        if not self.acquired:
            self._rate_hz = rate_hz
            self._slope = 1.0 / rate_hz
            self._update = max(1, round(UPDATE_S * rate_hz))

    def add(self, tags: Iterable[TimeTag]) -> None:
        """Tags come in order of index; of two on one sample the later counts."""
        for tag in tags:
            if self._waiting and self._waiting[-1].index == tag.index:
                self._waiting.pop()
            self._waiting.append(tag)

    def advance(self, seen: int, ended: bool) -> None:
        """The first `seen` samples and all their tags have come; `ended`: there are no more. Moves `horizon`."""
        if not self.acquired:
            if seen < self._acquire_n and not ended:
                return
            self._acquire(min(seen, self._acquire_n))
        if self.timed:
            while self._track(seen, ended):
                pass
        else:
            self._waiting.clear()
            self.horizon = seen
        if ended and self.pieces:
            self.pieces[-1].end = seen

    def fix(self, grid: int) -> None:
        """Without usable tags: sample n stands on grid step `grid` + n, for good."""
        self.pieces.append(Piece(0, None, deque([Segment(0, FOREVER, grid, 0.0, 1.0, 0.0)]), timed=False))

    def _acquire(self, limit: int) -> None:
        self.acquired = True
        tags = [tag for tag in self._waiting if tag.index < limit]
        for _ in tags:
            self._waiting.popleft()
        if not tags:
            return
        # The middle one: the first are stale more often.
        self._base_s = tags[len(tags) // 2].seconds
        index = np.array([tag.index for tag in tags])
        time_s = np.array([self._relative_s(tag) for tag in tags])
        fit = fit_clock(index, time_s, self._rate_hz, tolerance_s=self._max_residual_s)
        if fit is None:
            self.rejected = len(tags)
            return
        self.timed = True
        self.rejected = fit.rejected
        self._slope, self._offset_s = 1.0 / fit.rate_hz, fit.offset_s
        first = 0
        for number, end in enumerate([*(step.index for step in fit.steps), None]):
            self._piece = number
            piece = Piece(first, end)
            self.pieces.append(piece)
            if number > 0:
                self._offset_s += fit.steps[number - 1].seconds
                self.gaps += 1
                self.lost_samples += max(round(fit.steps[number - 1].seconds * fit.rate_hz), 0)
            grid, offset = self._grid(self._offset_s + first * self._slope)
            pace = fit.rate_hz / float(self._grid_rate)
            piece.segments.append(Segment(first, end or limit, grid, offset, pace, fit.standard_error_s))
            first = end or limit
        pieces = np.searchsorted([step.index for step in fit.steps], index, side="right")
        self._kept.extend((int(index[k]), float(time_s[k]), int(pieces[k])) for k in np.flatnonzero(fit.inliers))
        self._error_s = fit.standard_error_s
        self._next_update = limit

    def _track(self, seen: int, ended: bool) -> bool:
        """Take the next decision; False where it has to wait for samples."""
        if not self._waiting or self._waiting[0].index >= self._next_update:
            if seen < self._next_update or (ended and seen == self._next_update):
                self.horizon = seen
                return False
            self._steer()
            return True
        tag = self._waiting[0]
        excess_s = self._excess_s(tag)
        if abs(excess_s) > self._max_residual_s:
            if seen < tag.index + self._acquire_n and not ended:
                self.horizon = tag.index
                return False
            jumps = [self._excess_s(t) for t in self._waiting if t.index < tag.index + self._acquire_n]
            followers = [jump for jump in jumps if abs(jump - excess_s) <= self._max_residual_s]
            stayers = [jump for jump in jumps if abs(jump) <= self._max_residual_s]
            if len(followers) <= len(stayers):
                self._waiting.popleft()
                self.rejected += 1
                return True
            self._jump(tag.index, float(np.median(followers)))
        self._waiting.popleft()
        self._kept.append((tag.index, self._relative_s(tag), self._piece))
        self._fresh += 1
        return True

    def _jump(self, index: int, step_s: float) -> None:
        """From sample `index` on, the line lies `step_s` later."""
        old = self.pieces[-1]
        old.end = index
        last = old.segments[-1]
        self._piece += 1
        self._offset_s += step_s
        self.gaps += 1
        self.lost_samples += max(round(step_s / self._slope), 0)
        grid, offset = self._grid(self._offset_s + index * self._slope)
        pace = 1.0 / (self._slope * float(self._grid_rate))
        new = Segment(index, self._next_update, grid, offset, pace, last.error_s)
        self.pieces.append(Piece(index, None, deque([new])))

    def _steer(self) -> None:
        """Fit the line to the tags of the last WINDOW_S, and begin the segment that leads to it."""
        start, end = self._next_update, self._next_update + self._update
        while len(self._kept) > 1 and self._kept[0][0] < start - WINDOW_S * self._rate_hz:
            self._kept.popleft()
        if self._fresh and len(self._kept) > 2:
            index, time_s, piece = (np.array(column) for column in zip(*self._kept, strict=True))
            _, piece = np.unique(piece, return_inverse=True)
            self._line, self._line_origin = least_squares(index - float(start), time_s, piece, self._slope), start
            self._slope = self._line.seconds_per_sample
            self._offset_s = float(self._line.offsets_s[-1]) - start * self._slope
        self._fresh = 0
        error_s = self._error_s if self._line is None else self._line.standard_error_s(end - self._line_origin)
        last = self.pieces[-1].segments[-1]
        grid, offset = last.step_of(start)
        target, fraction = self._grid(self._offset_s + end * self._slope)
        pace = self._update / (target - grid + fraction - offset)
        self.pieces[-1].segments.append(Segment(start, end, grid, offset, pace, error_s))
        self._next_update = end

    def _relative_s(self, tag: TimeTag) -> float:
        return tag.seconds - self._base_s + tag.fraction

    def _excess_s(self, tag: TimeTag) -> float:
        return self._relative_s(tag) - self._offset_s - tag.index * self._slope

    def _grid(self, time_s: float) -> tuple[int, float]:
        """Grid step, whole and fraction, of a time after the base second; exact where float64 alone is not."""
        steps = self._grid_rate * (self._base_s + Fraction(time_s))
        return math.floor(steps), float(steps - math.floor(steps))
