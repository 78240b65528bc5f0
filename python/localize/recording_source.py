"""What the sources of recordings share: samples with the tags that say when they were taken."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pmt
from gnuradio import gr
from localize_core.errors import ConfigError
from localize_core.sources.recording import Mark, Recording, stamped_samples

from . import tags
from .guard import WORK_DONE, guarded
from .marks import to_tags

REPEAT_UNIT_S = 60.0


class recording_source(gr.sync_block):
    """Samples of a recording, full scale 1, at the recording's own true rate.

    `rx_time` on the first sample, about every second and after each gap is the recording's own; one without valid
    time has none. `rx_rate` is the true rate, `rx_freq` is `frequency_hz` or, if None, what the recording says.
    `localize_time_error` is the standard error of the recording's times (seconds), `localize_length` the number of
    samples. A recording that holds the tags of its stream (`marks`) gives those and no others, but for
    `localize_length` and a `frequency_hz` instead of its own.

    `repeat`: over and over, each time later by the recording's duration rounded up to whole minutes, so that
    recordings made together stay together.

    Raises ConfigError for a frequency that is not finite.
    """

    def __init__(self, name: str, recording: Recording, repeat: bool, frequency_hz: float | None) -> None:
        if frequency_hz is not None and not math.isfinite(frequency_hz):
            raise ConfigError(f"frequency_hz={frequency_hz}: must be finite, or None for what the recording says")
        gr.sync_block.__init__(self, name, in_sig=None, out_sig=[np.complex64])
        self.recording = recording
        self.failure: Exception | None = None
        self._repeat = repeat
        self._marks = _marks(recording, frequency_hz)
        self._marked = np.array([mark.index for mark in self._marks], np.int64)
        self._period_s = math.ceil(recording.duration_s / REPEAT_UNIT_S) * int(REPEAT_UNIT_S)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        if len(self.recording) == 0:
            return WORK_DONE
        written = self.nitems_written(0)
        turn, first = divmod(written, len(self.recording))
        if turn > 0 and not self._repeat:
            return WORK_DONE
        samples = self.recording.read(first, len(output_items[0]))
        count = len(samples)
        output_items[0][:count] = samples
        if written == 0 and count and not self._repeat:
            self.add_item_tag(0, 0, tags.LENGTH, pmt.from_uint64(len(self.recording)))
        begin, end = np.searchsorted(self._marked, (first, first + count))
        for mark in self._marks[begin:end]:
            for key, value in to_tags(mark, later_s=turn * self._period_s):
                self.add_item_tag(0, written + mark.index - first, key, value)
        return count


def _marks(recording: Recording, frequency_hz: float | None) -> list[Mark]:
    """The tags of a recording: its own, or those that its times, rate and tuning make; one mark for each sample."""
    found = {0: Mark(0)} if frequency_hz is not None else {}
    if recording.marks is not None:
        found |= {mark.index: mark for mark in recording.marks}
    else:
        for index in stamped_samples(recording).tolist():
            found[index] = Mark(index, rx_time=recording.time(index))
        for index, tuned_hz in recording.tunings:
            found[index] = replace(found.get(index, Mark(index)), rx_freq_hz=tuned_hz)
        error_s = recording.time_error_ns * 1e-9 if recording.time_valid else None
        start = found.get(0, Mark(0))
        found[0] = replace(start, rx_rate_hz=recording.sample_rate_hz, time_error_s=error_s)
    if frequency_hz is not None:
        found = {index: replace(mark, rx_freq_hz=None) for index, mark in found.items()}
        found[0] = replace(found[0], rx_freq_hz=frequency_hz)
    return sorted(found.values(), key=lambda mark: mark.index)
