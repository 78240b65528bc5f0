"""Many streams with time tags, each with its own start, rate and losses, onto one time grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.settings import Clocks
from localize_core.alignment.stream import Boundary, Patience, SampleBuffer, State, Stream
from localize_core.alignment.timeline import FOREVER, TimeLine, TimeTag
from localize_core.alignment.trusted import RateTag, RestartTag, Tag, TrustedLine
from localize_core.errors import ConfigError, SourceError
from localize_core.types.fix import Alignment

__all__ = ["AlignedBlock", "Aligner", "Boundary", "RateTag", "RestartTag", "SampleBuffer", "StreamReport", "TimeTag"]

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
    lost samples from this block's first sample on (they may go on into later blocks), told once. `present`: which
    streams there are; the samples of the others are zeros. `timed`: which stand where their times say. `boundary`: why
    nothing may span this block's first sample, None where it may.
    """

    samples: list[NDArray[np.complex64]]
    time: tuple[int, float] | None
    sources: tuple[int, ...]
    marked: bool
    filled: tuple[int, ...]
    alignment: Alignment
    present: tuple[bool, ...]
    timed: tuple[bool, ...]
    boundary: Boundary | None


@dataclass(frozen=True)
class StreamReport:
    """How one stream fares. `rate_error_ppm`: of its own rate against the grid's; `residual_ns`: standard error of its
    times; both None without any. `lost_samples`: as far as its times and restarts tell. `late_samples`: came when
    nobody waited for them any more. `absences`: how often it was done without because nothing came.
    """

    present: bool
    timed: bool
    rate_error_ppm: float | None
    residual_ns: float | None
    gaps: int
    lost_samples: int
    restarts: int
    rejected: int
    late_samples: int
    absences: int


class Aligner:
    """Brings `n_streams` onto the grid of times k / `sample_rate_hz`, from the latest start to the earliest end.

    `clocks`: "fitted", a line is drawn through noisy tags, of which some may be wrong; "trusted", each tag is true.
    `acquire_s`: how much of every stream is gathered before the first output, and before a jump of its tags is
    believed; with trusted clocks, how long a first tag is waited for. `max_fill_s`: lost samples up to this are zeros
    in the output; beyond it the grid skips ahead for all. `max_residual_s`: a tag farther off its stream's fitted line
    is wrong or stands after a loss.

    `max_wait_s`, for trusted clocks: streams come and go. One that is so far behind another is done without, and the
    grid runs from the first start to the last end, but for times when there is no stream at all. After a gap of up to
    half of `max_wait_s` a stream goes on at once. After a longer one, and where it begins later than others, it joins
    them `max_wait_s` after it has come back: with whatever delay it comes, this is known by then. `replay`: what is
    missing is still to come, and is waited for; then the output is what it was when the same streams came live.

    A stream without usable tags is passed on sample by sample from the common start, `timed` False. The output does
    not depend on how the streams were chopped, where none is later than `max_wait_s`. Raises ConfigError for
    parameters out of range.
    """

    def __init__(
        self,
        n_streams: int,
        sample_rate_hz: float,
        *,
        acquire_s: float = 2.0,
        max_fill_s: float = 0.5,
        max_residual_s: float = 20e-6,
        clocks: Clocks = "fitted",
        max_wait_s: float | None = None,
        replay: bool = False,
    ) -> None:
        if n_streams < 1:
            raise ConfigError(f"n_streams={n_streams}: must be 1 or more")
        if not (math.isfinite(sample_rate_hz) and sample_rate_hz > 0.0):
            raise ConfigError(f"sample_rate_hz={sample_rate_hz}: must be positive")
        for name, value in (("acquire_s", acquire_s), ("max_residual_s", max_residual_s), ("max_wait_s", max_wait_s)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}={value}: must be positive")
        if not (math.isfinite(max_fill_s) and max_fill_s >= 0.0):
            raise ConfigError(f"max_fill_s={max_fill_s}: must be 0 or more")
        if clocks not in get_args(Clocks):
            raise ConfigError(f"clocks={clocks!r}: must be {' or '.join(get_args(Clocks))}")
        if max_wait_s is not None and clocks != "trusted":
            raise ConfigError(f"max_wait_s={max_wait_s:g}: needs clocks='trusted', found {clocks!r}")
        if max_wait_s is not None and max_fill_s > max_wait_s / 2.0:
            raise ConfigError(f"max_fill_s={max_fill_s:g}: at most half of max_wait_s={max_wait_s:g}")
        if replay and max_wait_s is None:
            raise ConfigError("replay=True: means nothing without max_wait_s, as all streams wait then")
        self.sample_rate_hz = float(sample_rate_hz)
        self.finished = False
        self.alignment = Alignment(None)
        self._acquire = max(1, round(acquire_s * sample_rate_hz))
        self._wait = 0 if max_wait_s is None else max(2, round(max_wait_s * sample_rate_hz))
        self._room = 2 * self._acquire + _ROOM + 4 * self._wait
        self._replay = replay
        self._mark_every = max(1, round(sample_rate_hz))
        self._grid_rate = Fraction(sample_rate_hz)
        self._patience = Patience(round(max_fill_s * sample_rate_hz), self._wait // 2, self._wait)

        def line() -> TimeLine | TrustedLine:
            if clocks == "trusted":
                return TrustedLine(sample_rate_hz, self._acquire)
            return TimeLine(sample_rate_hz, self._acquire, max_residual_s)

        self._is_trusted = clocks == "trusted"
        self._streams = [Stream(line(), self._patience, n_streams) for _ in range(n_streams)]
        self._grid: int | None = None
        self._marked = True
        self._present: tuple[bool, ...] | None = None
        self._has_skipped = False
        self._told = [0] * n_streams
        self._filled = 0
        self._skipped = 0

    @property
    def timed(self) -> tuple[bool, ...]:
        """Which streams have usable time tags; known once there is output."""
        return tuple(stream.timed for stream in self._streams)

    @property
    def rejected(self) -> tuple[int, ...]:
        """How many time tags of each stream were wrong."""
        return tuple(stream.line.rejected for stream in self._streams)

    @property
    def present(self) -> tuple[bool, ...]:
        """Which streams the latest output had."""
        return self._present or (False,) * len(self._streams)

    @property
    def streams(self) -> tuple[StreamReport, ...]:
        """How each stream fares, by the samples that have come; any thread may ask."""
        return tuple(
            StreamReport(
                present=here,
                timed=stream.line.timed,
                rate_error_ppm=(stream.line.rate_hz / self.sample_rate_hz - 1.0) * 1e6 if stream.line.timed else None,
                residual_ns=stream.error_s * 1e9 if stream.line.timed else None,
                gaps=stream.line.gaps,
                lost_samples=stream.line.lost_samples,
                restarts=stream.line.restarts,
                rejected=stream.line.rejected,
                late_samples=stream.late_samples,
                absences=stream.absences,
            )
            for stream, here in zip(self._streams, self.present, strict=True)
        )

    def describe(self, stream: int, *, rate_hz: float | None = None, length: int | None = None) -> None:
        """What a stream says of itself: its rate, its length in samples.

        The rate of a fitted clock counts until the stream is acquired. Raises SourceError for a rate too far from the
        grid's.
        """
        own = self._streams[stream]
        if rate_hz is not None:
            self._take_tags(stream, [RateTag(own.seen, rate_hz)])
        if length is not None:
            own.length = length

    def retune(self, stream: int, index: int) -> None:
        """Sample `index`, which `push` has not taken yet, is the first that a stream hears at another frequency."""
        self._streams[stream].retunes.append(index)

    def doubt(self, stream: int, index: int, time_error_s: float) -> None:
        """From sample `index` on, which `push` has not taken yet, all of a stream's tags together have this standard
        error."""
        self._streams[stream].time_errors.append((index, time_error_s))

    def end(self, stream: int) -> None:
        """Nothing will follow what `push` has taken of this stream."""
        self.describe(stream, length=self._streams[stream].seen)

    def room(self, stream: int) -> int:
        """How many samples `push` takes of this stream now."""
        return self._room - self._streams[stream].buffer.held

    def push(self, stream: int, samples: NDArray[np.complex64], tags: Sequence[Tag] = ()) -> int:
        """Append a stream's next samples and their tags (index: of the stream). Returns how many were taken: `room` at
        most. What was not taken is for a later call, its tags too. Restarts mean something to trusted clocks only.

        Raises SourceError for a rate too far from the grid's.
        """
        own = self._streams[stream]
        taken = min(len(samples), self.room(stream))
        self._take_tags(stream, [tag for tag in tags if tag.index < own.seen + taken])
        own.buffer.append(samples[:taken])
        own.seen += taken
        if taken:
            own.heard = [each.seen for each in self._streams]
        return taken

    def starving(self) -> list[bool]:
        """Which streams the next output waits for."""
        if self._grid is None and self._wait:
            return [stream.is_awaited and not stream.line.pieces for stream in self._streams]
        if self._grid is None:
            return [not stream.line.acquired for stream in self._streams]
        if self._wait:
            return [stream.is_awaited and stream.stand(self._grid).waits for stream in self._streams]
        return [stream.at(self._grid).waits for stream in self._streams]

    def pull(self, max_samples: int, *, dry: bool = False) -> AlignedBlock | None:
        """The next aligned samples, `max_samples` at most; None where more must come, or all is out (`finished`).

        `dry`: everything is as it would be but for the samples, which are zeros: much faster where only times count.
        """
        for stream in self._streams:
            stream.advance()
        if self._grid is None:
            self._grid = self._first_present() if self._wait else self._start()
        while self._grid is not None:
            for stream in self._streams:
                if stream.is_unplaced:
                    stream.line.fix(self._grid)
            states = self._standing(self._grid) if self._wait else [stream.at(self._grid) for stream in self._streams]
            for stream, state in zip(self._streams, states, strict=True):
                stream.forget(self._grid, late=state.late)
            self.finished = (all if self._wait else any)(state.ended for state in states)
            if self.finished or any(state.waits for state in states):
                return None
            target = self._next_step(self._grid, states)
            if target == self._grid:
                return self._emit(self._grid, states, max_samples, dry)
            if target is None:
                return None
            self._grid, self._marked, self._has_skipped = target, True, True
            self._skipped += not self._wait
        return None

    def _take_tags(self, stream: int, tags: list[Tag]) -> None:
        line = self._streams[stream].line
        for rate_hz in (tag.rate_hz for tag in tags if isinstance(tag, RateTag)):
            if not abs(rate_hz / self.sample_rate_hz - 1.0) <= MAX_RATE_ERROR:
                raise SourceError(
                    f"stream {stream} runs at {rate_hz:g} Hz, the common grid at {self.sample_rate_hz:g} Hz: "
                    f"resample it first, alignment bridges {MAX_RATE_ERROR:.0%}"
                )
            if isinstance(line, TimeLine):
                line.set_rate(rate_hz)
        if isinstance(line, TrustedLine):
            line.add(tags)
        else:
            line.add(tag for tag in tags if isinstance(tag, TimeTag))

    def _start(self) -> int | None:
        """The latest start; streams without time are put there. None where more must come."""
        if not all(stream.line.acquired for stream in self._streams):
            return None
        starts = [stream.at(0).begin for stream in self._streams if stream.line.timed]
        grid = max(starts, default=0)
        for stream in self._streams:
            if not stream.line.timed:
                stream.line.fix(grid)
                stream.advance()
        return grid

    def _first_present(self) -> int | None:
        """The start of those streams that begin about when the first one does; streams without time are put there.

        None where more must come.
        """
        known = [stream for stream in self._streams if stream.line.pieces]
        unplaced = [stream for stream in self._streams if stream.is_unplaced]
        for stream in self._streams:
            if not stream.is_awaited or stream in known or stream in unplaced:
                continue
            if not self._is_outrun(stream, known + unplaced):
                return None
            stream.give_up()
        self.finished = all(stream.ended for stream in self._streams) and not known + unplaced
        if not known + unplaced:
            return None
        first = min((stream.begin for stream in known), default=0)
        together = [stream for stream in known if stream.begin <= first + self._wait]
        grid = max((stream.begin for stream in together), default=0)
        for stream in unplaced:
            stream.line.fix(grid)
            stream.advance()
        for stream in together + unplaced:
            stream.entry = grid
        return grid

    def _standing(self, grid: int) -> list[State]:
        """What the streams have at `grid`, those that nobody waits for any more being lost."""
        while True:
            states = [
                State(until=FOREVER, lost=True) if state.waits and stream.is_silent else state
                for stream, state in ((stream, stream.stand(grid)) for stream in self._streams)
            ]
            if self._replay:
                return states
            pairs = list(zip(self._streams, states, strict=True))
            here = [stream for stream, state in pairs if state.is_here]
            # One that brings samples for steps long over is no reason to wait, and none for others not to.
            behind = [s for s, state in pairs if state.waits and s.line.pieces and s.reach < grid - self._wait]
            coming = [stream for stream, state in pairs if state.lost and state.until < FOREVER]
            ahead = [stream for stream in coming if stream.reach >= grid + self._wait]
            for stream in coming:
                if stream.buffer.held > self._room // 2:
                    stream.make_room()
            overdue = [
                stream
                for stream, state in pairs
                if state.waits
                and (
                    any(other.reach >= grid + self._wait for other in here)
                    or (stream not in behind and self._is_outrun(stream, here + ahead + behind))
                )
            ]
            if not overdue:
                break
            for stream in overdue:
                stream.give_up()
        if behind and not here and not coming and all(s in behind or not state.waits for s, state in pairs):
            # All clocks were set back.
            return [State(until=FOREVER, lost=True, late=True) if s in behind else state for s, state in pairs]
        return states

    def _is_outrun(self, stream: Stream, others: list[Stream]) -> bool:
        """Whether another has brought so much since this one last brought anything that it cannot just be late."""
        if self._replay:
            return False
        heard = dict(zip(map(id, self._streams), stream.heard, strict=True))
        return any(other.seen - heard[id(other)] >= 2 * self._wait for other in others)

    def _next_step(self, grid: int, states: list[State]) -> int | None:
        """Where the output goes on: `grid` itself, or a step to skip to; None where nobody is there to say."""
        if not self._wait:
            lost_until = max((state.until for state in states if state.lost), default=grid)
            return grid if lost_until - grid <= self._patience.fill else lost_until
        if any(state.is_here or (state.lost and state.fills) for state in states):
            return grid
        entries = [state.until for state in states if state.lost and state.until < FOREVER]
        if entries:
            return min(entries)
        late = [stream for stream, state in zip(self._streams, states, strict=True) if state.late]
        if self._replay or not late:
            return None
        # Nobody is left whose clock says so late a time: it was wrong, or is again as it was.
        target = max(stream.reach for stream in late)
        for stream in late:
            stream.joined, stream.entry = False, target + self._wait
        return target + self._wait

    def _emit(self, grid: int, states: list[State], max_samples: int, dry: bool) -> AlignedBlock:
        next_mark = (grid // self._mark_every + 1) * self._mark_every
        end = min(next_mark, grid + max_samples, *(state.until for state in states if not state.ended))
        filled = [0] * len(states)
        for k, state in enumerate(states):
            if state.lost and (state.fills or not self._wait) and self._told[k] != state.until:
                filled[k], self._told[k] = state.until - grid, state.until
                self._filled += 1
        boundary = self._boundary(states)
        self._skipped += bool(self._wait) and boundary in ("gap", "restart")
        marked = self._marked or any(filled) or grid % self._mark_every == 0 or boundary is not None
        timed = any(stream.line.timed for stream in self._streams)
        if marked:
            measured = [s for s, state in zip(self._streams, states, strict=True) if s.timed and self._counts(state)]
            for stream in measured:
                stream.measure()
            worst_s = max((stream.error_s for stream in measured), default=0.0)
            self.alignment = Alignment(round(worst_s * 1e9, 2) if timed else None, self._filled, self._skipped)
        samples = [
            np.zeros(end - grid, np.complex64) if dry or not state.is_here else stream.samples(grid, end - grid)
            for stream, state in zip(self._streams, states, strict=True)
        ]
        block = AlignedBlock(
            samples,
            self._time(grid) if timed else None,
            tuple(stream.source(grid) for stream in self._streams),
            marked,
            tuple(filled),
            self.alignment,
            self.present,
            self.timed,
            boundary,
        )
        self._grid, self._marked = end, False
        return block

    def _counts(self, state: State) -> bool:
        """Whether a stream counts as present: its samples are here, or few enough are missing."""
        return state.is_here or (state.lost and (state.fills or not self._wait))

    def _boundary(self, states: list[State]) -> Boundary | None:
        """Why nothing may span the step that comes next. Takes note of who is present."""
        before, self._present = self._present, tuple(self._counts(state) for state in states)
        reasons: set[Boundary] = set()
        if self._has_skipped and self._is_trusted:
            reasons.add("gap")
        for stream, was, here in zip(self._streams, before or self._present, self._present, strict=True):
            if was != here:
                reasons.add("receiver" if here else "gap")
            elif here and stream.broken is not None:
                reasons.add(stream.broken)
            if here:
                if stream.retuned:
                    reasons.add("retune")
                stream.broken, stream.retuned = None, False
        self._has_skipped = False
        if before is None:
            return None
        return next((reason for reason in ("restart", "retune", "gap", "receiver") if reason in reasons), None)

    def _time(self, grid: int) -> tuple[int, float]:
        time = grid / self._grid_rate
        return math.floor(time), float(time - math.floor(time))
