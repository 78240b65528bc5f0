"""What an ONNX model says about itself: the JSON under `localize.contract` in its metadata.

The inference stage configures itself from it and refuses what does not match.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from localize_core.errors import ConfigError, ModelError
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.geodesy import GEOD, LocalFrame
from localize_core.types.place import Placed

METADATA_KEY = "localize.contract"
INPUT_NAME = "features"
SAME_PLACE_M = 50.0
"""A receiver may stand this far from where a model was made for it."""
METRES_PER_DEGREE = 111_195.0
"""Of latitude, on a sphere of the Earth's mean radius."""
OUTPUT_NAMES = ("position", "uncertainty", "confidence")
LIKELIHOOD_NAME = "likelihood"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Receiver(_Part):
    """A receiver's name and WGS84 place."""

    name: str = Field(min_length=1)
    latitude: float
    longitude: float
    altitude_m: float = 0.0


class Channel(_Part):
    """One input channel: its feature, that feature's parameters, and the receiver or the pair it comes from."""

    feature: Literal["log_mel", "cross_correlation"]
    receivers: tuple[str, ...] = Field(min_length=1, max_length=2)
    parameters: dict[str, Any]


class Normalisation(_Part):
    """How feature values are scaled before the model sees them.

    `none`; `joint`: zero mean and unit variance over all channels and frames of the window together, so that relative
    level between receivers survives; `constants`: (x - mean) / std with the values given here.
    """

    kind: Literal["none", "joint", "constants"] = "none"
    mean: float = 0.0
    std: float = Field(1.0, gt=0.0)

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Scale one window, (channels, rows, time_steps) float32."""
        if self.kind == "none":
            return features
        if self.kind == "constants":
            return ((features - self.mean) / self.std).astype(np.float32)
        mean, std = float(features.mean(dtype=np.float64)), float(features.std(dtype=np.float64))
        return ((features - mean) / max(std, 1e-6)).astype(np.float32)


class Frame(_Part):
    """In what the model answers: WGS84 (latitude, longitude) degrees, or metres east and north of an origin."""

    kind: Literal["wgs84_deg", "enu_m"]
    latitude: float = 0.0
    longitude: float = 0.0
    altitude_m: float = 0.0

    @property
    def local(self) -> LocalFrame:
        return LocalFrame(self.latitude, self.longitude, self.altitude_m)

    def metres_per_unit(self, position: tuple[float, float]) -> tuple[float, float]:
        """What a unit of either coordinate measures round a position in this frame, to a percent."""
        if self.kind == "enu_m":
            return 1.0, 1.0
        return METRES_PER_DEGREE, METRES_PER_DEGREE * max(math.cos(math.radians(position[0])), 1e-9)


class LikelihoodGrid(_Part):
    """Cells of the area that a model tells the probability of in its output `likelihood`, (batch, rows, columns).

    Rows go from south to north, columns from west to east; a cell is an equal part of the box in degrees. `east` may
    exceed 180 where the box crosses the antimeridian.
    """

    south: float = Field(ge=-90.0, le=90.0)
    west: float = Field(ge=-180.0, le=180.0)
    north: float = Field(ge=-90.0, le=90.0)
    east: float = Field(ge=-180.0, le=540.0)
    rows: int = Field(ge=1, le=4096)
    columns: int = Field(ge=1, le=4096)


class Golden(_Part):
    """A known input, rebuilt from its seed, and what the model answered to it when it was made."""

    seed: int = Field(ge=0)
    time_steps: int = Field(ge=1, le=65_536)
    position: tuple[float, float]
    uncertainty: tuple[float, float, float]
    confidence: float


class Contract(_Part):
    """The whole contract, version 1."""

    version: Literal[1] = 1
    name: str = Field(min_length=1)
    model_version: str = "1"
    sample_rate_hz: float = Field(gt=0.0)
    frequency_hz: float | None = None
    rows: int = Field(ge=1)
    time_steps: int | None = Field(None, ge=1, description="None where the model takes any number of frames")
    min_time_steps: int = Field(1, ge=1, description="frames below which the answers of the model mean nothing")
    channels: tuple[Channel, ...] = Field(min_length=1)
    normalisation: Normalisation = Normalisation()
    receivers: tuple[Receiver, ...] = Field(min_length=1)
    min_receivers: int = Field(1, ge=1)
    frame: Frame
    likelihood: LikelihoodGrid | None = Field(None, description="None where the model tells nothing but its answer")
    provenance: dict[str, Any] = {}
    accuracy: dict[str, Any] | None = None
    golden: Golden | None = None

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Receiver indices of all pairs, in channel order."""
        return list(itertools.combinations(range(len(self.receivers)), 2))

    @property
    def mel_config(self) -> MelConfig | None:
        """Parameters of the log-mel channels, or None where there are none."""
        found = [channel.parameters for channel in self.channels if channel.feature == "log_mel"]
        return MelConfig.from_dict(found[0]) if found else None

    @property
    def correlation_config(self) -> CorrelationConfig | None:
        """Parameters of the cross-correlation channels, or None where there are none."""
        found = [channel.parameters for channel in self.channels if channel.feature == "cross_correlation"]
        return CorrelationConfig.from_dict(found[0]) if found else None

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The complete parameters of each feature, those included that the contract leaves at their defaults."""
        configs = [config for config in (self.mel_config, self.correlation_config) if config is not None]
        return {config.as_dict()["feature"]: config.as_dict() for config in configs}

    @property
    def hop(self) -> int:
        config = self.mel_config or self.correlation_config
        assert config is not None  # a contract has at least one channel
        return int(config.hop)

    @property
    def n_fft(self) -> int:
        """Longest FFT of all channels: how far a window reaches before its first hop."""
        return max(int(config.n_fft) for config in (self.mel_config, self.correlation_config) if config is not None)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Raises ModelError naming the field."""
        try:
            contract = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ModelError(f"the model's contract is not usable: {key}: {first['msg']}") from error
        contract.check()
        return contract

    def check(self) -> None:
        """Raise ModelError where the contract cannot be kept: order, sizes and parameters of channels, places."""
        try:
            self._check()
        except ConfigError as error:
            raise ModelError(f"the model's contract is not usable: {error}") from error

    def _check(self) -> None:
        names = [receiver.name for receiver in self.receivers]
        if len(set(names)) < len(names):
            raise ModelError(f"the contract's receivers must differ in name, found {names}")
        if self.min_receivers > len(names):
            raise ModelError(f"the contract wants min_receivers={self.min_receivers} of {len(names)} receivers")
        for receiver in self.receivers:
            LocalFrame(receiver.latitude, receiver.longitude)
        LocalFrame(self.frame.latitude, self.frame.longitude)
        expected: list[tuple[str, tuple[str, ...]]] = []
        features = [channel.feature for channel in self.channels]
        if "log_mel" in features:
            expected += [("log_mel", (name,)) for name in names]
        if "cross_correlation" in features:
            expected += [("cross_correlation", (names[i], names[j])) for i, j in self.pairs]
        found = [(channel.feature, channel.receivers) for channel in self.channels]
        if found != expected:
            raise ModelError(f"the contract's channels must be {expected}, found {found}")
        for channel in self.channels:
            first = self.channels[features.index(channel.feature)]
            if channel.parameters != first.parameters:
                raise ModelError(
                    f"all {channel.feature} channels share their parameters: {first.parameters} beside "
                    f"{channel.parameters}"
                )
        mel, correlation = self.mel_config, self.correlation_config
        if correlation is not None and correlation.n_receivers != len(names):
            raise ModelError(
                f"the contract lists {len(names)} receivers, its cross_correlation has {correlation.n_receivers}"
            )
        for config in (mel, correlation):
            if config is None:
                continue
            feature = config.as_dict()["feature"]
            for name, own, theirs in (
                ("rows", self.rows, config.rows),
                ("hop", self.hop, config.hop),
                ("sample_rate_hz", self.sample_rate_hz, config.sample_rate_hz),
            ):
                if own != theirs:
                    raise ModelError(f"the contract says {name}={own}, its {feature} gives {theirs}")


P = TypeVar("P", bound=Placed)


def moved_receivers(found: Sequence[P], made_for: Sequence[Receiver]) -> Iterator[tuple[P, Receiver, float]]:
    """Receivers that stand farther than SAME_PLACE_M from where a model was made for them, and how many metres.

    Both are in the same order.
    """
    for own, theirs in zip(found, made_for, strict=True):
        apart_m = GEOD.inv(own.longitude, own.latitude, theirs.longitude, theirs.latitude)[2]
        if apart_m > SAME_PLACE_M:
            yield own, theirs, apart_m


def agreed_contract(carried: Contract | None, given: Contract | None, *, label: str, mending: str) -> Contract:
    """The contract that a model carries, else the one given beside it.

    Raises ModelError where there is none, with what would mend that; where both are there and differ, naming the fields
    with both sides; and where the one given cannot be kept.
    """
    if carried is None:
        if given is None:
            raise ModelError(f"{label}: {mending}")
        given.check()
        return given
    if given is not None and carried != given:
        pairs = ((name, getattr(carried, name), getattr(given, name)) for name in Contract.model_fields)
        differing = [
            f"{name}={ours!r} in the model, {theirs!r} given" for name, ours, theirs in pairs if ours != theirs
        ]
        raise ModelError(f"{label}: carries a contract that differs from the one given: {'; '.join(differing)}")
    return carried
