"""Where the graph of one device ends: its streams, and what its driver says of them, go to the station's buffers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from localize_core.receivers.host_clock import HostClock, WallClock
from localize_core.receivers.rate_watch import RateWatch
from localize_core.receivers.stream_buffer import Mark, StreamBuffer, TimeSource

from . import tags
from .guard import guarded

CHUNK_S, MOST_CHUNK = 0.04, 1 << 15
"""What is taken at a time, in seconds and samples: each time costs as much as some thousand samples."""


class stream_outlet(gr.sync_block):
    """The complex streams of one device, sample by sample side by side, into a buffer each.

    `time_source`: "rx_time" where the driver's tags `rx_time` are those of a hardware clock; else "host", and `wall` is
    what tells the time of arrival, from the first half second on. `frequency_hz`: until a tag says otherwise.
    """

    def __init__(
        self,
        buffers: Sequence[StreamBuffer],
        sample_rate_hz: float,
        frequency_hz: float,
        time_source: TimeSource,
        wall: WallClock,
    ) -> None:
        gr.sync_block.__init__(self, "stream_outlet", [np.complex64] * len(buffers), None)
        self.failure: Exception | None = None
        self.heard_s: float | None = None
        """When samples came last, by the monotonic clock."""
        self.other_rate_hz: float | None = None
        """At which samples come, where that is plainly not `sample_rate_hz`."""
        self._rate = RateWatch(sample_rate_hz)
        self._buffers = buffers
        self._clock = HostClock(sample_rate_hz, wall) if time_source == "host" else None
        first = Mark(0, rate_hz=sample_rate_hz, frequency_hz=frequency_hz, time_source=time_source)
        self._first: list[Mark] | None = [first] * len(buffers)
        self.set_output_multiple(chunk_of(sample_rate_hz))

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: Any) -> int:
        count = len(input_items[0])
        self.heard_s = time.monotonic()
        common: list[Mark] = []
        if self._clock is not None:
            self.other_rate_hz = self._rate.observe(count, self.heard_s) or self.other_rate_hz
            stamp = self._clock.observe(count, self.heard_s)
            if not self._clock.running:
                self._note_tuning(count)
                return count
            common += [] if stamp is None else [stamp]
        first, self._first = self._first, None
        if first is not None:
            # A restart has no place at the beginning: the buffer knows whether there was anything before.
            common = [replace(mark, restart=False) for mark in common]
        for port, (samples, buffer) in enumerate(zip(input_items, self._buffers, strict=True)):
            buffer.push(samples, [*(first or [])[port : port + 1], *common, *self._told(port, count)])
        return count

    def _note_tuning(self, count: int) -> None:
        """Keep what is told of frequencies before there are times."""
        assert self._first is not None
        for port, first in enumerate(self._first):
            for mark in self._told(port, count):
                first = replace(first, frequency_hz=mark.frequency_hz)
            self._first[port] = first

    def _told(self, port: int, count: int) -> list[Mark]:
        """What the driver's tags say of the next samples."""
        first, told = self.nitems_read(port), []
        for tag in self.get_tags_in_range(port, first, first + count):
            index = tag.offset - first
            if pmt.eq(tag.key, tags.RX_FREQ):
                frequency_hz = tags.frequency_from_pmt(tag.value)
                if frequency_hz is not None:
                    told.append(Mark(index, frequency_hz=frequency_hz))
            elif self._clock is not None:
                continue
            elif pmt.eq(tag.key, tags.RX_TIME):
                moment = tags.time_from_pmt(tag.value)
                if moment is not None:
                    told.append(Mark(index, time=moment))
            elif pmt.eq(tag.key, tags.RX_RATE) and pmt.is_real(tag.value) and pmt.to_double(tag.value) > 0.0:
                told.append(Mark(index, rate_hz=pmt.to_double(tag.value)))
        return sorted(told, key=lambda mark: mark.index)


def chunk_of(sample_rate_hz: float) -> int:
    """Samples that are worth a call."""
    return min(max(int(CHUNK_S * sample_rate_hz), 1), MOST_CHUNK)
