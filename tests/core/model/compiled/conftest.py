"""Small stations of known geometry for the compiled model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.model.compiled.propagation import PathDelay
from localize_core.model.compiled.spec import Area, LevelModel, LikelihoodSpec, TimingModel
from localize_core.model.contract import Receiver

RATE_HZ = 2e6
CORNERS_M = np.array([[-3000.0, -2500.0], [3000.0, -2800.0], [2600.0, 3100.0], [-2900.0, 2700.0], [200.0, -3500.0]])


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., LikelihoodSpec]:
    """A station of 2 to 5 receivers in a box of about 8 km."""

    def make(
        receivers: int = 4,
        *,
        timing: bool = True,
        level: bool = False,
        signal: str = "iq",
        sigma_m: float = 3.0,
        path: PathDelay | None = None,
        reference_dbfs: float | None = None,
    ) -> LikelihoodSpec:
        area = Area(50.0, 8.0, 50.072, 8.112)
        latitude, longitude = area.frame.to_wgs84(CORNERS_M[:receivers])
        return LikelihoodSpec(
            name="test",
            sample_rate_hz=RATE_HZ,
            frequency_hz=433e6,
            receivers=tuple(
                Receiver(name=f"r{index}", latitude=float(lat), longitude=float(lon), altitude_m=30.0)
                for index, (lat, lon) in enumerate(zip(latitude, longitude, strict=True))
            ),
            area=area,
            along_surface=False,
            timing=TimingModel(
                CorrelationConfig(RATE_HZ, receivers, n_fft=2048, n_lags=256, lag_step=0.5, signal=signal),
                (sigma_m,) * receivers,
                path or PathDelay(0.0),
            )
            if timing
            else None,
            level=LevelModel(
                config=MelConfig(RATE_HZ, n_fft=2048, hop=2048, n_mels=256),
                noise_dbfs=(None,) * receivers,
                gain_sigma_db=(1.0,) * receivers,
                shadowing_db=6.0,
                exponent=2.7,
                exponent_sigma=0.3,
                level_dbfs_at_1km=reference_dbfs,
                level_sigma_db=2.0,
            )
            if level
            else None,
        )

    return make
