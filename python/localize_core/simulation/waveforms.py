"""What emitters send: complex baseband of unit mean power, each a pure function of the sample index.

No waveform keeps state from one call to the next, so a signal can be read anywhere, in any order and in pieces
of any size, and is the same to the last bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from localize_core.errors import ConfigError
from localize_core.simulation.blocks import Purpose, gather, generator

WaveformName = Literal["noise", "nbfm", "fsk", "qpsk", "am", "none"]
Samples = NDArray[np.complex64]
Floats = NDArray[np.float64]
Waveform = Callable[[int, int], Samples]
"""`(first, count)` to complex64 (count,)."""

MAX_BANDWIDTH = 0.8
"""Of the sample rate: what lies further out, fractional delays distort."""

BLOCK = 4096
CACHED_BLOCKS = 64
"""Enough for delays that differ by a quarter of a million samples."""

VOICE_TOP_HZ = 3000.0
VOICE_BOTTOM = 0.1
VOICE_OVERSAMPLING = 16.0 / 3.0
VOICE_SEGMENT = 2048
VOICE_GAINS = (0.3, 1.0)
AM_DEPTH = 0.3

FSK_BANDWIDTH = 1.2
QPSK_ROLL_OFF = 0.25
QPSK_SPAN = 12
QPSK_PHASES = 4096
SYMBOL_BLOCK = 512


def waveform(name: WaveformName, *, bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    """The signal `name` with the given occupied bandwidth around 0 Hz.

    Raises ConfigError if the bandwidth does not fit into the sample rate.
    """
    if name != "none" and not 0.0 < bandwidth_hz <= MAX_BANDWIDTH * sample_rate_hz:
        raise ConfigError(
            f"bandwidth_hz={bandwidth_hz:g}: must lie between 0 and {MAX_BANDWIDTH:g} times "
            f"sample_rate_hz={sample_rate_hz:g}"
        )
    signal = _MAKERS[name](bandwidth_hz, sample_rate_hz, seed)

    @functools.lru_cache(maxsize=CACHED_BLOCKS)
    def block(index: int) -> Samples:
        return signal(index * BLOCK, BLOCK)

    return lambda first, count: gather(block, BLOCK, first, count)


class OverlapNoise:
    """A Gaussian process with a given spectrum: independent segments, cross-faded at constant power.

    `amplitudes`: real, (length,), the amplitude of each FFT bin; the process has mean power sum(amplitudes^2).
    `gains`: every segment is scaled by a number drawn from this range.
    Segments overlap by half and are weighted by a half sine, whose squares add up to one.
    """

    def __init__(
        self, amplitudes: Floats, *, seed: int, purpose: Purpose, gains: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self._size = len(amplitudes) // 2
        self._occupied = np.flatnonzero(amplitudes)
        self._scale = (amplitudes[self._occupied] * len(amplitudes)).astype(np.float32)
        self._window = np.sin(np.pi * (np.arange(len(amplitudes)) + 0.5) / len(amplitudes)).astype(np.float32)
        self._seed, self._purpose, self._gains = seed, purpose, gains
        self._segment = functools.lru_cache(maxsize=2)(self._make_segment)

    def samples(self, first: int, count: int) -> Samples:
        """complex64, (count,)."""
        return gather(self._half, self._size, first, count)

    def _make_segment(self, index: int) -> Samples:
        draw = generator(self._seed, self._purpose, index)
        gain = draw.uniform(*self._gains) * math.sqrt(0.5)
        normals = draw.standard_normal(2 * len(self._occupied), dtype=np.float32).view(np.complex64)
        spectrum = np.zeros(2 * self._size, np.complex64)
        spectrum[self._occupied] = normals * (self._scale * np.float32(gain))
        segment: Samples = scipy.fft.ifft(spectrum, overwrite_x=True) * self._window
        return segment

    def _half(self, index: int) -> Samples:
        return self._segment(index - 1)[self._size :] + self._segment(index)[: self._size]


class Voice:
    """Real-valued noise in the speech band with syllables, evaluated between its own samples.

    `top_hz`: upper edge. `slope`: exponent of frequency in the amplitude spectrum; the process has unit power
    at slope 0 before the gains, and with -1 it is the integral of that one, times 2 pi.
    """

    def __init__(self, *, top_hz: float, slope: int, sample_rate_hz: float, seed: int) -> None:
        self._rate_hz = VOICE_OVERSAMPLING * top_hz
        self._step = self._rate_hz / sample_rate_hz
        frequency_hz = scipy.fft.fftfreq(VOICE_SEGMENT, 1.0 / self._rate_hz)
        band = (frequency_hz >= VOICE_BOTTOM * top_hz) & (frequency_hz <= top_hz)
        amplitudes = np.zeros(VOICE_SEGMENT)
        amplitudes[band] = frequency_hz[band] ** slope / math.sqrt(np.count_nonzero(band))
        self._noise = OverlapNoise(amplitudes, seed=seed, purpose=Purpose.VOICE, gains=VOICE_GAINS)

    def __call__(self, first: int, count: int) -> Floats:
        """float64, (count,): cubic (Catmull-Rom) interpolation, smooth across every boundary."""
        position = np.arange(first, first + count) * self._step
        start = math.floor(position[0]) - 1
        voice = math.sqrt(2.0) * self._noise.samples(start, math.floor(position[-1]) - start + 3).real
        whole = np.floor(position)
        x = position - whole
        index = whole.astype(np.int64) - start
        a, b, c, d = (voice[index + offset] for offset in (-1, 0, 1, 2))
        result: Floats = b + 0.5 * x * (c - a + x * (2 * a - 5 * b + 4 * c - d + x * (3 * (b - c) + d - a)))
        return result


def _none(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    return lambda first, count: np.zeros(count, np.complex64)


def _noise(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    length = 1 << max(13, math.ceil(math.log2(64.0 * sample_rate_hz / bandwidth_hz)))
    band = np.abs(scipy.fft.fftfreq(length, 1.0 / sample_rate_hz)) <= bandwidth_hz / 2.0
    amplitudes = band / math.sqrt(np.count_nonzero(band))
    return OverlapNoise(amplitudes, seed=seed, purpose=Purpose.WAVEFORM).samples


def _nbfm(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    """Bandwidth by Carson's rule. The phase is drawn as such, already integrated: nothing accumulates."""
    top_hz = min(VOICE_TOP_HZ, bandwidth_hz / 5.0)
    rms_deviation_hz = (bandwidth_hz / 2.0 - top_hz) / 3.0
    phase = Voice(top_hz=top_hz, slope=-1, sample_rate_hz=sample_rate_hz, seed=seed)
    return lambda first, count: np.exp(1j * rms_deviation_hz * phase(first, count)).astype(np.complex64)


def _am(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    """Carrier and two side bands, at most 95 % modulated."""
    voice = Voice(top_hz=bandwidth_hz / 2.0, slope=0, sample_rate_hz=sample_rate_hz, seed=seed)
    low, high = VOICE_GAINS
    mean_square_gain = (low * low + low * high + high * high) / 3.0
    scale = 1.0 / math.sqrt(1.0 + AM_DEPTH**2 * mean_square_gain)

    def samples(first: int, count: int) -> Samples:
        return (scale * (1.0 + np.clip(AM_DEPTH * voice(first, count), -0.95, 0.95))).astype(np.complex64)

    return samples


def _fsk(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    """Binary FSK with continuous phase and modulation index 1/2 (MSK); 99 % of the power in 1.2 symbol rates.

    The last bit of each block brings the phase back to a whole turn: no state reaches into the next block.
    """
    step = bandwidth_hz / FSK_BANDWIDTH / sample_rate_hz

    @functools.lru_cache(maxsize=CACHED_BLOCKS)
    def block(index: int) -> Samples:
        bits = generator(seed, Purpose.WAVEFORM, index).integers(0, 2, SYMBOL_BLOCK) * 2 - 1
        if bits.sum() % 4:
            bits[-1] = -bits[-1]
        return np.stack([bits, np.cumsum(bits) - bits])

    def samples(first: int, count: int) -> Samples:
        position = np.arange(first, first + count) * step
        start = math.floor(position[0])
        bits, turned = gather(block, SYMBOL_BLOCK, start, math.floor(position[-1]) - start + 1)
        whole = np.floor(position)
        index = whole.astype(np.int64) - start
        phase: Floats = 0.5 * np.pi * (turned[index] + bits[index] * (position - whole))
        signal: Samples = np.exp(1j * phase).astype(np.complex64)
        return signal

    return samples


def _qpsk(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    """QPSK with root-raised-cosine pulses, roll-off 0.25, cut off after 12 symbols."""
    step = bandwidth_hz / (1.0 + QPSK_ROLL_OFF) / sample_rate_hz
    phase = (np.arange(QPSK_PHASES) + 0.5) / QPSK_PHASES
    offset = np.arange(QPSK_SPAN) - (QPSK_SPAN // 2 - 1)
    pulse = root_raised_cosine(phase[:, None] - offset[None, :], QPSK_ROLL_OFF)
    pulse = (pulse / np.sqrt(np.mean(np.sum(pulse**2, axis=1)))).astype(np.float32)
    points: Samples = np.exp(0.25j * np.pi * np.array([1, 3, 5, 7])).astype(np.complex64)

    @functools.lru_cache(maxsize=CACHED_BLOCKS)
    def block(index: int) -> Samples:
        symbols: Samples = points[generator(seed, Purpose.WAVEFORM, index).integers(0, 4, SYMBOL_BLOCK)]
        return symbols

    def samples(first: int, count: int) -> Samples:
        position = np.arange(first, first + count) * step
        start = math.floor(position[0]) + int(offset[0])
        symbols = gather(block, SYMBOL_BLOCK, start, math.floor(position[-1]) - start + int(offset[-1]) + 1)
        whole = np.floor(position)
        weights = pulse[((position - whole) * QPSK_PHASES).astype(np.int64)]
        windows = np.lib.stride_tricks.sliding_window_view(symbols, QPSK_SPAN)
        signal: Samples = np.einsum("nk,nk->n", windows[whole.astype(np.int64) - math.floor(position[0])], weights)
        return signal

    return samples


def root_raised_cosine(time: Floats, roll_off: float) -> Floats:
    """The pulse at `time` in symbols, real, unit energy. Source: Proakis, Digital Communications, 9.2."""
    edge = np.abs(np.abs(4.0 * roll_off * time) - 1.0) < 1e-9
    safe = np.where((time == 0.0) | edge, 0.1, time)
    pulse = (
        np.sin(np.pi * safe * (1.0 - roll_off)) + 4.0 * roll_off * safe * np.cos(np.pi * safe * (1.0 + roll_off))
    ) / (np.pi * safe * (1.0 - (4.0 * roll_off * safe) ** 2))
    at_edge = (roll_off / math.sqrt(2.0)) * (
        (1.0 + 2.0 / np.pi) * math.sin(np.pi / (4.0 * roll_off))
        + (1.0 - 2.0 / np.pi) * math.cos(np.pi / (4.0 * roll_off))
    )
    result: Floats = np.where(time == 0.0, 1.0 + roll_off * (4.0 / np.pi - 1.0), np.where(edge, at_edge, pulse))
    return result


_MAKERS: dict[str, Callable[[float, float, int], Waveform]] = {
    "none": _none,
    "noise": _noise,
    "nbfm": _nbfm,
    "am": _am,
    "fsk": _fsk,
    "qpsk": _qpsk,
}
