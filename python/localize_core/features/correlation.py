"""Cross-correlation of receivers on a common clock: the feature that carries differences of arrival time.

Sign: the correlation of pair (i, j) peaks at the lag t_i - t_j, positive when the signal reaches receiver i later.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from localize_core.errors import ConfigError
from localize_core.features.checks import known_fields, one_of, positive, whole
from localize_core.features.kernels import fast_kernels
from localize_core.features.pair_sums import CompiledSums, PairSums, PlainSums
from localize_core.features.quality import zero_unusable

WEIGHTINGS = ("plain", "phat")
SIGNALS = ("iq", "envelope", "phase")

FLAT = 1e-12
"""Variance, relative to the signal's scale, below which samples, an envelope or a phase are only rounding error."""

EMPTY = 1e-9
"""Energy, relative to the most at any lag, below which a frame's FFT leaves only rounding error of it."""

SILENCE = 1e-30
"""Energy below which single precision runs out of exponents."""


@dataclass(frozen=True)
class CorrelationConfig:
    """How receivers are correlated. Raises ConfigError if a value cannot work.

    `hop`: None given is `n_fft`, frames side by side. `n_lags` lags around zero, `lag_step` samples apart, any real
    number; the largest leaves `n_core` samples of a frame to correlate, which must be at least a quarter of it.
    `weighting`: "plain" or "phat" (phase transform). `signal`: what of the samples is correlated: "iq", their
    "envelope" |x| or their "phase".
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
        if 4 * self.n_core < n_fft:
            raise ConfigError(
                f"n_lags={self.n_lags}, lag_step={self.lag_step:g}: lags reach {reach:g} samples, must be at most "
                f"{3 * n_fft // 8}, which leaves a quarter of n_fft={n_fft} to correlate; take fewer lags, a smaller "
                "step or a larger n_fft"
            )

    @property
    def rows(self) -> int:
        """Values in one feature frame of one pair."""
        return self.n_lags

    @property
    def n_core(self) -> int:
        """Samples of a frame that are correlated at every lag: all but the largest lag's worth at either end."""
        return self.n_fft - 2 * math.ceil(self.n_lags // 2 * self.lag_step)

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


class CrossCorrelation:
    """Samples of several receivers to correlation frames of every pair. Holds no state between calls.

    The middle of receiver i's frame, its core, is correlated with all of receiver j's, so that every lag has
    `n_core` products and none needs a correction for what does not overlap. What a receiver adds to all of them
    alike (DC of "iq", level of "envelope", offset and slope of "phase") is taken out of exactly the samples that are
    multiplied: out of the core by subtraction, whereupon it no longer counts in the products, and out of the other
    side's energy at each lag. Taken out of whole frames, it would leave a different rest in both receivers, which
    moves the peak of a narrow-band signal. So a delayed copy has coefficient 1 at its delay, and by Cauchy-Schwarz
    nowhere more.

    Lags between samples come from band-limited interpolation: an inverse FFT where all lags are whole samples, else
    a chirp-z transform; of gathered bins, where loops are compiled and lags reach over a small part of a frame (see
    `lags`). Energies are interpolated linearly. A signal that fills all of the sampled band leaves an error of
    1 / n_core samples at lags between samples, a narrower one a small part of that.

    PHAT fades the core and the frame's ends in and out, for it would lift what they leak into bins without a signal.
    As the frame holds more than the core does, even identical inputs stay below 1: about 0.9 with lags of up to 2 %
    of a frame, 0.7 with a quarter.
    Sources: Knapp & Carter 1976 (PHAT); Rabiner, Schafer & Rader 1969 (chirp-z).
    """

    def __init__(self, config: CorrelationConfig) -> None:
        self.config = config
        lags = (np.arange(config.n_lags) - config.n_lags // 2) * config.lag_step
        self._margin = (config.n_fft - config.n_core) // 2
        self._core = slice(self._margin, self._margin + config.n_core)
        self._time = np.arange(config.n_fft) - (config.n_fft - 1) / 2
        compiled = fast_kernels() is not None and CompiledSums.suits(config)
        self._sums: PairSums = (CompiledSums if compiled else PlainSums)(config)
        # Where the multiplied samples of receiver j begin.
        starts = self._margin - lags
        self._start = starts.astype(np.intp)
        self._next_start = np.minimum(self._start + 1, 2 * self._margin)
        self._start_fraction = starts - self._start
        self._values = np.empty((config.n_receivers, self._sums.batch, config.n_fft), np.complex64)
        self._busy = threading.Lock()
        if fast_kernels() is not None:
            # Compiling takes seconds: now, and not when the first samples wait.
            self(np.zeros((config.n_receivers, config.n_fft), np.complex64))

    def __reduce__(self) -> tuple[type[CrossCorrelation], tuple[CorrelationConfig]]:
        # Plans and buffers stay where they are; another process makes its own.
        return CrossCorrelation, (self.config,)

    def __call__(self, samples: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Correlation coefficients of every full frame of every pair.

        `samples`: complex64, (n_receivers, m); NaN and infinite ones count as zeros. Returns float32,
        (pairs, n_frames, n_lags), frame i from samples [i * hop, i * hop + n_fft): |rho| for signal "iq", else the
        signed rho, in [-1, 1]. PHAT ones are the mean over all bins that hold a signal. Zeros where a receiver's
        multiplied samples are constant (or their envelope, or the slope of their phase).
        A frame's values do not depend on the other frames of the call.
        Raises ConfigError if the number of receivers differs from the configuration's.
        """
        config = self.config
        if samples.ndim != 2 or samples.shape[0] != config.n_receivers:
            raise ConfigError(
                f"samples of shape {samples.shape}: must be ({config.n_receivers}, m), a row per receiver"
            )
        n_frames = max((samples.shape[1] - config.n_fft) // config.hop + 1, 0)
        result = np.empty((len(config.pairs), n_frames, config.n_lags), np.float32)
        if n_frames:
            self.into(zero_unusable(samples), result)
        return result

    def into(self, samples: NDArray[np.complex64], out: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> None:
        """The same of finite samples, written to `out`: for each pair an array with a row for every full frame, one at
        least.
        """
        config, batch = self.config, self._sums.batch
        samples = np.ascontiguousarray(samples)
        n_frames = (samples.shape[1] - config.n_fft) // config.hop + 1
        with self._busy:
            for start in range(0, n_frames, batch):
                part = slice(start, min(start + batch, n_frames))
                values, empty_below = self._prepared(samples, part)
                core_norm, lag_norm = self._norms(values, empty_below)
                if config.weighting == "phat":
                    # The mean over bins is normalised already, of whatever there is.
                    core_norm = (core_norm > 0.0).astype(np.float32)
                    lag_norm = np.broadcast_to(lag_norm.any(axis=-1, keepdims=True), lag_norm.shape).astype(np.float32)
                self._sums(values, core_norm, lag_norm, [pair[part] for pair in out])

    def _prepared(
        self, samples: NDArray[np.complex64], part: slice
    ) -> tuple[NDArray[np.complex64] | NDArray[np.float32], NDArray[np.float64]]:
        """What is correlated of the frames of `part`, less what the core holds of a constant (phase: a straight line);
        there may be more frames behind them.

        And the energy of n_core samples, (receivers, frames, 1), below which there is only rounding error.
        """
        n_core, signal, hop = self.config.n_core, self.config.signal, self.config.hop
        kernels = fast_kernels()
        if kernels is not None and signal == "iq":
            count, flat = part.stop - part.start, samples.view(np.float32)
            empty = np.empty((len(samples), count, 1))
            target = self._values.view(np.float32)
            kernels.centre(flat, part.start * hop, hop, count, self._margin, n_core, FLAT, target, empty)
            return self._values, empty
        frames = sliding_window_view(samples, self.config.n_fft, axis=-1)[:, ::hop][:, part]
        if signal == "phase":
            angle = np.unwrap(np.angle(frames).astype(np.float64), axis=-1)
            angle -= angle[..., self._core].mean(axis=-1, keepdims=True)
            slope = (angle[..., self._core] * self._time[self._core]).sum(axis=-1, keepdims=True)
            angle -= slope / np.square(self._time[self._core]).sum() * self._time
            return angle.astype(np.float32), np.full((*frames.shape[:-1], 1), FLAT * n_core)
        values = frames if signal == "iq" else np.abs(frames)
        mean = values[..., self._core].mean(axis=-1, keepdims=True)
        return values - mean, FLAT * n_core * np.square(np.abs(mean), dtype=np.float64)

    def _norms(
        self, values: NDArray[np.complex64] | NDArray[np.float32], empty_below: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One over the root of the multiplied samples' energy, zero where they are empty.

        Of every receiver's core, (receivers, frames, 1), and of what cores are multiplied with, which is never of the
        first receiver, (receivers - 1, frames, lags).
        """
        n_core, n_ends, is_phase = self.config.n_core, 2 * self._margin, self.config.signal == "phase"
        straight = np.square(self._time[self._core]).sum()
        kernels = fast_kernels()
        if kernels is not None:
            count = empty_below.shape[1]
            core_norm = np.empty((len(values), count, 1), np.float32)
            lag_norm = np.empty((len(values) - 1, count, self.config.n_lags), np.float32)
            kernels.norms(
                values,
                values.view(np.float32),
                self._margin,
                n_core,
                straight if is_phase else 0.0,
                empty_below,
                EMPTY,
                SILENCE,
                self._start,
                self._next_start,
                self._start_fraction,
                core_norm,
                lag_norm,
            )
            return core_norm, lag_norm
        core = _power(values[..., self._core]).astype(np.float64).sum(axis=-1, keepdims=True)
        core_norm = _inverse_root(core, empty_below)
        # What the sums gain and lose from each place to the next; the core's own energy is known, its mean is zero.
        gained, lost, empty_below = values[1:, :, n_core:], values[1:, :, :n_ends], empty_below[1:]
        energy = core[1:] + self._running(_power(gained), _power(lost))
        total = self._running(gained, lost)
        energy -= _power(total) / n_core
        if is_phase:
            moment = self._running(gained * self._time[n_core:], lost * self._time[:n_ends])
            moment -= total * np.arange(-self._margin, self._margin + 1)
            energy -= np.square(moment) / straight
        empty_below = np.maximum(empty_below, EMPTY * energy.max(axis=-1, keepdims=True))
        at_lags = energy[..., self._start]
        at_lags += self._start_fraction * (energy[..., self._next_start] - at_lags)
        return core_norm, _inverse_root(at_lags, empty_below)

    def _running(self, gained: NDArray[Any], lost: NDArray[Any]) -> NDArray[Any]:
        """Sums over n_core samples from each place in the frame, less the core's, in double precision."""
        steps = np.subtract(gained, lost, dtype=np.result_type(gained, np.float64))
        sums = np.zeros((*steps.shape[:-1], steps.shape[-1] + 1), steps.dtype)
        np.cumsum(steps, axis=-1, out=sums[..., 1:])
        sums -= sums[..., self._margin : self._margin + 1].copy()
        return sums


def _power(values: NDArray[Any]) -> NDArray[Any]:
    return np.square(values.real) + np.square(values.imag) if np.iscomplexobj(values) else np.square(values)


def _inverse_root(energy: NDArray[np.float64], empty_below: NDArray[np.float64]) -> NDArray[np.float32]:
    full = energy > np.maximum(empty_below, SILENCE)
    return np.where(full, 1.0 / np.sqrt(np.where(full, energy, 1.0)), 0.0).astype(np.float32)


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
