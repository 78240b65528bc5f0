"""Delays by fractions of a sample: windowed-sinc filters, applied as one matrix product per block."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from localize_core.simulation.blocks import Floats, Samples

TAPS = 32
KAISER_BETA = 8.0
DELAYS = 1024
DERIVATIVE_STEP = 1e-4
ROW = 32
"""Samples of one receiver that one row of the matrix product gives; blocks are multiples of it."""


@functools.lru_cache(maxsize=1)
def _delay_table() -> Floats:
    """Taps and their derivative for DELAYS + 1 delays from 0 to 1 sample, float64 (DELAYS + 1, 2, TAPS + 1)."""
    place = np.arange(TAPS + 1) - TAPS // 2 + np.arange(DELAYS + 1)[:, None] / DELAYS
    taps, ahead, behind = (_windowed_sinc(place + step) for step in (0.0, DERIVATIVE_STEP, -DERIVATIVE_STEP))
    return np.stack([taps, (ahead - behind) / (2.0 * DERIVATIVE_STEP)], axis=1)


def _windowed_sinc(place: Floats) -> Floats:
    inside = 1.0 - (place / (TAPS / 2.0)) ** 2
    window = np.where(inside > 0.0, np.i0(KAISER_BETA * np.sqrt(np.maximum(inside, 0.0))) / np.i0(KAISER_BETA), 0.0)
    result: Floats = np.sinc(place) * window
    return result


def filters(late: Floats, gains: NDArray[np.complex128], *, drifting: bool) -> tuple[NDArray[np.int64], Samples]:
    """What turns an emitted signal into what receivers hear along several paths, and how far back it reaches.

    `late`: delays in samples, (R, P). `gains`: (R, P), 0 where there is no path. Returns `behind` (R,) and `weights`
    complex64 (R, F, Q): sample n of receiver r is sum_q weights[r, 0, q] x[n - behind[r] + q]; where `drifting`,
    weights[r, 1] give the derivative with respect to a delay that all paths share, otherwise F is 1. A sinc in a
    Kaiser window for every path, flat to 0.4 of the sample rate.
    """
    is_path = gains != 0.0
    nearest = np.floor(np.min(late, axis=1, where=is_path, initial=np.inf))
    nearest[~is_path.any(axis=1)] = 0.0
    after = np.where(is_path, late - nearest[:, None], 0.0)
    whole = np.floor(after)
    reach = int(whole.max())
    place = (after - whole) * DELAYS
    below = place.astype(np.int64)
    kinds = 2 if drifting else 1
    table = _delay_table()[:, :kinds]
    low = table[below]
    taps = low + (place - below)[:, :, None, None] * (table[below + 1] - low)  # (R, P, F, TAPS + 1)
    if reach == 0:
        weights = np.einsum("rp,rpfq->rfq", gains, taps)
    else:
        spread = np.zeros((*late.shape, kinds, TAPS + 1 + reach))
        where = np.arange(TAPS + 1) + reach - whole.astype(np.int64)[:, :, None, None]
        np.put_along_axis(spread, np.broadcast_to(where, taps.shape), taps, axis=3)
        weights = np.einsum("rp,rpfq->rfq", gains, spread)
    behind = nearest.astype(np.int64) + (TAPS // 2 + reach)
    return behind, weights.astype(np.complex64)


def row_matrices(weights: Samples) -> Samples:
    """(R, F, Q) to (R, ROW + Q - 1, F * ROW): column j of filter f holds its weights from row j on."""
    receivers, kinds, reach = weights.shape
    matrices = np.zeros((receivers, kinds, ROW, ROW + reach - 1), np.complex64)
    batch, kind, row, item = matrices.strides
    shape = (receivers, kinds, ROW, reach)
    diagonals = np.lib.stride_tricks.as_strided(matrices, shape, (batch, kind, row + item, item))
    diagonals[:] = weights[:, :, None, :]
    return matrices.reshape(receivers, kinds * ROW, ROW + reach - 1).swapaxes(1, 2)


def rows(samples: Samples, size: int, reach: int) -> Samples:
    """Windows of `reach` samples every ROW, as a view (size / ROW, reach); `samples` holds size - ROW + reach."""
    item = samples.strides[0]
    return np.lib.stride_tricks.as_strided(samples, (size // ROW, reach), (ROW * item, item), writeable=False)
