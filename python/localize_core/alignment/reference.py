"""Streams without a common clock onto one time, by a transmitter at a known place that all of them hear.

One stream's clock is the measure, the base. Every block the reference's delay and carrier offset between each other
stream and the base are measured; what the known paths do not explain is the clocks'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.clock_filter import ClockFilter
from localize_core.alignment.reference_band import BandExtractor, removal_taps
from localize_core.alignment.reference_layout import CommonTime, lay_out, too_little
from localize_core.alignment.reference_search import FEWEST_BLOCKS, Searcher
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.alignment.reference_status import ClockStatus, status_of
from localize_core.alignment.reference_stream import Mark, Place, ReferenceStream, Seat, next_place
from localize_core.alignment.reference_tracking import Tracker
from localize_core.errors import ConfigError
from localize_core.types.time import seconds_between, shift_time

Samples = NDArray[np.complex64]

MAX_MISSES = 3
"""Blocks in a row without the reference after which another stream is tried as base."""
MAX_MISFITS = 10
"""Of the latest measurements: the clock has jumped, or never was the right one."""
SETTLED = 0.0125
"""Over the reference's bandwidth: a stream comes out once its clock is known as well."""
DEADLINE = 100
"""Blocks after which a clock that has not come to be known as well is looked for anew."""
STEER_S = 300.0
"""Over this time the common time follows the base's own time stamps."""
MOST_STEER = 20e-6
QUEUE_S = 0.5
"""No more is worked out ahead of who takes it."""


class ReferenceClock:
    """`n_streams` at `sample_rate_hz` around `frequency_hz`, which hear the reference after `path_delays_s`.

    What comes out of a stream are its samples with the carrier turned back to the base's and the reference's band
    removed (see REMOVED, FADED), and `Seat`s on one common time. Until a stream's clock is known, and while it is lost,
    nothing comes out of it; the others go on.

    `max_wait_s`: a stream that lags others by more is lost; None waits. One that begins later than others by more, or
    again, takes part `max_wait_s` after it has: with whatever delay it comes, this is known by then. `replay`: all
    streams are waited for; then the output is what it was when the same streams came live.
    The output does not depend on how the streams were chopped, where none is later than `max_wait_s`.

    Raises ConfigError where the reference does not lie in the band, or there is a single stream.
    """

    def __init__(
        self,
        n_streams: int,
        sample_rate_hz: float,
        frequency_hz: float,
        settings: ReferenceSettings,
        path_delays_s: Sequence[float],
        *,
        max_wait_s: float | None = None,
        replay: bool = False,
    ) -> None:
        if n_streams < 2:
            raise ConfigError(f"n_streams={n_streams}: a reference compares two or more")
        if len(path_delays_s) != n_streams:
            raise ConfigError(f"path_delays_s: {len(path_delays_s)} of them for {n_streams} streams")
        for name, value in (("sample_rate_hz", sample_rate_hz), ("frequency_hz", frequency_hz)):
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}={value}: must be positive")
        if max_wait_s is not None and not (math.isfinite(max_wait_s) and max_wait_s > 0.0):
            raise ConfigError(f"max_wait_s={max_wait_s}: must be positive, or None to wait for all")
        if replay and max_wait_s is None:
            raise ConfigError("replay=True: means nothing without max_wait_s, as all streams are waited for then")
        self.settings, self.sample_rate_hz, self.frequency_hz = settings, float(sample_rate_hz), float(frequency_hz)
        self._max_wait_s, self._waits_for_all = max_wait_s, replay or max_wait_s is None
        offset_hz = settings.offset_hz(frequency_hz, sample_rate_hz)
        width_hz = settings.bandwidth_hz + 2.0 * settings.margin_hz(frequency_hz)
        taps = removal_taps(sample_rate_hz, offset_hz, settings.bandwidth_hz)
        self._streams = [
            ReferenceStream(
                BandExtractor(sample_rate_hz, offset_hz, width_hz),
                taps,
                self.sample_rate_hz,
                delay_s - min(path_delays_s),
            )
            for delay_s in path_delays_s
        ]
        self._layout = lay_out(settings, self.sample_rate_hz, self.frequency_hz, self._streams[0].band)
        self._block_s, self._decimation = self._layout.block_s, self._layout.decimation
        if len(taps) // 2 >= self._layout.block_n // 2:
            raise ConfigError(too_little(settings))
        self._ahead_s = settings.search_s + (max_wait_s or 0.0) + 1.0 + 4.0 * self._block_s
        self._time = CommonTime(self._layout)
        self._tracker = Tracker(self._layout)
        self._searcher = Searcher(self._layout, self._time, self._tracker)
        self._block = 0
        self._base: int | None = None
        self._alone_since = 0  # the last block with a clock that is known, or the base's first
        self._misses = 0

    @property
    def status(self) -> tuple[ClockStatus, ...]:
        """Of every stream."""
        time = self._time.at(self._block) if self._time.begun else (0, 0.0)
        any_other = any(stream.writing for index, stream in enumerate(self._streams) if index != self._base)
        return tuple(
            status_of(stream, time, is_base=index == self._base, any_other=any_other)
            for index, stream in enumerate(self._streams)
        )

    def describe(self, stream: int, *, length: int) -> None:
        """A stream has `length` samples and no more."""
        self._streams[stream].length = length

    def room(self, stream: int) -> int:
        """How many samples `push` takes of this stream now."""
        own = self._streams[stream]
        if own.cut is not None:
            return max(own.cut - own.seen, 0)
        ahead_s, here = self._ahead_s, own.begin
        if self._time.begun:
            here = max(self._position(own), here)
        else:
            ahead_s += self._max_wait_s or 0.0
        return max(here + round(ahead_s * self.sample_rate_hz) - own.seen, 0)

    def push(self, stream: int, samples: Samples, marks: Sequence[Mark] = ()) -> int:
        """Append a stream's next samples and what they carry. Returns how many were taken, `room` at most, and none
        beyond a restart before all that came before it has been worked on: the rest, marks too, is for a later call.
        """
        own = self._streams[stream]
        end = own.seen + min(len(samples), self.room(stream))
        for mark in marks:
            if mark.index >= end or (own.cut is not None and mark.index >= own.cut):
                break
            if mark.index < own.marked:
                continue
            jump = mark.time is not None and own.jumps(mark.index, mark.time)
            if (mark.restart or jump) and mark.index > own.begin and own.cut is None:
                own.cut = mark.index
                end = min(end, mark.index)
                break
            own.marked = mark.index + 1
            own.add_mark(mark)
        taken = end - own.seen
        own.raw.append(samples[:taken])
        own.seen += taken
        own.band.take(own.raw, own.seen)
        own.trim()
        return taken

    def advance(self) -> None:
        """Work on what has come, as far as there is room for what comes out."""
        limit = QUEUE_S * self.sample_rate_hz
        while all(stream.queued < limit for stream in self._streams) and self._step():
            pass

    def queued(self, stream: int) -> int:
        """How many samples `pull` has of this stream."""
        return self._streams[stream].queued

    def starving(self) -> list[bool]:
        """Which streams the next block waits for."""
        if not self._time.begun:
            return [not self._begun(stream) and not stream.ended for stream in self._streams]
        return [self._awaited(index) for index in range(len(self._streams))]

    @property
    def finished(self) -> bool:
        """Whether nothing more can come out."""
        left = sum(not stream.ended or stream.queued > 0 for stream in self._streams)
        return left == 0 or (sum(not stream.ended for stream in self._streams) < 2 and not self._any_queued())

    def pull(self, stream: int, max_samples: int) -> tuple[Samples, list[Seat]]:
        """The next samples of a stream, `max_samples` at most, and the seats on them (index: of all that came out)."""
        return self._streams[stream].pull(max_samples)

    # One block

    def _step(self) -> bool:
        for index, stream in enumerate(self._streams):
            if self._time.begun:
                self._admit(stream)
            if stream.cut is not None and stream.seen >= stream.cut and self._is_used_up(index):
                self._restart(index, stream.cut, lost=True)
        if not self._time.begun and not self._start():
            return False
        for index, stream in enumerate(self._streams):
            self._admit(stream)
            stream.advance_to(self._position(stream))
            if self._awaited(index):
                if not self._lags(index):
                    return False
                self._restart(index, stream.seen, lost=False)
        if self._any_present():
            self._work()
            return True
        return self._skip()

    def _skip(self) -> bool:
        """Go on to the next block that somebody takes part in, where that is known."""
        here, coming = self._block, [stream for stream in self._streams if (stream.entry or 0) > self._block]
        for entry in sorted({stream.entry or 0 for stream in coming}):
            self._block = entry
            first = [stream for stream in coming if stream.entry == entry]
            if self._any_present() or any(stream.cut is not None and stream.seen >= stream.cut for stream in first):
                return True
            if not all(stream.ended for stream in first):
                break
        self._block = here
        return False

    def _any_present(self) -> bool:
        return any(self._present(index) for index in range(len(self._streams)))

    def _start(self) -> bool:
        """The time begins with the last of those streams that begin about when the first one does."""
        begun = [stream for stream in self._streams if self._begun(stream)]
        if len(begun) < 2:
            return False
        times = [stream.begin_time() for stream in begun if stream.host]
        first = min(times, default=(0, 0.0))
        if any(not self._begun(stream) and not stream.ended for stream in self._streams):
            if self._max_wait_s is None or self._waits_for_all:
                return False
            if not any(self._seen_after_s(stream, first) >= 2.0 * self._max_wait_s for stream in begun):
                return False
        together = [time for time in times if seconds_between(first, time) <= (self._max_wait_s or math.inf)]
        origin = max(together, default=first)
        self._time.begin(*origin)
        for stream in self._streams:
            stream.default = origin
            if stream in begun and (stream.host is None or stream.begin_time() in together):
                stream.entry = 0
        return True

    def _seen_after_s(self, stream: ReferenceStream, time: tuple[int, float]) -> float:
        """How long after a time a stream's samples reach."""
        ahead_s = (stream.seen - stream.begin) / self.sample_rate_hz
        return ahead_s + (seconds_between(time, stream.begin_time()) if stream.host else 0.0)

    def _admit(self, stream: ReferenceStream) -> None:
        """Find out with which block a stream begins to take part, once its times are known."""
        if stream.entry is not None or stream.seen <= stream.begin:
            return
        wait_s = self._max_wait_s or 0.0
        if stream.host is None:
            if stream.seen - stream.begin < wait_s * self.sample_rate_hz:
                return
            # Nobody says when it was taken: what has come just now was now, where the others have not waited for it.
            stream.default = shift_time(*self._time.at(self._block), 0.0 if self._waits_for_all else -wait_s)
        stream.entry = max(self._time.block_at(stream.begin_time(), wait_s), self._block)

    def _is_used_up(self, index: int) -> bool:
        """Of a stream of which no more than this piece has come: whether there is nothing more in it."""
        stream = self._streams[index]
        if not self._time.begun:
            return not self._begun(stream)
        return stream.entry is None or self._awaited(index)

    def _begun(self, stream: ReferenceStream) -> bool:
        return stream.band.end * self._decimation > stream.begin

    def _awaited(self, index: int) -> bool:
        """Whether this stream lacks samples for the next block."""
        stream = self._streams[index]
        if stream.ended:
            return False
        if stream.entry is None:
            return self._waits_for_all
        return self._block >= stream.entry and not self._present(index)

    def _present(self, index: int) -> bool:
        stream = self._streams[index]
        if stream.entry is None or self._block < stream.entry:
            return False
        return stream.band.end * self._decimation >= self._needed(stream)

    def _needed(self, stream: ReferenceStream) -> int:
        """Up to which sample a stream has to have come for the block."""
        late_s = stream.delay_s + self._layout.sub_s
        return self._position(stream) + self._layout.block_n + math.ceil(late_s * self.sample_rate_hz)

    def _lags(self, index: int) -> bool:
        """Whether another stream has come so much farther that this one is not waited for."""
        if self._max_wait_s is None or self._waits_for_all:
            return False
        own = self._streams[index]
        wait_s = self._max_wait_s + (0.0 if own.clock or index == self._base else self.settings.search_s)
        here_s = (own.seen - self._position(own)) / self.sample_rate_hz
        return any(
            (other.seen - self._position(other)) / self.sample_rate_hz - here_s > wait_s
            for other in self._streams
            if other is not own and other.seen > other.begin
        )

    def _position(self, stream: ReferenceStream) -> int:
        """Which of the stream's samples stands at the block's start, as far as it is known."""
        return stream.place.n if stream.place is not None else stream.host_index(self._time.at(self._block))

    def _restart(self, index: int, at: int, *, lost: bool) -> None:
        stream = self._streams[index]
        if stream.clock is not None or index == self._base:
            self._lose(index, self._block)
        stream.restart(at, lost=lost)

    def _work(self) -> None:
        present = [index for index in range(len(self._streams)) if self._present(index)]
        for stream in (self._streams[index] for index in present):
            stream.reach = self._needed(stream)
        if self._base is None or self._base not in present:
            self._choose_base(present)
        if self._base is not None:
            base = self._streams[self._base]
            assert base.place is not None
            base.history.append((self._block, base.place))
            if base.is_heard:
                self._tracker.recentre(base, base.place)
            locked = [index for index in present if self._streams[index].clock is not None]
            seen = [
                self._tracker.track(self._streams[index], base, self._block, base.place, base.carrier_hz)
                for index in locked
            ]
            self._misses = 0 if any(seen) or not seen else self._misses + 1
            self._steer(base)
            self._write(present)
            self._acquire([i for i in present if i != self._base and self._streams[i].clock is None])
        self._block += 1
        if self._misses >= MAX_MISSES:
            self._change_base(present)
        for stream in self._streams:
            if stream.entry is None:  # where it stands may be told by stamps of before it went
                continue
            position = self._position(stream)
            # A clock that is still looked for may turn out to be late, the base's too where it is the only one.
            is_looked_for = stream.place is None or not any(other.clock for other in self._streams)
            early = round(self.settings.search_s * self.sample_rate_hz) if is_looked_for else 0
            first = (position - round(self._layout.keep_s * self.sample_rate_hz)) // self._decimation
            stream.forget(self._block - round(self._layout.keep_s / self._block_s) - 1, first, position - early)

    # The base

    def _choose_base(self, present: list[int]) -> None:
        """The locked stream whose reference is strongest, or else any."""
        if self._base is not None:
            self._lose(self._base, self._block)
        locked = [index for index in present if self._streams[index].clock is not None]
        if locked:
            self._make_base(self._surest(locked))
            return
        strengths = [(self._tracker.strength(self._streams[index]), index) for index in present if self._enough(index)]
        if (
            len(strengths) < 2
            and len(self._streams) > len(strengths)
            and self._max_wait_s is None
            and len(present) > len(strengths)
        ):
            return
        if strengths:
            (_, carrier_hz), index = max(strengths)
            self._found_base(index, carrier_hz, self._block)

    def _surest(self, locked: list[int]) -> int:
        """Of locked streams: one that comes out rather than one that does not, then whose reference is strongest."""
        return max(locked, key=lambda index: (self._streams[index].writing, self._streams[index].coherence))

    def _enough(self, index: int) -> bool:
        stream = self._streams[index]
        held = stream.reach // self._decimation - stream.band.samples.first
        return held >= self._block_s * self._layout.band_rate_hz

    def _found_base(self, index: int, carrier_hz: float, block: int) -> None:
        """A base from `block` on, where no clock is known: its own time stamps begin the common time, or go on as they
        were off."""
        base = self._streams[index]
        base.carrier_hz = carrier_hz
        base.own_rate, base.own_early_s = base.host_rate, -base.shift_s
        n, lead_s = base.host_place(self._time.at(block))
        base.place = Place(n, lead_s, base.host_rate, carrier_hz)
        self._base, self._alone_since, self._misses = index, block, 0
        for stream in self._streams:
            stream.next_try = block + FEWEST_BLOCKS

    def _make_base(self, index: int) -> None:
        """A locked stream becomes the measure: all clocks are told against it from now on."""
        old = self._streams[self._base] if self._base is not None else None
        new = self._streams[index]
        clock = new.clock
        assert clock is not None
        assert new.place is not None
        new.clock, new.fallback_s = None, None
        # The common time goes on as it was, whatever the new base's own stamps say.
        new.own_rate, new.own_early_s = new.place.rate, new.early_s(self._time.at(self._block))
        for stream in self._streams:
            if stream.clock is not None:
                stream.clock.rebase(clock)
        if old is not None and old.place is not None:
            old.clock = self._layout.new_clock(old.place.lead_s, clock.offset_sigma_s)
            old.clock.covariance = clock.covariance.copy()
            old.clock.state[1:] = -clock.state[1:]
            old.begin_proof()
        self._base, self._misses = index, 0

    def _change_base(self, present: list[int]) -> None:
        """No stream has heard what the base does: where two others hear the same, one of them takes its place."""
        self._misses = 0
        locked = [index for index in present if self._streams[index].clock is not None]
        for one, other in itertools.combinations(locked, 2):
            if self._tracker.hear_the_same(self._streams[one], self._streams[other]):
                self._make_base(one)
                return

    def _steer(self, base: ReferenceStream) -> None:
        """Move the base to the next block; its time stamps lead, slowly."""
        place = base.place
        assert place is not None
        early_s = base.early_s(self._time.at(self._block)) - base.own_early_s
        rate = base.own_rate + min(max(early_s / STEER_S, -MOST_STEER), MOST_STEER)
        n, lead_s = next_place(place, rate, self._block_s, self.sample_rate_hz)
        base.place = Place(n, lead_s, rate, base.carrier_hz)

    # The others

    def _acquire(self, lost: list[int]) -> None:
        assert self._base is not None
        base = self._streams[self._base]
        for stream in (self._streams[index] for index in lost):
            if self._block + 1 < stream.next_try:
                continue
            finding = self._searcher.find(stream, base, self._block + 1)
            if finding == "tracked":
                self._misses = 0
            elif finding == "nothing":
                stream.next_try = self._block + self._searcher.pause(stream)
        if any(stream.clock is not None for stream in self._streams):
            self._alone_since = self._block
        elif lost and self._block - self._alone_since > self._patience:
            self._next_candidate(self._base)

    @property
    def _patience(self) -> int:
        """Blocks after which another stream is tried as base where no clock is known."""
        return max(4, round((3.0 * self.settings.search_s + 2.0 * self._layout.template_s) / self._block_s))

    def _next_candidate(self, base: int) -> None:
        candidates = [(base + step) % len(self._streams) for step in range(1, len(self._streams))]
        for index in candidates:
            if self._present(index) and self._enough(index):
                self._streams[base].place = None
                self._streams[base].history.clear()
                self._found_base(index, self._tracker.strength(self._streams[index])[1], self._block + 1)
                return

    # What comes out

    def _write(self, present: list[int]) -> None:
        locked = [index for index in present if self._streams[index].clock is not None]
        for index in locked:
            stream = self._streams[index]
            clock = stream.clock
            assert clock is not None
            unsure = stream.writing and clock.offset_sigma_s > 1e-9 * self.settings.max_error_ns
            if unsure or stream.misfits >= MAX_MISFITS or stream.unwritten >= DEADLINE:
                self._lose(index, self._block + 1)
            elif stream.writing or self._settled(clock):
                self._put(stream, clock.offset_sigma_s)
            stream.unwritten = 0 if stream.writing else stream.unwritten + 1
        if self._base is not None:
            base = self._streams[self._base]
            others = [self._streams[index] for index in locked if self._streams[index].writing]
            base.is_heard = any(stream.is_heard for stream in others)
            if others or base.writing:
                base.coherence = max((stream.coherence for stream in others), default=base.coherence)
                self._put(base, 0.0)
            if not others and base.writing and not any(stream.clock for stream in self._streams):
                base.stop_writing()

    def _settled(self, clock: ClockFilter) -> bool:
        change_s = clock.drift_sigma * self._block_s
        return max(clock.offset_sigma_s, change_s) * self.settings.bandwidth_hz < SETTLED and (
            clock.offset_sigma_s < 1e-9 * self.settings.max_error_ns
        )

    def _put(self, stream: ReferenceStream, error_s: float) -> None:
        """Bring out a block of a stream; its place is that at the block's end."""
        assert stream.place is not None
        start, end = self._time.at(self._block), self._time.at(self._block + 1)
        stream.write(start, end, self._block_s, stream.place, error_s)

    def _lose(self, index: int, block: int) -> None:
        """Its clock is not known any more; its place is that in `block`."""
        stream = self._streams[index]
        stream.losses += stream.writing or index == self._base
        if stream.fallback_s is not None:
            stream.fall_back()
        elif stream.place is not None:
            # A clock whose stamps are old has run away from them: it is looked for where it was.
            stream.shift_s = -stream.early_s(self._time.at(block))
        stream.end_lock()
        stream.next_try = self._block + 1
        if index == self._base:
            self._base = None
            locked = [i for i, other in enumerate(self._streams) if other.clock is not None]
            if locked:
                self._make_base(self._surest(locked))

    def _any_queued(self) -> bool:
        return any(stream.queued for stream in self._streams)
