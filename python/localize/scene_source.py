"""Simulated receivers as a source: IQ of one emitter whose truth is known."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from localize_core.errors import ConfigError
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.types.place import place_of

from . import tags
from .guard import WORK_DONE, guarded

TAG_INTERVAL_S = 1.0
PACE_S = 0.01


class scene_source(gr.sync_block):
    """One complex stream per receiver, tagged with `rx_time`, `rx_rate` and `rx_freq` at the start and each second,
    and with `localize_length` where it ends.

    `receivers`: (name, latitude, longitude) or (name, latitude, longitude, altitude_m). `duration_s`: 0 never ends.
    `throttle`: pace to real time. `scene`: the fields of SceneConfig.
    """

    def __init__(
        self,
        receivers: Sequence[tuple[Any, ...]],
        sample_rate_hz: float,
        frequency_hz: float,
        duration_s: float = 0.0,
        throttle: bool = False,
        **scene: Any,
    ) -> None:
        places = [place_of(receiver) for receiver in receivers]
        if not (math.isfinite(duration_s) and duration_s >= 0.0):
            raise ConfigError(f"duration_s={duration_s}: must be 0 (endless) or more")
        self.scene = Scene(SceneConfig.of(**scene), places, sample_rate_hz=sample_rate_hz, frequency_hz=frequency_hz)
        gr.sync_block.__init__(self, "scene_source", in_sig=None, out_sig=[np.complex64] * len(places))
        self.failure: Exception | None = None
        self._total = round(duration_s * sample_rate_hz) if duration_s else None
        self._throttle = throttle
        self._started_s = 0.0

    def start(self) -> bool:
        self._started_s = time.monotonic()
        return True

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        first = self.nitems_written(0)
        count = len(output_items[0])
        if self._total is not None:
            count = min(count, self._total - first)
        if count <= 0:
            return WORK_DONE
        if self._throttle:
            count = self._pace(first, count)
        for output, samples in zip(output_items, self.scene.samples(first, count), strict=True):
            output[:count] = samples
        self._tag(first, count)
        return count

    def _pace(self, first: int, count: int) -> int:
        """How many of `count` samples are due; waits until PACE_S worth of them, or all, are."""
        rate_hz = self.scene.sample_rate_hz
        wanted = min(count, max(1, round(PACE_S * rate_hz)))
        ahead_s = (first + wanted) / rate_hz - (time.monotonic() - self._started_s)
        if ahead_s > 0.0:
            time.sleep(ahead_s)
        due = math.floor((time.monotonic() - self._started_s) * rate_hz) - first
        return min(count, max(due, wanted))

    def _tag(self, first: int, count: int) -> None:
        if first == 0 and self._total is not None:
            # Whoever gathers samples before going on learns that a short stream is whole.
            tags.write(self, len(self.scene.receivers), 0, tags.LENGTH, pmt.from_uint64(self._total))
        interval = TAG_INTERVAL_S * self.scene.sample_rate_hz
        for number in range(math.ceil(first / interval), math.ceil((first + count) / interval)):
            offset = math.ceil(number * interval)
            for key, value in (
                (tags.RX_TIME, tags.time_to_pmt(*self.scene.time(offset))),
                (tags.RX_RATE, pmt.from_double(self.scene.sample_rate_hz)),
                (tags.RX_FREQ, pmt.from_double(self.scene.frequency_hz)),
            ):
                tags.write(self, len(self.scene.receivers), offset - first, key, value)
