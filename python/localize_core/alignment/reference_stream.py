"""One stream of a reference clock: its samples, its own time stamps, and what waits to be taken."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.clock_filter import ClockFilter
from localize_core.alignment.reference_band import BandExtractor, BandRemover
from localize_core.alignment.stream import SampleBuffer
from localize_core.types.time import seconds_between, shift_time

Samples = NDArray[np.complex64]

JUMP_S = 1e-6
"""Time stamps farther off their line than this and a sample: samples were lost."""
WINDOW = 20
"""So many of the latest measurements tell whether a clock is followed."""


@dataclass(frozen=True)
class Mark:
    """What a stream says of its sample `index`: its time (whole seconds, fraction), its rate, and whether what was
    before does not go with it, because samples were lost or the device was opened anew."""

    index: int
    time: tuple[int, float] | None = None
    rate_hz: float | None = None
    restart: bool = False


@dataclass(frozen=True)
class Seat:
    """Output sample `index` (of those that come out), which came in as `source`, was taken at `time`; from there on
    samples come at `rate_hz`.

    `error_s`: standard error of that against the base. `restart`: what came out before does not go with it.
    """

    index: int
    source: int
    time: tuple[int, float]
    rate_hz: float
    error_s: float
    restart: bool


class Place(NamedTuple):
    """Sample `n` stands `lead_s` after a block's start, samples come every (1 + rate) / nominal, and the carrier is off
    by `carrier_hz`."""

    n: int
    lead_s: float
    rate: float
    carrier_hz: float


def next_place(place: Place, rate: float, span_s: float, sample_rate_hz: float) -> tuple[int, float]:
    """The first sample at or after `span_s` past the block's start, and by how much it is after, s.

    `rate`: how slow the clock is from `place` on, s/s; `span_s`: a block's, or 0 for the place in the same block.
    """
    step_s = (1.0 + rate) / sample_rate_hz
    count = math.ceil((span_s - place.lead_s) / step_s - 1e-9)
    return place.n + count, place.lead_s + count * step_s - span_s


@dataclass
class Written:
    """What is known of a stream's output: sample `n` is the next, `lead_s` after the block's start."""

    n: int
    lead_s: float
    carrier: float


class ReferenceStream:
    """One stream: its samples, what is extracted of them, its clock, and what waits to be taken.

    `delay_s`: by how much later than the first of all streams it hears the reference. `entry`: the block from which on
    it takes part, None where that is not known. `reach`: samples before this may be of use in the current block; what
    else has come may not, or what comes out would depend on how the stream came. For the same reason a time stamp
    counts from its sample on: `host` is the one that does, `latest` the newest; without any, its samples begin at
    `default`. `shift_s`: how late the stamps are; `fallback_s`: what that was before a search that nothing has borne
    out yet, None where all is.
    """

    def __init__(self, band: BandExtractor, taps: Samples, sample_rate_hz: float, delay_s: float) -> None:
        self.band, self._taps, self._rate_hz, self.delay_s = band, taps, sample_rate_hz, delay_s
        self.remover = BandRemover(taps)
        self.raw = SampleBuffer()
        self.seen = self.begin = self.marked = self.keep_from = 0
        self.cut: int | None = None
        self.length: int | None = None
        self.entry: int | None = None
        self.reach = 0
        self.host: Mark | None = None
        self.latest: Mark | None = None
        self._later: deque[Mark] = deque()
        self._host_rate = 0.0
        self.default = (0, 0.0)
        self.clock: ClockFilter | None = None
        self.place: Place | None = None
        self.history: deque[tuple[int, Place]] = deque()
        self.own_rate = self.own_early_s = self.shift_s = 0.0
        self.fallback_s: float | None = None
        self.carrier_hz = self.coherence = self.residual = 0.0
        self.is_heard = False
        self.share = 1
        self.outliers = self.losses = self.next_try = 0
        self.fits: deque[bool] = deque(maxlen=WINDOW)
        self.unwritten = 0  # blocks of this lock of which nothing came out
        self.written: Written | None = None
        self._restarted = False
        self._out: deque[Samples] = deque()
        self._seats: deque[Seat] = deque()
        self._produced = self._taken = 0

    @property
    def ended(self) -> bool:
        return self.length is not None and self.seen >= self.length

    @property
    def queued(self) -> int:
        return self._produced - self._taken

    @property
    def writing(self) -> bool:
        return self.written is not None

    # Its own time stamps

    @property
    def misfits(self) -> int:
        """How many of the latest measurements did not fit its clock."""
        return self.fits.count(False)

    def add_mark(self, mark: Mark) -> None:
        if mark.restart:  # of a stream that was given up when it fell silent
            self.forget_stamps()
        if mark.rate_hz is not None and mark.rate_hz > 0.0 and abs(mark.rate_hz / self._rate_hz - 1.0) < 0.01:
            self._host_rate = self._rate_hz / mark.rate_hz - 1.0
        if mark.time is not None:
            self.latest = replace(mark, rate_hz=self._rate_hz / (1.0 + self._host_rate))
            if self.host is None:
                self.host = self.latest
            else:
                self._later.append(self.latest)

    def forget_stamps(self) -> None:
        self.host = self.latest = None
        self.shift_s, self.fallback_s = 0.0, None
        self._later.clear()

    def advance_to(self, index: int) -> None:
        """Sample `index` stands at the block's start: stamps up to it count."""
        while self._later and self._later[0].index <= index:
            self.host = self._later.popleft()

    @property
    def host_rate(self) -> float:
        """How slow its clock is by the stamp that counts."""
        if self.host is None or self.host.rate_hz is None:
            return self._host_rate
        return self._rate_hz / self.host.rate_hz - 1.0

    def jumps(self, index: int, time: tuple[int, float]) -> bool:
        """Whether a time stamp says that samples were lost before it."""
        last = self.latest
        if last is None or last.time is None:
            return False
        rate_hz = last.rate_hz or self._rate_hz
        off_s = seconds_between(last.time, time) - (index - last.index) / rate_hz
        return abs(off_s) > max(JUMP_S, 1.0 / self._rate_hz)

    def _mark(self) -> tuple[int, tuple[int, float], float]:
        """The stamp that counts: sample, time, rate."""
        mark = self.host
        if mark is None or mark.time is None:
            return self.begin, self.default, self._rate_hz
        return mark.index, mark.time, mark.rate_hz or self._rate_hz

    def begin_time(self) -> tuple[int, float]:
        """When its samples begin, by its stamps."""
        index, at, rate_hz = self._mark()
        return shift_time(*at, (self.begin - index) / rate_hz)

    def host_place(self, time: tuple[int, float]) -> tuple[int, float]:
        """The first sample at or after `time` by its stamps and what they are known to be off, and by how much it is
        after."""
        index, at, rate_hz = self._mark()
        samples = (seconds_between(at, time) - self.shift_s) * rate_hz
        count = math.ceil(samples)
        return index + count, (count - samples) / rate_hz

    def host_index(self, time: tuple[int, float]) -> int:
        return self.host_place(time)[0]

    def host_early_s(self, n: int, seconds: int, fraction: float) -> float:
        """How much later than `seconds` + `fraction` its stamps put sample `n`."""
        index, at, rate_hz = self._mark()
        return seconds_between((seconds, fraction), at) + (n - index) / rate_hz

    def early_s(self, time: tuple[int, float]) -> float:
        """How much later than the common time its own stamps put its samples; its place is in the block that begins
        at `time`."""
        assert self.place is not None
        return self.host_early_s(self.place.n, time[0], time[1] + self.place.lead_s)

    # Its clock

    def begin_lock(self, clock: ClockFilter, share: int) -> None:
        """`share`: how many sub-blocks of its first block are measured."""
        self.clock, self.share, self.residual, self.coherence = clock, share, 0.0, 0.0
        self.begin_proof()
        self.history.clear()

    def begin_proof(self) -> None:
        """What was measured so far tells nothing of its clock."""
        self.outliers = self.unwritten = 0
        self.fits.clear()

    def end_lock(self) -> None:
        self.clock = self.place = None
        self.is_heard = False
        self.history.clear()
        self.stop_writing()

    def fall_back(self) -> None:
        """What a search said of its stamps is not borne out."""
        if self.fallback_s is not None:
            self.shift_s, self.fallback_s = self.fallback_s, None

    def restart(self, at: int, *, lost: bool) -> None:
        """Nothing before sample `at` counts; where samples were `lost`, its time stamps neither."""
        self.begin = -(-at // self.band.decimation) * self.band.decimation
        self.cut, self.marked, self.keep_from = None, at, self.begin
        self.entry = None
        self.fall_back()
        if lost:
            self.forget_stamps()
        self.raw.drop(min(self.begin, self.seen))
        self.band.start(self.begin)
        self.next_try = 0

    def trim(self) -> None:
        """Give up samples that are extracted and do not wait to come out."""
        needed = min(self.band.needed, self.keep_from)
        if self.written is not None:
            needed = min(needed, self.written.n)
        elif self.place is not None:
            needed = min(needed, self.place.n)
        self.raw.drop(min(needed, self.seen))

    def forget(self, block: int, band_index: int, keep_from: int) -> None:
        """Give up places before `block`, what was extracted before `band_index`, and samples before `keep_from`."""
        self.keep_from = max(self.keep_from, keep_from)
        while self.history and self.history[0][0] < block:
            self.history.popleft()
        self.band.samples.drop(max(band_index, self.band.samples.first))
        self.trim()

    # Its output

    def write(
        self, start: tuple[int, float], end: tuple[int, float], span_s: float, place: Place, error_s: float
    ) -> None:
        """Bring out the samples of a block, from `start` to `end` and `span_s` long: its line leads from where it was
        to `place`, which is that in the next block. `error_s`: standard error of the clock.

        Nothing comes out, and `writing` is not begun, where too little is left of the block's samples.
        """
        step_s = (1.0 + place.rate) / self._rate_hz
        carrier = self.carrier_hz / self._rate_hz
        restart = False
        if self.written is None:
            count = min(math.floor((span_s + place.lead_s) / step_s), place.n - self.raw.first)
            if count <= len(self._taps) // 2:
                return
            lead_s = place.lead_s + span_s - count * step_s
            self.written = Written(place.n - count, lead_s, carrier)
            self.remover = BandRemover(self._taps)
            restart = self._restarted
            self._restarted, self.fallback_s = True, None
        own = self.written
        at_end = place.n - place.lead_s / step_s  # the sample, with its fraction, that stands at the block's end
        pace_s = (span_s - own.lead_s) / (at_end - own.n)
        seat = shift_time(*start, own.lead_s)
        index = self._produced + self.remover.waiting
        self._seats.append(Seat(index, own.n, seat, 1.0 / pace_s, error_s, restart))
        samples = self.raw.view(own.n, place.n)
        out = self.remover(samples, own.carrier, carrier)
        self._out.append(out)
        self._produced += len(out)
        self.written = Written(place.n, (place.n - at_end) * pace_s, carrier)
        self.trim()

    def stop_writing(self) -> None:
        self.written = None
        while self._seats and self._seats[-1].index >= self._produced:
            self._seats.pop()

    def pull(self, max_samples: int) -> tuple[Samples, list[Seat]]:
        """What comes out next, complex64 (n,) with n at most `max_samples`, and the seats on it."""
        parts, left = [], max_samples
        while self._out and left > 0:
            head = self._out.popleft()
            if len(head) > left:
                self._out.appendleft(head[left:])
                head = head[:left]
            parts.append(head)
            left -= len(head)
        self._taken += max_samples - left
        seats = []
        while self._seats and self._seats[0].index < self._taken:
            seats.append(self._seats.popleft())
        return (np.concatenate(parts) if parts else np.zeros(0, np.complex64)), seats
