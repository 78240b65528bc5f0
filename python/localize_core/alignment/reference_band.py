"""The reference's band: taken out of a stream to be measured, removed from it, and carriers turned back."""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
import scipy.signal
from numpy.typing import NDArray

from localize_core.alignment.reference_settings import FADED, REMOVED
from localize_core.alignment.stream import SampleBuffer
from localize_core.phasor import phasor

OVERSAMPLING = 1.25
"""Of the extracted band: what folds over stays in its outer part."""
EXTRACT_DB, REMOVE_DB = 60.0, 70.0
CHUNK = 8192
"""Input samples of one FFT, about."""
ROW = 256


class BandExtractor:
    """A band around `offset_hz`, at a rate lower by a whole factor `decimation`: sample q stands at input q * D.

    `centre_hz` is what becomes 0 Hz, near `offset_hz`. Chunks begin at fixed inputs, so the output does not depend on
    how the stream came. `start(index)` begins anew there; samples before it count as zeros.
    """

    def __init__(self, sample_rate_hz: float, offset_hz: float, width_hz: float) -> None:
        self.decimation = max(1, math.floor(sample_rate_hz / (OVERSAMPLING * width_hz)))
        self.rate_hz = sample_rate_hz / self.decimation
        pass_hz, stop_hz = width_hz / 2.0, max(self.rate_hz - width_hz / 2.0, 0.55 * width_hz)
        if stop_hz >= sample_rate_hz / 2.0:  # nothing to fold over
            taps = np.ones(1)
        else:
            count, beta = scipy.signal.kaiserord(EXTRACT_DB, 2.0 * (stop_hz - pass_hz) / sample_rate_hz)
            taps = scipy.signal.firwin(count | 1, (pass_hz + stop_hz) / 2.0, window=("kaiser", beta), fs=sample_rate_hz)
        self.reach = -(-(len(taps) // 2) // self.decimation) * self.decimation
        """Samples on either side that an output depends on, at most."""
        small = scipy.fft.next_fast_len(-(-max(CHUNK, 4 * self.reach) // self.decimation))
        self._size = small * self.decimation
        self._step = self._size - 2 * self.reach
        self._bin = round(offset_hz / sample_rate_hz * self._size)
        self.centre_hz = self._bin * sample_rate_hz / self._size
        padded = np.zeros(self._size)
        padded[np.arange(-(len(taps) // 2), len(taps) // 2 + 1)] = taps
        response = scipy.fft.fft(padded).real
        bins = scipy.fft.fftfreq(small, 1.0 / small).astype(np.int64)
        self._take = (bins + self._bin) % self._size
        self._response = (response[bins % self._size] / self.decimation).astype(np.float32)
        self.samples = SampleBuffer()
        self.start(0)

    def start(self, index: int) -> None:
        """Begin anew at this input, a multiple of the decimation."""
        self._next = index
        self._begin = index
        self.samples = SampleBuffer()
        self.samples.first = index // self.decimation

    @property
    def end(self) -> int:
        """One beyond the last output."""
        return self.samples.first + self.samples.held

    @property
    def needed(self) -> int:
        """The first input that is still of use."""
        return max(self._next - self.reach, self._begin)

    def take(self, buffer: SampleBuffer, end: int) -> None:
        """Extract what can be of the inputs up to `end`."""
        while self._next + self._step + self.reach <= end:
            first = self._next - self.reach
            chunk = np.zeros(self._size, np.complex64)
            before = max(self._begin - first, 0)
            chunk[before:] = buffer.view(first + before, first + self._size)
            spectrum = scipy.fft.fft(chunk, overwrite_x=True)[self._take] * self._response
            # Bins begin at this chunk's first sample; the mixer is one for the whole stream.
            turn = np.exp(-2j * np.pi * ((self._bin * first) % self._size) / self._size)
            part = scipy.fft.ifft(spectrum, overwrite_x=True)
            edge = self.reach // self.decimation
            self.samples.append(part[edge : edge + self._step // self.decimation] * np.complex64(turn))
            self._next += self._step


def removal_taps(sample_rate_hz: float, offset_hz: float, bandwidth_hz: float) -> NDArray[np.complex64]:
    """Linear-phase FIR, odd, that lets everything pass but the reference: nothing within REMOVED of its bandwidth."""
    edges = (REMOVED * bandwidth_hz, FADED * bandwidth_hz)
    count, beta = scipy.signal.kaiserord(REMOVE_DB, 2.0 * (edges[1] - edges[0]) / sample_rate_hz)
    count |= 1
    cutoff = min(sum(edges) / 2.0, 0.499 * sample_rate_hz)
    low = scipy.signal.firwin(count, cutoff, window=("kaiser", beta), fs=sample_rate_hz)
    turn = np.exp(2j * np.pi * offset_hz / sample_rate_hz * (np.arange(count) - count // 2))
    taps = -low * turn
    taps[count // 2] += 1.0
    result: NDArray[np.complex64] = taps.astype(np.complex64)
    return result


class BandRemover:
    """Turns a stream's carrier back and takes the reference out of it, sample for sample, `reach` samples late."""

    def __init__(self, taps: NDArray[np.complex64]) -> None:
        self.reach = len(taps) // 2
        self._taps = taps
        self._cycles = 0.0
        self._kept = np.zeros(2 * self.reach, np.complex64)
        self._first = True

    def __call__(self, samples: NDArray[np.complex64], start: float, end: float) -> NDArray[np.complex64]:
        """The next samples, whose carrier is off by `start` to `end` turns a sample, changing steadily.

        Returns as many, the first call `reach` fewer. What was before the first sample counts as zeros.
        """
        count = len(samples)
        turned = samples * _turning(self._cycles, start, (end - start) / max(count, 1), count)
        self._cycles = (self._cycles - count * (start + end) / 2.0) % 1.0
        joined = np.concatenate([self._kept, turned])
        result = scipy.signal.oaconvolve(joined, self._taps, mode="valid")
        self._kept = joined[len(joined) - 2 * self.reach :]
        if self._first:
            self._first = False
            result = result[self.reach :]
        return result.astype(np.complex64, copy=False)

    @property
    def waiting(self) -> int:
        """Samples that came in and not yet out."""
        return 0 if self._first else self.reach


def _turning(cycles: float, rate: float, change: float, count: int) -> NDArray[np.complex64]:
    """exp(2 pi j phase) of a phase that falls by `rate` a sample, which itself grows by `change`."""
    rows = -(-count // ROW)
    start = np.arange(rows) * float(ROW)
    at_row = phasor(cycles - (rate + 0.5 * change * start) * start)
    within = np.arange(ROW)
    # Within a row the rate is that of its middle: off by less than 1e-6 turns.
    middle = (
        phasor(-np.outer(change * (start + ROW / 2.0), within)) if abs(change) * count * ROW > 1e-5 else np.complex64(1)
    )
    columns = phasor(-rate * within)
    result: NDArray[np.complex64] = (at_row[:, None] * columns * middle).ravel()[:count]
    return result
