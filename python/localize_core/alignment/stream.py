"""One stream on its way to the common grid: its samples that are still of use, and where they stand."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.resample import HALF_TAPS, interpolate_at
from localize_core.alignment.timeline import FOREVER, Piece, Segment, TimeLine
from localize_core.alignment.trusted import TrustedLine

Boundary = Literal["gap", "receiver", "restart", "retune"]
"""Why no window may span a sample: a receiver's samples are missing from here, one is back, its stream was interrupted,
or it hears another frequency."""


@dataclass(frozen=True)
class State:
    """A stream at a grid step: samples up to step `until`, or `lost` ones, or none, because it `waits` or `ended`.

    `fills`: the lost ones are few enough for zeros. `late`: its samples are for steps that are over.
    """

    begin: int = 0
    until: int = 0
    lost: bool = False
    waits: bool = False
    ended: bool = False
    fills: bool = False
    late: bool = False

    @property
    def is_here(self) -> bool:
        return not (self.lost or self.waits or self.ended)


@dataclass(frozen=True)
class Patience:
    """In grid steps: the longest gap that becomes zeros, the longest after which a stream goes on at once, and how long
    after a longer one it joins the others. Zeros where streams wait for each other.
    """

    fill: int
    near: int = 0
    delay: int = 0


class Stream:
    """`heard`: how many samples of each stream there were when this one brought its latest."""

    def __init__(self, line: TimeLine | TrustedLine, patience: Patience, n_streams: int) -> None:
        self.line = line
        self.buffer = SampleBuffer()
        self.seen = 0
        self.length: int | None = None
        self.time_errors: deque[tuple[int, float]] = deque()
        self.error_s = 0.0
        self.retunes: deque[int] = deque()
        self.retuned = False
        self.broken: Boundary | None = None
        self.joined = False
        self.entry: int | None = None
        self.is_silent = False
        self.heard = [0] * n_streams
        self.absences = 0
        self.late_samples = 0
        self._patience = patience
        self._fills = False
        self._floor = 0
        self._time_error_s = 0.0

    @property
    def ended(self) -> bool:
        return self.length is not None and self.seen >= self.length

    @property
    def timed(self) -> bool:
        return self.line.pieces[0].timed if self.line.pieces else self.line.timed

    @property
    def is_unplaced(self) -> bool:
        """Whether it has samples without time, which nobody has put anywhere yet."""
        return isinstance(self.line, TrustedLine) and self.line.unplaced is not None

    @property
    def is_awaited(self) -> bool:
        """Whether more is expected of it."""
        return not self.ended and not self.is_silent

    @property
    def begin(self) -> int:
        """The first grid step of the first piece."""
        return _begin(self.line.pieces[0])

    @property
    def reach(self) -> int:
        """The grid step after the newest sample of the first piece."""
        piece = self.line.pieces[0]
        return piece.segments[-1].first_step(self.line.horizon if piece.end is None else piece.end)

    def measure(self) -> None:
        """Look how good its times are now."""
        self.error_s = math.hypot(self.line.pieces[0].segments[0].error_s, self._time_error_s)

    def advance(self) -> None:
        """Take note of what has come."""
        self.line.advance(self.seen, self.ended)
        pieces = self.line.pieces
        if self.is_silent and (self.is_unplaced or len(pieces) > 1 or (pieces and pieces[-1].end is None)):
            self.is_silent = False

    def at(self, grid: int) -> State:
        """What there is at `grid` where all streams wait for each other; what lies before is given up."""
        pieces = self.line.pieces
        while pieces:
            state = self._within(grid)
            if state is not None:
                return state
            if len(pieces) == 1:
                break
            begin = _begin(pieces[1])
            if grid < begin:
                return State(begin, begin, lost=True)
            pieces.popleft()
            if isinstance(self.line, TrustedLine) and not self._patience.fill:
                self.broken = "restart" if pieces[0].restarted else "gap"
        return State(ended=True) if self.ended else State(waits=True)

    def stand(self, grid: int) -> State:
        """The same where streams may come and go: it has samples from step `entry` of a piece on."""
        pieces = self.line.pieces
        while pieces:
            if not self.joined:
                self.entry = self.begin + self._patience.delay if self.entry is None else self.entry
                over = pieces[0].end is not None and self.reach <= max(self.entry, grid)
                if over or self._is_taken_back:
                    if len(pieces) == 1:
                        break
                    self._next()
                    continue
                if grid > self.entry:
                    if self.reach <= grid:
                        return State(until=FOREVER, lost=True, late=True)
                    self.entry = self.reach + self._patience.delay
                    continue
                if grid < self.entry:
                    return State(self.entry, self.entry, lost=True, fills=self._fills)
                state = self._within(grid)
                if state is None or state.waits:  # what it has may be over before it joins
                    return State(waits=True)
                self.joined, self._fills = True, False
            state = self._within(grid)
            if state is not None:
                return state
            if len(pieces) == 1:
                break
            self._next()
        return State(ended=True) if self.ended else State(waits=True)

    def give_up(self) -> None:
        """Do without it until it brings something else."""
        if isinstance(self.line, TrustedLine):
            self.line.close(self.seen)
        self.is_silent = True
        self.absences += 1

    def make_room(self) -> None:
        """Give up samples that are for a time far off: a tag was wrong, and others may follow that put it right."""
        if self.joined or not self.line.pieces or self.entry is None:
            return
        piece = self.line.pieces[0]
        half = self.buffer.held // 2
        self.buffer.drop(self.buffer.first + half)
        self.late_samples += half
        piece.first = max(piece.first, self.buffer.first)
        while len(piece.segments) > 1 and piece.segments[0].end <= piece.first:
            piece.segments.popleft()
        self.entry = max(self.entry, self.begin)

    def samples(self, grid: int, count: int) -> NDArray[np.complex64]:
        piece = self.line.pieces[0]
        segment = piece.segments[0]
        # Samples of another piece or frequency, or before the first, are no neighbours: zeros stand there.
        first = max(piece.first, self.buffer.first, self._floor)
        end = self.seen if piece.end is None else piece.end
        own = self.buffer.view(first, min(end, self.retunes[0]) if self.retunes else end)
        if segment.pace == 1.0 and segment.offset == 0.0:
            start = segment.sample_of(grid)[0] - first
            return own[start : start + count].copy()
        whole, fraction = segment.place(grid, count)
        return interpolate_at(own, whole - first, fraction)

    def source(self, grid: int) -> int:
        """The sample that stands at `grid`, or where its piece ends so far."""
        if not self.line.pieces:
            return 0
        piece = self.line.pieces[0]
        whole, _ = piece.segments[0].sample_of(grid)
        return min(whole, self.line.horizon if piece.end is None else piece.end)

    def forget(self, grid: int, *, late: bool = False) -> None:
        """Samples that no step from `grid` on depends on."""
        before = self.buffer.first
        if self.line.pieces:
            self.buffer.drop(max(self.source(grid) - HALF_TAPS, self.line.pieces[0].first))
        elif isinstance(self.line, TrustedLine):
            self.buffer.drop(self.line.needed)
        if late:
            self.late_samples += self.buffer.first - before
        reached = self.source(grid) if self.line.pieces else self.buffer.first
        while self.time_errors and self.time_errors[0][0] <= reached:
            _, self._time_error_s = self.time_errors.popleft()

    @property
    def _is_taken_back(self) -> bool:
        """Whether a later tag says that the piece it is to join with was no later than what follows."""
        pieces = self.line.pieces
        return len(pieces) > 1 and self.entry != self.begin and _begin(pieces[1]) <= self.begin

    def _within(self, grid: int) -> State | None:
        """What the first piece has at `grid`; None where it has ended."""
        piece = self.line.pieces[0]
        while True:
            segment = piece.segments[0]
            end = segment.end if piece.end is None else min(segment.end, piece.end)
            begin, until = segment.first_step(segment.first), segment.first_step(end)
            if grid < until:
                if piece.end is None:
                    until = min(until, segment.first_step(self.line.horizon - HALF_TAPS))
                return State(begin, self._until_retune(grid, until, segment), waits=grid >= until)
            if len(piece.segments) > 1:
                piece.segments.popleft()
            elif piece.end is None:
                return State(waits=True)
            else:
                return None

    def _until_retune(self, grid: int, until: int, segment: Segment) -> int:
        while self.retunes:
            step = segment.first_step(self.retunes[0])
            if step > grid:
                return min(until, step)
            self._floor, self.retuned = self.retunes.popleft(), True
        return until

    def _next(self) -> None:
        """The first piece is over, another follows."""
        patience = self._patience
        old_begin, old_end = self.begin, self.reach
        self.line.pieces.popleft()
        new, begin = self.line.pieces[0], self.begin
        ahead = begin - old_end
        if self.joined:
            self._fills = patience.fill > 0 and ahead <= patience.fill
            if not self._fills:
                self.broken = "restart" if new.restarted else "gap"
            if ahead < -patience.near:  # a clock was set back: it has been where the others are to come to, or will be
                self.entry = old_end + patience.delay
            else:
                self.entry = max(begin, old_end) if ahead <= patience.near else begin + patience.delay
        elif begin <= old_begin or ahead > patience.near or self.entry is None:
            self.entry = begin + patience.delay
        else:
            self.entry = max(begin, old_end, self.entry)
        self.joined = False


def _begin(piece: Piece) -> int:
    return piece.segments[0].first_step(piece.first)


class SampleBuffer:
    """Consecutive samples of a stream, `first` being the index of the oldest one held."""

    def __init__(self) -> None:
        self.first = 0
        self._data = np.empty(1024, np.complex64)
        self._start = 0
        self._end = 0

    @property
    def held(self) -> int:
        return self._end - self._start

    def append(self, samples: NDArray[np.complex64]) -> None:
        if self._end + len(samples) > len(self._data):
            needed = self.held + len(samples)
            target = self._data if 2 * needed <= len(self._data) else np.empty(2 * needed, np.complex64)
            target[: self.held] = self._data[self._start : self._end]
            self._data, self._start, self._end = target, 0, self.held
        self._data[self._end : self._end + len(samples)] = samples
        self._end += len(samples)

    def drop(self, index: int) -> None:
        """Give up the samples before `index`."""
        count = min(max(index - self.first, 0), self.held)
        self.first += count
        self._start += count

    def view(self, first: int, end: int) -> NDArray[np.complex64]:
        """The samples `first` up to `end`."""
        return self._data[self._start + first - self.first : self._start + end - self.first]
