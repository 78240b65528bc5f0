#!/usr/bin/env python3
"""Measure how exact the features are: mel against librosa, delays against the truth and the Cramér-Rao bound.

Signals are flat complex Gaussian noise of a bandwidth, delayed by a phase ramp over a long circular record, so that
a frame holds what a receiver would. One row per figure; --json prints them as JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import librosa
import numpy as np
import scipy.fft
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation, peak_lag
from localize_core.features.mel import AUDIO_CORNER_HZ, MelConfig, MelSpectrogram
from rich.console import Console
from rich.table import Table

N_FFT = 4096
SHORT_FFT = 256
DELAYS = 3.0 + np.arange(-4, 5) / 8
MEL_CASES = ((8000.0, 256, 20), (16000.0, 512, 40), (22050.0, 2048, 128), (48000.0, 1024, 64))


def mel_differences(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Largest relative difference of mel power from librosa's, on white noise."""
    for rate_hz, n_fft, n_mels in MEL_CASES:
        for scale, corner_hz in AUDIO_CORNER_HZ.items():
            samples = rng.standard_normal(20_000).astype(np.float32)
            options = {"n_fft": n_fft, "n_mels": n_mels, "norm": "slaney"}
            config = MelConfig(
                rate_hz, two_sided=False, mel_scale=scale, corner_hz=corner_hz, hop=n_fft // 4, **options
            )
            reference = librosa.feature.melspectrogram(
                y=samples, sr=rate_hz, hop_length=n_fft // 4, htk=scale == "htk", center=False, **options
            ).T
            log_power = MelSpectrogram(config)(samples.astype(np.complex64)).astype(np.float64)
            difference = float(np.abs((np.exp(log_power) - config.log_offset) / reference - 1.0).max())
            case = {"mel_scale": scale, "sample_rate_hz": rate_hz, "n_fft": n_fft, "n_mels": n_mels}
            yield {"figure": "mel_relative_difference", **case, "value": difference}


def flat_noise(rng: np.random.Generator, shape: tuple[int, ...], bandwidth: float) -> np.ndarray:
    """Spectra of circular complex Gaussian noise, flat over `bandwidth` (1: all of the sampled band)."""
    spectra = rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]
    spectra[..., np.abs(np.fft.fftfreq(shape[-1])) > bandwidth / 2] = 0.0
    return spectra


def lag_errors(
    rng: np.random.Generator, frames: int, config: CorrelationConfig, bandwidth: float, snr: float = np.inf
) -> np.ndarray:
    """Errors of refined peak lags in samples, (delays, frames)."""
    correlate = CrossCorrelation(config)
    frequency = np.fft.fftfreq(frames * config.n_fft)
    errors = []
    for delay in DELAYS:
        first = flat_noise(rng, frequency.shape, bandwidth)
        received = np.stack([first * np.exp(-2j * np.pi * frequency * delay).astype(np.complex64), first])
        if np.isfinite(snr):
            received += flat_noise(rng, received.shape, bandwidth) * np.float32(snr**-0.5)
        coefficients = correlate(scipy.fft.ifft(received, norm="ortho"))[0]
        errors.append(peak_lag(coefficients, config.lag_step)[0] - delay)
    return np.array(errors)


def delay_biases(rng: np.random.Generator, frames: int) -> Iterator[dict[str, Any]]:
    """Largest mean error over fractional delays, without noise, where the lags resolve the signal."""
    for n_fft in (SHORT_FFT, N_FFT):
        for bandwidth in (0.1, 0.25, 0.5, 0.8, 1.0):
            for lag_step in (1.0, 0.5, 0.3):
                if bandwidth * lag_step <= 0.5:
                    config = CorrelationConfig(1.0, 2, n_fft=n_fft, lag_step=lag_step)
                    bias = np.abs(lag_errors(rng, frames, config, bandwidth).mean(axis=1)).max()
                    case = {"n_fft": n_fft, "bandwidth": bandwidth, "lag_step": lag_step}
                    yield {"figure": "delay_bias_samples", **case, "value": bias}


def variance_ratios(rng: np.random.Generator, frames: int) -> Iterator[dict[str, Any]]:
    """Mean square error over the Cramér-Rao bound, signal and noise filling the same band."""
    for bandwidth, lag_step in ((1.0, 0.25), (0.8, 0.5), (0.5, 0.5), (0.25, 0.5)):
        config = CorrelationConfig(1.0, 2, n_fft=N_FFT, lag_step=lag_step)
        for snr_db in (0.0, 10.0, 15.0, 20.0, 30.0):
            snr = 10.0 ** (snr_db / 10.0)
            coherence = snr / (1.0 + snr)
            spread = (2.0 * np.pi * bandwidth) ** 2 / 12.0
            bound = (1.0 - coherence**2) / (2.0 * config.n_core * bandwidth * coherence**2 * spread)
            ratio = np.square(lag_errors(rng, frames, config, bandwidth, snr)).mean() / bound
            yield {"figure": "variance_over_bound", "bandwidth": bandwidth, "snr_db": snr_db, "value": ratio}


@click.command(help=__doc__)
@click.option("--frames", default=128, show_default=True, help="Frames for each of the nine delays.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON lines on standard output.")
def main(frames: int, seed: int, as_json: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = [*mel_differences(rng), *delay_biases(rng, frames), *variance_ratios(rng, frames)]
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = Table("figure", "case", "value")
    for row in rows:
        case = ", ".join(f"{key}={value}" for key, value in row.items() if key not in ("figure", "value"))
        table.add_row(row["figure"], case, f"{row['value']:.2g}")
    Console().print(table)


if __name__ == "__main__":
    main()
