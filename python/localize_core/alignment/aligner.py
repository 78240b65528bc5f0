"""Many streams with time tags, each with its own start, rate and losses, onto one time grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.resample import HALF_TAPS, interpolate_at
from localize_core.alignment.timeline import TimeLine, TimeTag
from localize_core.errors import ConfigError, SourceError
from localize_core.types.fix import Alignment

MAX_RATE_ERROR = 0.01
"""A stream's rate may differ from the grid's by this much: beyond it, aliases would get through the interpolation."""

_ROOM = 65536


@dataclass(frozen=True)
class AlignedBlock:
    """Samples of all streams from one grid step on.

    `samples`: complex64, as many of each stream. `time`: whole seconds and fraction of
    the first sample, None where no stream has time. `sources`: which sample of each stream the first sample is, rounded
    down. `marked`: time and alignment are worth telling: at the start,
    after a skip, once a second and when the alignment changed. `filled`: for each stream, how many zeros stand for
    lost samples from this block's first sample on (they may go on into later blocks), told once.
    """

    samples: list[NDArray[np.complex64]]
    time: tuple[int, float] | None
    sources: tuple[int, ...]
    marked: bool
    filled: tuple[int, ...]
    alignment: Alignment


class Aligner:
    """Brings `n_streams` onto the grid of times k / `sample_rate_hz`, from the latest start to the earliest end.

    `acquire_s`: how much of every stream is gathered before the first output, and before a jump of its tags is
    believed. `max_fill_s`: lost samples up to this are zeros in the output; beyond it the grid skips ahead for all.
    `max_residual_s`: a tag farther off its stream's line is wrong or stands after a loss.

    A stream without usable tags is passed on sample by sample from the common start, `timed` False. The output does
    not depend on how the streams were chopped. Raises ConfigError for parameters out of range.
    """

    def __init__(
        self,
        n_streams: int,
        sample_rate_hz: float,
        *,
        acquire_s: float = 2.0,
        max_fill_s: float = 0.5,
        max_residual_s: float = 20e-6,
    ) -> None:
        if n_streams < 1:
            raise ConfigError(f"n_streams={n_streams}: must be 1 or more")
        if not (math.isfinite(sample_rate_hz) and sample_rate_hz > 0.0):
            raise ConfigError(f"sample_rate_hz={sample_rate_hz}: must be positive")
        for name, value in (("acquire_s", acquire_s), ("max_residual_s", max_residual_s)):
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}={value}: must be positive")
        if not (math.isfinite(max_fill_s) and max_fill_s >= 0.0):
            raise ConfigError(f"max_fill_s={max_fill_s}: must be 0 or more")
        self.sample_rate_hz = float(sample_rate_hz)
        self.finished = False
        self.alignment = Alignment(None)
        self._acquire = max(1, round(acquire_s * sample_rate_hz))
        self._max_fill = round(max_fill_s * sample_rate_hz)
        self._mark_every = max(1, round(sample_rate_hz))
        self._grid_rate = Fraction(sample_rate_hz)
        self._streams = [_Stream(TimeLine(sample_rate_hz, self._acquire, max_residual_s)) for _ in range(n_streams)]
        self._grid: int | None = None
        self._marked = True
        self._told = [0] * n_streams
        self._filled = 0
        self._skipped = 0

    @property
    def timed(self) -> tuple[bool, ...]:
        """Which streams have usable time tags; known once there is output."""
        return tuple(stream.line.timed for stream in self._streams)

    @property
    def rejected(self) -> tuple[int, ...]:
        """How many time tags of each stream were wrong."""
        return tuple(stream.line.rejected for stream in self._streams)

    def describe(
        self, stream: int, *, rate_hz: float | None = None, time_error_s: float | None = None, length: int | None = None
    ) -> None:
        """What a stream says of itself: its rate, the standard error of all its tags together, its length in samples.

        The rate counts until the stream is acquired. Raises SourceError for a rate too far from the grid's.
        """
        own = self._streams[stream]
        if rate_hz is not None:
            if not abs(rate_hz / self.sample_rate_hz - 1.0) <= MAX_RATE_ERROR:
                raise SourceError(
                    f"stream {stream} runs at {rate_hz:g} Hz, the common grid at {self.sample_rate_hz:g} Hz: "
                    f"resample it first, alignment bridges {MAX_RATE_ERROR:.0%}"
                )
            own.line.set_rate(rate_hz)
        if time_error_s is not None:
            own.time_error_s = time_error_s
        if length is not None:
            own.length = length

    def room(self, stream: int) -> int:
        """How many samples `push` takes of this stream now."""
        return 2 * self._acquire + _ROOM - self._streams[stream].buffer.held

    def push(self, stream: int, samples: NDArray[np.complex64], tags: Sequence[TimeTag] = ()) -> int:
        """Append a stream's next samples and their tags (index: of the stream). Returns how many were taken: `room` at
        most. What was not taken is for a later call, its tags too.
        """
        own = self._streams[stream]
        taken = min(len(samples), self.room(stream))
        own.line.add(tag for tag in tags if tag.index < own.seen + taken)
        own.buffer.append(samples[:taken])
        own.seen += taken
        return taken

    def starving(self) -> list[bool]:
        """Which streams the next output waits for."""
        if self._grid is None:
            return [not stream.line.acquired for stream in self._streams]
        return [stream.at(self._grid).waits for stream in self._streams]

    def pull(self, max_samples: int, *, dry: bool = False) -> AlignedBlock | None:
        """The next aligned samples, `max_samples` at most; None where more must come, or all is out (`finished`).

        `dry`: everything is as it would be but for the samples, which are zeros: much faster where only times count.
        """
        for stream in self._streams:
            stream.line.advance(stream.seen, stream.ended)
        if self._grid is None and all(stream.line.acquired for stream in self._streams):
            self._grid = self._start()
        if self._grid is None:
            return None
        while True:
            states = [stream.at(self._grid) for stream in self._streams]
            for stream in self._streams:
                stream.forget(self._grid)
            self.finished = any(state.ended for state in states)
            if self.finished or any(state.waits for state in states):
                return None
            lost_until = max((state.until for state in states if state.lost), default=self._grid)
            if lost_until - self._grid <= self._max_fill:
                return self._emit(self._grid, states, max_samples, dry)
            self._grid, self._marked = lost_until, True
            self._skipped += 1

    def _start(self) -> int:
        """The latest start; streams without time are put there."""
        starts = [stream.at(0).begin for stream in self._streams if stream.line.timed]
        grid = max(starts, default=0)
        for stream in self._streams:
            if not stream.line.timed:
                stream.line.fix(grid)
                stream.line.advance(stream.seen, stream.ended)
        return grid

    def _emit(self, grid: int, states: list[_State], max_samples: int, dry: bool) -> AlignedBlock:
        next_mark = (grid // self._mark_every + 1) * self._mark_every
        end = min(next_mark, grid + max_samples, *(state.until for state in states))
        filled = [0] * len(states)
        for k, state in enumerate(states):
            if state.lost and self._told[k] != state.until:
                filled[k], self._told[k] = state.until - grid, state.until
                self._filled += 1
        marked = self._marked or any(filled) or grid % self._mark_every == 0
        timed = any(self.timed)
        if marked:
            errors_s = [stream.error_s for stream in self._streams if stream.line.timed]
            self.alignment = Alignment(round(max(errors_s) * 1e9, 2) if timed else None, self._filled, self._skipped)
        if dry:
            samples = [np.zeros(end - grid, np.complex64)] * len(states)
        else:
            pairs = zip(self._streams, states, strict=True)
            samples = [stream.samples(grid, end - grid, state) for stream, state in pairs]
        block = AlignedBlock(
            samples,
            self._time(grid) if timed else None,
            tuple(stream.source(grid) for stream in self._streams),
            marked,
            tuple(filled),
            self.alignment,
        )
        self._grid, self._marked = end, False
        return block

    def _time(self, grid: int) -> tuple[int, float]:
        time = grid / self._grid_rate
        return math.floor(time), float(time - math.floor(time))


@dataclass(frozen=True)
class _State:
    """A stream at a grid step: samples up to step `until`, or `lost` ones, or none, because it `waits` or `ended`."""

    begin: int = 0
    until: int = 0
    lost: bool = False
    waits: bool = False
    ended: bool = False


class _Stream:
    """One stream: its samples that are still of use, and its time line."""

    def __init__(self, line: TimeLine) -> None:
        self.line = line
        self.buffer = SampleBuffer()
        self.seen = 0
        self.length: int | None = None
        self.time_error_s = 0.0

    @property
    def ended(self) -> bool:
        return self.length is not None and self.seen >= self.length

    @property
    def error_s(self) -> float:
        return math.hypot(self.line.pieces[0].segments[0].error_s, self.time_error_s)

    def at(self, grid: int) -> _State:
        """What there is at `grid`; what lies before is given up."""
        pieces = self.line.pieces
        while pieces:
            piece = pieces[0]
            segment = piece.segments[0]
            end = segment.end if piece.end is None else min(segment.end, piece.end)
            begin, until = segment.first_step(segment.first), segment.first_step(end)
            if grid < until:
                if piece.end is None:
                    until = min(until, segment.first_step(self.line.horizon - HALF_TAPS))
                return _State(begin, until, waits=grid >= until)
            if len(piece.segments) > 1:
                piece.segments.popleft()
            elif piece.end is None:
                break
            elif len(pieces) == 1:
                return _State(ended=True)
            else:
                begin = pieces[1].segments[0].first_step(pieces[1].first)
                if grid < begin:
                    return _State(begin, begin, lost=True)
                pieces.popleft()
        return _State(waits=True)

    def samples(self, grid: int, count: int, state: _State) -> NDArray[np.complex64]:
        if state.lost:
            return np.zeros(count, np.complex64)
        piece = self.line.pieces[0]
        segment = piece.segments[0]
        # Samples of another piece, or before the first, are no neighbours: zeros stand there.
        first = max(piece.first, self.buffer.first)
        own = self.buffer.view(first, self.seen if piece.end is None else piece.end)
        if segment.pace == 1.0 and segment.offset == 0.0:
            start = segment.sample_of(grid)[0] - first
            return own[start : start + count].copy()
        whole, fraction = segment.place(grid, count)
        return interpolate_at(own, whole - first, fraction)

    def source(self, grid: int) -> int:
        """The sample that stands at `grid`, or where its piece ends so far."""
        piece = self.line.pieces[0]
        whole, _ = piece.segments[0].sample_of(grid)
        return min(whole, self.line.horizon if piece.end is None else piece.end)

    def forget(self, grid: int) -> None:
        """Samples that no step from `grid` on depends on."""
        if self.line.pieces:
            self.buffer.drop(self.source(grid) - HALF_TAPS)


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
