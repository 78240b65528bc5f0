"""How often the compiled model's ellipse holds the truth: random stations, waveforms and SNRs, none used for tuning.

    python benchmarks/calibration.py [--trials 400] [--seed 1] [--json]

Receivers, emitter, bandwidth, clock errors, shadowing and path-loss exponent are drawn anew from what the station file
states; the IQ is made here, by exact phase ramps, not by the project's own simulator. Then: features, compiled
model, and where the truth lies in the ellipse.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from localize_core.features.correlation import CrossCorrelation
from localize_core.features.mel import MelSpectrogram
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import Station
from localize_core.station.plan import Plan, plan_station
from scipy.stats import chi2

SNRS_DB = (-5.0, 5.0, 15.0, 30.0)
PROBABILITIES = (0.3935, 0.5, 0.68, 0.9, 0.95)
TRIALS_PER_STATION = 20
NOISE_DBFS = -50.0
CLOCK_SIGMA_NS = 20.0


@dataclass(frozen=True)
class Trials:
    """Outcomes of one setting: squared Mahalanobis distances, errors in metres, and confidences, all (trials,)."""

    squared: np.ndarray
    error_m: np.ndarray
    confidence: np.ndarray

    def containment(self, probability: float) -> float:
        return float(np.mean(self.squared <= chi2.ppf(probability, 2)))


def random_station(rng: np.random.Generator, kind: str) -> Station:
    """Four to six receivers in a box of 8 km, for correlation; six to ten in one of 4 km, for levels."""
    levels = kind == "level"
    count = int(rng.integers(6, 11) if levels else rng.integers(4, 7))
    size_m = 4000.0 if levels else 8000.0
    half_lat = size_m / 2.0 / 111_195.0
    latitude, longitude = float(rng.uniform(-60.0, 60.0)), float(rng.uniform(-179.0, 179.0))
    half_lon = half_lat / np.cos(np.radians(latitude))
    places = rng.uniform(-0.9, 0.9, (count, 2)) * [half_lat, half_lon] + [latitude, longitude]
    features: dict[str, object] = {"channels": ["log_mel" if levels else "cross_correlation"], "window_s": 0.04}
    if levels:
        features |= {"n_fft": 512, "hop": 256, "rows": 64}
    receivers = [
        {
            "name": f"r{index}",
            "latitude": lat,
            "longitude": lon,
            "altitude_m": 20.0,
            "timing_sigma_ns": CLOCK_SIGMA_NS,
            "source": {"kind": "scene"},
        }
        for index, (lat, lon) in enumerate(places.tolist())
    ]
    return Station.model_validate(
        {
            "station": {"name": "random", "sample_rate_hz": 2e6, "frequency_hz": 433e6},
            "receiver": receivers,
            "area": {
                "south": latitude - half_lat,
                "north": latitude + half_lat,
                "west": longitude - half_lon,
                "east": longitude + half_lon,
            },
            "features": features,
            "scene": {
                "waveform": "noise",
                "bandwidth_hz": 1e5,
                "level_dbfs_at_1km": -30.0,
                "noise_dbfs": NOISE_DBFS,
                "track": [[latitude, longitude]],
                "speed_mps": 1.0,
            },
        }
    )


def received(
    rng: np.random.Generator, plan: Plan, station: Station, emitter_enu_m: np.ndarray, snr_db: float | None
) -> np.ndarray:
    """IQ of one window at every receiver, complex64 (receivers, samples); `snr_db` None for noise alone.

    SNR is that of the median receiver in the whole band. Levels follow the station's path loss and shadowing for
    levels, and spread by 10 dB for correlation; clocks err as the station says; oscillator phases are random.
    """
    spec = plan.spec
    config = spec.level.config if spec.level is not None else spec.timing.config
    count = plan.time_steps * config.hop + config.n_fft - config.hop
    padded = count + 4096
    distance_m = np.linalg.norm(spec.receivers_enu_m - emitter_enu_m, axis=1)
    receivers = len(distance_m)
    if spec.level is not None:
        p = station.propagation
        exponent = max(rng.normal(p.path_loss_exponent, p.path_loss_exponent_sigma), 0.5)
        gain_db = -10.0 * exponent * np.log10(distance_m) + rng.normal(0.0, np.hypot(p.shadowing_db, 1.0), receivers)
    else:
        gain_db = rng.uniform(-5.0, 5.0, receivers)
    clock_s = rng.normal(0.0, CLOCK_SIGMA_NS * 1e-9, receivers)
    delay_s = (distance_m - distance_m.mean()) / SPEED_OF_LIGHT_MPS + clock_s
    frequency = np.fft.fftfreq(padded)
    bandwidth = 10.0 ** rng.uniform(np.log10(0.05), np.log10(0.9))
    spectrum = _complex_normal(rng, padded) * (np.abs(frequency) < bandwidth / 2.0)
    spectrum /= np.linalg.norm(spectrum) / padded
    noise_amplitude = 10.0 ** (NOISE_DBFS / 20.0)
    samples = noise_amplitude * _complex_normal(rng, receivers, count)
    if snr_db is not None:
        gain_db += snr_db - np.median(gain_db)
        ramp = np.exp(-2j * np.pi * frequency * delay_s[:, None] * spec.sample_rate_hz)
        signal = np.fft.ifft(spectrum * ramp)[:, 2048 : 2048 + count]
        phase = np.exp(2j * np.pi * rng.uniform(size=(receivers, 1)))
        samples += noise_amplitude * 10.0 ** (gain_db[:, None] / 20.0) * phase * signal
    return samples.astype(np.complex64)


def _complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2.0)


def features_of(plan: Plan, samples: np.ndarray) -> np.ndarray:
    """One window of features, float32 (1, channels, rows, time_steps)."""
    if plan.spec.level is not None:
        mel = MelSpectrogram(plan.spec.level.config)
        frames = np.stack([mel(stream) for stream in samples])
    else:
        frames = CrossCorrelation(plan.spec.timing.config)(samples)
    return np.ascontiguousarray(frames[:, : plan.time_steps].transpose(0, 2, 1)[None])


def run_trials(kind: str, snr_db: float | None, *, trials: int, seed: int) -> Trials:
    """Draw stations and emitters anew and locate them. `kind`: "correlation" or "level"."""
    rng = np.random.default_rng([seed, kind == "level", 999 if snr_db is None else int(snr_db + 100)])
    squared, error_m, confidence = np.empty(trials), np.empty(trials), np.empty(trials)
    with tempfile.TemporaryDirectory() as folder:
        for trial in range(trials):
            if trial % TRIALS_PER_STATION == 0:
                station = random_station(rng, kind)
                plan = plan_station(station)
                compile_model(plan.spec, Path(folder) / "model.onnx")
                model = OnnxModel(Path(folder) / "model.onnx")
                area, frame = plan.spec.area, plan.spec.area.frame
            latitude, longitude = rng.uniform(area.south, area.north), rng.uniform(area.west, area.east)
            emitter = frame.to_enu_m(latitude, longitude, 0.0)
            answer = model.run(features_of(plan, received(rng, plan, station, emitter, snr_db)))
            squared[trial], error_m[trial] = _misplacement(frame, answer, emitter)
            confidence[trial] = answer.confidence[0, 0]
    return Trials(squared, error_m, confidence)


def _misplacement(frame: LocalFrame, answer: object, emitter: np.ndarray) -> tuple[float, float]:
    """Squared Mahalanobis distance and distance in metres of the truth from a fix."""
    offset = answer.position[0] - emitter[:2]
    sigma_x, sigma_y, theta = answer.uncertainty[0].astype(float)
    along = np.array([np.cos(np.radians(theta)), np.sin(np.radians(theta))])
    across = np.array([-along[1], along[0]])
    return float((offset @ along / sigma_x) ** 2 + (offset @ across / sigma_y) ** 2), float(np.hypot(*offset))


@click.command()
@click.option("--trials", default=400, show_default=True, help="For each kind of station and each SNR.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(trials: int, seed: int, as_json: bool) -> None:
    """Containment of the compiled model's ellipses, and its confidence with and without an emitter."""
    rows = []
    for kind in ("correlation", "level"):
        for snr_db in (*SNRS_DB, None):
            found = run_trials(kind, snr_db, trials=trials, seed=seed)
            row = {"kind": kind, "snr_db": snr_db, "trials": trials}
            if snr_db is not None:
                row |= {f"within_{100 * p:g}": found.containment(p) for p in PROBABILITIES}
                row |= {"nees": float(found.squared.mean()), "median_error_m": float(np.median(found.error_m))}
            row |= {
                "confidence_p5": float(np.quantile(found.confidence, 0.05)),
                "confidence_p95": float(np.quantile(found.confidence, 0.95)),
            }
            rows.append(row)
            if as_json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
