"""Cross spectra of receivers to correlation at a few lags around zero, by spreading onto a coarse grid of bins.

A correlation that is wanted at lags of at most T samples only is a slowly varying transform of its N bins: bins may be
gathered into N / step sums, weighted with a kernel whose own transform is known and divided out at each lag. What the
kernel lets through of other lags is below 1e-7 of the whole. Any lags will do, between samples too, and the sums for
128 of them cost a tenth of an inverse transform.
Sources: Dutt & Rokhlin 1993 (non-uniform transforms by gridding); Beatty, Nishimura & Pauly 2005 (the kernel: Kaiser-
Bessel).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

KERNEL_WIDTH = 8
"""Sums that each bin goes into."""
OVERSAMPLING = 2.0
"""Lags that the grid tells apart, to those from -T to T."""
SMALLEST_STEP = 4
"""Bins from one sum to the next below which gathering saves nothing."""


class LagGrid:
    """How bins -half..half (two-sided) or 0..half of a transform of 2 * half bins become correlations at `lags`.

    `taps`: float32 kernel over bins; sum q takes the padded bins from q * `step`. `before`: padding in front of the
    first bin. `matrix`: complex64, (n_sums, n_lags): correlation at the lags, unnormalised, is sums @ matrix; of
    one-sided bins (each of them doubled but the ends) its real part.
    """

    def __init__(self, half: int, lags: NDArray[np.float64], *, two_sided: bool) -> None:
        size, first = 2 * half, -half if two_sided else 0
        n_bins = size + 1 if two_sided else half + 1
        self.step = grid_step(half, lags)
        reach = KERNEL_WIDTH * self.step // 2
        oversampling = size / self.step / (2.0 * _span(lags))
        spread = KERNEL_WIDTH / oversampling * (oversampling - 0.5)
        kernel = np.kaiser(2 * reach + 1, math.pi * math.sqrt(spread**2 - 0.8))
        self.taps: NDArray[np.float32] = kernel.astype(np.float32)
        self.n_sums = -(-n_bins // self.step) + KERNEL_WIDTH
        self.before = 2 * reach
        self.n_padded = (self.n_sums - 1) * self.step + len(kernel)
        bins = first - reach + self.step * np.arange(self.n_sums)
        turn = 2.0 * np.pi / size
        response = np.cos(turn * np.outer(lags, np.arange(-reach, reach + 1))) @ self.taps.astype(np.float64)
        phases = np.exp(1j * turn * np.outer(bins, lags))
        self.matrix: NDArray[np.complex64] = (phases * (self.step / response)).astype(np.complex64)


def grid_step(half: int, lags: NDArray[np.float64]) -> int:
    """Bins from one sum to the next; below SMALLEST_STEP an inverse transform is the better way."""
    return int(half / (OVERSAMPLING * _span(lags)))


def _span(lags: NDArray[np.float64]) -> float:
    return float(np.abs(lags).max()) + 1.0
