"""One receiver's samples between the graph of its device and the station's: bounded, and every loss accounted for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from localize_core.types.time import seconds_between, shift_time

TimeSource = Literal["rx_time", "host"]

JUMP_SAMPLES = 0.1
"""A time that is further from where those before it lead is a loss."""


@dataclass(frozen=True)
class Mark:
    """What is known from one sample on; what is None stays as it was.

    `index`: of the sample, among those that come along with it. `time`: when it was taken, whole seconds since 1970 and
    the rest. `restart`: nothing of the time line before holds; `lost`: how many samples are missing before it, None
    where nobody knows.
    """

    index: int
    time: tuple[int, float] | None = None
    rate_hz: float | None = None
    frequency_hz: float | None = None
    time_source: TimeSource | None = None
    restart: bool = False
    lost: int | None = None


@dataclass(frozen=True)
class StreamCount:
    """The account of a stream, in samples: `taken` = `delivered` + `dropped` + `waiting`.

    `taken`: came from the receiver. `dropped`: had no room, or waited while nobody pulled. `lost`: never came, as far
    as times tell. `gaps`, `overflows`: how often samples were lost, and dropped.
    """

    taken: int = 0
    delivered: int = 0
    dropped: int = 0
    waiting: int = 0
    lost: int = 0
    gaps: int = 0
    overflows: int = 0


class BufferGroup:
    """Buffers that overflow together: `first` is the one that had no room first, as long as it has none."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.first: StreamBuffer | None = None


class StreamBuffer:
    """Samples and marks, pushed by one thread and pulled by another.

    `capacity`: samples, 2 or more. What comes while they are full is dropped, until half of them have been pulled: a
    few long pieces are worth more than many short ones. The next sample then carries a restart, the number lost and,
    where it can be told, its time.

    `group`: where streams that are pulled together come too fast, all lose the same span. While one of the group drops,
    those that are more than half full do as well; one that ran empty meanwhile goes on, for the other is not pulled.
    """

    def __init__(self, capacity: int, group: BufferGroup | None = None) -> None:
        if capacity < 2:
            raise ValueError(f"capacity={capacity}: wanted 2 samples or more")
        self.capacity = capacity
        self._group = BufferGroup() if group is None else group
        self._samples = np.zeros(capacity, np.complex64)
        self._changed = threading.Condition(self._group.lock)
        self._count = StreamCount()
        self._marks: deque[Mark] = deque()  # index: number of the sample among all that were kept
        self._pushed = self._pulled = 0
        self._line = Mark(0)  # what holds for the next; index: number of the sample among all that were taken
        self._restarts = False  # the next sample that is kept does not follow the one before
        self._missing: int | None = 0  # between the two
        self._overflowing = self._follows = False  # of its own accord, or because another of the group does

    @property
    def count(self) -> StreamCount:
        with self._changed:
            return replace(self._count, waiting=self._pushed - self._pulled)

    # Where samples come from

    def interrupt(self) -> None:
        """The stream ends here. What is pushed next, after an unknown loss, is the beginning of another."""
        with self._changed:
            self._line = Mark(self._count.taken)
            if self._count.taken:
                self._restarts, self._missing = True, None

    def push(self, samples: np.ndarray, marks: Sequence[Mark] = ()) -> int:
        """Append as many of the `samples`, complex64 (n,), as there is room for. Returns how many were dropped.

        `marks`: in the order of their indices, which are less than n.
        """
        with self._changed:
            if len(samples):
                self._look_around()
            kept = 0 if self._overflowing else min(self.capacity - (self._pushed - self._pulled), len(samples))
            first = self._count.taken
            later = iter(marks)
            mark = next(later, None)
            while mark is not None and mark.index == 0 and kept:
                self._keep(self._followed(mark, first))
                mark = next(later, None)
            if kept and self._restarts:
                self._keep(replace(self._line_at(first), index=0, restart=True, lost=self._missing))
                self._restarts, self._missing = False, 0
            while mark is not None:
                known = self._followed(mark, first + mark.index)
                if mark.index < kept:
                    self._keep(known)
                elif known.restart:
                    self._miss(known.lost)
                mark = next(later, None)
            self._store(samples[:kept])
            self._count = replace(self._count, taken=first + len(samples))
            dropped = len(samples) - kept
            if dropped:
                self._drop(dropped)
            self._changed.notify_all()
            return dropped

    @property
    def _is_half_full(self) -> bool:
        return 2 * (self._pushed - self._pulled) > self.capacity

    def _look_around(self) -> None:
        """Begin or cease to drop, by how full this one and the others are."""
        group = self._group
        if group.first is not None and not group.first._is_half_full:
            group.first = None
        if self._follows and self._pushed == self._pulled:
            group.first = None
        goes_on = group.first is not None if self._follows else self._is_half_full
        self._overflowing = self._overflowing and goes_on
        if not self._overflowing:
            self._follows = False
            if group.first is not None and self._is_half_full:
                self._overflow()

    def _overflow(self) -> None:
        if self._group.first is None:
            self._group.first = self
        self._overflowing, self._follows = True, self._group.first is not self
        self._count = replace(self._count, overflows=self._count.overflows + 1)

    def _followed(self, mark: Mark, number: int) -> Mark:
        """Let the line go on from a mark on sample `number`. Returns the mark, with what is lost before it."""
        expected, line = self._line_at(number), self._line
        lost: int | None = 0
        if mark.restart:
            lost = mark.lost
            line = Mark(number)
        elif mark.time is not None and expected.time is not None and expected.rate_hz is not None:
            ahead = seconds_between(expected.time, mark.time) * expected.rate_hz
            lost = round(ahead) if abs(ahead) > JUMP_SAMPLES else 0
        if lost != 0:
            self._count = replace(self._count, gaps=self._count.gaps + 1, lost=self._count.lost + max(lost or 0, 0))
        told = {
            name: value
            for name in ("rate_hz", "frequency_hz", "time_source")
            if (value := getattr(mark, name)) is not None
        }
        if mark.time is not None:
            told |= {"index": number, "time": mark.time}
        elif "rate_hz" in told:  # counts from here, not from the last time
            told |= {"index": number, "time": expected.time}
        self._line = replace(line, **told)
        return mark

    def _line_at(self, number: int) -> Mark:
        """What the marks so far say of sample `number`."""
        line = self._line
        if line.time is None or line.rate_hz is None:
            return replace(line, index=number, time=None)
        return replace(line, index=number, time=shift_time(*line.time, (number - line.index) / line.rate_hz))

    def _keep(self, mark: Mark) -> None:
        """The mark goes with its sample of those that are being pushed; two on one sample are one."""
        index = self._pushed + mark.index
        if self._marks and self._marks[-1].index == index:
            mark = _merged(self._marks.pop(), mark)
        self._marks.append(replace(mark, index=index))

    def _store(self, samples: np.ndarray) -> None:
        at = self._pushed % self.capacity
        head = min(len(samples), self.capacity - at)
        self._samples[at : at + head] = samples[:head]
        self._samples[: len(samples) - head] = samples[head:]
        self._pushed += len(samples)

    def _drop(self, count: int) -> None:
        if not self._overflowing:
            self._overflow()
        self._count = replace(self._count, dropped=self._count.dropped + count)
        self._miss(count)

    def _miss(self, count: int | None) -> None:
        self._restarts = True
        self._missing = None if count is None or self._missing is None else self._missing + count

    # Where they go

    def begin(self) -> None:
        """Somebody else pulls from now on: what waits is dropped, and the next sample says all there is to know."""
        with self._changed:
            waiting = self._pushed - self._pulled
            self._pulled = self._pushed
            self._marks.clear()
            if self._count.taken:
                self._restarts, self._missing = True, None
            self._count = replace(self._count, dropped=self._count.dropped + waiting)

    def wait(self, timeout_s: float) -> bool:
        """Wait until something can be pulled, at most so long. Returns whether it can."""
        with self._changed:
            return self._changed.wait_for(lambda: self._pushed > self._pulled, timeout_s)

    def pull(self, out: np.ndarray) -> tuple[int, list[Mark]]:
        """Move what waits into `out`, complex64 (n,), at most n samples. Returns how many, and their marks."""
        with self._changed:
            count = min(len(out), self._pushed - self._pulled)
            at = self._pulled % self.capacity
            head = min(count, self.capacity - at)
            out[:head] = self._samples[at : at + head]
            out[head:count] = self._samples[: count - head]
            marks = []
            while self._marks and self._marks[0].index < self._pulled + count:
                mark = self._marks.popleft()
                marks.append(replace(mark, index=mark.index - self._pulled))
            self._pulled += count
            self._count = replace(self._count, delivered=self._count.delivered + count)
            return count, marks


def _merged(before: Mark, after: Mark) -> Mark:
    """Two marks on one sample: what the later one says, and what it leaves open as the earlier one said."""
    told = {name: value for name, value in vars(after).items() if value is not None and name != "restart"}
    return replace(before, **told, restart=before.restart or after.restart)
