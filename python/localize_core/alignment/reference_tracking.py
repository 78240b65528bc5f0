"""Clocks followed from block to block: each stream's reference is measured against the base's."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from localize_core.alignment.clock_filter import GATE
from localize_core.alignment.reference_delay import Measured, band_centre, measure, off_centre, sub_block_spectra
from localize_core.alignment.reference_layout import Layout
from localize_core.alignment.reference_stream import Place, ReferenceStream, next_place

Samples = NDArray[np.complex64]

BELIEVED = 3
"""After so many a clock is taken to be less well known than thought."""
FLOOR = 2e-4
"""Samples of the extracted band that a delay's measurement may be off whatever the noise."""
PHASE_FLOOR = 0.001
"""Turns that a sub-block's phase may be off whatever the noise."""
CENTRE_S = 30.0
"""Over this time carriers follow the middle of the reference in the base's stream."""


class Tracker:
    """Measures in the blocks of a layout. It keeps what the latest base's spectra were, and nothing else."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._base: tuple[ReferenceStream, Place, Samples] | None = None

    def track(self, stream: ReferenceStream, base: ReferenceStream, block: int, at: Place, next_hz: float) -> bool:
        """Measure a stream against the base, which has the place `at` in a block, and move its clock to the next one,
        where the base's carrier is off by `next_hz`. Returns whether it saw the reference."""
        own, clock, place = self._layout, stream.clock, stream.place
        assert clock is not None
        assert place is not None
        stream.history.append((block, place))
        count = min(stream.share, own.subs)
        subs = range((own.subs - count) // 2, (own.subs - count) // 2 + count)
        times_s = (np.array(subs) + 0.5) * own.sub_s
        mine = self._spectra(stream, place, subs)[:, own.bins]
        other = self._base_spectra(base, at)[subs.start : subs.stop][:, own.bins]
        middle_s = float(times_s.mean())
        found = measure(mine, other, times_s - middle_s, frequency_hz=own.bins_hz, max_delay_s=own.reach_s)
        self._learn(stream, found, middle_s)
        clock.predict(own.block_s)
        rate = at.rate + clock.drift
        end_s = clock.offset_s - clock.drift * own.block_s
        n, lead_s = next_place(Place(place.n, end_s, rate, 0.0), rate, own.block_s, own.sample_rate_hz)
        clock.state[0] = lead_s
        stream.carrier_hz = next_hz + own.frequency_hz * (clock.drift + clock.bias)
        stream.place = Place(n, lead_s, rate, stream.carrier_hz)
        return found.seen

    def recentre(self, base: ReferenceStream, place: Place) -> None:
        """Let all carriers follow the middle of the reference in the base's stream, slowly, from the next block on."""
        own = self._layout
        off_hz = off_centre(self._base_spectra(base, place)[:, own.wide], own.wide_hz)
        base.carrier_hz += off_hz * min(own.block_s / CENTRE_S, 1.0)

    def hear_the_same(self, one: ReferenceStream, other: ReferenceStream) -> bool:
        """Whether two streams heard the reference in the latest block of both."""
        own = self._layout
        whole = range(own.subs)
        first, second = (self._spectra(stream, stream.history[-1][1], whole)[:, own.bins] for stream in (one, other))
        times_s = (np.array(whole) - (own.subs - 1) / 2.0) * own.sub_s
        return measure(first, second, times_s, frequency_hz=own.bins_hz, max_delay_s=own.reach_s).seen

    def strength(self, stream: ReferenceStream) -> tuple[float, float]:
        """How strong the reference is in the latest of a stream, over the noise, and how far off its carrier."""
        own, band = self._layout, stream.band
        count, end = round(own.block_s * own.band_rate_hz), stream.reach // own.decimation
        centre_hz, snr = band_centre(
            band.samples.view(end - count, end),
            rate_hz=own.band_rate_hz,
            bandwidth_hz=own.settings.bandwidth_hz,
            max_offset_hz=own.margin_hz + abs(own.off_hz),
        )
        return snr, centre_hz - own.off_hz

    def _base_spectra(self, base: ReferenceStream, place: Place) -> Samples:
        """Of all sub-blocks; all others are measured against the same."""
        if self._base is None or self._base[0] is not base or self._base[1] != place:
            self._base = base, place, self._spectra(base, place, range(self._layout.subs))
        return self._base[2]

    def _spectra(self, stream: ReferenceStream, place: Place, subs: range) -> Samples:
        """Of a stream's sub-blocks, so that the middle of each is what the reference sent at the same time."""
        own = self._layout
        after_s = (np.array(subs) + 0.5) * own.sub_s + stream.delay_s - place.lead_s
        middles = (place.n + after_s * own.sample_rate_hz / (1.0 + place.rate)) / own.decimation
        starts = middles - own.length / 2.0
        # Not from the first sample that is held: phases would be rounded by how the stream came.
        first = max(math.floor(starts[0]), stream.band.samples.first)
        held = stream.band.samples.view(first, stream.band.end)
        # Whole turns of the first sample are left out, for the rest to keep its precision.
        # The band was mixed down by the stream's own clock.
        turn_hz = place.carrier_hz + own.centre_hz * place.rate
        return sub_block_spectra(held, starts - first, turn_hz, length=own.length, rate_hz=own.band_rate_hz)

    def _learn(self, stream: ReferenceStream, found: Measured, middle_s: float) -> None:
        """Let a measurement correct a clock, unless it is nothing or an outlier."""
        own, clock = self._layout, stream.clock
        assert clock is not None
        stream.is_heard = found.seen
        stream.coherence += 0.2 * (found.coherence - stream.coherence)
        if not found.seen:
            if not stream.writing:  # one that is borne out may go on without the reference
                stream.fits.append(False)
            return
        sigma_s = math.hypot(found.delay_sigma_s, FLOOR / own.band_rate_hz)
        floor_hz = PHASE_FLOOR / (own.sub_s * min(stream.share, own.subs) ** 1.5)
        sigma = math.hypot(found.carrier_sigma_hz, floor_hz) / own.frequency_hz
        row, innovation_s = clock.offset_row(middle_s), -found.delay_s
        relative = found.carrier_hz / own.frequency_hz
        carrier_is_off = relative**2 > GATE * clock.expected(clock.carrier_row, sigma)
        if innovation_s**2 > GATE * clock.expected(row, sigma_s) or carrier_is_off:
            stream.outliers += 1
            stream.fits.append(False)
            if stream.outliers % BELIEVED == 0 and abs(innovation_s) < 0.5 / own.band_rate_hz:
                # It has gone on being elsewhere, and not by samples: what was thought of it was too sure.
                clock.loosen(innovation_s, own.block_s)
            return
        stream.outliers = 0
        stream.fits.append(True)
        if stream.share >= own.subs:
            stream.residual += 0.05 * (innovation_s**2 - stream.residual) if stream.residual else innovation_s**2
        stream.share = min(2 * stream.share, own.subs)
        before = clock.state
        if math.isfinite(sigma):
            clock.update(clock.carrier_row, relative, sigma)
        # What the carrier has told of the delay is not news any more.
        clock.update(row, innovation_s - float(row @ (clock.state - before)), sigma_s)
