"""Streams without a common clock onto one time, by a transmitter at a known place that all of them hear.

One stream's clock is the measure, the base. Every block the reference's delay and carrier offset between each other
stream and the base are measured; what the known paths do not explain is the clocks'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from localize_core.alignment.clock_filter import GATE, ClockFilter
from localize_core.alignment.reference_band import BandExtractor, removal_taps
from localize_core.alignment.reference_delay import (
    Measured,
    band_centre,
    measure,
    off_centre,
    search,
    sub_block_spectra,
)
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.alignment.reference_stream import Mark, Place, ReferenceStream, Seat, next_place
from localize_core.errors import ConfigError

Samples = NDArray[np.complex64]

SUB_BLOCKS = 20
SUB_BLOCK_BINS = 16
"""A sub-block holds so many independent frequencies of the reference at least."""
FEWEST_SUB_BLOCKS = 4
FIRST_SHARE = 8
"""A new lock measures this part of a block first: an unknown drift smears longer ones. Then twice as much each time."""
MAX_MISSES = 3
"""Blocks in a row without the reference after which another stream is tried as base."""
BELIEVED = 3
"""After so many a clock is taken to be less well known than thought."""
MAX_OUTLIERS = 10
"""Outliers in a row that mean the clock has jumped."""
SETTLED = 0.05
"""Samples: a stream comes out once its clock is known as well."""
FLOOR = 2e-4
"""Samples of the extracted band that a delay's measurement may be off whatever the noise."""
PHASE_FLOOR = 0.001
"""Turns that a sub-block's phase may be off whatever the noise."""
STEER_S = 300.0
"""Over this time the common time follows the base's own time stamps."""
MOST_STEER = 20e-6
CENTRE_S = 30.0
"""Over this time carriers follow the middle of the reference in the base's stream."""
QUEUE_S = 0.5
"""No more is worked out ahead of who takes it."""


@dataclass(frozen=True)
class ClockStatus:
    """A stream's clock. `offset_s`: how late its own time stamps are; `drift_ppm`: how slow its clock is against the
    common time; `residual_ns`: rms of what each block's measurement was off; `snr_db`: of the reference in its band.

    None where nothing is known, as while it is not `locked`.
    """

    locked: bool
    base: bool
    offset_s: float | None = None
    drift_ppm: float | None = None
    carrier_hz: float | None = None
    residual_ns: float | None = None
    error_ns: float | None = None
    snr_db: float | None = None
    losses: int = 0


class ReferenceClock:
    """`n_streams` at `sample_rate_hz` around `frequency_hz`, which hear the reference after `path_delays_s`.

    What comes out of a stream are its samples with the carrier turned back to the base's and the reference's band
    removed (see REMOVED, FADED), and `Seat`s on one common time. Until a stream's clock is known, and while it is lost,
    nothing comes out of it; the others go on. `max_wait_s`: a stream that lags others by more is lost; None waits.
    The output does not depend on how the streams were chopped, but for which of them lag.

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
        self.settings, self.sample_rate_hz, self.frequency_hz = settings, float(sample_rate_hz), float(frequency_hz)
        offset_hz = settings.offset_hz(frequency_hz, sample_rate_hz)
        self._margin_hz = settings.margin_hz(frequency_hz)
        self._delays_s = [delay_s - min(path_delays_s) for delay_s in path_delays_s]
        self._max_wait_s = max_wait_s
        self._rate = Fraction(sample_rate_hz)
        self._block_n = max(1, round(settings.block_s * sample_rate_hz))
        self._block_s = self._block_n / self.sample_rate_hz
        width_hz = settings.bandwidth_hz + 2.0 * self._margin_hz
        # Drift smears what is correlated by less than half of its width.
        self._template_s = min(0.5 / (2e-6 * settings.max_ppm * settings.bandwidth_hz), settings.search_s)
        taps = removal_taps(sample_rate_hz, offset_hz, settings.bandwidth_hz)
        self._streams = [
            ReferenceStream(BandExtractor(sample_rate_hz, offset_hz, width_hz), taps, self.sample_rate_hz)
            for _ in range(n_streams)
        ]
        band = self._streams[0].band
        self._centre_hz, self._decimation, self._band_rate_hz = band.centre_hz, band.decimation, band.rate_hz
        self._off_hz = offset_hz - band.centre_hz
        count = self._block_s * settings.bandwidth_hz / SUB_BLOCK_BINS
        self._subs = int(min(max(count, FEWEST_SUB_BLOCKS), SUB_BLOCKS))
        self._sub_s = self._block_s / self._subs
        self._length = max(int(self._sub_s * self._band_rate_hz * (1.0 - 4e-6 * settings.max_ppm)), 8)
        bins_hz = scipy.fft.fftfreq(self._length, 1.0 / self._band_rate_hz)
        self._bins = np.flatnonzero(np.abs(bins_hz - self._off_hz) <= settings.bandwidth_hz / 2.0)
        self._bins_hz = np.ascontiguousarray(bins_hz[self._bins])
        self._wide = np.flatnonzero(np.abs(bins_hz - self._off_hz) <= settings.bandwidth_hz * 0.6)
        self._wide_hz = bins_hz[self._wide] - self._off_hz
        if len(taps) // 2 >= self._block_n // 2 or len(self._bins) < 4:
            raise ConfigError(
                f"reference.bandwidth_hz={settings.bandwidth_hz:g}: too little of it in block_s={settings.block_s:g}; "
                "make block_s longer"
            )
        self._reach_s = 4.0 / self._band_rate_hz + 2.4e-6 * settings.max_ppm * self._block_s
        self._keep_s = 2.0 * settings.search_s + 2.0 * self._template_s + 4.0 * self._block_s
        self._ahead_s = settings.search_s + (max_wait_s or 0.0) + 1.0 + 4.0 * self._block_s
        self._origin: tuple[int, Fraction] | None = None
        self._block = 0
        self._base: int | None = None
        self._base_since = 0
        self._misses = 0
        self._base_spectra: tuple[int, Samples] | None = None

    @property
    def status(self) -> tuple[ClockStatus, ...]:
        """Of every stream."""
        return tuple(self._status(index) for index in range(len(self._streams)))

    def describe(self, stream: int, *, length: int) -> None:
        """A stream has `length` samples and no more."""
        self._streams[stream].length = length

    def room(self, stream: int) -> int:
        """How many samples `push` takes of this stream now."""
        own = self._streams[stream]
        if own.cut is not None:
            return max(own.cut - own.seen, 0)
        ahead = round(self._ahead_s * self.sample_rate_hz)
        here = own.begin if self._origin is None else max(self._position(own), own.begin)
        return max(here + ahead - own.seen, 0)

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
            own.hear(mark)
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
        if self._origin is None:
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
            if stream.cut is not None and stream.seen >= stream.cut and (self._origin is None or self._awaited(index)):
                # There is no more of this piece.
                self._restart(index, stream.cut, lost=True)
        if self._origin is None and not self._start():
            return False
        for index, stream in enumerate(self._streams):
            if self._awaited(index):
                if not self._lags(index):
                    return False
                self._restart(index, stream.seen, lost=False)
        if not any(self._present(index) for index in range(len(self._streams))):
            return False
        self._work()
        return True

    def _start(self) -> bool:
        begun = [stream for stream in self._streams if self._begun(stream)]
        waits = any(not self._begun(stream) and not stream.ended for stream in self._streams)
        if len(begun) < 2 or (waits and self._max_wait_s is None):
            return False
        seconds, fraction = max((stream.begin_time() for stream in begun if stream.host), default=(0, 0.0))
        self._origin = seconds, Fraction(fraction)
        for stream in self._streams:
            stream.default = (seconds, fraction)
        return True

    def _begun(self, stream: ReferenceStream) -> bool:
        return stream.band.end * self._decimation > stream.begin

    def _awaited(self, index: int) -> bool:
        """Whether this stream lacks samples for the next block."""
        stream = self._streams[index]
        if stream.ended or (stream.seen <= stream.begin and self._max_wait_s is not None and stream.cut is None):
            return False
        return not self._present(index)

    def _present(self, index: int) -> bool:
        stream = self._streams[index]
        needed = self._position(stream) + self._block_n + (self._delays_s[index] + self._sub_s) * self.sample_rate_hz
        return stream.band.end * self._decimation >= needed

    def _lags(self, index: int) -> bool:
        """Whether another stream has come so much farther that this one is not waited for."""
        if self._max_wait_s is None:
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
        return stream.place.n if stream.place is not None else stream.host_index(self._time(self._block))

    def _time(self, block: int) -> tuple[int, float]:
        assert self._origin is not None
        seconds, fraction = self._origin
        exact = fraction + Fraction(block * self._block_n) / self._rate
        whole = math.floor(exact)
        return seconds + whole, float(exact - whole)

    def _restart(self, index: int, at: int, *, lost: bool) -> None:
        stream = self._streams[index]
        if stream.clock is not None or index == self._base:
            self._lose(index, self._block)
        stream.restart(at, lost=lost)

    def _work(self) -> None:
        present = [index for index in range(len(self._streams)) if self._present(index)]
        if self._base is None or self._base not in present:
            self._choose_base(present)
        if self._base is not None:
            base = self._streams[self._base]
            assert base.place is not None
            base.history.append((self._block, base.place))
            if base.heard:
                self._recentre(self._base, base.place)
            locked = [index for index in present if self._streams[index].clock is not None]
            seen = [self._track(index, self._block, base.place, base.carrier_hz) for index in locked]
            self._misses = 0 if any(seen) or not seen else self._misses + 1
            self._steer(base)
            self._write(present)
            self._acquire([i for i in present if i != self._base and self._streams[i].clock is None])
        self._block += 1
        if self._misses >= MAX_MISSES:
            self._change_base(present)
        for stream in self._streams:
            position = self._position(stream)
            # A clock that is still looked for may turn out to be late.
            early = 0 if stream.place is not None else round(self.settings.search_s * self.sample_rate_hz)
            first = (position - round(self._keep_s * self.sample_rate_hz)) // self._decimation
            stream.forget(self._block - round(self._keep_s / self._block_s) - 1, first, position - early)

    # The base

    def _choose_base(self, present: list[int]) -> None:
        """The locked stream whose reference is strongest, or else any."""
        if self._base is not None:
            self._lose(self._base, self._block)
        locked = [index for index in present if self._streams[index].clock is not None]
        if locked:
            self._make_base(max(locked, key=lambda index: self._streams[index].coherence))
            return
        heard = [(self._heard(index), index) for index in present if self._enough(index)]
        if (
            len(heard) < 2
            and len(self._streams) > len(heard)
            and self._max_wait_s is None
            and len(present) > len(heard)
        ):
            return
        if heard:
            (_, carrier_hz), index = max(heard)
            self._found_base(index, carrier_hz)

    def _enough(self, index: int) -> bool:
        band = self._streams[index].band
        return band.samples.held >= self._block_s * self._band_rate_hz

    def _heard(self, index: int) -> tuple[float, float]:
        band = self._streams[index].band
        count = round(self._block_s * self._band_rate_hz)
        samples = band.samples.view(band.end - count, band.end)
        bandwidth_hz, rate_hz = self.settings.bandwidth_hz, self._band_rate_hz
        centre_hz, snr = band_centre(
            samples, rate_hz=rate_hz, bandwidth_hz=bandwidth_hz, max_offset_hz=self._margin_hz + abs(self._off_hz)
        )
        return snr, centre_hz - self._off_hz

    def _found_base(self, index: int, carrier_hz: float) -> None:
        """A base where no clock is known: its own time stamps begin the common time, or go on as they were off."""
        base = self._streams[index]
        base.carrier_hz = carrier_hz
        base.own_rate, base.own_early_s = base.host_rate, -base.shift_s
        base.place = self._first_place(base, self._block)
        self._base, self._base_since, self._misses = index, self._block, 0
        for stream in self._streams:
            stream.next_try = self._block + 1

    def _first_place(self, stream: ReferenceStream, block: int) -> Place:
        n, lead_s = stream.host_place(self._time(block))
        rate = stream.host_rate
        return Place(n, lead_s, rate, stream.carrier_hz)

    def _make_base(self, index: int) -> None:
        """A locked stream becomes the measure: all clocks are told against it from now on."""
        old = self._streams[self._base] if self._base is not None else None
        new = self._streams[index]
        clock = new.clock
        assert clock is not None
        assert new.place is not None
        new.clock = None
        # The common time goes on as it was, whatever the new base's own stamps say.
        new.own_rate, new.own_early_s = new.place.rate, self._early_s(new, self._block)
        for stream in self._streams:
            if stream.clock is not None:
                stream.clock.rebase(clock)
        if old is not None and old.place is not None:
            old.clock = self._new_clock(old.place.lead_s, clock.offset_sigma_s)
            old.clock.covariance = clock.covariance.copy()
            old.clock.state[1:] = -clock.state[1:]
        self._base, self._misses = index, 0
        self._base_spectra = None

    def _change_base(self, present: list[int]) -> None:
        """No stream has heard what the base does: where two others hear the same, one of them takes its place."""
        self._misses = 0
        locked = [index for index in present if self._streams[index].clock is not None]
        spectra = {}
        for index in locked:
            block, place = self._streams[index].history[-1]
            spectra[index] = self._spectra(index, block, place, range(self._subs))[:, self._bins]
        times_s = (np.arange(self._subs) - (self._subs - 1) / 2.0) * self._sub_s
        for one, other in itertools.combinations(locked, 2):
            found = measure(
                spectra[one], spectra[other], times_s, frequency_hz=self._bins_hz, max_delay_s=self._reach_s
            )
            if found.seen:
                self._make_base(one)
                return

    def _recentre(self, index: int, place: Place) -> None:
        """Let all carriers follow the middle of the reference in the base's stream, slowly, from the next block on."""
        spectra = self._spectra(index, self._block, place, range(self._subs))
        off_hz = off_centre(spectra[:, self._wide], self._wide_hz)
        self._streams[index].carrier_hz += off_hz * min(self._block_s / CENTRE_S, 1.0)

    def _steer(self, base: ReferenceStream) -> None:
        """Move the base to the next block; its time stamps lead, slowly."""
        place = base.place
        assert place is not None
        early_s = self._early_s(base, self._block) - base.own_early_s
        rate = base.own_rate + min(max(early_s / STEER_S, -MOST_STEER), MOST_STEER)
        n, lead_s = next_place(place, rate, self._block_s, self.sample_rate_hz)
        base.place = Place(n, lead_s, rate, base.carrier_hz)

    def _early_s(self, stream: ReferenceStream, block: int) -> float:
        """How much later than the common time its own stamps put a stream's samples; its place is that in `block`."""
        assert stream.place is not None
        seconds, fraction = self._time(block)
        return stream.host_early_s(stream.place.n, seconds, fraction + stream.place.lead_s)

    # The others

    def _new_clock(self, offset_s: float, sigma_s: float) -> ClockFilter:
        settings = self.settings
        return ClockFilter(
            settings.carrier,
            offset_s=offset_s,
            offset_sigma_s=sigma_s,
            max_drift=2e-6 * settings.max_ppm,
            wander=1e-9 * settings.wander_ppb,
            carrier_gain=1.0 + self._centre_hz / self.frequency_hz,
        )

    def _spectra(self, index: int, block: int, place: Place, subs: range) -> Samples:
        """Of a stream's sub-blocks, so that the middle of each is what the reference sent at the same time."""
        if index == self._base and self._base_spectra is not None and self._base_spectra[0] == block:
            return self._base_spectra[1][subs.start : subs.stop]
        wanted = range(self._subs) if index == self._base else subs
        stream = self._streams[index]
        after_s = (np.array(wanted) + 0.5) * self._sub_s + self._delays_s[index] - place.lead_s
        middles = (place.n + after_s * self.sample_rate_hz / (1.0 + place.rate)) / self._decimation
        starts = middles - self._length / 2.0
        # Not from the first sample that is held: phases would be rounded by how the stream came.
        first = max(math.floor(starts[0]), stream.band.samples.first)
        held = stream.band.samples.view(first, stream.band.end)
        # Whole turns of the first sample are left out, for the rest to keep its precision.
        # The band was mixed down by the stream's own clock.
        turn_hz = place.carrier_hz + self._centre_hz * place.rate
        spectra = sub_block_spectra(held, starts - first, turn_hz, length=self._length, rate_hz=self._band_rate_hz)
        if index == self._base:
            self._base_spectra = block, spectra
            return spectra[subs.start : subs.stop]
        return spectra

    def _track(self, index: int, block: int, base_place: Place, next_carrier_hz: float) -> bool:
        """Measure a stream against the base in a block and move its clock to the next one, where the base's carrier is
        off by `next_carrier_hz`. Returns whether it saw the reference."""
        stream = self._streams[index]
        clock, place = stream.clock, stream.place
        assert clock is not None
        assert place is not None
        assert self._base is not None
        stream.history.append((block, place))
        count = min(stream.share, self._subs)
        subs = range((self._subs - count) // 2, (self._subs - count) // 2 + count)
        times_s = (np.array(subs) + 0.5) * self._sub_s
        own = self._spectra(index, block, place, subs)[:, self._bins]
        other = self._spectra(self._base, block, base_place, subs)[:, self._bins]
        middle_s = float(times_s.mean())
        found = measure(own, other, times_s - middle_s, frequency_hz=self._bins_hz, max_delay_s=self._reach_s)
        self._learn(stream, found, middle_s)
        clock.predict(self._block_s)
        rate = base_place.rate + clock.drift
        end_s = clock.offset_s - clock.drift * self._block_s
        n, lead_s = next_place(Place(place.n, end_s, rate, 0.0), rate, self._block_s, self.sample_rate_hz)
        clock.state[0] = lead_s
        stream.carrier_hz = next_carrier_hz + self.frequency_hz * (clock.drift + clock.bias)
        stream.place = Place(n, lead_s, rate, stream.carrier_hz)
        return found.seen

    def _learn(self, stream: ReferenceStream, found: Measured, middle_s: float) -> None:
        """Let a measurement correct a clock, unless it is nothing or an outlier."""
        clock = stream.clock
        assert clock is not None
        stream.heard = found.seen
        stream.coherence += 0.2 * (found.coherence - stream.coherence)
        if not found.seen:
            return
        sigma_s = math.hypot(found.delay_sigma_s, FLOOR / self._band_rate_hz)
        floor_hz = PHASE_FLOOR / (self._sub_s * min(stream.share, self._subs) ** 1.5)
        sigma = math.hypot(found.carrier_sigma_hz, floor_hz) / self.frequency_hz
        row, innovation_s = clock.offset_row(middle_s), -found.delay_s
        relative = found.carrier_hz / self.frequency_hz
        carrier_is_off = relative**2 > GATE * clock.expected(clock.carrier_row, sigma)
        if innovation_s**2 > GATE * clock.expected(row, sigma_s) or carrier_is_off:
            stream.outliers += 1
            if stream.outliers % BELIEVED == 0 and abs(innovation_s) < 0.5 / self._band_rate_hz:
                # It has gone on being elsewhere, and not by samples: what was thought of it was too sure.
                clock.loosen(innovation_s, self._block_s)
            return
        stream.outliers = 0
        if stream.share >= self._subs:
            stream.residual += 0.05 * (innovation_s**2 - stream.residual) if stream.residual else innovation_s**2
        stream.share = min(2 * stream.share, self._subs)
        if math.isfinite(sigma):
            clock.update(clock.carrier_row, relative, sigma)
        clock.update(row, innovation_s, sigma_s)

    def _acquire(self, lost: list[int]) -> None:
        for index in lost:
            stream = self._streams[index]
            if self._block + 1 >= stream.next_try:
                if self._find(index):
                    self._misses = 0
                    continue
                have_s = (stream.band.end * self._decimation - stream.begin) / self.sample_rate_hz
                pause_s = min(max(0.5 * have_s, self._block_s), 0.5 * self.settings.search_s + 2.0 * self._block_s)
                stream.next_try = self._block + max(1, round(pause_s / self._block_s))
        base = self._base
        locked = any(stream.clock is not None for stream in self._streams)
        if base is not None and not locked and lost and self._block - self._base_since > self._patience:
            self._next_candidate(base)

    @property
    def _patience(self) -> int:
        """Blocks after which another stream is tried as the first base."""
        return max(4, round((3.0 * self.settings.search_s + 2.0 * self._template_s) / self._block_s))

    def _next_candidate(self, base: int) -> None:
        candidates = [(base + step) % len(self._streams) for step in range(1, len(self._streams))]
        for index in candidates:
            if self._present(index) and self._enough(index):
                self._streams[base].place = None
                self._streams[base].history.clear()
                self._base_spectra = None
                self._block += 1
                self._found_base(index, self._heard(index)[1])
                self._block -= 1
                return

    def _find(self, index: int) -> bool:
        """Look for a stream's clock in what is kept of it, and bring it up to now."""
        assert self._base is not None
        stream, base = self._streams[index], self._streams[self._base]
        now, settings = self._block + 1, self.settings
        begin_s = self._since_s(stream, now)  # how long before now its samples begin
        back_s = min(settings.search_s + self._template_s, (begin_s + self._template_s) / 2.0)
        block = now - max(math.ceil(back_s / self._block_s), 1)
        places = dict(base.history)
        block = max(block, min(places, default=now))
        place = places.get(block)
        if place is None:
            return False
        rate_hz, decimation = self._band_rate_hz, self._decimation
        length = int(self._template_s * rate_hz)
        start = math.ceil((place.n - place.lead_s * self.sample_rate_hz) / decimation)
        if start < base.band.samples.first or start + length > base.band.end:
            return False
        template = base.band.samples.view(start, start + length)
        around = stream.host_index(self._time(block)) // decimation
        reach = round(settings.search_s * rate_hz)
        first = max(around - reach, stream.band.samples.first)
        end = min(around + reach + length, stream.band.end)
        if end - first <= length:
            return False
        found = search(
            stream.band.samples.view(first, end),
            template,
            rate_hz=rate_hz,
            bandwidth_hz=settings.bandwidth_hz,
            max_carrier_hz=2.0 * self._margin_hz + 2.0 / self._template_s,
        )
        if found is None:
            return False
        # The reference reaches this stream later by its path: so much later was its sample taken.
        lead_s = place.lead_s + (start * decimation - place.n) * (1.0 + place.rate) / self.sample_rate_hz
        lead_s += self._delays_s[index] - self._delays_s[self._base]
        clock = self._new_clock(0.0, 1.0 / rate_hz)
        # Of a template, both streams turn as they came; the base's own part is known.
        clock.update(
            clock.carrier_row, found.carrier_hz / self.frequency_hz, 0.25 / self._template_s / self.frequency_hz
        )
        here = Place((first + found.lag) * decimation, lead_s, place.rate + clock.drift, 0.0)
        n, lead_s = next_place(here, here.rate, 0.0, self.sample_rate_hz)
        clock.state[0] = lead_s
        shift_s, stream.shift_s = stream.shift_s, 0.0
        stream.begin_lock(clock, max(1, self._subs // FIRST_SHARE))
        stream.carrier_hz = place.carrier_hz + self.frequency_hz * (clock.drift + clock.bias)
        stream.place = Place(n, lead_s, here.rate, stream.carrier_hz)
        seen = 0
        for past in range(block, now):
            self._base_spectra = None
            if not self._reaches(index, stream.place):
                # It is later than its stamps say, and has to be waited for.
                seconds, fraction = self._time(past)
                early_s = stream.host_early_s(stream.place.n, seconds, fraction + stream.place.lead_s)
                stream.end_lock()
                stream.shift_s, stream.next_try = -early_s, now
                self._base_spectra = None
                return True
            after = places.get(past + 1, base.place)
            assert after is not None
            seen += self._track(index, past, places[past], after.carrier_hz)
        self._base_spectra = None
        if seen < 0.6 * (now - block) or stream.outliers > 1:
            stream.end_lock()
            stream.shift_s = shift_s
            return False
        return True

    def _reaches(self, index: int, place: Place) -> bool:
        band = self._streams[index].band
        late = self._delays_s[index] * self.sample_rate_hz
        last = place.n + self._block_n * (1.0 + 4e-4) + late + self._decimation * 2
        return place.n // self._decimation - 1 >= band.samples.first and last <= band.end * self._decimation

    def _since_s(self, stream: ReferenceStream, block: int) -> float:
        return (stream.host_index(self._time(block)) - stream.begin) / self.sample_rate_hz

    # What comes out

    def _write(self, present: list[int]) -> None:
        locked = [index for index in present if self._streams[index].clock is not None]
        for index in locked:
            stream = self._streams[index]
            clock = stream.clock
            assert clock is not None
            unsure = stream.writing and clock.offset_sigma_s > 1e-9 * self.settings.max_error_ns
            if unsure or stream.outliers >= MAX_OUTLIERS:
                self._lose(index, self._block + 1)
            elif stream.writing or self._settled(clock):
                self._put(stream, clock.offset_sigma_s)
        if self._base is not None:
            base = self._streams[self._base]
            others = [self._streams[index] for index in locked if self._streams[index].writing]
            base.heard = any(stream.heard for stream in others)
            if others or base.writing:
                base.coherence = max((stream.coherence for stream in others), default=base.coherence)
                self._put(base, 0.0)
            if not others and base.writing and not any(stream.clock for stream in self._streams):
                base.stop_writing()

    def _settled(self, clock: ClockFilter) -> bool:
        change_s = clock.drift_sigma * self._block_s
        return max(clock.offset_sigma_s, change_s) * self.sample_rate_hz < SETTLED and (
            clock.offset_sigma_s < 1e-9 * self.settings.max_error_ns
        )

    def _put(self, stream: ReferenceStream, error_s: float) -> None:
        """Bring out a block of a stream; its place is that at the block's end."""
        assert stream.place is not None
        start, end = self._time(self._block), self._time(self._block + 1)
        stream.write(start, end, self._block_s, stream.place, error_s)

    def _lose(self, index: int, block: int) -> None:
        """Its clock is not known any more; its place is that in `block`."""
        stream = self._streams[index]
        stream.losses += 1
        if stream.place is not None:
            # A clock whose stamps are old has run away from them: it is looked for where it was.
            stream.shift_s = -self._early_s(stream, block)
        stream.end_lock()
        stream.next_try = self._block + 1
        if index == self._base:
            self._base = None
            self._base_spectra = None
            locked = [i for i, other in enumerate(self._streams) if other.clock is not None]
            if locked:
                self._make_base(max(locked, key=lambda i: self._streams[i].coherence))

    def _any_queued(self) -> bool:
        return any(stream.queued for stream in self._streams)

    def _status(self, index: int) -> ClockStatus:
        stream = self._streams[index]
        base = index == self._base
        anyone = any(other.clock is not None for other in self._streams)
        if stream.place is None or not (stream.clock is not None or (base and anyone)):
            return ClockStatus(False, base, losses=stream.losses)
        coherence = min(max(stream.coherence, 1e-6), 1.0 - 1e-6)
        return ClockStatus(
            True,
            base,
            offset_s=-self._early_s(stream, self._block),
            drift_ppm=1e6 * stream.place.rate,
            carrier_hz=stream.carrier_hz,
            residual_ns=None if base or not stream.residual else 1e9 * math.sqrt(stream.residual),
            error_ns=0.0 if stream.clock is None else 1e9 * stream.clock.offset_sigma_s,
            snr_db=10.0 * math.log10(coherence / (1.0 - coherence)),
            losses=stream.losses,
        )


def as_dict(status: ClockStatus) -> dict[str, Any]:
    """For messages: what is known."""
    return {key: value for key, value in status.__dict__.items() if value is not None}
