"""Streams of several receivers on one time grid."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from localize_core.alignment.aligner import AlignedBlock, Aligner
from localize_core.alignment.timeline import TimeTag
from localize_core.features.quality import SampleFlag
from localize_core.types.fix import Alignment

from . import tags
from .guard import WORK_DONE, guarded

STATUS_PORT = pmt.intern("status")
FLAG_EVERY = 1024
"""Samples between `localize_flags` tags while a flag lasts: shorter than any window."""


class time_align(gr.basic_block):
    """N complex streams with `rx_time` tags to N complex streams whose items stand side by side in time.

    Item by item the outputs are samples at the times k / `sample_rate_hz`, from the latest start to the earliest end.
    `acquire_s`: how much of each stream is gathered before the first output, and before a jump of its times is
    believed. `max_fill_s`: lost samples up to this become zeros (`localize_gap` holds their number), more are skipped
    on all streams. Streams without usable times pass through as they are, flagged `unaligned`.

    A recording shorter than `acquire_s` needs a `localize_length` tag: GNU Radio does not say when a stream ends.
    """

    def __init__(
        self, sample_rate_hz: float, n_receivers: int = 2, acquire_s: float = 2.0, max_fill_s: float = 0.5
    ) -> None:
        self.aligner = Aligner(n_receivers, sample_rate_hz, acquire_s=acquire_s, max_fill_s=max_fill_s)
        signature = [np.complex64] * n_receivers
        gr.basic_block.__init__(self, "time_align", in_sig=signature, out_sig=signature)
        self.failure: Exception | None = None
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.message_port_register_out(STATUS_PORT)
        self._n_receivers = n_receivers
        self._frequencies: list[deque[tuple[int, Any]]] = [deque() for _ in range(n_receivers)]
        self._fill_left = [0] * n_receivers
        self._state = ""
        self._told: Alignment | None = None

    # Needed where the next output waits; the scheduler ends the block when such a stream has ended.
    def forecast(self, noutput_items: int, ninputs: int) -> list[int]:
        return [int(starves) for starves in self.aligner.starving()]

    @guarded
    def general_work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        if not self._state:
            self._publish("acquiring")
        for receiver, samples in enumerate(input_items):
            self._take(receiver, samples)
        produced, space = 0, len(output_items[0])
        while produced < space and (block := self.aligner.pull(space - produced)) is not None:
            for output, samples in zip(output_items, block.samples, strict=True):
                output[produced : produced + len(samples)] = samples
            self._tag(produced, block)
            produced += len(block.samples[0])
        return WORK_DONE if self.aligner.finished and produced == 0 else produced

    def _take(self, receiver: int, samples: np.ndarray) -> None:
        first = self.nitems_read(receiver)
        room = min(len(samples), self.aligner.room(receiver))
        times = []
        for tag in self.get_tags_in_range(receiver, first, first + room):
            if pmt.eq(tag.key, tags.RX_TIME):
                time = tags.time_from_pmt(tag.value)
                if time is not None:
                    times.append(TimeTag(tag.offset, *time))
            elif pmt.eq(tag.key, tags.RX_RATE) and pmt.is_number(tag.value):
                self.aligner.describe(receiver, rate_hz=pmt.to_double(tag.value))
            elif pmt.eq(tag.key, tags.TIME_ERROR) and pmt.is_number(tag.value):
                self.aligner.describe(receiver, time_error_s=pmt.to_double(tag.value))
            elif pmt.eq(tag.key, tags.LENGTH) and pmt.is_uint64(tag.value):
                self.aligner.describe(receiver, length=pmt.to_uint64(tag.value))
            elif pmt.eq(tag.key, tags.RX_FREQ):
                self._frequencies[receiver].append((tag.offset, tag.value))
        self.consume(receiver, self.aligner.push(receiver, samples, times))

    def _tag(self, offset: int, block: AlignedBlock) -> None:
        count = len(block.samples[0])
        start = self.nitems_written(0) + offset
        skipped = self._told is not None and block.alignment.gaps_skipped > self._told.gaps_skipped
        if skipped or any(block.filled):
            self._publish("gap")
        if block.marked:
            if block.time is not None:
                tags.write(self, self._n_receivers, offset, tags.RX_TIME, tags.time_to_pmt(*block.time))
            if block.alignment != self._told:
                self._told = block.alignment
                tags.write(self, self._n_receivers, offset, tags.ALIGNMENT, tags.alignment_to_pmt(block.alignment))
        if start == 0:
            rate = pmt.from_double(self.aligner.sample_rate_hz)
            tags.write(self, self._n_receivers, 0, tags.RX_RATE, rate)
            timed = any(self.aligner.timed)
            self._publish("aligned" if all(self.aligner.timed) else "partly_aligned" if timed else "no_time")
        for receiver, filled in enumerate(block.filled):
            if filled:
                self.add_item_tag(receiver, start, tags.GAP, pmt.from_long(filled))
                self._fill_left[receiver] = filled
            self._flag(receiver, start, count, bool(filled))
            waiting, source, due = self._frequencies[receiver], block.sources[receiver], {}
            while waiting and waiting[0][0] < source + count:
                index, value = waiting.popleft()
                due[max(index - source, 0)] = value
            for index, value in due.items():
                self.add_item_tag(receiver, start + index, tags.RX_FREQ, value)

    def _flag(self, receiver: int, start: int, count: int, begins: bool) -> None:
        """`localize_flags` every FLAG_EVERY samples, and where a gap begins."""
        if not self.aligner.timed[receiver]:
            flag, span = SampleFlag.UNALIGNED, count
        else:
            flag, span = SampleFlag.GAP, min(count, self._fill_left[receiver])
            self._fill_left[receiver] -= span
        every = range(-(-start // FLAG_EVERY) * FLAG_EVERY, start + span, FLAG_EVERY)
        for index in sorted({*every, *([start] if begins else [])}):
            self.add_item_tag(receiver, index, tags.FLAGS, pmt.init_s32vector(1, [int(flag)]))

    def _publish(self, state: str) -> None:
        """A dict on the status port and a line in the log."""
        self._state = state
        alignment = self.aligner.alignment
        status = {
            "state": state,
            "timed": list(self.aligner.timed),
            "rejected": list(self.aligner.rejected),
            "residual_ns": alignment.residual_ns,
            "gaps_filled": alignment.gaps_filled,
            "gaps_skipped": alignment.gaps_skipped,
        }
        self.message_port_pub(STATUS_PORT, pmt.to_pmt(status))
        report = self.logger.info if state in ("acquiring", "aligned") else self.logger.warn
        report(", ".join(f"{name} {value}" for name, value in status.items()))
