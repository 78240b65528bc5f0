"""How time grows: a power of what grows, fitted to medians over rounds, with its standard error.

An exponent's error tells how far the points are from any power; it is no smaller with more rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from localize_benchmarks.figures import Found, Growth, Settings
from localize_benchmarks.flowgraphs import noise
from localize_benchmarks.turns import exponent, times_over
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
from localize_core.features.mel import MelConfig, MelSpectrogram
from localize_core.model.compiled.compile import compile_model
from localize_core.model.golden import golden_features
from localize_core.model.onnx_model import OnnxModel
from localize_core.resources import shared_file
from localize_core.station.config import Station, load_station
from localize_core.station.plan import plan_station

RATE_HZ = 2.4e6
SPAN_S = 0.1
"""Of signal, in each turn of what grows with the rate."""
SAMPLES = 1 << 17
EXAMPLE = "examples/four_receivers.toml"
BOTH = ["log_mel", "cross_correlation"]


def example_station(rate_hz: float) -> Station:
    """The station of four simulated receivers at another rate, with both features."""
    station = load_station(shared_file(EXAMPLE))
    assert station.scene is not None
    return station.model_copy(
        update={
            "station": station.station.model_copy(update={"sample_rate_hz": rate_hz}),
            "features": station.features.model_copy(update={"channels": BOTH}),
            "scene": station.scene.model_copy(update={"bandwidth_hz": 0.5 * rate_hz}),
        }
    )


def _receivers() -> Iterator[tuple[float, Callable[[], object]]]:
    for count in (2, 3, 4, 6, 8):
        core, samples = CrossCorrelation(CorrelationConfig(RATE_HZ, count)), noise(count, SAMPLES // 4)
        yield count, lambda core=core, samples=samples: core(samples)  # type: ignore[misc]


def _mel_sizes() -> Iterator[tuple[float, Callable[[], object]]]:
    samples = noise(1, SAMPLES)[0]
    for n_fft in (256, 512, 1024, 2048, 4096, 8192):
        core = MelSpectrogram(MelConfig(RATE_HZ, n_fft=n_fft, hop=n_fft // 4, n_mels=64))
        yield n_fft, lambda core=core: core(samples)  # type: ignore[misc]


def _correlation_sizes() -> Iterator[tuple[float, Callable[[], object]]]:
    samples = noise(4, SAMPLES)
    for n_fft in (512, 1024, 2048, 4096, 8192, 16384):
        core = CrossCorrelation(CorrelationConfig(RATE_HZ, 4, n_fft=n_fft))
        yield n_fft, lambda core=core: core(samples)  # type: ignore[misc]


def _rates() -> Iterator[tuple[float, Callable[[], object]]]:
    for rate_hz in (0.3e6, 0.6e6, 1.2e6, 2.4e6):
        spec = plan_station(example_station(rate_hz)).spec
        assert spec.level is not None
        assert spec.timing is not None
        samples = noise(len(spec.receivers), round(rate_hz * SPAN_S))
        mel, correlation = MelSpectrogram(spec.level.config), CrossCorrelation(spec.timing.config)

        def work(
            samples: np.ndarray = samples, mel: MelSpectrogram = mel, correlation: CrossCorrelation = correlation
        ) -> None:
            correlation(samples)
            for stream in samples:
                mel(stream)

        yield rate_hz, work


def _windows(folder: Path) -> Iterator[tuple[float, Callable[[], object]]]:
    compiled = folder / "model.onnx"
    compile_model(plan_station(load_station(shared_file(EXAMPLE))).spec, compiled)
    model = OnnxModel(compiled)
    contract = model.contract
    for steps in (8, 16, 32, 64, 128):
        features = golden_features(contract, seed=1, time_steps=steps)
        yield steps, lambda features=features: model.run(features)  # type: ignore[misc]


def measure(settings: Settings) -> Iterator[Found]:
    with tempfile.TemporaryDirectory() as folder:
        kinds: Mapping[str, tuple[str, Iterator[tuple[float, Callable[[], object]]], float]] = {
            "cross-correlation, a sample of all receivers": ("receivers", _receivers(), SAMPLES // 4),
            "mel spectrogram, a sample": ("n_fft", _mel_sizes(), SAMPLES),
            "cross-correlation of 4 receivers, a sample of all": ("n_fft", _correlation_sizes(), SAMPLES),
            "both features of a station of 4, a second of signal": ("sample rate, Hz", _rates(), SPAN_S),
            "inference with the compiled model, a window": ("frames in a window", _windows(Path(folder)), 1),
        }
        for what, (over, made, amount) in kinds.items():
            ways = dict(made)
            seconds = [taken_s / amount for taken_s in times_over(ways, settings.rounds)]
            sizes = list(ways)
            power, error = exponent(sizes, seconds)
            yield Growth("growth", what, over, sizes, seconds, power, error)
