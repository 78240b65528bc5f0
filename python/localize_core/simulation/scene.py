"""Emitters, several receivers, and the IQ that each of them would deliver."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from localize_core.errors import ConfigError
from localize_core.simulation.blocks import Floats, Purpose, Samples, complex_normal, gather, generator
from localize_core.simulation.channels import ChannelSet, load_channels
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.emission import Emission, sent
from localize_core.simulation.impairments import ReceiverErrors, quantise
from localize_core.simulation.interpolation import ROW
from localize_core.simulation.propagation import FreeSpace, Propagation, Recorded
from localize_core.types.place import Placed

__all__ = ["Scene", "SceneConfig"]

BLOCK_S = 0.016
BLOCK_LIMITS = (ROW, 8192)
SMALLEST_USUAL_BLOCK = 256
"""Delay, level and phase run linearly through a block: it is short in time, at most that many samples, and below
the usual only where a clock wanders fast."""

LARGEST_DRIFT = 0.04
"""Samples that a delay may change within a block: with its first derivative that is good to -60 dB at either end."""
NO_DRIFT = 1e-3
"""Samples of change that a block may ignore altogether, at -60 dB too."""
JITTER_STEPS = 4
"""Blocks in the time over which a clock wanders."""


class Scene:
    """IQ of all receivers as a pure function of the sample index.

    Receiver r at sample n hears each emitter's waveform along each path as it was that path's delay earlier, turned by
    the carrier's phase over the path, in Gaussian noise of its own, with errors of its own (`errors`). In free space
    distances follow the moving emitter, so Doppler is in it.

    `channels`: a set that is already loaded, in place of the file that `config` may name; no file is read then.

    Raises ConfigError if there is no receiver, a rate or frequency is not positive, the bandwidth does not fit, or
    receivers, frequency or rows are not those of the channel data set; SourceError if its file is broken.
    """

    def __init__(
        self,
        config: SceneConfig,
        receivers: Sequence[Placed],
        *,
        sample_rate_hz: float,
        frequency_hz: float,
        channels: ChannelSet | None = None,
    ) -> None:
        if not receivers:
            raise ConfigError("receivers=(): a scene needs at least one")
        if not (math.isfinite(sample_rate_hz) and sample_rate_hz > 0.0):
            raise ConfigError(f"sample_rate_hz={sample_rate_hz}: must be positive")
        if not (math.isfinite(frequency_hz) and frequency_hz > 0.0):
            raise ConfigError(f"frequency_hz={frequency_hz}: must be positive")
        self.config = config
        self.receivers = tuple(receivers)
        self.sample_rate_hz = sample_rate_hz
        self.frequency_hz = frequency_hz
        self.errors = ReceiverErrors(config, len(receivers), frequency_hz)
        rates = {"sample_rate_hz": sample_rate_hz, "frequency_hz": frequency_hz}
        self._propagation = self._made_propagation(channels)
        further = [also.as_scene(config.seed, index) for index, also in enumerate(config.also)]
        self._further = [FreeSpace(other, receivers, **rates) for other in further]
        rate = max(paths.path_rate for paths in (self._propagation, *self._further)) + self.errors.clock_rate
        self._size = _block_size(sample_rate_hz, rate, self.errors.jitter_time_s)
        self._noise_rms = 10.0 ** (config.noise_dbfs / 20.0) * self.errors.gain
        waves = [sent(config, sample_rate_hz)]
        waves += [
            sent(other, sample_rate_hz, offset_hz=also.frequency_offset_hz, pauses_s=also.pauses_s)
            for other, also in zip(further, config.also, strict=True)
        ]
        is_heard = [config.waveform != "none", *(also.waveform != "none" for also in config.also)]
        self._emissions = [
            Emission(
                wave,
                paths,
                self.errors,
                sample_rate_hz=sample_rate_hz,
                size=self._size,
                drifting=rate * self._size > NO_DRIFT,
            )
            for wave, paths, heard in zip(waves, (self._propagation, *self._further), is_heard, strict=True)
            if heard
        ]
        self._block = functools.lru_cache(maxsize=2)(self._make_block)

    def samples(self, first: int, count: int) -> Samples:
        """Samples [first, first + count) of every receiver: complex64, (R, count), |x| = 1 is full scale.

        The same numbers to the last bit, however the range is cut.
        """
        if first < 0 or count < 0:
            raise ConfigError(f"first={first}, count={count}: must not be negative")
        return gather(self._block, self._size, first, count)

    def time(self, index: int) -> tuple[int, float]:
        """UTC of sample `index` as whole seconds since 1970 and the fraction of a second."""
        start = self.config.start_time
        whole = int(index // self.sample_rate_hz)
        fraction = (index - whole * self.sample_rate_hz) / self.sample_rate_hz + start.microsecond * 1e-6
        carry = math.floor(fraction)
        return int(start.replace(microsecond=0).timestamp()) + whole + carry, fraction - carry

    def truth(self, time_s: float, fraction_s: float = 0.0, *, emitter: int = 0) -> tuple[float, float]:
        """Latitude and longitude of an emitter at UTC `time_s` + `fraction_s`, seconds since 1970.

        `emitter`: 0 is the scene's own, 1 the first of those that send `also`.
        """
        start = self.config.start_time
        whole = start.replace(microsecond=0).timestamp()
        elapsed_s = (time_s - whole) + (fraction_s - start.microsecond * 1e-6)
        latitude, longitude = (self._propagation, *self._further)[emitter].position(np.array(elapsed_s))
        return float(latitude), float(longitude)

    def lap(self, count: int) -> list[tuple[float, float]]:
        """`count` places of the emitter, along its track or its rows, once from end to end."""
        latitude, longitude = self._propagation.along(count)
        return list(zip(latitude.tolist(), longitude.tolist(), strict=True))

    def delay_s(self, elapsed_s: Floats) -> Floats:
        """Delay of the first path to every receiver at `elapsed_s` after the start, as received then; (R, n).

        NaN where there is no path. Clocks are not in it.
        """
        return self._propagation.delay_s(np.asarray(elapsed_s, np.float64))

    def level_dbfs(self, elapsed_s: Floats) -> Floats:
        """Mean received power of all paths without noise and gain errors, (R, n); -inf where there is no path."""
        return self._propagation.level_dbfs(np.asarray(elapsed_s, np.float64))

    def _made_propagation(self, channels: ChannelSet | None) -> Propagation:
        config = self.config
        if channels is None and config.channels:
            channels = load_channels(config.channels)
        if channels is not None and config.track:
            raise ConfigError("scene.track: says nothing where a channel data set is handed over; leave it empty")
        rates = {"sample_rate_hz": self.sample_rate_hz, "frequency_hz": self.frequency_hz}
        if channels is not None:
            return Recorded(config, channels, self.receivers, **rates)
        if not config.track:
            raise ConfigError(f"scene.channel_rows={list(config.channel_rows)}: `channels` must name their data set")
        return FreeSpace(config, self.receivers, **rates)

    def _make_block(self, index: int) -> Samples:
        received = np.zeros((len(self.receivers), self._size), np.complex64)
        for emission in self._emissions[:1]:
            emission.hear(index * self._size, received)
        for emission in self._emissions[1:]:
            heard = np.empty_like(received)
            emission.hear(index * self._size, heard)
            received += heard
        draw = generator(self.config.seed, Purpose.NOISE, index)
        for samples, rms in zip(received, self._noise_rms, strict=True):
            samples += complex_normal(draw, self._size, rms)
        if self.config.adc_bits is not None:
            received = quantise(received, self.config.adc_bits)
        received.flags.writeable = False
        return received


def _block_size(sample_rate_hz: float, rate: float, jitter_time_s: float) -> int:
    """Samples in a block, a power of two: short enough for delays that change at `rate` and clocks that wander."""
    size = min(max(1 << math.ceil(math.log2(BLOCK_S * sample_rate_hz)), SMALLEST_USUAL_BLOCK), BLOCK_LIMITS[1])
    while size > BLOCK_LIMITS[0] and (
        rate * size > LARGEST_DRIFT or JITTER_STEPS * size > jitter_time_s * sample_rate_hz
    ):
        size //= 2
    return size
