"""A KiwiSDR IQ recording as a source, with the true times of its samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pmt
from gnuradio import gr
from localize_core.errors import ConfigError
from localize_core.sources.kiwi import read_kiwi_wav

from . import tags
from .guard import WORK_DONE, guarded

TAG_INTERVAL_S = 1.0
REPEAT_UNIT_S = 60.0


class kiwi_wav_source(gr.sync_block):
    """Samples of a recording, full scale 1, at the recording's own true rate.

    `rx_time` on the first sample, about every second and after each gap comes from the line fitted to all stamps; a
    recording without valid time has none. `rx_rate` is the true rate, `rx_freq` is `frequency_hz` or, if None, what
    the file's name says. `localize_time_error` is the standard error of that time line (seconds), `localize_length`
    the number of samples. `repeat`: over and over, each time later by the recording's duration rounded up to whole
    minutes, so that recordings made together stay together.

    Raises ConfigError for a frequency that is not finite, SourceError if the file is no such recording.
    """

    def __init__(self, path: str | Path, repeat: bool = False, frequency_hz: float | None = None) -> None:
        if frequency_hz is not None and not math.isfinite(frequency_hz):
            raise ConfigError(f"frequency_hz={frequency_hz}: must be finite, or None for what the file's name says")
        self.recording = read_kiwi_wav(path)
        gr.sync_block.__init__(self, "kiwi_wav_source", in_sig=None, out_sig=[np.complex64])
        self.failure: Exception | None = None
        self._repeat = repeat
        self._frequency_hz = self.recording.frequency_hz if frequency_hz is None else frequency_hz
        interval = max(1, round(TAG_INTERVAL_S * self.recording.sample_rate_hz))
        stamped = {*range(0, len(self.recording.samples), interval), *(gap.index for gap in self.recording.gaps)}
        self._stamped = np.array(sorted(stamped))
        self._period_s = math.ceil(self.recording.duration_s / REPEAT_UNIT_S) * int(REPEAT_UNIT_S)

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        samples = self.recording.samples
        written = self.nitems_written(0)
        turn, first = divmod(written, len(samples))
        if turn > 0 and not self._repeat:
            return WORK_DONE
        count = min(len(output_items[0]), len(samples) - first)
        output_items[0][:count] = samples[first : first + count]
        if written == 0:
            self._describe()
        if self.recording.time_valid:
            for index in self._stamped[
                np.searchsorted(self._stamped, first) : np.searchsorted(self._stamped, first + count)
            ]:
                seconds, fraction = self.recording.time(int(index))
                time = tags.time_to_pmt(seconds + turn * self._period_s, fraction)
                self.add_item_tag(0, written + int(index) - first, tags.RX_TIME, time)
        return count

    def _describe(self) -> None:
        self.add_item_tag(0, 0, tags.RX_RATE, pmt.from_double(self.recording.sample_rate_hz))
        if self._frequency_hz is not None:
            self.add_item_tag(0, 0, tags.RX_FREQ, pmt.from_double(self._frequency_hz))
        if self.recording.time_valid:
            error = pmt.from_double(self.recording.time_error_ns * 1e-9)
            self.add_item_tag(0, 0, tags.TIME_ERROR, error)
        if not self._repeat:
            self.add_item_tag(0, 0, tags.LENGTH, pmt.from_uint64(len(self.recording.samples)))
