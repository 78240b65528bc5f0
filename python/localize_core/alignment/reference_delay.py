"""Delay and carrier offset of one signal between two streams: found anywhere first, then measured finely.

Delays are positive where the first stream's samples come later than thought.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal
from numpy.typing import NDArray

from localize_core.phasor import phasor

Samples = NDArray[np.complex64]
Floats = NDArray[np.float64]

FALSE_ALARM = 1e-4
"""Probability that noise alone looks like the reference in one search, at most."""
TAIL = 1.2
"""Products of noise reach a little farther than noise."""
SIDE_PEAK = 1.4
"""A search's largest peak is so many times as high as the next: else the signal repeats itself, and which is it?"""
GUARD = 3.0
"""Over the bandwidth: so far from the largest peak another may begin."""
TRACK_FALSE_ALARM = 1e-6
FINE = 4
"""Lags to a sample of the extracted band."""
TAPER = 0.5
"""Part of a sub-block over which it fades in and out."""
CLUSTERS = 8
"""With fewer sub-blocks than this their own scatter says nothing."""
TURNS = 8
"""Frequencies to one cycle over the block."""


@dataclass(frozen=True)
class Found:
    """Sample `lag` of the searched stream is the first of the template. `carrier_hz`: by how much it turns faster."""

    lag: int
    carrier_hz: float


def search(
    searched: Samples, template: Samples, *, rate_hz: float, bandwidth_hz: float, max_carrier_hz: float
) -> Found | None:
    """Where in `searched` the template is, whatever its carrier's offset; None where nothing stands out.

    Both complex64, (n,) and (m,) with m less than n, at `rate_hz`; the signal occupies `bandwidth_hz` of that.

    What is correlated is each signal times its own conjugate a little before: an offset of the carrier is then a
    constant phase, and a constant envelope does no harm. Noise alone passes with probability FALSE_ALARM.
    """
    before = max(1, round(0.5 * rate_hz / bandwidth_hz))
    own, other = _products(searched, before), _products(template, before)
    lags = len(own) - len(other) + 1
    if lags < 2:
        return None
    size = scipy.fft.next_fast_len(len(own))
    spectrum = scipy.fft.fft(own, size) * scipy.fft.fft(other, size).conj()
    spectrum[np.abs(scipy.fft.fftfreq(size, 1.0 / rate_hz)) > bandwidth_hz] = 0.0
    power = np.square(np.abs(scipy.fft.ifft(spectrum)[:lags]))
    best = int(power.argmax())
    guard = math.ceil(GUARD * rate_hz / bandwidth_hz)
    others = np.concatenate([power[: max(best - guard, 0)], power[best + guard + 1 :]])
    if len(others) < 4 * guard or not power[best] > 0.0:
        return None
    # Of complex Gaussian noise the median is ln 2 of the mean.
    mean = float(np.median(others)) / math.log(2.0)
    independent = lags * min(1.0, 2.0 * bandwidth_hz / rate_hz)
    if power[best] < TAIL * mean * math.log(independent / FALSE_ALARM) or power[best] < SIDE_PEAK * others.max():
        return None
    product = searched[best : best + len(template)] * template.conj()
    size = scipy.fft.next_fast_len(4 * len(product))
    turning = np.abs(scipy.fft.fft(product, size))
    frequency_hz = scipy.fft.fftfreq(size, 1.0 / rate_hz)
    turning[np.abs(frequency_hz) > max_carrier_hz] = 0.0
    line = int(turning.argmax())
    between = _peak(*(turning[(line + side) % size] for side in (-1, 0, 1)))
    return Found(best, float(frequency_hz[line]) + between * rate_hz / size)


def _products(samples: Samples, before: int) -> Samples:
    products: Samples = samples[before:] * samples[:-before].conj()
    products -= products.mean()
    return products


@dataclass(frozen=True)
class Measured:
    """`delay_s` and `carrier_hz` (the first stream's less the second's) with their standard errors; `coherence` in
    [0, 1] of the streams within the band; `seen`: whether that is more than chance.
    """

    delay_s: float
    delay_sigma_s: float
    carrier_hz: float
    carrier_sigma_hz: float
    coherence: float
    seen: bool


def sub_block_spectra(samples: Samples, starts: Floats, carrier_hz: float, *, length: int, rate_hz: float) -> Samples:
    """FFTs of `length` samples from each of `starts` on, the carrier turned back: complex64 (n, length).

    `samples`: complex64 (m,) at `rate_hz`; `starts`: (n,), with fractions, counted from the first of them.
    """
    whole = np.rint(starts).astype(np.int64)
    turn = -carrier_hz / rate_hz
    # What the two streams' ends do not share must not tell.
    window = phasor(turn * np.arange(length)) * _taper(length)
    pieces = np.lib.stride_tricks.sliding_window_view(samples, length)[whole] * window
    spectra: Samples = scipy.fft.fft(pieces, axis=1, overwrite_x=True)
    spectra *= phasor(scipy.fft.fftfreq(length) * (starts - whole)[:, None] + (turn * whole)[:, None])
    return spectra


def measure(first: Samples, second: Samples, times_s: Floats, *, frequency_hz: Floats, max_delay_s: float) -> Measured:
    """Delay and carrier offset between two streams' sub-blocks.

    `first`, `second`: spectra within the band, complex64 (n, bins), at `frequency_hz` (bins,); `times_s`: of the
    sub-blocks' middles, (n,). A delay that they do not tell, as an unmodulated carrier does not, is not `seen`.
    """
    cross = (first * second.conj()).astype(np.complex128)
    count, bins = cross.shape
    span_s = (times_s[-1] - times_s[0]) * count / max(count - 1, 1) if count > 1 else 1.0
    delays_s, kernel = _delays(frequency_hz.tobytes(), max_delay_s)
    by_delay = cross @ kernel
    size = TURNS * count
    grid = np.abs(scipy.fft.fft(by_delay, size, axis=0))
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    turn = _peak(*(grid[(row + side) % size, column] for side in (-1, 0, 1)))
    cycles = (row + turn) / size
    carrier_hz = (cycles - round(cycles)) * count / span_s if count > 1 else 0.0
    delay_s = float(delays_s[column])
    energy = math.sqrt(float(np.square(np.abs(first)).sum()) * float(np.square(np.abs(second)).sum()))
    for _ in range(3):
        summed = np.exp(-2j * np.pi * carrier_hz * times_s) @ cross
        delay_s += _steepest(summed, frequency_hz, delay_s)
        lines = cross @ np.exp(2j * np.pi * frequency_hz * delay_s)
        carrier_hz += _slope(lines * np.exp(-2j * np.pi * carrier_hz * times_s), times_s)
    total = np.exp(-2j * np.pi * carrier_hz * times_s) @ cross @ np.exp(2j * np.pi * frequency_hz * delay_s)
    coherence = min(abs(total) / energy, 1.0 - 1e-9) if energy > 0.0 else 0.0
    aligned = cross * np.exp(2j * np.pi * (frequency_hz * delay_s - carrier_hz * times_s[:, None]))
    aligned *= np.conj(total) / max(abs(total), 1e-300)
    chance = math.log(grid.size / TRACK_FALSE_ALARM) / (count * bins)
    delay_sigma_s = _sigma(aligned, np.broadcast_to(frequency_hz, cross.shape))
    return Measured(
        delay_s,
        delay_sigma_s,
        float(carrier_hz),
        _sigma(aligned, np.broadcast_to(times_s[:, None], cross.shape)) if count > 1 else math.inf,
        coherence,
        coherence**2 > chance and abs(delay_s) < max_delay_s and math.isfinite(delay_sigma_s),
    )


@functools.lru_cache(maxsize=4)
def _taper(length: int) -> NDArray[np.float32]:
    taper: NDArray[np.float32] = scipy.signal.windows.tukey(length, TAPER).astype(np.float32)
    return taper


@functools.lru_cache(maxsize=4)
def _delays(frequency_hz: bytes, max_delay_s: float) -> tuple[Floats, NDArray[np.complex128]]:
    frequencies = np.frombuffer(frequency_hz)
    step_s = 1.0 / (FINE * max(float(np.ptp(frequencies)), 1e-9))
    reach = math.ceil(max_delay_s / step_s)
    delays_s = np.arange(-reach, reach + 1) * step_s
    return delays_s, np.exp(2j * np.pi * frequencies[:, None] * delays_s)


def _steepest(summed: NDArray[np.complex128], frequency_hz: Floats, delay_s: float) -> float:
    """One Newton step to the maximum of the summed cross-spectrum's power over the delay."""
    turned = summed * np.exp(2j * np.pi * frequency_hz * delay_s)
    speed = 2j * np.pi * frequency_hz
    value, first, second = turned.sum(), (turned * speed).sum(), (turned * speed**2).sum()
    slope = 2.0 * (value.conjugate() * first).real
    bend = 2.0 * (abs(first) ** 2 + (value.conjugate() * second).real)
    limit = 0.3 / max(float(np.ptp(frequency_hz)), 1e-9)
    return float(np.clip(-slope / bend, -limit, limit)) if bend < 0.0 else 0.0


def _slope(lines: NDArray[np.complex128], times_s: Floats) -> float:
    """What is left of turning in `lines`, Hz, by their phases' weighted slope."""
    if len(lines) < 2:
        return 0.0
    phase = np.angle(lines * np.conj(lines.sum()))
    weight = np.square(np.abs(lines))
    middle = np.average(times_s, weights=weight) if weight.any() else 0.0
    spread = (weight * np.square(times_s - middle)).sum()
    return float((weight * (times_s - middle) * phase).sum() / spread / (2.0 * np.pi)) if spread > 0.0 else 0.0


def _sigma(aligned: NDArray[np.complex128], place: Floats) -> float:
    """Standard error of a phase's slope over `place` / 2 pi, from how the lines scatter across their common phase.

    It holds whatever the spectra of signal and noise are, and where lines of one sub-block err together. Sources:
    White 1982 (sandwich estimator), Liang & Zeger 1986 (clusters).
    """
    total = float(aligned.real.sum())
    if total <= 0.0:
        return math.inf
    off = 2.0 * np.pi * (place - float((aligned.real * place).sum()) / total)
    bend = float((aligned.real * np.square(off)).sum())
    scatter = aligned.imag * off
    spread = float(np.square(scatter).sum())
    if len(scatter) >= CLUSTERS:
        spread = max(spread, float(np.square(scatter.sum(axis=1)).sum()))
    return math.sqrt(spread) / bend if bend > 0.0 else math.inf


def _peak(below: float, top: float, above: float) -> float:
    bend = below - 2.0 * top + above
    return 0.5 * (below - above) / bend if bend < 0.0 else 0.0


def band_centre(samples: Samples, *, rate_hz: float, bandwidth_hz: float, max_offset_hz: float) -> tuple[float, float]:
    """Centre of the band of this width with the most power, Hz, and its power over that of the noise, less 1.

    `samples`: complex64 (n,) at `rate_hz`; a centre farther than `max_offset_hz` from 0 is not looked at.
    The noise is what the weakest tenth of the spectrum's lines hold.
    """
    size = scipy.fft.next_fast_len(min(max(64, round(64.0 * rate_hz / bandwidth_hz)), len(samples)))
    pieces = samples[: len(samples) // size * size].reshape(-1, size) * np.hanning(size).astype(np.float32)
    power = scipy.fft.fftshift(np.square(np.abs(scipy.fft.fft(pieces, axis=1))).mean(axis=0)).astype(np.float64)
    step_hz = rate_hz / size
    width = min(max(1, round(bandwidth_hz / step_hz)), size)
    sums = np.convolve(power, np.ones(width), mode="valid")
    centres_hz = (np.arange(len(sums)) + (width - 1) / 2.0 - size // 2) * step_hz
    allowed = np.abs(centres_hz) <= max_offset_hz + step_hz
    best = int(np.where(allowed, sums, -1.0).argmax())
    floor = float(np.percentile(power, 10.0))
    return float(centres_hz[best]), float(sums[best]) / width / max(floor, 1e-300) - 1.0


def off_centre(spectra: Samples, frequency_hz: Floats) -> float:
    """Centre of gravity of what rises out of the noise, Hz. `spectra`: complex64 (n, bins), `frequency_hz`: (bins,)."""
    power = np.square(np.abs(spectra)).mean(axis=0).astype(np.float64)
    power = np.maximum(power - np.percentile(power, 10.0), 0.0)
    total = float(power.sum())
    return float((power * frequency_hz).sum()) / total if total > 0.0 else 0.0
