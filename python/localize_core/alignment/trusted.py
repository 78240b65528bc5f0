"""Where the samples of a stream stand whose time tags are all true: radios with a clock, or a clock that is kept.

As in `timeline`, every decision is taken at a fixed sample of the stream, so the line does not depend on how the
stream arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from localize_core.alignment.timeline import FOREVER, Piece, Segment, TimeTag

JUMP = 0.1
"""Samples: a tag farther off the line says that samples were lost; a nearer one moves the line."""
ON_GRID = 1e-6
"""Samples: positions of whole numbers but for this are whole, and need no interpolation."""
AVERAGED = 16
"""The error of a line is told from the deviations of about so many tags."""
_TICK = 2**64


@dataclass(frozen=True)
class RateTag:
    """From sample `index` on, the stream runs at `rate_hz`."""

    index: int
    rate_hz: float


@dataclass(frozen=True)
class RestartTag:
    """Just before sample `index` the stream was interrupted: `lost` samples are missing, None where nobody knows."""

    index: int
    lost: int | None = None


Tag = TimeTag | RateTag | RestartTag
_ORDER = {RestartTag: 0, RateTag: 1, TimeTag: 2}


class TrustedLine:
    """Turns the tags of one stream into pieces on a grid of `sample_rate_hz` steps a second since 1970.

    Samples run from each time tag on at the latest rate. A tag more than JUMP off begins a new piece; so does the first
    one after a restart, and samples without one in between are given up. Where the first `acquire` samples carry no
    time, those from `unplaced` on are to be put on the grid by `fix`, for good.
    """

    def __init__(self, sample_rate_hz: float, acquire: int) -> None:
        self.pieces: deque[Piece] = deque()
        self.horizon = 0
        self.acquired = False
        self.timed = False
        self.rejected = 0
        self.unplaced: int | None = None
        self.rate_hz = sample_rate_hz
        self.gaps = self.lost_samples = self.restarts = 0
        self._grid_rate = Fraction(sample_rate_hz)
        self._rate = Fraction(sample_rate_hz)
        self._acquire_n = acquire
        self._waiting: deque[Tag] = deque()
        self._anchor: tuple[int, Fraction] | None = None
        self._variance = 0.0
        self._since: int | None = 0  # where the time begins that a first tag has to come in; None where it has, or not
        self._restarted = False
        self._closed: int | None = None

    @property
    def error_s(self) -> float:
        """Standard deviation of the latest tags about the lines before them."""
        return math.sqrt(self._variance)

    @property
    def needed(self) -> int:
        """The first sample that may be of use while there is no piece."""
        first = self._since if self.unplaced is None else self.unplaced
        return self.horizon if first is None else first

    def add(self, tags: Iterable[Tag]) -> None:
        """Tags come in order of index; of two of a kind on one sample the later counts."""
        self._waiting.extend(tags)

    def advance(self, seen: int, ended: bool) -> None:
        """The first `seen` samples and all their tags have come; `ended`: there are no more. Moves `horizon`."""
        if self._closed is not None and seen > self._closed:
            index, self._closed = self._closed, None
            if not self._waiting or self._waiting[0].index > index:
                self._resume(index)
        while self._waiting and self._waiting[0].index < seen:
            index = self._waiting[0].index
            self._give_up_on_time(index, ended=False)
            self._extend(index)
            here: dict[type, Tag] = {}
            while self._waiting and self._waiting[0].index == index:
                tag = self._waiting.popleft()
                here[type(tag)] = tag
            for kind in sorted(here, key=lambda each: _ORDER[each]):
                self._take(here[kind])
            if not self._is_open:
                self._resume(index)
        self._give_up_on_time(seen, ended)
        self._extend(seen)
        self.horizon = seen
        if ended:
            self.close(seen)

    def fix(self, grid: int) -> None:
        """Samples from `unplaced` on stand on the grid steps from `grid` on, one by one, whatever is tagged later."""
        assert self.unplaced is not None
        first, self.unplaced = self.unplaced, None
        segment = Segment(first, FOREVER, grid, 0.0, 1.0, 0.0)
        self.pieces.append(Piece(first, None, deque([segment]), timed=False, restarted=self._restarted))
        self._restarted = False

    def close(self, seen: int) -> None:
        """The piece ends with the samples that have come; later ones begin another."""
        if self._is_open:
            self.pieces[-1].end = self._closed = seen

    @property
    def _is_open(self) -> bool:
        return bool(self.pieces) and self.pieces[-1].end is None

    def _give_up_on_time(self, seen: int, ended: bool) -> None:
        if self._since is not None and (seen >= self._since + self._acquire_n or (ended and seen > self._since)):
            self.unplaced, self._since = self._since, None
            self.acquired, self.timed = True, False

    def _extend(self, seen: int) -> None:
        while self._is_open and self.pieces[-1].segments[-1].end < seen:
            self._append(self.pieces[-1].segments[-1].end)

    def _resume(self, index: int) -> None:
        """Samples from `index` on, where no piece is open, belong to one if their time is known."""
        if self._anchor is not None:
            self._begin(index)
        elif self._since is None and self.unplaced is None:
            self.unplaced = index

    def _take(self, tag: Tag) -> None:
        if isinstance(tag, RestartTag):
            self.restarts += 1
            self.lost_samples += tag.lost or 0
            if self._is_open:
                self.pieces[-1].end = tag.index
            self._anchor, self.unplaced, self._restarted, self._since = None, None, True, tag.index
        elif isinstance(tag, RateTag):
            anchor = None if self._anchor is None else (tag.index, self._time(tag.index))
            self.rate_hz, self._rate = tag.rate_hz, Fraction(tag.rate_hz)
            if anchor is not None:
                self._reseat(*anchor)
        elif self._anchor is not None or self._since is not None:
            self._take_time(tag.index, tag.seconds + Fraction(tag.fraction))

    def _take_time(self, index: int, time: Fraction) -> None:
        if self._anchor is None:
            self._since, self.acquired, self.timed = None, True, True
            self._anchor = (index, time)
            return
        off = float((time - self._time(index)) * self._rate)
        if abs(off) <= JUMP:
            self._variance += ((off / float(self._rate)) ** 2 - self._variance) / AVERAGED
            self._reseat(index, time)
            return
        self.gaps += 1
        self.lost_samples += max(round(off), 0)
        if self._is_open:
            self.pieces[-1].end = index
        self._anchor = (index, time)

    def _reseat(self, index: int, time: Fraction) -> None:
        """From sample `index` on, the piece runs from there."""
        # Months of rates without times would make the fraction's terms grow without bound.
        self._anchor = (index, Fraction(round(time * _TICK), _TICK))
        if not self._is_open:
            return
        segments = self.pieces[-1].segments
        if segments[-1].first == index:
            segments.pop()
        else:
            segments[-1] = replace(segments[-1], end=index)
        self._append(index)

    def _begin(self, index: int) -> None:
        self.pieces.append(Piece(index, None, deque(), restarted=self._restarted))
        self._restarted = False
        self._append(index)

    def _append(self, first: int) -> None:
        """The segment that begins with sample `first`: short enough for float64 to count its samples exactly."""
        steps = self._grid_rate * self._time(first)
        whole = math.floor(steps)
        offset = float(steps - whole)
        pace = float(self._rate / self._grid_rate)
        if pace == 1.0 and abs(offset - round(offset)) < ON_GRID:
            whole, offset = whole + round(offset), 0.0
        end = first + max(round(self._rate), 1)
        self.pieces[-1].segments.append(Segment(first, end, whole, offset, pace, self.error_s))

    def _time(self, index: int) -> Fraction:
        assert self._anchor is not None
        first, time = self._anchor
        return time + (index - first) / self._rate
