"""Streams of several receivers on one time grid."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from localize_core.alignment.aligner import AlignedBlock, Aligner
from localize_core.alignment.settings import Clocks
from localize_core.alignment.timeline import TimeTag
from localize_core.alignment.trusted import RateTag, RestartTag, Tag
from localize_core.features.quality import SampleFlag
from localize_core.types.fix import Alignment, TimeSource

from . import tags
from .guard import WORK_DONE, guarded
from .input_watch import InputWatch

STATUS_PORT = pmt.intern("status")
FLAG_EVERY = 1024
"""Samples between `localize_flags` tags while a flag lasts: shorter than any window."""


class time_align(gr.basic_block):
    """N complex streams with `rx_time` tags to N complex streams whose items stand side by side in time.

    Item by item the outputs are samples at the times k / `sample_rate_hz`, from the latest start to the earliest end.
    `acquire_s`: how much of each stream is gathered before the first output, and before a jump of its times is
    believed. `max_fill_s`: lost samples up to this become zeros (`localize_gap` holds their number), more are skipped
    on all streams. Streams without usable times pass through as they are, flagged `unaligned`. `localize_boundary`
    marks what no window may span.

    `clocks`, `max_wait_s`, `replay`: see Aligner. With `max_wait_s`, and unless it is a `replay`, the block goes on
    when an input delivers nothing: its output is zeros then, flagged `absent`. It ends when nothing has come from any
    input for a second and the one that was heard last has ended, for GNU Radio does not say which.

    A recording shorter than `acquire_s` needs a `localize_length` tag: GNU Radio does not say when a stream ends.
    """

    def __init__(
        self,
        sample_rate_hz: float,
        n_receivers: int = 2,
        acquire_s: float = 2.0,
        max_fill_s: float = 0.5,
        clocks: Clocks = "fitted",
        max_wait_s: float | None = None,
        replay: bool = False,
    ) -> None:
        self._make_aligner = partial(
            Aligner,
            n_receivers,
            sample_rate_hz,
            acquire_s=acquire_s,
            max_fill_s=max_fill_s,
            clocks=clocks,
            max_wait_s=max_wait_s,
            replay=replay,
        )
        self.aligner = self._make_aligner()
        signature = [np.complex64] * n_receivers
        gr.basic_block.__init__(self, "time_align", in_sig=signature, out_sig=signature)
        self.failure: Exception | None = None
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.message_port_register_out(STATUS_PORT)
        self._n_receivers = n_receivers
        self.names = [f"stream {index}" for index in range(n_receivers)]
        """What the log calls the receivers."""
        self._goes_on = max_wait_s is not None and not replay
        self._watch, self._is_idle = InputWatch(), False
        self._has_started = False
        self._reset()

    def _reset(self) -> None:
        """As before the first sample."""
        count = self._n_receivers
        self._frequencies: list[deque[tuple[int, Any]]] = [deque(maxlen=tags.MOST_WAITING) for _ in range(count)]
        self._tuned_hz: list[float | None] = [None] * count
        self._sources: list[deque[tuple[int, TimeSource]]] = [deque(maxlen=tags.MOST_WAITING) for _ in range(count)]
        self._source_of: list[TimeSource] = ["rx_time"] * count
        self._told_source: TimeSource = "rx_time"
        self._told_present: tuple[bool, ...] = ()
        self._fill_left = [0] * count
        self._state = ""
        self._told: Alignment | None = None

    # Needed where the next output waits; the scheduler ends the block when such a stream has ended.
    def forecast(self, noutput_items: int, ninputs: int) -> list[int]:
        if not self._goes_on:
            return [int(starves) for starves in self.aligner.starving()]
        return self._watch.needed(noutput_items, ninputs)

    def start(self) -> bool:
        if self._has_started and self.nitems_read(0) == 0:  # a flowgraph that is started again counts from zero
            self.aligner = self._make_aligner()
            self._reset()
        self._has_started = True
        self._watch.start()
        return True

    @guarded
    def general_work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        if not self._state:
            self._publish("acquiring")
        if self._goes_on:
            self._watch.look(input_items, is_idle=self._is_idle)
        for receiver, samples in enumerate(input_items):
            self._take(receiver, samples)
        produced, space = 0, len(output_items[0])
        while produced < space and (block := self.aligner.pull(space - produced)) is not None:
            for output, samples in zip(output_items, block.samples, strict=True):
                output[produced : produced + len(samples)] = samples
            self._tag(produced, block)
            produced += len(block.samples[0])
        self._is_idle = produced == 0
        return WORK_DONE if self.aligner.finished and produced == 0 else produced

    def _take(self, receiver: int, samples: np.ndarray) -> None:
        first = self.nitems_read(receiver)
        room = min(len(samples), self.aligner.room(receiver))
        known: list[Tag] = []
        for tag in self.get_tags_in_range(receiver, first, first + room):
            if pmt.eq(tag.key, tags.RX_TIME):
                moment = tags.time_from_pmt(tag.value)
                if moment is not None:
                    known.append(TimeTag(tag.offset, *moment))
            elif pmt.eq(tag.key, tags.RX_RATE) and pmt.is_number(tag.value):
                known.append(RateTag(tag.offset, pmt.to_double(tag.value)))
            elif pmt.eq(tag.key, tags.RESTART):
                known.append(RestartTag(tag.offset, tags.restart_from_pmt(tag.value)))
            elif pmt.eq(tag.key, tags.TIME_SOURCE):
                source = tags.time_source_from_pmt(tag.value)
                if source is not None:
                    self._sources[receiver].append((tag.offset, source))
            elif pmt.eq(tag.key, tags.TIME_ERROR) and pmt.is_number(tag.value):
                self.aligner.doubt(receiver, tag.offset, pmt.to_double(tag.value))
            elif pmt.eq(tag.key, tags.LENGTH) and pmt.is_uint64(tag.value):
                self.aligner.describe(receiver, length=pmt.to_uint64(tag.value))
            elif pmt.eq(tag.key, tags.RX_FREQ):
                self._frequencies[receiver].append((tag.offset, tag.value))
                frequency_hz = tags.frequency_from_pmt(tag.value)
                if self._tuned_hz[receiver] not in (None, frequency_hz):
                    self.aligner.retune(receiver, tag.offset)
                self._tuned_hz[receiver] = frequency_hz
        self.consume(receiver, self.aligner.push(receiver, samples, known))

    def _tag(self, offset: int, block: AlignedBlock) -> None:
        count = len(block.samples[0])
        start = self.nitems_written(0) + offset
        skipped = self._told is not None and block.alignment.gaps_skipped > self._told.gaps_skipped
        if block.boundary is not None:
            tags.write(self, self._n_receivers, offset, tags.BOUNDARY, tags.boundary_to_pmt(block.boundary))
        if self._told_present and block.present != self._told_present:
            self._publish("receivers")
        elif skipped or any(block.filled):
            self._publish("gap")
        self._told_present = block.present
        self._tell_source(start, block)
        if block.marked:
            if block.time is not None:
                tags.write(self, self._n_receivers, offset, tags.RX_TIME, tags.time_to_pmt(*block.time))
            if block.alignment != self._told:
                self._told = block.alignment
                tags.write(self, self._n_receivers, offset, tags.ALIGNMENT, tags.alignment_to_pmt(block.alignment))
        if start == 0:
            rate = pmt.from_double(self.aligner.sample_rate_hz)
            tags.write(self, self._n_receivers, 0, tags.RX_RATE, rate)
            self._publish("aligned" if all(block.timed) else "partly_aligned" if any(block.timed) else "no_time")
        for receiver, filled in enumerate(block.filled):
            if filled:
                self.add_item_tag(receiver, start, tags.GAP, pmt.from_long(filled))
                self._fill_left[receiver] = filled
            self._flag(receiver, start, block, bool(filled) or block.boundary is not None)
            if not block.present[receiver]:
                continue
            waiting, source, due = self._frequencies[receiver], block.sources[receiver], {}
            while waiting and waiting[0][0] < source + count:
                index, value = waiting.popleft()
                due[max(index - source, 0)] = value
            for index, value in due.items():
                self.add_item_tag(receiver, start + index, tags.RX_FREQ, value)

    def _tell_source(self, start: int, block: AlignedBlock) -> None:
        """`localize_time_source`: one stream by the host's clock is enough for all to be."""
        count = len(block.samples[0])
        for receiver, waiting in enumerate(self._sources):
            while block.present[receiver] and waiting and waiting[0][0] < block.sources[receiver] + count:
                self._source_of[receiver] = waiting.popleft()[1]
        here = [said for said, present in zip(self._source_of, block.present, strict=True) if present]
        source: TimeSource = "host" if "host" in here else "rx_time"
        if source != self._told_source:
            self._told_source = source
            for output in range(self._n_receivers):
                self.add_item_tag(output, start, tags.TIME_SOURCE, tags.time_source_to_pmt(source))

    def _flag(self, receiver: int, start: int, block: AlignedBlock, begins: bool) -> None:
        """`localize_flags` every FLAG_EVERY samples, and where a gap or something else begins."""
        count = len(block.samples[0])
        if not block.present[receiver]:
            flag, span = SampleFlag.ABSENT, count
        elif not block.timed[receiver]:
            flag, span = SampleFlag.UNALIGNED, count
        else:
            flag, span = SampleFlag.GAP, min(count, self._fill_left[receiver])
            self._fill_left[receiver] -= span
        if span == 0:
            return
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
            "present": list(self.aligner.present),
            "rejected": list(self.aligner.rejected),
            "residual_ns": alignment.residual_ns,
            "gaps_filled": alignment.gaps_filled,
            "gaps_skipped": alignment.gaps_skipped,
        }
        self.message_port_pub(STATUS_PORT, pmt.to_pmt(status))
        is_well = state in ("acquiring", "aligned") or (state == "receivers" and all(self.aligner.present))
        (self.logger.info if is_well else self.logger.warn)(self._in_words(state))
        self.logger.debug(", ".join(f"{name} {value}" for name, value in status.items()))

    def _in_words(self, state: str) -> str:
        """A state for the log."""
        count, alignment = self._n_receivers, self.aligner.alignment
        if state == "acquiring":
            return f"gathering {count} receivers"
        if state == "aligned":
            return f"aligned: {count} receivers"
        if state == "gap":
            return f"samples were lost; so far {alignment.gaps_filled} gaps filled, {alignment.gaps_skipped} skipped"
        if state == "receivers":
            absent = [name for name, present in zip(self.names, self.aligner.present, strict=True) if not present]
            return f"{', '.join(absent)} {'are' if absent[1:] else 'is'} absent" if absent else "all receivers are back"
        untimed = [name for name, timed in zip(self.names, self.aligner.timed, strict=True) if not timed]
        return f"no usable times of {', '.join(untimed)}: not aligned"
