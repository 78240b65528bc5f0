"""A stream's clock found: what the base hears of the reference is looked for in what is kept of the stream."""

from __future__ import annotations

import math
from typing import Literal

from localize_core.alignment.reference_delay import search
from localize_core.alignment.reference_layout import CommonTime, Layout
from localize_core.alignment.reference_stream import Place, ReferenceStream, next_place
from localize_core.alignment.reference_tracking import Tracker

Finding = Literal["tracked", "late", "nothing"]
"""A clock is known; or will be once as much has come as it seems to be late; or is not."""

FIRST_SHARE = 8
"""A new lock measures this part of a block first: an unknown drift smears longer ones. Then twice as much each time."""
FEWEST_BLOCKS = 2
"""A lock is borne out by so many at least."""


class Searcher:
    """Finds clocks in the blocks of a layout."""

    def __init__(self, layout: Layout, time: CommonTime, tracker: Tracker) -> None:
        self._layout, self._time, self._tracker = layout, time, tracker

    def find(self, stream: ReferenceStream, base: ReferenceStream, now: int) -> Finding:
        """Look for a stream's clock and bring it up to block `now`. One that is late has to be tracked by the next
        search, or its stamps are taken to be off by as much as before."""
        own, settings, rate_hz = self._layout, self._layout.settings, self._layout.band_rate_hz
        begin_s = self._since_s(stream, now)  # how long before now its samples begin
        back_s = min(settings.search_s + own.template_s, (begin_s + own.template_s) / 2.0)
        block = now - max(math.ceil(back_s / own.block_s), FEWEST_BLOCKS)
        places = dict(base.history)
        block = max(block, min(places, default=now))
        place = places.get(block)
        if place is None or now - block < FEWEST_BLOCKS:
            return "nothing"
        length = int(own.template_s * rate_hz)
        start = math.ceil((place.n - place.lead_s * own.sample_rate_hz) / own.decimation)
        if start < base.band.samples.first or start + length > base.reach // own.decimation:
            return "nothing"
        template = base.band.samples.view(start, start + length)
        around = stream.host_index(self._time.at(block)) // own.decimation
        reach = round(settings.search_s * rate_hz)
        first = max(around - reach, stream.band.samples.first)
        end = min(around + reach + length, stream.reach // own.decimation)
        if end - first <= length:
            return "nothing"
        found = search(
            stream.band.samples.view(first, end),
            template,
            rate_hz=rate_hz,
            bandwidth_hz=settings.bandwidth_hz,
            max_carrier_hz=2.0 * own.margin_hz + 2.0 / own.template_s,
        )
        is_repeated = stream.fallback_s is not None
        stream.fall_back()
        if found is None:
            return "nothing"
        # The reference reaches this stream later by its path: so much later was its sample taken.
        lead_s = place.lead_s + (start * own.decimation - place.n) * (1.0 + place.rate) / own.sample_rate_hz
        lead_s += stream.delay_s - base.delay_s
        clock = own.new_clock(0.0, 1.0 / rate_hz)
        # Of a template, both streams turn as they came; the base's own part is known.
        clock.update(clock.carrier_row, found.carrier_hz / own.frequency_hz, 0.25 / own.template_s / own.frequency_hz)
        here = Place((first + found.lag) * own.decimation, lead_s, place.rate + clock.drift, 0.0)
        n, lead_s = next_place(here, here.rate, 0.0, own.sample_rate_hz)
        clock.state[0] = lead_s
        shift_s, stream.shift_s = stream.shift_s, 0.0
        stream.begin_lock(clock, max(1, own.subs // FIRST_SHARE))
        stream.carrier_hz = place.carrier_hz + own.frequency_hz * (clock.drift + clock.bias)
        stream.place = Place(n, lead_s, here.rate, stream.carrier_hz)
        seen = 0
        for past in range(block, now):
            if not self._reaches(stream, stream.place):
                # It is later than its stamps say, and has to be waited for.
                early_s = stream.early_s(self._time.at(past))
                stream.end_lock()
                stream.shift_s = shift_s
                if is_repeated:
                    return "nothing"
                stream.shift_s, stream.fallback_s, stream.next_try = -early_s, shift_s, now
                return "late"
            after = places.get(past + 1, base.place)
            assert after is not None
            seen += self._tracker.track(stream, base, past, places[past], after.carrier_hz)
        if seen < 0.6 * (now - block) or stream.outliers > 1:
            stream.end_lock()
            stream.shift_s = shift_s
            return "nothing"
        stream.fallback_s = shift_s
        return "tracked"

    def pause(self, stream: ReferenceStream) -> int:
        """Blocks until another search makes sense where there is no more of a stream than now."""
        own = self._layout
        have_s = (stream.reach - stream.begin) / own.sample_rate_hz
        pause_s = min(max(0.3 * have_s, own.block_s), 0.5 * own.settings.search_s + 2.0 * own.block_s)
        return max(1, round(pause_s / own.block_s))

    def _reaches(self, stream: ReferenceStream, place: Place) -> bool:
        own, band = self._layout, stream.band
        late = stream.delay_s * own.sample_rate_hz
        last = place.n + own.block_n * (1.0 + 4e-4) + late + own.decimation * 2
        return place.n // own.decimation - 1 >= band.samples.first and last <= stream.reach

    def _since_s(self, stream: ReferenceStream, block: int) -> float:
        return (stream.host_index(self._time.at(block)) - stream.begin) / self._layout.sample_rate_hz
