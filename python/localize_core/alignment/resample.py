"""Samples between samples: band-limited interpolation at arbitrary positions.

A Kaiser-windowed sinc of 56 taps, its table linearly interpolated between 512 phases. For components up to 0.9 of
Nyquist the error stays below -83 dB of their amplitude. Meant for rates that differ by parts per million up to one
per cent: a lower output rate gets no anti-aliasing filter of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HALF_TAPS = 28
"""Samples on either side that an output depends on: for a position in [n, n + 1), those from n + 1 - HALF_TAPS on
up to n + HALF_TAPS."""

_TAPS = 2 * HALF_TAPS
_PHASES = 512
_BETA = 8.5
_BLOCK = 4096


def interpolate(
    samples: NDArray[np.complex64], first_index: int, positions: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """The band-limited signal at `positions`.

    `samples[0]` has stream index `first_index`; `positions` are stream indices with a fraction. What lies outside
    `samples` counts as zero. A position's output depends on its own samples alone, bit for bit.
    """
    whole = np.floor(positions)
    return interpolate_at(samples, whole.astype(np.int64) - first_index, positions - whole)


def interpolate_at(
    samples: NDArray[np.complex64], whole: NDArray[np.int64], fraction: NDArray[np.float64]
) -> NDArray[np.complex64]:
    """As `interpolate`, at `whole + fraction` counted from `samples[0]`, with `fraction` in [0, 1].

    Keeping the two apart keeps full precision however long the stream is.
    """
    output = np.zeros(len(whole), np.complex64)
    for start in range(0, len(whole), _BLOCK):
        part = slice(start, start + _BLOCK)
        output[part] = _interpolate_block(samples, whole[part], fraction[part])
    return output


def _interpolate_block(
    samples: NDArray[np.complex64], whole: NDArray[np.int64], fraction: NDArray[np.float64]
) -> NDArray[np.complex64]:
    first = int(whole.min()) + 1 - HALF_TAPS
    last = int(whole.max()) + HALF_TAPS
    inside = samples[max(first, 0) : max(last + 1, 0)]
    before = min(max(-first, 0), last + 1 - first)
    padded = np.zeros(last + 1 - first, np.complex64)
    padded[before : before + len(inside)] = inside
    windows = np.lib.stride_tricks.sliding_window_view(padded, _TAPS)[whole - whole.min()]
    phase = fraction * _PHASES
    row = phase.astype(np.int64)
    share = (phase - row).astype(np.float32)[:, np.newaxis]
    kernels = _TABLE[row] + share * _RISE[row]
    # Row by row and in a fixed order, not BLAS: the result must not depend on how many rows there are.
    output = np.empty(len(whole), np.complex64)
    output.real = np.einsum("nk,nk->n", np.ascontiguousarray(windows.real), kernels)
    output.imag = np.einsum("nk,nk->n", np.ascontiguousarray(windows.imag), kernels)
    return output


def _kernel_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernels of the fractions 0, 1/_PHASES ... 1, (_PHASES + 1, _TAPS), and the step from each to the next."""
    fraction = np.arange(_PHASES + 1)[:, np.newaxis] / _PHASES
    distance = np.arange(1 - HALF_TAPS, HALF_TAPS + 1)[np.newaxis, :] - fraction
    window = np.i0(_BETA * np.sqrt(np.clip(1.0 - (distance / HALF_TAPS) ** 2, 0.0, None))) / np.i0(_BETA)
    table = np.sinc(distance) * window
    table[[0, -1]] = np.abs(distance[[0, -1]]) < 0.5
    return table.astype(np.float32), np.diff(table, axis=0, append=table[-1:]).astype(np.float32)


_TABLE, _RISE = _kernel_table()
