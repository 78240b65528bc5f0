"""Log-mel spectrogram of complex samples, on both sides of the carrier.

The mel scale is fine near 0 Hz and coarse far from it; it bends at a corner (700 Hz in HTK's formula, 1000 Hz in
Slaney's). Those corners suit hearing. Here the corner stands at the same fraction of the sample rate as in audio at
22050 Hz (librosa's rate), so that the shape of the filter bank depends on `n_fft` and `n_mels` but not on the rate;
an explicit `corner_hz` of 700 (HTK) or 1000 (Slaney) gives the audio scale exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.signal import get_window
from scipy.sparse import csr_matrix

from localize_core.errors import ConfigError
from localize_core.features.checks import known_fields, number, one_of, positive, whole
from localize_core.features.kernels import fast_kernels
from localize_core.features.quality import zero_unusable

REFERENCE_RATE_HZ = 22050.0
AUDIO_CORNER_HZ = {"htk": 700.0, "slaney": 1000.0}
BATCH_VALUES = 1 << 16
"""Complex values in one FFT batch: half a MiB, which stays in a core's cache."""
FAST_BATCH_VALUES = 1 << 15
"""The same where input and output lie side by side."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MelConfig:
    """How a log-mel spectrogram is made. Raises ConfigError if a value or the filter bank cannot work.

    `two_sided`: `n_mels` / 2 bands on each side of the carrier, mirrored, rows from the most negative to the most
    positive frequency, `f_min_hz` and `f_max_hz` counted from the carrier. Otherwise bins 0 .. `n_fft` / 2 only.
    `f_max_hz`: None given is half the sample rate. `corner_hz`: where the scale turns from linear to logarithmic;
    None given is the audio constant times `sample_rate_hz` / 22050. Neither is None once constructed.
    `norm`: None for triangles of height 1, "slaney" for triangles of equal area.
    `log_offset`: what is added to the power before the logarithm.
    """

    sample_rate_hz: float
    n_fft: int = 512
    hop: int = 128
    n_mels: int = 128
    window: str = "hann"
    two_sided: bool = True
    f_min_hz: float = 0.0
    f_max_hz: float = None  # type: ignore[assignment]
    mel_scale: str = "htk"
    corner_hz: float = None  # type: ignore[assignment]
    norm: str | None = None
    log_offset: float = 1e-10

    def __post_init__(self) -> None:
        rate_hz = positive("sample_rate_hz", self.sample_rate_hz)
        one_of("mel_scale", self.mel_scale, ("htk", "slaney"))
        one_of("norm", self.norm, (None, "slaney"))
        one_of("two_sided", self.two_sided, (True, False))
        corner_hz: float | None = self.corner_hz
        if corner_hz is None:
            corner_hz = AUDIO_CORNER_HZ[self.mel_scale] * rate_hz / REFERENCE_RATE_HZ
        f_max_hz: float | None = self.f_max_hz
        f_max_hz = rate_hz / 2 if f_max_hz is None else number("f_max_hz", f_max_hz)
        checked = {
            "sample_rate_hz": rate_hz,
            "n_fft": whole("n_fft", self.n_fft, 2),
            "hop": whole("hop", self.hop, 1),
            "n_mels": whole("n_mels", self.n_mels, 2 if self.two_sided else 1),
            "two_sided": bool(self.two_sided),
            "f_min_hz": number("f_min_hz", self.f_min_hz),
            "f_max_hz": f_max_hz,
            "corner_hz": positive("corner_hz", corner_hz),
            "log_offset": positive("log_offset", self.log_offset),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.two_sided and self.n_mels % 2:
            raise ConfigError(f"n_mels={self.n_mels}: must be even when two_sided, half of the bands on each side")
        if not 0.0 <= self.f_min_hz < self.f_max_hz <= rate_hz / 2:
            raise ConfigError(
                f"f_min_hz={self.f_min_hz}, f_max_hz={self.f_max_hz}: must be 0 <= f_min_hz < f_max_hz <= "
                f"{rate_hz / 2}, half the sample rate"
            )
        _window(self)
        _require_no_empty_filter(self)

    @property
    def rows(self) -> int:
        """Values in one feature frame."""
        return self.n_mels

    @property
    def warmup_frames(self) -> int:
        """Frames at the start of a stream whose span reaches before the first sample."""
        return -(-self.n_fft // self.hop) - 1

    def as_dict(self) -> dict[str, Any]:
        """Every field as a plain Python scalar, and "feature": "log_mel"."""
        return {"feature": "log_mel", **asdict(self)}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> MelConfig:
        """The inverse of `as_dict()`. Raises ConfigError for an unknown key or a bad value."""
        return cls(**known_fields(cls, "log_mel", mapping))


def _window(config: MelConfig) -> NDArray[np.float32]:
    """The periodic window of that name, as librosa takes it. Raises ConfigError if SciPy knows no such window."""
    if not isinstance(config.window, str):
        raise ConfigError(f"window={config.window!r}: must be the name of a window")
    try:
        return np.asarray(get_window(config.window, config.n_fft, fftbins=True), np.float32)
    except ValueError as error:
        raise ConfigError(f"window={config.window!r}: must be a window of scipy.signal.get_window ({error})") from error


def _scale(config: MelConfig) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """Hertz to mel and back, in units in which only the ratio to the corner matters."""
    corner_hz = config.corner_hz
    if config.mel_scale == "htk":
        return lambda hz: np.log1p(hz / corner_hz), lambda mel: corner_hz * np.expm1(mel)
    # Slaney's Auditory Toolbox: linear with 15 steps up to the corner, then 27 steps for each factor of 6.4.
    step = np.log(6.4) / 27.0

    def to_mel(hz: Floats) -> Floats:
        ratio = hz / corner_hz
        return np.where(ratio < 1.0, 15.0 * ratio, 15.0 + np.log(np.maximum(ratio, 1.0)) / step)

    def to_hz(mel: Floats) -> Floats:
        return corner_hz * np.where(mel < 15.0, mel / 15.0, np.exp(step * (np.maximum(mel, 15.0) - 15.0)))

    return to_mel, to_hz


def _edges_hz(config: MelConfig) -> Floats:
    """Corners of the bands from `f_min_hz` upwards: band m is the triangle over edges m, m + 1, m + 2.

    Two-sided from 0 Hz, the scale continues through the carrier as an odd function, and the bands are evenly spaced
    along all of it. The innermost band on each side then reaches over the carrier to the other one's centre, and the
    carrier's bin counts half to each.
    """
    to_mel, to_hz = _scale(config)
    low, high = (float(to_mel(np.asarray(edge_hz))) for edge_hz in (config.f_min_hz, config.f_max_hz))
    if not config.two_sided:
        return to_hz(np.linspace(low, high, config.n_mels + 2))
    if config.f_min_hz > 0.0:
        return to_hz(np.linspace(low, high, config.n_mels // 2 + 2))
    mels = np.linspace(-high, high, config.n_mels + 2)[config.n_mels // 2 :]
    return np.asarray(np.sign(mels) * to_hz(np.abs(mels)))


def _triangles(bins_hz: Floats, edges_hz: Floats, norm: str | None) -> Floats:
    widths_hz = np.diff(edges_hz)[:, None]
    ramps = edges_hz[:, None] - bins_hz
    bank = np.maximum(0.0, np.minimum(-ramps[:-2] / widths_hz[:-1], ramps[2:] / widths_hz[1:]))
    if norm == "slaney":
        bank *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return np.asarray(bank)


def _bank(config: MelConfig) -> Floats:
    spacing_s = 1.0 / config.sample_rate_hz
    edges_hz = _edges_hz(config)
    if not config.two_sided:
        return _triangles(np.fft.rfftfreq(config.n_fft, spacing_s), edges_hz, config.norm)
    bins_hz = np.fft.fftfreq(config.n_fft, spacing_s)
    upper = _triangles(bins_hz, edges_hz, config.norm)
    lower = _triangles(-bins_hz, edges_hz, config.norm)
    return np.concatenate([lower[::-1], upper])


def _has_empty_filter(config: MelConfig, **changes: float) -> bool:
    """Whether a band of `config` with those changes (unchecked) holds no FFT bin."""
    probe = object.__new__(MelConfig)
    for name, value in {**asdict(config), **changes}.items():
        object.__setattr__(probe, name, value)
    edges = _edges_hz(probe) * probe.n_fft / probe.sample_rate_hz
    first_bin_inside = np.floor(edges[:-2] + 1e-9) + 1.0
    return bool((first_bin_inside > edges[2:] - 1e-9).any())


def _require_no_empty_filter(config: MelConfig) -> None:
    if not _has_empty_filter(config):
        return
    step = 2 if config.two_sided else 1
    most = min(config.n_mels, config.n_fft // step * step) - step
    fewer = (n for n in range(most, 0, -step) if not _has_empty_filter(config, n_mels=n))
    longer = (n for n in (config.n_fft << k for k in range(1, 9)) if not _has_empty_filter(config, n_fft=n))
    wider = (hz for hz in config.corner_hz * 2.0 ** np.arange(1, 24) if not _has_empty_filter(config, corner_hz=hz))
    remedies = {"n_mels": next(fewer, None), "n_fft": next(longer, None), "corner_hz": next(wider, None)}
    mending = [f"{name}={value:g}" for name, value in remedies.items() if value]
    raise ConfigError(
        f"n_mels={config.n_mels}, n_fft={config.n_fft}, corner_hz={config.corner_hz:g}: a mel filter holds no FFT bin; "
        f"take {' or '.join(mending) or 'a wider range from f_min_hz to f_max_hz'}"
    )


def mel_filterbank(config: MelConfig) -> NDArray[np.float32]:
    """Weights of the FFT bins (in FFT order) in each band: float32, (n_mels, n_bins).

    `n_bins` is `n_fft` when two-sided, else `n_fft` // 2 + 1. Source: HTK Book 3.4 section 5.6; Slaney 1998.
    """
    return _bank(config).astype(np.float32)


def mel_power(
    frames: NDArray[np.complex64], *, bank: NDArray[np.float32] | csr_matrix, window: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Power of windowed frames in each band.

    `frames`: complex64, (n, n_fft). `bank`: (n_mels, n_fft), or (n_mels, n_fft // 2 + 1) for the upper half alone.
    `window`: float32, (n_fft,). Returns float32, (n, n_mels): |FFT|^2 unnormalised, as librosa has it. The sum over
    bins is a sparse product: a dense one (BLAS) adds in an order that depends on how many frames there are.
    """
    weighted = frames.view(np.float32) * np.repeat(window, 2)
    spectrum = scipy.fft.fft(weighted.view(np.complex64), axis=-1, overwrite_x=True)[:, : bank.shape[1]]
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.ascontiguousarray((csr_matrix(bank) @ power.T).T)


class MelSpectrogram:
    """Samples to log-mel frames. Holds no state between calls; threads may share it, one call at a time.

    With the packages of the extra `fast`, transforms are FFTW's and all else is compiled; otherwise SciPy and NumPy
    give the same but for rounding.
    """

    def __init__(self, config: MelConfig) -> None:
        self.config = config
        bank, window = mel_filterbank(config), _window(config)
        powers = _CompiledPowers if fast_kernels() is not None else _PlainPowers
        self._powers: _CompiledPowers | _PlainPowers = powers(config, bank, window)
        self._busy = threading.Lock()

    def __reduce__(self) -> tuple[type[MelSpectrogram], tuple[MelConfig]]:
        # Plans and buffers stay where they are; another process makes its own.
        return MelSpectrogram, (self.config,)

    def __call__(self, samples: NDArray[np.complex64]) -> NDArray[np.float32]:
        """Natural logarithm of mel power plus `log_offset` for every full frame.

        `samples`: complex64, (m,); NaN and infinite ones count as zeros. Returns float32, (n_frames, n_mels), frame i
        from samples [i * hop, i * hop + n_fft). A frame's values do not depend on the other frames of the call.
        """
        n_frames = max((samples.size - self.config.n_fft) // self.config.hop + 1, 0)
        result = np.empty((n_frames, self.config.n_mels), np.float32)
        if n_frames:
            self.into(samples, result)
        return result

    def into(self, samples: NDArray[np.complex64], out: NDArray[np.float32]) -> None:
        """The same, written to `out`, which is contiguous and has a row for every full frame, one at least."""
        with self._busy:
            self._powers(zero_unusable(samples), out)
        np.log(out, out=out)

    def into_each(self, streams: NDArray[np.complex64], outs: Sequence[NDArray[np.float32]]) -> None:
        """The same of several streams, complex64 (streams, m), all of their samples finite, to an array for each."""
        count = len(outs[0])
        with self._busy:
            if isinstance(self._powers, _CompiledPowers) and self._powers.holds(len(streams) * count):
                values = np.log(self._powers.of_all(np.ascontiguousarray(streams), count))
                for out, own in zip(outs, values.reshape(len(streams), count, -1), strict=True):
                    out[:] = own
                return
            for samples, out in zip(streams, outs, strict=True):
                self._powers(samples, out)
                np.log(out, out=out)


class _PlainPowers:
    """Mel powers plus `log_offset` of all frames, by NumPy and SciPy."""

    def __init__(self, config: MelConfig, bank: NDArray[np.float32], window: NDArray[np.float32]) -> None:
        self._config, self._bank, self._window = config, csr_matrix(bank), window
        self._batch = max(1, BATCH_VALUES // config.n_fft)

    def __call__(self, samples: NDArray[np.complex64], out: NDArray[np.float32]) -> None:
        frames = sliding_window_view(samples, self._config.n_fft)[:: self._config.hop]
        for start in range(0, len(out), self._batch):
            part = slice(start, start + self._batch)
            out[part] = mel_power(frames[part], bank=self._bank, window=self._window)
        out += np.float32(self._config.log_offset)


class _CompiledPowers:
    """The same, by planned transforms over blocks of frames that stay in a core's cache."""

    def __init__(self, config: MelConfig, bank: NDArray[np.float32], window: NDArray[np.float32]) -> None:
        kernels = fast_kernels()
        assert kernels is not None
        self._kernels, self._step = kernels, 2 * config.hop
        self._batch = max(1, FAST_BATCH_VALUES // config.n_fft)
        self._fft = kernels.PlannedFft((self._batch, config.n_fft))
        self._weighted, self._spectra = self._fft.input.view(np.float32), self._fft.output.view(np.float32)
        self._window = np.repeat(window, 2)
        # From the lowest frequency up, a band is one run of bins; in the FFT's own order, those at the carrier are two.
        self._roll = config.n_fft // 2 if config.two_sided else 0
        self._bins = bank.shape[1]
        rolled = np.roll(bank, self._roll, axis=1)
        used = rolled > 0.0
        self._first = used.argmax(axis=1)
        self._stop = self._bins - used[:, ::-1].argmax(axis=1)
        runs = zip(rolled, self._first, self._stop, strict=True)
        self._weights = np.concatenate([weights[first:stop] for weights, first, stop in runs])
        self._offset = np.float32(config.log_offset)
        self._together = np.empty((self._batch, config.n_mels), np.float32)
        # Compiling takes a second: now, and not when the first samples wait.
        self(np.zeros(config.n_fft, np.complex64), np.empty((1, config.n_mels), np.float32))

    def __call__(self, samples: NDArray[np.complex64], out: NDArray[np.float32]) -> None:
        flat = np.ascontiguousarray(samples).view(np.float32)
        for start in range(0, len(out), self._batch):
            powers = out[start : start + self._batch]
            count = len(powers)
            self._kernels.weigh(flat[start * self._step :], self._step, self._window, self._weighted[:count])
            self._transformed(count, powers)

    def holds(self, frames: int) -> bool:
        """Whether so many frames are transformed at a time."""
        return frames <= self._batch

    def of_all(self, streams: NDArray[np.complex64], count: int) -> NDArray[np.float32]:
        """Powers of `count` frames of each stream, (streams * count, n_mels)."""
        for index, stream in enumerate(streams.view(np.float32)):
            rows = self._weighted[index * count : (index + 1) * count]
            self._kernels.weigh(stream, self._step, self._window, rows)
        frames = len(streams) * count
        self._transformed(frames, self._together)
        return self._together[:frames]

    def _transformed(self, count: int, powers: NDArray[np.float32]) -> None:
        """Powers of the weighted frames."""
        self._fft(count)
        self._kernels.band_power(
            self._spectra,
            count,
            self._bins,
            self._roll,
            self._first,
            self._stop,
            self._weights,
            self._offset,
            powers,
        )
