"""Cross spectra of receivers to correlation at a few lags around zero, by spreading onto a coarse grid of bins.

A correlation that is wanted at lags of at most T samples only is a slowly varying transform of its N bins: bins may be
gathered into N / step sums, weighted with a kernel whose own transform is known and divided out at each lag. What the
kernel lets through of other lags is below 1e-7 of the whole. A chirp-z transform takes the few sums to evenly spaced
lags, between samples too, in two short FFTs.
Sources: Dutt & Rokhlin 1993 (non-uniform transforms by gridding); Beatty, Nishimura & Pauly 2005 (the kernel: Kaiser-
Bessel); Bluestein 1970 (chirp-z).
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
from numpy.typing import NDArray

KERNEL_WIDTH = 8
"""Sums that each bin goes into."""
OVERSAMPLING = 2.0
"""Lags that the grid tells apart, to those from -T to T."""
SMALLEST_STEP = 4
"""Bins from one sum to the next below which gathering saves nothing."""


class LagGrid:
    """How bins -half..half (two-sided) or 0..half of a transform of 2 * half bins become correlations at `lags`, evenly
    spaced.

    `taps`: float32 kernel over bins; sum q takes the padded bins from q * `step`. `before`: padding in front of the
    first bin. Then a chirp-z transform by convolution (Bluestein 1970): the sums times `chirp`, complex64 (n_sums,),
    padded with zeros to `size`; their transform times `response`, complex64 (size,); the inverse of that, of which the
    first values, times `finish`, complex64 (n_lags,), are the correlations, unnormalised. Of one-sided bins, each of
    them doubled but the ends, their real part.
    """

    def __init__(self, half: int, lags: NDArray[np.float64], *, two_sided: bool) -> None:
        n_fft, first = 2 * half, -half if two_sided else 0
        n_bins = n_fft + 1 if two_sided else half + 1
        self.step = grid_step(half, lags)
        reach = KERNEL_WIDTH * self.step // 2
        oversampling = n_fft / self.step / (2.0 * _span(lags))
        spread = KERNEL_WIDTH / oversampling * (oversampling - 0.5)
        kernel = np.kaiser(2 * reach + 1, math.pi * math.sqrt(spread**2 - 0.8))
        self.taps: NDArray[np.float32] = kernel.astype(np.float32)
        self.n_sums = -(-n_bins // self.step) + KERNEL_WIDTH
        self.before = 2 * reach
        self.n_padded = (self.n_sums - 1) * self.step + len(kernel)
        turn = 2.0 * np.pi / n_fft
        through = np.cos(turn * np.outer(lags, np.arange(-reach, reach + 1))) @ self.taps.astype(np.float64)
        self.size = int(scipy.fft.next_fast_len(self.n_sums + len(lags) - 1))
        # With q for sums and l for lags, q * l = (q^2 + l^2 - (l - q)^2) / 2.
        angle = turn * self.step * (lags[1] - lags[0] if len(lags) > 1 else 0.0)
        sums, places = np.arange(self.n_sums), np.arange(len(lags))
        self.chirp = _turned(turn * self.step * lags[0] * sums + angle / 2.0 * np.square(sums))
        wrapped = np.zeros(self.size, complex)
        wrapped[: len(lags)] = np.exp(-0.5j * angle * np.square(places))
        wrapped[self.size - self.n_sums + 1 :] = np.exp(-0.5j * angle * np.square(sums[:0:-1]))
        self.response: NDArray[np.complex64] = (scipy.fft.fft(wrapped) / self.size).astype(np.complex64)
        finish = np.exp(1j * (turn * (first - reach) * lags + angle / 2.0 * np.square(places)))
        self.finish: NDArray[np.complex64] = (finish * (self.step / through)).astype(np.complex64)


def _turned(angles: NDArray[np.float64]) -> NDArray[np.complex64]:
    return np.exp(1j * angles).astype(np.complex64)


def grid_step(half: int, lags: NDArray[np.float64]) -> int:
    """Bins from one sum to the next; below SMALLEST_STEP an inverse transform is the better way."""
    return int(half / (OVERSAMPLING * _span(lags)))


def _span(lags: NDArray[np.float64]) -> float:
    return float(np.abs(lags).max()) + 1.0
