"""What emitters send: complex baseband of unit mean power, each a pure function of the sample index.

No waveform keeps state from one call to the next, so a signal can be read anywhere, in any order and in pieces
of any size, and is the same to the last bit. At least 99 % of its power lies within the bandwidth asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from localize_core.errors import ConfigError
from localize_core.phasor import phasor
from localize_core.simulation.blocks import Floats, Purpose, Samples, complex_normal, gather, generator

WaveformName = Literal["noise", "nbfm", "am", "fsk", "bpsk", "qpsk", "qam16", "ofdm", "chirp", "pulse", "none"]
Waveform = Callable[[int, int], Samples]
"""`(first, count)` to complex64 (count,)."""

MAX_BANDWIDTH = 0.8
"""Of the sample rate: what lies further out, fractional delays distort."""

BLOCK = 4096
CACHED_SAMPLES = 1 << 18
"""Enough for delays that differ by so many samples."""

NOISE_SEGMENT = 8192
NOISE_BINS = 128
"""At least so many of a segment's frequencies are occupied."""

VOICE_TOP_HZ = 3000.0
VOICE_BOTTOM = 0.1
VOICE_OVERSAMPLING = 16.0 / 3.0
VOICE_SEGMENT = 2048
VOICE_GAINS = (0.3, 1.0)
AM_DEPTH = 0.3

SYMBOL_BLOCK = 4096
FSK_BANDWIDTH = 1.25

PULSE_SPAN = 12
PULSE_ORDER = 8
ROW = 16
"""Samples that one row of the pulses' matrix product gives."""
ROLL_OFF = 0.25

OFDM_SIZE = 64
OFDM_CARRIERS = 52
OFDM_PREFIX = 16
OFDM_FADE = 8
OFDM_BANDWIDTH = 54.0
"""In subcarrier spacings: those in use, the empty one at 0 Hz and the edges' half lobes."""
OFDM_BLOCK = 32

CHIRP_LENGTH = 128
CHIRP_BANDWIDTH = 1.15

BURST_BITS = 32
BURST_DUTY = 0.25
BURST_BLOCK = 64
PULSE_BANDWIDTH = 3.0


class Pieces(NamedTuple):
    """A signal in blocks of `size` samples."""

    size: int
    block: Callable[[int], Samples]


def waveform(name: WaveformName, *, bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Waveform:
    """The signal `name` with the given occupied bandwidth around 0 Hz.

    Raises ConfigError if the bandwidth does not fit into the sample rate.
    """
    if name != "none" and not 0.0 < bandwidth_hz <= MAX_BANDWIDTH * sample_rate_hz:
        raise ConfigError(
            f"bandwidth_hz={bandwidth_hz:g}: must lie between 0 and {MAX_BANDWIDTH:g} times "
            f"sample_rate_hz={sample_rate_hz:g}"
        )
    size, make = _MAKERS[name](bandwidth_hz, sample_rate_hz, seed)
    block = functools.lru_cache(maxsize=max(CACHED_SAMPLES // size, 4))(make)
    return lambda first, count: gather(block, size, first, count)


def _sampled(signal: Waveform) -> Pieces:
    return Pieces(BLOCK, lambda index: signal(index * BLOCK, BLOCK))


class OverlapNoise:
    """A Gaussian process with a given spectrum: independent segments, cross-faded at constant power.

    `amplitudes`: real, (length,), the amplitude of each FFT bin; the process has mean power sum(amplitudes^2).
    `gains`: every segment is scaled by a number drawn from this range. `fade`: samples over which one segment, with a
    sine, replaces the one before, at most half of the length; `size` = length - fade come from each.
    """

    def __init__(
        self,
        amplitudes: Floats,
        *,
        fade: int,
        seed: int,
        purpose: Purpose,
        gains: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self._length, self._fade, self.size = len(amplitudes), fade, len(amplitudes) - fade
        self._occupied = np.flatnonzero(amplitudes)
        self._scale = (amplitudes[self._occupied] * self._length).astype(np.float32)
        self._window = _sine_edges(len(amplitudes), fade)
        self._seed, self._purpose, self._gains = seed, purpose, gains
        self._segment = functools.lru_cache(maxsize=2)(self._make_segment)

    def samples(self, first: int, count: int) -> Samples:
        """complex64, (count,)."""
        return gather(self.block, self.size, first, count)

    def block(self, index: int) -> Samples:
        """Samples from index * size on: complex64, (size,)."""
        before = self._segment(index - 1)[self.size :]
        block = self._segment(index)[: self.size].copy()
        block[: self._fade] += before
        return block

    def _make_segment(self, index: int) -> Samples:
        draw = generator(self._seed, self._purpose, index)
        gain = draw.uniform(*self._gains)
        spectrum = np.zeros(self._length, np.complex64)
        spectrum[self._occupied] = complex_normal(draw, len(self._occupied), gain) * self._scale
        segment: Samples = scipy.fft.ifft(spectrum, overwrite_x=True)
        segment *= self._window
        return segment


@functools.lru_cache(maxsize=4)
def _sine_edges(length: int, fade: int) -> NDArray[np.float32]:
    """A window that rises and falls with the sine of up to a quarter turn within `fade` samples."""
    rise = np.sin(0.5 * np.pi * (np.arange(fade) + 0.5) / fade)
    return np.concatenate([rise, np.ones(length - 2 * fade), rise[::-1]]).astype(np.float32)


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
        self._noise = OverlapNoise(
            amplitudes, fade=VOICE_SEGMENT // 2, seed=seed, purpose=Purpose.VOICE, gains=VOICE_GAINS
        )

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


class PulseTrain:
    """The sum of pulses g(n * step - k) times symbol k, for every sample n: any symbol rate at any sample rate.

    `symbols`: (first, count) to complex64 (count,). `pulse`: g of float64 times in symbols, smooth, and small beyond
    half of PULSE_SPAN. Between samples of a row symbols and pulse move alike; where in a symbol the row begins,
    polynomials of the pulse say. So all rows together are one matrix product.
    """

    def __init__(self, symbols: Waveform, pulse: Callable[[Floats], Floats], step: float) -> None:
        self._symbols, self._step = symbols, step
        self._before = PULSE_SPAN // 2 - 1
        self._reach = PULSE_SPAN + math.floor((ROW - 1) * step) + 1
        nodes = np.cos(np.pi * (np.arange(PULSE_ORDER + 1) + 0.5) / (PULSE_ORDER + 1))
        time = np.arange(ROW) * step - (np.arange(self._reach) - self._before)[:, None]
        values = pulse(time + 0.5 * (nodes[:, None, None] + 1.0))
        fit = np.linalg.solve(np.vander(nodes, increasing=True), values.reshape(len(nodes), -1))
        self._coefficients = fit.reshape(values.shape).astype(np.float32)

    def __call__(self, first: int, count: int) -> Samples:
        """complex64, (count,), a multiple of ROW."""
        position = np.arange(first, first + count, ROW) * self._step
        whole = np.floor(position)
        start = int(whole[0]) - self._before
        symbols = self._symbols(start, int(whole[-1]) - self._before + self._reach - start)
        rows = symbols[whole.astype(np.int64)[:, None] - int(whole[0]) + np.arange(self._reach)]
        planes = np.stack([rows.real, rows.imag])[:, None]
        terms = np.matmul(planes, self._coefficients).reshape(2, PULSE_ORDER + 1, count)
        x = np.repeat((2.0 * (position - whole) - 1.0).astype(np.float32), ROW)
        signal = np.empty(count, np.complex64)
        for part, powers in ((signal.real, terms[0]), (signal.imag, terms[1])):
            highest, *others = powers[::-1]
            total = highest * x
            for power in others[:-1]:
                total += power
                total *= x
            np.add(total, others[-1], out=part)
        return signal


def _none(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    return _sampled(lambda first, count: np.zeros(count, np.complex64))


def _noise(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    length = max(NOISE_SEGMENT, 1 << math.ceil(math.log2(NOISE_BINS * sample_rate_hz / bandwidth_hz)))
    amplitudes = _flat_band(length, bandwidth_hz / sample_rate_hz)
    noise = OverlapNoise(amplitudes, fade=length // 4, seed=seed, purpose=Purpose.WAVEFORM)
    return Pieces(noise.size, noise.block)


@functools.lru_cache(maxsize=4)
def _flat_band(length: int, bandwidth: float) -> Floats:
    """Amplitudes of FFT bins of unit power over `bandwidth` times the sample rate."""
    band = np.abs(scipy.fft.fftfreq(length)) <= bandwidth / 2.0
    amplitudes: Floats = band / math.sqrt(np.count_nonzero(band))
    return amplitudes


def _nbfm(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """Bandwidth by Carson's rule. The phase is drawn as such, already integrated: nothing accumulates."""
    top_hz = min(VOICE_TOP_HZ, bandwidth_hz / 5.0)
    rms_deviation_hz = (bandwidth_hz / 2.0 - top_hz) / 3.0
    voice = Voice(top_hz=top_hz, slope=-1, sample_rate_hz=sample_rate_hz, seed=seed)
    return _sampled(lambda first, count: phasor(rms_deviation_hz / (2.0 * np.pi) * voice(first, count)))


def _am(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """Carrier and two side bands, at most 95 % modulated."""
    voice = Voice(top_hz=bandwidth_hz / 2.0, slope=0, sample_rate_hz=sample_rate_hz, seed=seed)
    low, high = VOICE_GAINS
    mean_square_gain = (low * low + low * high + high * high) / 3.0
    scale = 1.0 / math.sqrt(1.0 + AM_DEPTH**2 * mean_square_gain)

    def samples(first: int, count: int) -> Samples:
        return (scale * (1.0 + np.clip(AM_DEPTH * voice(first, count), -0.95, 0.95))).astype(np.complex64)

    return _sampled(samples)


def _symbols(seed: int, points: Samples) -> Waveform:
    """Independent symbols, each of `points` as likely as the others."""

    @functools.lru_cache(maxsize=4)
    def block(index: int) -> Samples:
        symbols: Samples = points[generator(seed, Purpose.WAVEFORM, index).integers(0, len(points), SYMBOL_BLOCK)]
        return symbols

    return lambda first, count: gather(block, SYMBOL_BLOCK, first, count)


def _fsk(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """Binary FSK with continuous phase and modulation index 1/2 (MSK); 99 % of the power in 1.25 symbol rates.

    The last bit of each block brings the phase back to a whole turn: no state reaches into the next block.
    """
    step = bandwidth_hz / FSK_BANDWIDTH / sample_rate_hz

    @functools.lru_cache(maxsize=4)
    def block(index: int) -> NDArray[np.int64]:
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
        return phasor(0.25 * (turned[index] + bits[index] * (position - whole)))

    return _sampled(samples)


def _linear(points: Samples, bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """Linear modulation with root-raised-cosine pulses, roll-off 0.25, cut off after about 12 symbols."""
    step = bandwidth_hz / (1.0 + ROLL_OFF) / sample_rate_hz

    def pulse(time: Floats) -> Floats:
        return root_raised_cosine(time, ROLL_OFF)

    return _sampled(PulseTrain(_symbols(seed, points), pulse, step))


_SQUARE: Samples = np.array([-3, -1, 1, 3], np.complex64) / np.float32(math.sqrt(10.0))
_POINTS: dict[str, Samples] = {
    "bpsk": np.array([-1, 1], np.complex64),
    "qpsk": np.exp(0.25j * np.pi * np.array([1, 3, 5, 7])).astype(np.complex64),
    "qam16": (_SQUARE[:, None] + np.complex64(1j) * _SQUARE).ravel(),
}


def _ofdm(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """OFDM: 52 QPSK subcarriers of 64, none at 0 Hz, a quarter of cyclic prefix, symbols cross-faded in it.

    The symbols are made at twice their own rate, then brought to the sample rate.
    """
    size, prefix, fade = 2 * OFDM_SIZE, 2 * OFDM_PREFIX, OFDM_FADE
    hop = size + prefix
    half = OFDM_CARRIERS // 2
    bins = np.concatenate([np.arange(1, half + 1), np.arange(-half, 0)])
    points = _POINTS["qpsk"] * np.float32(size / math.sqrt(OFDM_CARRIERS))
    rise = np.sin(0.5 * np.pi * (np.arange(fade) + 0.5) / fade).astype(np.float32)

    @functools.lru_cache(maxsize=2)
    def group(index: int) -> Samples:
        """OFDM_BLOCK symbols with their prefix and, after them, the part that fades: (OFDM_BLOCK, hop + fade)."""
        spectrum = np.zeros((OFDM_BLOCK, size), np.complex64)
        spectrum[:, bins] = points[
            generator(seed, Purpose.WAVEFORM, index).integers(0, len(points), (OFDM_BLOCK, len(bins)))
        ]
        once = scipy.fft.ifft(spectrum, axis=1)
        symbols: Samples = np.concatenate([once[:, -prefix:], once, once[:, :fade]], axis=1)
        symbols[:, :fade] *= rise
        symbols[:, -fade:] *= rise[::-1]
        return symbols

    @functools.lru_cache(maxsize=4)
    def block(index: int) -> Samples:
        before, symbols = group(index - 1), group(index)
        result = symbols[:, :hop].copy()
        result[0, :fade] += before[-1, hop:]
        result[1:, :fade] += symbols[:-1, hop:]
        return result.ravel()

    def native(first: int, count: int) -> Samples:
        return gather(block, OFDM_BLOCK * hop, first, count)

    step = bandwidth_hz / OFDM_BANDWIDTH * size / sample_rate_hz
    return _sampled(PulseTrain(native, _interpolator, step))


def _interpolator(time: Floats) -> Floats:
    """Raised cosine, roll-off 0.56: interpolates what is sampled twice as often as it must; flat to 0.22 of that rate.

    Source: Proakis, Digital Communications, 9.2.
    """
    roll_off = 0.56
    edge = np.abs(1.0 - (2.0 * roll_off * time) ** 2) < 1e-9
    safe = np.where(edge, 0.0, time)
    shaped = np.sinc(safe) * np.cos(np.pi * roll_off * safe) / (1.0 - (2.0 * roll_off * safe) ** 2)
    result: Floats = np.where(edge, 0.25 * np.pi * np.sinc(0.5 / roll_off), shaped)
    return result


def _chirp(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """Chirp spread spectrum as LoRa sends it, spreading factor 7: each symbol runs once through the band, from one of
    128 frequencies up, from the upper edge back to the lower. Its phase ends where it began.
    """
    step = bandwidth_hz / CHIRP_BANDWIDTH / CHIRP_LENGTH / sample_rate_hz
    symbols = _symbols(seed, np.arange(CHIRP_LENGTH).astype(np.complex64) / np.float32(CHIRP_LENGTH))

    def samples(first: int, count: int) -> Samples:
        position = np.arange(first, first + count) * step
        whole = np.floor(position)
        start = int(whole[0])
        begin = symbols(start, int(whole[-1]) - start + 1).real.astype(np.float64)[whole.astype(np.int64) - start]
        here = (begin + position - whole) % 1.0
        return phasor(0.5 * CHIRP_LENGTH * (here * (here - 1.0) - begin * (begin - 1.0)))

    return _sampled(samples)


def _pulse(bandwidth_hz: float, sample_rate_hz: float, seed: int) -> Pieces:
    """Bursts of 32 bits, a quarter of the time, each somewhere in its slot and of a phase of its own.

    A bit is a pulse in its first or second half, as in Mode S; the pulse is a Hann arch, whose spectrum ends sooner
    than a rectangle's: 99 % lie within 3 over its length. Amplitude 5.2 in the middle of a pulse.
    """
    chips = 2 * BURST_BITS
    slot = chips / BURST_DUTY
    step = bandwidth_hz / PULSE_BANDWIDTH / sample_rate_hz
    top = math.sqrt(2.0 / BURST_DUTY / 0.375)

    @functools.lru_cache(maxsize=4)
    def block(index: int) -> Floats:
        """Start in the slot, phase in cycles and bits of BURST_BLOCK bursts: (2 + BURST_BITS, BURST_BLOCK)."""
        draw = generator(seed, Purpose.WAVEFORM, index)
        return np.concatenate(
            [
                draw.uniform(0.0, slot - chips, (1, BURST_BLOCK)),
                draw.uniform(0.0, 1.0, (1, BURST_BLOCK)),
                draw.integers(0, 2, (BURST_BITS, BURST_BLOCK)),
            ]
        )

    def samples(first: int, count: int) -> Samples:
        position = np.arange(first, first + count) * step
        number = np.floor(position / slot).astype(np.int64)
        bursts = gather(block, BURST_BLOCK, int(number[0]), int(number[-1] - number[0]) + 1)
        time = position - number * slot - bursts[0, number - number[0]]
        sent = np.flatnonzero((time >= 0.0) & (time < chips))
        time, burst = time[sent], number[sent] - number[0]
        chip = time.astype(np.int64)
        on = chip % 2 == bursts[2 + chip // 2, burst]
        arch = np.where(on, 0.5 * top * (1.0 - np.cos(2.0 * np.pi * (time - chip))), 0.0)
        signal = np.zeros(count, np.complex64)
        signal[sent] = arch.astype(np.float32) * phasor(bursts[1, burst])
        return signal

    return _sampled(samples)


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


_MAKERS: dict[str, Callable[[float, float, int], Pieces]] = {
    "none": _none,
    "noise": _noise,
    "nbfm": _nbfm,
    "am": _am,
    "fsk": _fsk,
    **{name: functools.partial(_linear, points) for name, points in _POINTS.items()},
    "ofdm": _ofdm,
    "chirp": _chirp,
    "pulse": _pulse,
}
