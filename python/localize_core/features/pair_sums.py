"""Sums of products of receivers' samples at lags, by way of spectra: the inner part of the cross-correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.signal import CZT
from scipy.signal.windows import tukey

from localize_core.features.kernels import fast_kernels
from localize_core.features.lags import SMALLEST_STEP, LagGrid, grid_step

if TYPE_CHECKING:
    from localize_core.features.correlation import CorrelationConfig

BATCH_VALUES = 1 << 16
"""Complex values of all receivers in one FFT batch: half a MiB, which stays in a core's cache."""

PHAT_TAPER = 0.2
"""Part of a core that fades in and out before PHAT."""

EMPTY_BIN = 1e-6
"""Cross power below this fraction of the mean is what leaks from bins with a signal, which PHAT must not lift."""


class PairSums(Protocol):
    """Sums over a receiver's core times another one's whole frame at every lag, for every pair.

    `batch`: frames that a call takes at most.
    """

    batch: int

    def __call__(
        self,
        values: NDArray[Any],
        core_norm: NDArray[np.float32],
        lag_norm: NDArray[np.float32],
        out: Sequence[NDArray[np.float32]],
    ) -> None:
        """`values`: complex64 or float32, (n_receivers, frames or more, n_fft), without what cores hold of a constant.

        Writes the sums times both norms to `out`, (frames, n_lags) for each pair: their magnitude if complex, in
        [-1, 1]. `core_norm`: of each receiver's core, (n_receivers, frames, 1); `lag_norm`: of what it is multiplied
        with, (n_receivers - 1, frames, n_lags). With PHAT the sums are the mean over all bins that hold a signal.
        """
        ...


class _Sums:
    """What both ways of computing have in common."""

    def __init__(self, config: CorrelationConfig) -> None:
        self.config = config
        self.lags = (np.arange(config.n_lags) - config.n_lags // 2) * config.lag_step
        self.margin = (config.n_fft - config.n_core) // 2
        self.core = slice(self.margin, self.margin + config.n_core)
        self.half = _half(config)
        self.n_padded = 2 * self.half
        self.is_real = config.signal != "iq"
        self.is_phat = config.weighting == "phat"
        self.batch = max(1, BATCH_VALUES // (self.n_padded * config.n_receivers))
        self._core_taper = tukey(config.n_core, PHAT_TAPER).astype(np.float32)
        self._taper = tukey(config.n_fft, 2 * self.margin / config.n_fft).astype(np.float32)

    def faded(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cores of all receivers but the last, frames of all but the first; of each, the other one is in no pair."""
        cores, wholes = values[:-1, :, self.core], values[1:]
        return (cores * self._core_taper, wholes * self._taper) if self.is_phat else (cores, wholes)


def _half(config: CorrelationConfig) -> int:
    """Half the size of the transforms."""
    return int(scipy.fft.next_fast_len(-(-config.n_fft // 2)))


class PlainSums(_Sums):
    """By NumPy and SciPy: an inverse transform where all lags are whole samples, else a chirp-z transform."""

    def __init__(self, config: CorrelationConfig) -> None:
        super().__init__(config)
        starts = self.margin - self.lags  # a core's spectrum counts from the core's first sample
        self._whole_lags = (-starts % self.n_padded).astype(np.intp) if float(config.lag_step).is_integer() else None
        if self._whole_lags is None:
            turn = 2j * np.pi / self.n_padded
            n_bins = self.half + 1 if self.is_real else self.n_padded + 1
            self._chirp_z = CZT(n_bins, config.n_lags, w=np.exp(turn * config.lag_step), a=np.exp(turn * starts[0]))

    def __call__(
        self,
        values: NDArray[Any],
        core_norm: NDArray[np.float32],
        lag_norm: NDArray[np.float32],
        out: Sequence[NDArray[np.float32]],
    ) -> None:
        transform = scipy.fft.rfft if self.is_real else scipy.fft.fft
        cores, wholes = (
            transform(part, self.n_padded, axis=-1) for part in self.faded(values[:, : core_norm.shape[1]])
        )
        wholes = wholes.conj()
        for (i, j), target in zip(self.config.pairs, out, strict=True):
            correlation = self._at_lags(cores[i] * wholes[j - 1]) * (core_norm[i] * lag_norm[j - 1])
            if not self.is_real:
                correlation = np.sqrt(np.square(correlation.real) + np.square(correlation.imag))
            target[:] = np.clip(correlation, -1.0, 1.0)

    def _at_lags(self, cross: NDArray[np.complex64]) -> NDArray[Any]:
        """Cross spectra, (frames, bins), to sums, (frames, lags)."""
        if self.is_phat:
            cross = self._whitened(cross)
        if self._whole_lags is not None:
            inverse = scipy.fft.irfft if self.is_real else scipy.fft.ifft
            return np.asarray(inverse(cross, self.n_padded, overwrite_x=True)[:, self._whole_lags])
        if self.is_real:
            cross[:, 1 : self.half] *= 2.0
            return np.asarray(self._chirp_z(cross).real / self.n_padded)
        # Half of the bin at half the sample rate belongs to each end of the spectrum.
        cross[:, self.half] *= 0.5
        both_ends = np.concatenate([cross[:, self.half :], cross[:, : self.half + 1]], axis=-1)
        return np.asarray(self._chirp_z(both_ends) / self.n_padded)

    def _whitened(self, cross: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """`cross` with the same magnitude in every bin that holds a signal, such that their mean is 1."""
        magnitude = np.sqrt(np.square(cross.real) + np.square(cross.imag))
        filled = magnitude > EMPTY_BIN * magnitude.mean(axis=-1, keepdims=True)
        count = filled.sum(axis=-1, keepdims=True)
        if self.is_real:
            count = 2 * count - filled[:, :1] - filled[:, -1:]
        scale = np.where(filled, self.n_padded / np.maximum(count, 1) / np.where(filled, magnitude, 1.0), 0.0)
        return np.asarray(cross * scale.astype(np.float32))


class CompiledSums(_Sums):
    """By planned transforms and a compiled loop over bins; for lags that reach over a small part of a frame."""

    @staticmethod
    def suits(config: CorrelationConfig) -> bool:
        """Whether the lags reach over a part that is small enough."""
        lags = np.arange(config.n_lags) - config.n_lags // 2
        return grid_step(_half(config), lags * config.lag_step) >= SMALLEST_STEP

    def __init__(self, config: CorrelationConfig) -> None:
        super().__init__(config)
        kernels = fast_kernels()
        assert kernels is not None
        self._kernels = kernels
        rows, pairs = config.n_receivers - 1, np.array(config.pairs)
        self._first, self._second = pairs[:, 0].copy(), pairs[:, 1] - 1
        self._fft = kernels.PlannedFft((2 * rows, self.batch, self.n_padded), frames=1, real=self.is_real)
        spectra = self._fft.output.view(np.float32)
        self._core_spectra, self._whole_spectra = spectra[:rows], spectra[rows:]
        # A core keeps its place in the frame: then the lags lie around zero.
        values = self._fft.input.view(np.float32)
        self._cores, self._wholes = values[:rows], values[rows:]
        self._grid = LagGrid(self.half, self.lags, two_sided=not self.is_real)
        shape = (self.batch, len(pairs), self._grid.size)
        self._zoom = kernels.PlannedFft(shape)
        self._back = kernels.PlannedFft(shape, inverse=True)
        self._sums = self._zoom.input  # whose padding stays zero

    def __call__(
        self,
        values: NDArray[Any],
        core_norm: NDArray[np.float32],
        lag_norm: NDArray[np.float32],
        out: Sequence[NDArray[np.float32]],
    ) -> None:
        count, grid, kernels = core_norm.shape[1], self._grid, self._kernels
        kernels.place_frames(
            values.view(np.float32),
            count,
            1 if self.is_real else 2,
            self.margin,
            self.config.n_core,
            self.is_phat,
            self._core_taper,
            self._taper,
            self._cores,
            self._wholes,
        )
        self._fft(count)
        kernels.gather_cross(
            self._core_spectra,
            self._whole_spectra,
            self._first,
            self._second,
            count,
            not self.is_real,
            np.float32(EMPTY_BIN if self.is_phat else 0.0),
            grid.before,
            grid.n_padded,
            grid.taps,
            grid.step,
            grid.chirp,
            self._sums,
        )
        self._zoom(count)
        np.multiply(self._zoom.output[:count], grid.response, out=self._back.input[:count])
        self._back(count)
        found = np.empty((len(self._first), count, self.config.n_lags), np.float32)
        kernels.coefficients(
            self._back.output,
            grid.finish,
            not self.is_real,
            self._first,
            self._second,
            core_norm,
            lag_norm,
            found,
        )
        for target, own in zip(out, found, strict=True):
            target[:] = own
