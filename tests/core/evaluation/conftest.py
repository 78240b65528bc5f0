"""Small stations of known geometry, and windows of them that are made here rather than by the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from localize_core.dataset.windows import Label, Windows
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
from localize_core.features.mel import MelConfig, MelSpectrogram
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.compile import contract_of
from localize_core.model.compiled.propagation import PathDelay
from localize_core.model.compiled.spec import Area, LevelModel, LikelihoodSpec, TimingModel
from localize_core.model.contract import Contract, Receiver

RATE_HZ = 2e6
CORNERS_M = np.array([[-3000.0, -2500.0], [3000.0, -2800.0], [2600.0, 3100.0], [-2900.0, 2700.0], [200.0, -3500.0]])
NOISE_DBFS = -50.0


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., LikelihoodSpec]:
    """A station of receivers at `places_m` in a box of about 8 km round 50 N 8 E; other fields as the test says."""

    def make(
        places_m: np.ndarray = CORNERS_M[:4],
        *,
        timing: bool = True,
        level: bool = False,
        clock_m: float | tuple[float, ...] = 3.0,
        path: PathDelay | None = None,
        height_m: float = 0.0,
        lag_step: float = 1.0,
        **of_level: Any,
    ) -> LikelihoodSpec:
        area = Area(49.964, 7.944, 50.036, 8.056)
        count = len(places_m)
        latitude, longitude = area.frame.to_wgs84(np.asarray(places_m, float))
        clocks = clock_m if isinstance(clock_m, tuple) else (clock_m,) * count
        fields = {
            "config": MelConfig(RATE_HZ, n_fft=1024, hop=768, n_mels=128),
            "noise_dbfs": (NOISE_DBFS,) * count,
            "gain_sigma_db": (0.0,) * count,
            "shadowing_db": 6.0,
            "exponent": 2.7,
            "exponent_sigma": 0.3,
            "level_dbfs_at_1km": None,
            "level_sigma_db": 6.0,
        }
        return LikelihoodSpec(
            name="test",
            sample_rate_hz=RATE_HZ,
            frequency_hz=433e6,
            receivers=tuple(
                Receiver(name=f"r{index}", latitude=float(lat), longitude=float(lon), altitude_m=height_m)
                for index, (lat, lon) in enumerate(zip(latitude, longitude, strict=True))
            ),
            area=area,
            along_surface=False,
            timing=TimingModel(
                CorrelationConfig(RATE_HZ, count, n_fft=1024, hop=768, n_lags=round(128 / lag_step), lag_step=lag_step),
                clocks,
                path or PathDelay(0.0),
            )
            if timing
            else None,
            level=LevelModel(**(fields | of_level)) if level else None,
        )

    return make


@dataclass(frozen=True)
class ToySource:
    """Windows of IQ that is delayed by exact phase ramps, at a given SNR; without shadowing or errors of clocks.

    Receivers' levels follow `exponent`. The labels go round: emitters in the area, then one window each of noise and of
    an emitter 40 km away in every `period`.
    """

    spec: LikelihoodSpec
    count: int
    snr_db: float = 20.0
    exponent: float = 2.0
    bandwidth: float = 0.4
    time_steps: int = 8
    period: int = 10
    seed: int = 1

    @property
    def contract(self) -> Contract:
        return contract_of(self.spec)

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[Windows]:
        for start in range(0, self.count, size):
            yield Windows.concatenate([self._window(k) for k in range(start, min(start + size, self.count))])

    def _window(self, number: int) -> Windows:
        rng = np.random.default_rng([self.seed, number])
        kind = number % self.period
        label = Label.NONE if kind == self.period - 1 else Label.OUTSIDE if kind == self.period - 2 else Label.INSIDE
        place = rng.uniform(-2500.0, 2500.0, 2)
        if label == Label.OUTSIDE:
            place = place / np.linalg.norm(place) * 40e3
        hop = self.contract.hop
        size = (self.time_steps - 1) * hop + self.contract.n_fft
        offset = self.spec.receivers_enu_m - [*place, 0.0]
        distance_m = np.linalg.norm(offset, axis=1)
        gain_db = -10.0 * self.exponent * np.log10(distance_m)
        snr_db = self.snr_db + gain_db - np.median(gain_db)
        padded = size + 2048
        frequency = np.fft.fftfreq(padded)
        spectrum = _complex_normal(rng, padded) * (np.abs(frequency) < self.bandwidth / 2.0)
        spectrum *= padded / np.linalg.norm(spectrum)
        late = (distance_m - distance_m.mean()) / SPEED_OF_LIGHT_MPS * RATE_HZ
        signal = np.fft.ifft(spectrum * np.exp(-2j * np.pi * frequency * late[:, None]))[:, 1024 : 1024 + size]
        samples = _complex_normal(rng, len(distance_m), size)
        if label != Label.NONE:
            samples += 10.0 ** (snr_db[:, None] / 20.0) * signal
        samples = (samples * 10.0 ** (NOISE_DBFS / 20.0)).astype(np.complex64)
        parts = []
        if self.spec.level is not None:
            mel = MelSpectrogram(self.spec.level.config)
            parts.append(np.stack([mel(stream) for stream in samples]))
        if self.spec.timing is not None:
            parts.append(CrossCorrelation(self.spec.timing.config)(samples))
        features = np.concatenate(parts).transpose(0, 2, 1)[None]
        silent = label == Label.NONE
        return Windows(
            features=np.ascontiguousarray(features, np.float32),
            level_db=10.0 * np.log10(np.mean(np.abs(samples) ** 2, axis=1))[None],
            truth_m=np.full((1, 2), np.nan) if silent else place[None],
            label=np.array([label]),
            snr_db=np.full((1, len(distance_m)), -np.inf) if silent else snr_db[None],
            bandwidth_hz=np.array([np.nan if silent else self.bandwidth * RATE_HZ]),
            group=np.array([number // 5]),
            source=np.array([number]),
            usable=np.ones((1, len(distance_m)), bool),
        )


def _complex_normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2.0)


@pytest.fixture(scope="session")
def make_source(make_spec: Callable[..., LikelihoodSpec]) -> Callable[..., ToySource]:
    """A maker of toy sources, of the station that `make_spec` makes by default."""

    def make(count: int, spec: LikelihoodSpec | None = None, **changes: Any) -> ToySource:
        return ToySource(spec or make_spec(), count, **changes)

    return make
