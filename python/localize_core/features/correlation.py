"""Cross-correlation of receivers on a common clock: the feature that carries differences of arrival time.

Sign: the correlation of pair (i, j) peaks at the lag t_i - t_j, positive when the signal reaches receiver i later.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.signal import CZT

from localize_core.errors import ConfigError
from localize_core.features.checks import known_fields, one_of, positive, whole
from localize_core.features.quality import zero_unusable

WEIGHTINGS = ("plain", "phat")
SIGNALS = ("iq", "envelope", "phase")

BATCH_VALUES = 1 << 16
"""Complex values of all receivers in one FFT batch: half a MiB, which stays in a core's cache."""

FLAT = 1e-12
"""Variance, relative to the signal's scale, below which an envelope or a phase is only rounding error."""

EMPTY_BIN = 1e-12
"""Cross power below this fraction of the mean is FFT rounding error (float32: 1e-14), which PHAT must not lift."""


@dataclass(frozen=True)
class CorrelationConfig:
    """How receivers are correlated. Raises ConfigError if a value cannot work.

    `hop`: None given is `n_fft`, frames side by side. `n_lags` lags around zero, `lag_step` samples apart, any real
    number; none may exceed half a frame, beyond which too little overlaps. `weighting`: "plain" or "phat" (phase
    transform). `signal`: what of the samples is correlated: "iq", their "envelope" |x| or their "phase".
    """

    sample_rate_hz: float
    n_receivers: int
    n_fft: int = 4096
    hop: int = None  # type: ignore[assignment]
    n_lags: int = 128
    lag_step: float = 1.0
    weighting: str = "plain"
    signal: str = "iq"

    def __post_init__(self) -> None:
        n_fft = whole("n_fft", self.n_fft, 2)
        hop: int | None = self.hop
        checked = {
            "sample_rate_hz": positive("sample_rate_hz", self.sample_rate_hz),
            "n_receivers": whole("n_receivers", self.n_receivers, 2),
            "n_fft": n_fft,
            "hop": whole("hop", n_fft if hop is None else hop, 1),
            "n_lags": whole("n_lags", self.n_lags, 1),
            "lag_step": positive("lag_step", self.lag_step),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        one_of("weighting", self.weighting, WEIGHTINGS)
        one_of("signal", self.signal, SIGNALS)
        reach = self.n_lags // 2 * self.lag_step
        if reach > n_fft / 2:
            raise ConfigError(
                f"n_lags={self.n_lags}, lag_step={self.lag_step:g}: lags reach {reach:g} samples, must be at most "
                f"{n_fft / 2:g}, half of n_fft={n_fft}; take fewer lags, a smaller step or a larger n_fft"
            )

    @property
    def rows(self) -> int:
        """Values in one feature frame of one pair."""
        return self.n_lags

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Receivers of each output, in order."""
        return tuple(itertools.combinations(range(self.n_receivers), 2))

    @property
    def lags_s(self) -> NDArray[np.float64]:
        """Arrival-time difference t_i - t_j that each value of a frame stands for; zero at index `n_lags` // 2."""
        return (np.arange(self.n_lags) - self.n_lags // 2) * self.lag_step / self.sample_rate_hz

    @property
    def warmup_frames(self) -> int:
        """Frames at the start of a stream whose span reaches before the first sample."""
        return -(-self.n_fft // self.hop) - 1

    def as_dict(self) -> dict[str, Any]:
        """Every field as a plain Python scalar, and "feature": "cross_correlation"."""
        return {"feature": "cross_correlation", **asdict(self)}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> CorrelationConfig:
        """The inverse of `as_dict()`. Raises ConfigError for an unknown key or a bad value."""
        return cls(**known_fields(cls, "cross_correlation", mapping))


def _prepared(frames: NDArray[np.complex64], signal: str) -> NDArray[np.complex64] | NDArray[np.float32]:
    """What of the frames is correlated, scaled to unit energy per frame; zeros where there is nothing to correlate."""
    n_fft = frames.shape[-1]
    if signal == "iq":
        parts = np.ascontiguousarray(frames).view(np.float32)
        empty_below = 0.0
    elif signal == "envelope":
        parts = np.abs(frames)
        mean = parts.mean(axis=-1, keepdims=True)
        parts -= mean
        empty_below = FLAT * n_fft * np.square(mean)
    else:
        angle = np.unwrap(np.angle(frames).astype(np.float64), axis=-1)
        angle -= angle.mean(axis=-1, keepdims=True)
        time = np.arange(n_fft) - (n_fft - 1) / 2
        angle -= (angle * time).sum(axis=-1, keepdims=True) / np.square(time).sum() * time
        parts = angle.astype(np.float32)
        empty_below = FLAT * n_fft
    energy = np.square(parts).sum(axis=-1, keepdims=True)
    scale = np.where(energy > empty_below, 1.0 / np.sqrt(np.maximum(energy, np.finfo(np.float32).tiny)), 0.0)
    parts = parts * scale.astype(np.float32)
    return parts.view(np.complex64) if signal == "iq" else parts


class CrossCorrelation:
    """Samples of several receivers to correlation frames of every pair. Holds no state between calls.

    Frames are zero-padded, so the correlation is linear, and evaluated between samples by band-limited
    interpolation: an inverse FFT where all lags are whole samples, else a chirp-z transform.
    Sources: Knapp & Carter 1976 (PHAT); Rabiner, Schafer & Rader 1969 (chirp-z).
    """

    def __init__(self, config: CorrelationConfig) -> None:
        self.config = config
        lags = (np.arange(config.n_lags) - config.n_lags // 2) * config.lag_step
        reach = float(np.abs(lags).max())
        self._half = scipy.fft.next_fast_len(int(np.ceil((config.n_fft + reach + 1) / 2)))
        self._n_padded = 2 * self._half
        self._real = config.signal != "iq"
        self._batch = max(1, BATCH_VALUES // (self._n_padded * config.n_receivers))
        # The largest coefficient that the frames' overlap allows is 1 - |lag| / n_fft. PHAT keeps no energies.
        self._unbias = (
            np.ones(config.n_lags) if config.weighting == "phat" else 1.0 / (1.0 - np.abs(lags) / config.n_fft)
        )
        self._whole_lags = (lags % self._n_padded).astype(np.intp) if config.lag_step.is_integer() else None
        if self._whole_lags is None:
            turn = 2j * np.pi / self._n_padded
            n_bins = self._half + 1 if self._real else self._n_padded + 1
            step, start = np.exp(turn * config.lag_step), np.exp(-turn * lags[0])
            self._chirp_z = CZT(n_bins, config.n_lags, w=step, a=start)

    def __call__(self, samples: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Correlation coefficients of every full frame of every pair.

        `samples`: complex64, (n_receivers, m); NaN and infinite ones count as zeros. Returns float32,
        (pairs, n_frames, n_lags), frame i from samples [i * hop, i * hop + n_fft): |rho| for signal "iq", else the
        signed rho, in [-1, 1]. Plain coefficients are divided by the share of the frame that overlaps at their lag;
        PHAT ones are the mean over all bins that hold a signal. Zeros where a receiver's frame is silent (or its
        envelope or phase constant). A frame's values do not depend on the other frames of the call.
        Raises ConfigError if the number of receivers differs from the configuration's.
        """
        config = self.config
        if samples.ndim != 2 or samples.shape[0] != config.n_receivers:
            raise ConfigError(
                f"samples of shape {samples.shape}: must be ({config.n_receivers}, m), a row per receiver"
            )
        if samples.shape[1] < config.n_fft:
            return np.empty((len(config.pairs), 0, config.n_lags), np.float32)
        frames = sliding_window_view(zero_unusable(samples), config.n_fft, axis=-1)[:, :: config.hop]
        result = np.empty((len(config.pairs), frames.shape[1], config.n_lags), np.float32)
        for start in range(0, frames.shape[1], self._batch):
            part = slice(start, start + self._batch)
            spectra = self._spectra(frames[:, part])
            conjugates = spectra.conj()
            for pair, (i, j) in enumerate(config.pairs):
                result[pair, part] = self._coefficients(spectra[i] * conjugates[j])
        return result

    def _spectra(self, frames: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Zero-padded spectra, (receivers, frames, bins); real signals have bins 0 .. half."""
        transform = scipy.fft.rfft if self._real else scipy.fft.fft
        return np.asarray(transform(_prepared(frames, self.config.signal), self._n_padded, axis=-1))

    def _coefficients(self, cross: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Correlation at the configured lags out of cross spectra, (frames, bins)."""
        scale = np.ones((1, 1), np.float32)
        if self.config.weighting == "phat":
            cross, scale = self._whitened(cross)
        if self._whole_lags is not None:
            inverse = scipy.fft.irfft if self._real else scipy.fft.ifft
            correlation = inverse(cross, self._n_padded, overwrite_x=True)[:, self._whole_lags]
        elif self._real:
            cross[:, 1 : self._half] *= 2.0
            correlation = self._chirp_z(cross).real / self._n_padded
        else:
            # Half of the bin at half the sample rate belongs to each end of the spectrum.
            cross[:, self._half] *= 0.5
            both_ends = np.concatenate([cross[:, self._half :], cross[:, : self._half + 1]], axis=-1)
            correlation = self._chirp_z(both_ends) / self._n_padded
        if not self._real:
            correlation = np.sqrt(np.square(correlation.real) + np.square(correlation.imag))
        return np.asarray(np.clip(correlation * self._unbias * scale, -1.0, 1.0), np.float32)

    def _whitened(self, cross: NDArray[np.complex64]) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """`cross` with magnitude 1 in every bin that holds a signal, and what makes the mean 1, (frames, 1)."""
        magnitude = np.sqrt(np.square(cross.real) + np.square(cross.imag))
        filled = magnitude > EMPTY_BIN
        white = cross * np.where(filled, 1.0 / np.maximum(magnitude, EMPTY_BIN), 0.0).astype(np.float32)
        count = filled.sum(axis=-1, keepdims=True)
        if self._real:
            count = 2 * count - filled[:, :1] - filled[:, -1:]
        return white, (self._n_padded / np.maximum(count, 1)).astype(np.float32)


NEIGHBOURS = 16
"""Values on each side of the largest one that its refinement uses."""

FINE = 32
"""Interpolated values from one of them to the next; a parabola through the largest three does the rest."""


def _interpolator() -> NDArray[np.float64]:
    """Kaiser-windowed sinc, (2 NEIGHBOURS + 1, 2 FINE + 1): from a peak and its neighbours to one step either side."""
    distance = np.arange(-FINE, FINE + 1) / FINE - np.arange(-NEIGHBOURS, NEIGHBOURS + 1)[:, None]
    inside = np.sqrt(np.maximum(0.0, 1.0 - np.square(distance / (NEIGHBOURS + 1))))
    return np.asarray(np.sinc(distance) * np.i0(7.0 * inside) / np.i0(7.0))


_INTERPOLATOR = _interpolator()


def peak_lag(
    correlation: NDArray[np.floating[Any]], lag_step: float, *, signed: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each correlation frame is largest, between its lags too.

    `correlation`: (..., n_lags) as `CrossCorrelation` gives it. `signed`: False for magnitudes (signal "iq"), whose
    square is interpolated, being band-limited where the magnitude is not; True for signed ones ("envelope", "phase").
    Returns (lag in samples, zero at index n_lags // 2; value there), each of shape (...).
    The lags must resolve what is interpolated: for magnitudes `lag_step` is at most the sample rate over twice the
    signal's bandwidth, half a sample for a signal that fills the band. A peak is less exact close to the last lag.
    """
    values = np.asarray(correlation, np.float64)
    n_lags = values.shape[-1]
    if not signed:
        values = np.square(values)
    indices = np.arange(n_lags)
    largest = values.argmax(axis=-1)[..., None]
    height = np.take_along_axis(values, largest, axis=-1)
    # On a wide peak every n-th value, lest its neighbours be equal but for rounding.
    half_width = np.where(values < 0.5 * height, np.abs(indices - largest), n_lags).min(axis=-1, keepdims=True)
    stride = np.clip(half_width // 2, 1, max(1, n_lags // (2 * NEIGHBOURS)))
    neighbours = largest + stride * np.arange(-NEIGHBOURS, NEIGHBOURS + 1)
    fine = np.take_along_axis(values, np.clip(neighbours, 0, n_lags - 1), axis=-1) @ _INTERPOLATOR
    best = fine[..., 1:-1].argmax(axis=-1)[..., None] + 1
    below, top, above = (np.take_along_axis(fine, best + side, axis=-1) for side in (-1, 0, 1))
    bend = below - 2.0 * top + above
    offset = np.where(bend < 0.0, 0.5 * (below - above) / np.where(bend < 0.0, bend, -1.0), 0.0).clip(-1.0, 1.0)
    peak = (top - 0.25 * (below - above) * offset)[..., 0]
    lag = (largest - n_lags // 2 + stride * (best - FINE + offset) / FINE)[..., 0] * lag_step
    return lag, peak if signed else np.sqrt(np.maximum(peak, 0.0))
