"""What receivers do to the signal: clocks, oscillators and gains that are off, and quantisation."""

from __future__ import annotations

import math

import numpy as np

from localize_core.simulation.blocks import Floats, Purpose, Samples, generator
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.fields import SmoothField

BENT_TURNS = 0.16
"""A tied carrier may be so much off a straight line, about, over four blocks: a sixteenth of it over one."""
PEAK_RATE = 4.0
"""Standard deviations of the jitter's rate that count as its largest."""


class ReceiverErrors:
    """The errors of every receiver of a scene, drawn from its seed; with the same seed each error grows with its field.

    `gain` (R,): amplitude. A receiver's sample n is taken clock_s(n / rate) later than it says. Its oscillator turns
    by cycles(t) too much. Clock and oscillator are drawn independently, and a clock that drifts turns no carrier; with
    a `shared_oscillator` one that runs late by a second has turned it by `frequency_hz` besides.
    """

    def __init__(self, config: SceneConfig, receivers: int, frequency_hz: float = 0.0) -> None:
        def drawn(purpose: Purpose, deviation: float) -> Floats:
            if deviation == 0.0:
                return np.zeros(receivers)
            return deviation * generator(config.seed, purpose).standard_normal(receivers)

        self.gain: Floats = 10.0 ** (drawn(Purpose.GAIN, config.gain_error_db) / 20.0)
        self.clock_offset_s = 1e-9 * drawn(Purpose.CLOCK_OFFSET, config.clock_offset_ns)
        self.clock_drift = 1e-9 * drawn(Purpose.CLOCK_DRIFT, config.clock_drift_ppb)
        self.carrier_offset_hz = drawn(Purpose.CARRIER_OFFSET, config.carrier_offset_hz)
        self.carrier_drift_hz_per_s = drawn(Purpose.CARRIER_DRIFT, config.carrier_drift_hz_per_s)
        self.carrier_phase = (
            generator(config.seed, Purpose.CARRIER_PHASE).uniform(0.0, 1.0, receivers)
            if config.random_carrier_phase
            else np.zeros(receivers)
        )
        self._tied_hz = frequency_hz if config.shared_oscillator else 0.0
        self._jitter_s, self._jitter_time_s = 1e-9 * config.timing_jitter_ns, config.timing_jitter_s
        self._jitter = [
            SmoothField(config.seed, Purpose.TIMING_JITTER, index, 1)
            for index in range(receivers if self._jitter_s else 0)
        ]

    @property
    def clock_rate(self) -> float:
        """Largest speed at which a clock gains or loses, seconds per second; 0 where all offsets are constant."""
        jitter = PEAK_RATE * math.sqrt(2.0) * self._jitter_s / self._jitter_time_s
        return float(np.abs(self.clock_drift).max()) + jitter

    @property
    def jitter_time_s(self) -> float:
        """Time over which clocks, and carriers tied to them, wander off a straight line; infinite if they do not."""
        if not self._jitter:
            return math.inf
        turns = self._tied_hz * self._jitter_s
        return self._jitter_time_s * min(1.0, math.sqrt(BENT_TURNS / turns) if turns else 1.0)

    @property
    def turning(self) -> bool:
        """Whether an oscillator is off its frequency."""
        tied = self._tied_hz > 0.0 and self.clock_rate > 0.0
        return tied or bool(self.carrier_offset_hz.any() or self.carrier_drift_hz_per_s.any())

    def clock_s(self, elapsed_s: Floats) -> Floats:
        """How late the clocks are at times (n,) after the start: (R, n), seconds."""
        late = self.clock_offset_s[:, None] + self.clock_drift[:, None] * elapsed_s
        return late + self._wander_s(elapsed_s) if self._jitter else late

    def cycles(self, elapsed_s: Floats) -> Floats:
        """By how much carriers have turned at times (n,) after the start: (R, n), in turns."""
        rate_hz = self.carrier_offset_hz[:, None] + 0.5 * self.carrier_drift_hz_per_s[:, None] * elapsed_s
        result: Floats = self.carrier_phase[:, None] + rate_hz * elapsed_s
        if self._tied_hz:
            result = result + self._tied_hz * self.clock_drift[:, None] * elapsed_s
            if self._jitter:
                result = result + self._tied_hz * self._wander_s(elapsed_s)
        return result

    def _wander_s(self, elapsed_s: Floats) -> Floats:
        scaled = elapsed_s[:, None] / self._jitter_time_s
        return self._jitter_s * np.stack([jitter(scaled) for jitter in self._jitter])


def quantise(samples: Samples, bits: int) -> Samples:
    """What an ADC of `bits` makes of I and Q: steps of 2^(1 - bits), from -1 to one step below 1."""
    steps = np.float32(2 ** (bits - 1))
    parts = np.round(samples.view(np.float32) * steps)
    result: Samples = (np.clip(parts, -steps, steps - 1) / steps).view(np.complex64)
    return result
