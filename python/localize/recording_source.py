"""What the sources of recordings share: samples with the tags that say when they were taken."""

from __future__ import annotations

import math

import numpy as np
import pmt
from gnuradio import gr
from localize_core.errors import ConfigError
from localize_core.sources.recording import Recording, stamped_samples

from . import tags
from .guard import WORK_DONE, guarded

REPEAT_UNIT_S = 60.0


class recording_source(gr.sync_block):
    """Samples of a recording, full scale 1, at the recording's own true rate.

    `rx_time` on the first sample, about every second and after each gap is the recording's own; one without valid
    time has none. `rx_rate` is the true rate, `rx_freq` is `frequency_hz` or, if None, what the recording says.
    `localize_time_error` is the standard error of the recording's times (seconds), `localize_length` the number of
    samples. `repeat`: over and over, each time later by the recording's duration rounded up to whole minutes, so that
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
        self._tunings = recording.tunings if frequency_hz is None else ((0, frequency_hz),)
        self._stamped = stamped_samples(recording)
        self._period_s = math.ceil(recording.duration_s / REPEAT_UNIT_S) * int(REPEAT_UNIT_S)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        written = self.nitems_written(0)
        turn, first = divmod(written, len(self.recording))
        if turn > 0 and not self._repeat:
            return WORK_DONE
        samples = self.recording.read(first, len(output_items[0]))
        count = len(samples)
        output_items[0][:count] = samples
        if written == 0:
            self._describe()
        for index, frequency_hz in self._tunings:
            if first <= index < first + count:
                self.add_item_tag(0, written + index - first, tags.RX_FREQ, pmt.from_double(frequency_hz))
        begin, end = np.searchsorted(self._stamped, (first, first + count))
        for index in self._stamped[begin:end].tolist():
            seconds, fraction = self.recording.time(index)
            time = tags.time_to_pmt(seconds + turn * self._period_s, fraction)
            self.add_item_tag(0, written + index - first, tags.RX_TIME, time)
        return count

    def _describe(self) -> None:
        self.add_item_tag(0, 0, tags.RX_RATE, pmt.from_double(self.recording.sample_rate_hz))
        if self.recording.time_valid:
            error = pmt.from_double(self.recording.time_error_ns * 1e-9)
            self.add_item_tag(0, 0, tags.TIME_ERROR, error)
        if not self._repeat:
            self.add_item_tag(0, 0, tags.LENGTH, pmt.from_uint64(len(self.recording)))
