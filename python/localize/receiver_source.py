"""Where a receiver's stream enters the station's graph: from its buffer, as long as the station runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from localize_core.receivers.stream_buffer import Mark, StreamBuffer

from . import tags
from .guard import guarded
from .stream_outlet import chunk_of

WAIT_S = 0.1
"""A block that waits longer holds up whoever stops the graph."""


class receiver_source(gr.sync_block):
    """A complex stream out of a buffer, tagged with `rx_time`, `rx_rate`, `rx_freq`, `localize_time_source` and
    `localize_restart`. While there is nothing, it waits; it never ends.
    """

    def __init__(self, buffer: StreamBuffer, sample_rate_hz: float) -> None:
        gr.sync_block.__init__(self, "receiver_source", None, [np.complex64])
        self.failure: Exception | None = None
        self._buffer = buffer
        self.set_output_multiple(chunk_of(sample_rate_hz))  # room for as many at a time

    def start(self) -> bool:
        self._buffer.begin()
        return True

    @guarded
    def work(self, input_items: Any, output_items: list[np.ndarray]) -> int:
        if not self._buffer.wait(WAIT_S):
            return 0
        count, marks = self._buffer.pull(output_items[0])
        for mark in marks:
            self._tag(mark)
        return count

    def _tag(self, mark: Mark) -> None:
        told = [
            (tags.RESTART, tags.restart_to_pmt(mark.lost) if mark.restart else None),
            (tags.TIME_SOURCE, None if mark.time_source is None else tags.time_source_to_pmt(mark.time_source)),
            (tags.RX_TIME, None if mark.time is None else tags.time_to_pmt(*mark.time)),
            (tags.RX_RATE, None if mark.rate_hz is None else pmt.from_double(mark.rate_hz)),
            (tags.RX_FREQ, None if mark.frequency_hz is None else pmt.from_double(mark.frequency_hz)),
        ]
        for key, value in told:
            if value is not None:
                tags.write(self, 1, mark.index, key, value)
