"""Everything that the compiled likelihood is made from: geometry, features and how far each is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localize_core.errors import ConfigError
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.geodesy import LocalFrame
from localize_core.model.compiled.propagation import PathDelay
from localize_core.model.contract import Receiver

MIN_TIME_STEPS = 8
"""Frames below which their scatter says too little about the noise."""


@dataclass(frozen=True)
class Area:
    """A box in WGS84 degrees, and the height of emitters above the ellipsoid."""

    south: float
    west: float
    north: float
    east: float
    altitude_m: float = 0.0

    @property
    def frame(self) -> LocalFrame:
        """The tangent frame at the middle of the box."""
        longitude = (self.west + self.east) / 2.0
        return LocalFrame((self.south + self.north) / 2.0, (longitude + 180.0) % 360.0 - 180.0, self.altitude_m)

    def grid(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes and longitudes of the centres of size × size cells, each (size²,)."""
        steps = (np.arange(size) + 0.5) / size
        lat, lon = np.meshgrid(
            self.south + steps * (self.north - self.south), self.west + steps * (self.east - self.west), indexing="ij"
        )
        return lat.ravel(), lon.ravel()


@dataclass(frozen=True)
class TimingModel:
    """Correlation likelihood: which feature, each receiver's clock and the path."""

    config: CorrelationConfig
    receiver_sigma_m: tuple[float, ...]
    path: PathDelay


@dataclass(frozen=True)
class LevelModel:
    """Level likelihood: log-distance path loss with log-normal shadowing and an emitter of unknown power.

    `noise_dbfs`: receiver noise in the whole band, None where it is read off the quiet bands. `level_dbfs_at_1km`:
    None where the emitter's power is unknown.
    """

    config: MelConfig
    noise_dbfs: tuple[float | None, ...]
    gain_sigma_db: tuple[float, ...]
    shadowing_db: float
    exponent: float
    exponent_sigma: float
    level_dbfs_at_1km: float | None
    level_sigma_db: float


@dataclass(frozen=True)
class LikelihoodSpec:
    """A station as the compiled model sees it."""

    name: str
    sample_rate_hz: float
    frequency_hz: float
    receivers: tuple[Receiver, ...]
    area: Area
    along_surface: bool
    timing: TimingModel | None
    level: LevelModel | None
    probability: float = 0.95

    def __post_init__(self) -> None:
        if self.timing is None and self.level is None:
            raise ConfigError(f"station {self.name}: no feature to locate with")
        if self.timing is not None and len(self.receivers) < 2:
            raise ConfigError(f"station {self.name}: cross_correlation needs at least two receivers, there is one")
        if self.timing is not None and self.level is not None:
            correlation, mel = self.timing.config, self.level.config
            if (correlation.rows, correlation.hop) != (mel.rows, mel.hop):
                raise ConfigError(
                    f"log_mel and cross_correlation share rows and hop: {mel.rows} rows at hop {mel.hop} "
                    f"beside {correlation.rows} at {correlation.hop}"
                )

    @property
    def rows(self) -> int:
        config = self.level.config if self.level is not None else self.timing.config  # type: ignore[union-attr]
        return int(config.rows)

    @property
    def receivers_enu_m(self) -> np.ndarray:
        """Receiver coordinates in the area's frame, (R, 3) metres."""
        return self.area.frame.to_enu_m(
            np.array([receiver.latitude for receiver in self.receivers]),
            np.array([receiver.longitude for receiver in self.receivers]),
            np.array([receiver.altitude_m for receiver in self.receivers]),
        )
