"""One emitter, several receivers, and the IQ that each of them would deliver."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from localize_core.errors import ConfigError
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.simulation.blocks import Purpose, gather, generator
from localize_core.simulation.place import Placed
from localize_core.simulation.track import Floats, Track, distance_m
from localize_core.simulation.waveforms import Samples, WaveformName, waveform

BLOCK_S = 0.016
BLOCK_LIMITS = (256, 8192)
"""Delay, level and phase run linearly through a block: it is short in time, and at most that many samples."""

GROUP = 64
"""Blocks whose geometry is worked out in one go."""

TAPS = 32
KAISER_BETA = 8.0
DELAYS = 1024
DERIVATIVE_STEP = 1e-4
ROW = 32
"""Samples of one receiver that one row of the interpolation's matrix product gives."""

SHADOWING_WAVES = 64
NEAREST_M = 1.0

Point = tuple[
    Annotated[float, Field(ge=-90.0, le=90.0)],
    Annotated[float, Field(ge=-180.0, le=180.0)],
]


class SceneConfig(BaseModel):
    """The `[scene]` table of a station file: what is sent, from where, and what becomes of it on the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=1, ge=0, lt=2**63, description="Same seed, same samples, to the last bit.")
    waveform: WaveformName = Field(
        default="noise",
        description="noise: flat Gaussian; nbfm: FM with a voice-like message; am: the same message as AM; fsk: MSK; "
        "qpsk: with root-raised-cosine pulses; none: no emitter.",
    )
    bandwidth_hz: float = Field(
        default=10e3, gt=0.0, allow_inf_nan=False, description="Occupied bandwidth around the centre frequency."
    )
    level_dbfs_at_1km: float = Field(
        default=-30.0, ge=-200.0, le=60.0, description="Mean received power at 1 km, dB relative to full scale."
    )
    path_loss_exponent: float = Field(
        default=2.0, ge=0.0, le=8.0, description="Received power falls with this power of the distance."
    )
    shadowing_db: float = Field(
        default=0.0,
        ge=0.0,
        le=30.0,
        description="Standard deviation of the level around the path loss: for every receiver a smooth random field "
        "over the emitter's place.",
    )
    shadowing_distance_m: float = Field(
        default=100.0, gt=0.0, allow_inf_nan=False, description="Over this way shadowing decorrelates to 1/e."
    )
    noise_dbfs: float = Field(
        default=-60.0, ge=-300.0, le=20.0, description="Receiver noise in the whole sample rate, dB of full scale."
    )
    timing_jitter_ns: float = Field(
        default=0.0, ge=0.0, le=1e9, description="Standard deviation of each receiver's constant clock offset."
    )
    adc_bits: int | None = Field(
        default=None, ge=1, le=24, description="Quantise to so many bits and clip at full scale; left out: neither."
    )
    start_time: AwareDatetime = Field(
        default=datetime(2026, 1, 1, tzinfo=timezone.utc), description="Time of sample 0, ISO 8601 with a time zone."
    )
    track: tuple[Point, ...] = Field(
        min_length=1, description="The emitter's way as [latitude, longitude] in degrees; one point: it stands still."
    )
    altitude_m: float = Field(
        default=0.0, ge=-500.0, le=50e3, description="The emitter's height, in the system of the receivers' heights."
    )
    speed_mps: float = Field(default=0.0, ge=0.0, le=3000.0, description="Speed along the track.")
    loop: bool = Field(
        default=True, description="From the last point back to the first and on; false: stop at the last point."
    )

    @classmethod
    def of(cls, **fields: Any) -> SceneConfig:
        """The configuration with these fields. Raises ConfigError naming key, value and what is allowed."""
        try:
            return cls(**fields)
        except ValidationError as error:
            problems = (
                f"scene.{'.'.join(map(str, item['loc']))}={item['input']!r}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError("; ".join(problems)) from error


class Scene:
    """IQ of all receivers as a pure function of the sample index.

    Receiver r at sample n hears the emitter's waveform as it was the propagation delay earlier, turned by the
    carrier's phase over the path, at the level of the path loss, in Gaussian noise of its own. Distances follow
    the moving emitter, so Doppler is in it.

    Raises ConfigError if there is no receiver, a rate or frequency is not positive, or the bandwidth does not fit.
    """

    def __init__(
        self, config: SceneConfig, receivers: Sequence[Placed], *, sample_rate_hz: float, frequency_hz: float
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
        self._emitted = waveform(
            config.waveform, bandwidth_hz=config.bandwidth_hz, sample_rate_hz=sample_rate_hz, seed=config.seed
        )
        self._track = Track(config.track, speed_mps=config.speed_mps, loop=config.loop)
        draws = generator(config.seed, Purpose.TIMING).standard_normal(len(receivers))
        self._clock_offset_s = 1e-9 * config.timing_jitter_ns * draws
        self._shadowing = [
            ShadowingField(config.shadowing_db, config.shadowing_distance_m, config.track[0], config.seed, index)
            for index in range(len(receivers))
        ]
        wanted = 1 << math.ceil(math.log2(BLOCK_S * sample_rate_hz))
        self._size = min(max(wanted, BLOCK_LIMITS[0]), BLOCK_LIMITS[1])
        self._ramp = np.arange(self._size, dtype=np.float32) / np.float32(self._size)
        self._geometry = functools.lru_cache(maxsize=2)(self._make_geometry)
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

    def truth(self, time_s: float, fraction_s: float = 0.0) -> tuple[float, float]:
        """Latitude and longitude of the emitter at UTC `time_s` + `fraction_s`, seconds since 1970."""
        start = self.config.start_time
        whole = start.replace(microsecond=0).timestamp()
        elapsed_s = (time_s - whole) + (fraction_s - start.microsecond * 1e-6)
        latitude, longitude = self._track.position(np.array(elapsed_s))
        return float(latitude), float(longitude)

    def lap(self, count: int) -> list[tuple[float, float]]:
        """`count` places along the track, once from end to end."""
        latitude, longitude = self._track.along(np.linspace(0.0, self._track.length_m, count))
        return list(zip(latitude.tolist(), longitude.tolist(), strict=True))

    def delay_s(self, elapsed_s: Floats) -> Floats:
        """Propagation delay to every receiver at `elapsed_s` after the start, as received then; (R, n)."""
        return self._distance_m(np.asarray(elapsed_s, np.float64)) / SPEED_OF_LIGHT_MPS

    def level_dbfs(self, elapsed_s: Floats) -> Floats:
        """Mean received power without noise, (R, n)."""
        elapsed_s = np.asarray(elapsed_s, np.float64)
        distance_km = np.maximum(self._distance_m(elapsed_s), NEAREST_M) / 1000.0
        latitude, longitude = self._track.position(elapsed_s)
        shadowing_db = np.stack([field(latitude, longitude) for field in self._shadowing])
        loss_db = 10.0 * self.config.path_loss_exponent * np.log10(distance_km)
        result: Floats = self.config.level_dbfs_at_1km - loss_db + shadowing_db
        return result

    def _distance_m(self, elapsed_s: Floats) -> Floats:
        paths = []
        for receiver in self.receivers:
            place = (receiver.latitude, receiver.longitude, receiver.altitude_m)
            sent_s = elapsed_s
            for _ in range(2):  # what is heard now was sent a delay ago, from where the emitter was then
                latitude, longitude = self._track.position(sent_s)
                path_m = distance_m(latitude, longitude, np.full(latitude.shape, self.config.altitude_m), place)
                sent_s = elapsed_s - path_m / SPEED_OF_LIGHT_MPS
            paths.append(path_m)
        return np.stack(paths)

    def _make_geometry(self, group: int) -> tuple[Floats, Floats]:
        """Delays in seconds and amplitudes at the edges of the group's blocks, both (R, GROUP + 1)."""
        edges_s = (group * GROUP + np.arange(GROUP + 1)) * (self._size / self.sample_rate_hz)
        return self.delay_s(edges_s), 10.0 ** (self.level_dbfs(edges_s) / 20.0)

    def _make_block(self, index: int) -> Samples:
        received = np.zeros((len(self.receivers), self._size), np.complex64)
        for receiver, samples in enumerate(received):
            if self.config.waveform != "none":
                self._propagate(receiver, index, samples)
            samples += self._noise(receiver, index)
        if self.config.adc_bits is not None:
            received = quantise(received, self.config.adc_bits)
        received.flags.writeable = False
        return received

    def _noise(self, receiver: int, index: int) -> Samples:
        draw = generator(self.config.seed, Purpose.NOISE, receiver, index)
        noise = draw.standard_normal(2 * self._size, dtype=np.float32)
        noise *= np.float32(math.sqrt(0.5) * 10.0 ** (self.config.noise_dbfs / 20.0))
        return noise.view(np.complex64)

    def _propagate(self, receiver: int, index: int, out: Samples) -> None:
        """Write the emitter as the receiver hears it in block `index` to `out`, complex64 (size,)."""
        group, block = divmod(index, GROUP)
        delay_s, amplitude = (both[receiver, block : block + 2] for both in self._geometry(group))
        late = (delay_s - self._clock_offset_s[receiver]) * self.sample_rate_hz
        self._interpolate(index * self._size - late.mean(), late[1] - late[0], out)

        cycles = delay_s * self.frequency_hz
        step = (cycles[0] - cycles[1]) / self._size
        carrier = _unit(step * np.arange(0, self._size, ROW) - cycles[0])[:, None] * _unit(step * np.arange(ROW))
        out *= carrier.ravel()
        out *= np.float32(amplitude[0]) + np.float32(amplitude[1] - amplitude[0]) * self._ramp

    def _interpolate(self, first: float, drift: float, out: Samples) -> None:
        """Write the emitted waveform from the broken sample index `first` on to `out`, complex64 (size,).

        Over the block it falls behind by `drift` samples, far less than one: nil in the block's middle. A windowed
        sinc and, for the drift, its derivative, as one matrix product: a row of the left factor is a stretch of
        input, the right one holds the taps shifted by one from column to column.
        """
        whole = math.ceil(first)
        emitted = self._emitted(whole - TAPS // 2, self._size + TAPS)
        windows = np.lib.stride_tricks.sliding_window_view(np.stack([emitted.real, emitted.imag]), ROW + TAPS, axis=1)
        rows = windows[:, ::ROW].reshape(-1, ROW + TAPS)
        filters = fractional_delay(whole - first)
        planes = (rows @ _shifted(filters if self._track.moving else filters[:1])).reshape(2, len(out) // ROW, -1, ROW)
        heard = planes[:, :, 0]
        if self._track.moving:
            behind = np.float32(drift) * (self._ramp - np.float32(0.5))
            heard += behind.reshape(-1, ROW) * planes[:, :, 1]
        out.real, out.imag = heard.reshape(2, -1)


class ShadowingField:
    """Level in dB around the path loss as a smooth function of the emitter's place.

    Zero mean, standard deviation `sigma_db` over seeds and places, correlation exp(-(d / distance_m)^2): a sum of
    plane waves with random directions and phases (spectral representation, Shinozuka & Deodatis 1991).
    """

    def __init__(
        self, sigma_db: float, distance_m: float, origin: tuple[float, float], seed: int, receiver: int
    ) -> None:
        draw = generator(seed, Purpose.SHADOWING, receiver)
        metres_per_degree = 111_320.0
        scale = metres_per_degree * np.array([1.0, math.cos(math.radians(origin[0]))])
        self._origin = np.array(origin)
        self._waves = draw.standard_normal((SHADOWING_WAVES, 2)) * (math.sqrt(2.0) / distance_m) * scale
        self._phases = draw.uniform(0.0, 2.0 * math.pi, SHADOWING_WAVES)
        self._amplitude_db = sigma_db * math.sqrt(2.0 / SHADOWING_WAVES)

    def __call__(self, latitude: Floats, longitude: Floats) -> Floats:
        place = np.stack([latitude, longitude], axis=-1) - self._origin
        result: Floats = self._amplitude_db * np.cos(place @ self._waves.T + self._phases).sum(axis=-1)
        return result


@functools.lru_cache(maxsize=1)
def _delay_table() -> Floats:
    """Taps and their derivative for DELAYS + 1 delays from 0 to 1 sample, float64 (DELAYS + 1, 2, TAPS + 1)."""
    place = np.arange(TAPS + 1) - TAPS // 2 + np.arange(DELAYS + 1)[:, None] / DELAYS
    taps, ahead, behind = (_windowed_sinc(place + step) for step in (0.0, DERIVATIVE_STEP, -DERIVATIVE_STEP))
    return np.stack([taps, (ahead - behind) / (2.0 * DERIVATIVE_STEP)], axis=1)


def fractional_delay(late: float) -> NDArray[np.float32]:
    """Taps that delay by `late` in [0, 1) samples, and their derivative with respect to it: float32, (2, TAPS + 1).

    Output n is sum_k taps[k] x[n - TAPS / 2 + k]. A sinc in a Kaiser window, flat to 0.4 of the sample rate.
    """
    index, part = divmod(late * DELAYS, 1.0)
    below, above = _delay_table()[int(index) : int(index) + 2]
    result: NDArray[np.float32] = (below + part * (above - below)).astype(np.float32)
    return result


def _windowed_sinc(place: Floats) -> Floats:
    inside = 1.0 - (place / (TAPS / 2.0)) ** 2
    window = np.where(inside > 0.0, np.i0(KAISER_BETA * np.sqrt(np.maximum(inside, 0.0))) / np.i0(KAISER_BETA), 0.0)
    result: Floats = np.sinc(place) * window
    return result


def _shifted(filters: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, TAPS + 1) to (ROW + TAPS, n * ROW): column j of filter i holds its taps from row j on."""
    count = len(filters)
    matrix = np.zeros((count, ROW, ROW + TAPS), np.float32)
    batch, row, item = matrix.strides
    diagonals = np.lib.stride_tricks.as_strided(matrix, (count, ROW, TAPS + 1), (batch, row + item, item))
    diagonals[:] = filters[:, None, :]
    return matrix.reshape(count * ROW, ROW + TAPS).T


def _unit(cycles: Floats) -> Samples:
    phase: Floats = 2.0 * np.pi * (cycles % 1.0)
    result: Samples = np.exp(1j * phase).astype(np.complex64)
    return result


def quantise(samples: Samples, bits: int) -> Samples:
    """What an ADC of `bits` makes of I and Q: steps of 2^(1 - bits), from -1 to one step below 1."""
    steps = np.float32(2 ** (bits - 1))
    parts = np.round(samples.view(np.float32) * steps)
    result: Samples = (np.clip(parts, -steps, steps - 1) / steps).view(np.complex64)
    return result
