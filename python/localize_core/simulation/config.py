"""The `[scene]` table of a station file."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from localize_core.errors import ConfigError
from localize_core.simulation.waveforms import WaveformName

Point = tuple[
    Annotated[float, Field(ge=-90.0, le=90.0)],
    Annotated[float, Field(ge=-180.0, le=180.0)],
]
Row = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)]

FREE_SPACE_FIELDS = (
    "track",
    "altitude_m",
    "speed_mps",
    "level_dbfs_at_1km",
    "path_loss_exponent",
    "shadowing_db",
    "shadowing_distance_m",
    "shadowing_correlation",
)
"""What a channel data set says instead."""
CHANNEL_FIELDS = ("dwell_s", "emitter_gain_db")
"""What means nothing without a channel data set."""


class AlsoConfig(BaseModel):
    """A further emitter: heard along one straight path by the same receivers, with the same clocks and gains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    frequency_offset_hz: float = Field(
        default=0.0, ge=-1e9, le=1e9, description="Its centre above that of the sampled band."
    )
    waveform: WaveformName = Field(default="noise", description="As the scene's.")
    bandwidth_hz: float = Field(default=10e3, gt=0.0, description="Occupied bandwidth around its centre.")
    level_dbfs_at_1km: float = Field(
        default=-30.0, ge=-200.0, le=60.0, description="Mean received power at 1 km, dB relative to full scale."
    )
    path_loss_exponent: float = Field(default=2.0, ge=0.0, le=8.0, description="As the scene's.")
    track: tuple[Point, ...] = Field(
        min_length=1, description="Its way as [latitude, longitude] in degrees; one point: it stands still."
    )
    altitude_m: float = Field(default=0.0, ge=-500.0, le=50e3, description="Its height, as receivers' heights.")
    speed_mps: float = Field(default=0.0, ge=0.0, le=3000.0, description="Speed along its track.")
    loop: bool = Field(default=True, description="From the last point back to the first and on; false: stop there.")
    pauses_s: tuple[tuple[Seconds, Seconds], ...] = Field(
        default=(), description="Spans [from, to] after the start, in seconds, in which it does not send."
    )

    @field_validator("pauses_s", mode="after")
    @classmethod
    def _ordered(cls, spans: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for start, end in spans:
            if not start < end:
                raise ValueError(f"[{start:g}, {end:g}]: a span ends after it begins")
        return spans

    def as_scene(self, seed: int, index: int) -> SceneConfig:
        """A scene of this emitter alone, with a seed of its own."""
        own = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]) >> 1
        return SceneConfig(seed=own, **self.model_dump(exclude={"frequency_offset_hz", "pauses_s"}))


class SceneConfig(BaseModel):
    """What is sent, from where, what becomes of it on the way, and what receivers add.

    The emitter either moves along a `track` in free space with path loss and shadowing, or visits places of a channel
    data set: `channels` names the file, or whoever builds the scene hands over a set that is loaded and the
    configuration names its `channel_rows`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(default=1, ge=0, lt=2**63, description="Same seed, same samples, to the last bit.")
    waveform: WaveformName = Field(
        default="noise",
        description="noise: flat Gaussian; nbfm: FM with a voice-like message; am: the same message as AM; fsk: MSK; "
        "bpsk, qpsk, qam16: with root-raised-cosine pulses; ofdm: 52 subcarriers; chirp: chirp spread spectrum; pulse: "
        "bursts of pulses a quarter of the time; none: no emitter.",
    )
    bandwidth_hz: float = Field(
        default=10e3, gt=0.0, description="Occupied bandwidth around the centre frequency: 99 % of the power or more."
    )
    level_dbfs_at_1km: float = Field(
        default=-30.0, ge=-200.0, le=60.0, description="Mean received power at 1 km, dB relative to full scale."
    )
    path_loss_exponent: float = Field(
        default=2.0, ge=0.0, le=8.0, description="Received power falls with this power of the distance."
    )
    shadowing_db: float = Field(
        default=0.0,
        ge=0.0,
        le=30.0,
        description="Standard deviation of the level around the path loss: for every receiver a smooth random field "
        "over the emitter's place.",
    )
    shadowing_distance_m: float = Field(
        default=100.0, gt=0.0, description="Over this way shadowing decorrelates to 1/e."
    )
    shadowing_correlation: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Of the shadowing of two receivers: what surrounds the emitter itself."
    )
    noise_dbfs: float = Field(
        default=-60.0, ge=-300.0, le=20.0, description="Receiver noise in the whole sample rate, dB of full scale."
    )
    gain_error_db: float = Field(
        default=0.0, ge=0.0, le=30.0, description="Standard deviation of each receiver's gain, its noise included."
    )
    carrier_offset_hz: float = Field(
        default=0.0, ge=0.0, le=1e6, description="Standard deviation of each receiver's carrier offset at the start."
    )
    carrier_drift_hz_per_s: float = Field(
        default=0.0, ge=0.0, le=1e3, description="Standard deviation of the speed at which carrier offsets change."
    )
    random_carrier_phase: bool = Field(
        default=False, description="Every receiver's oscillator starts at a phase of its own."
    )
    shared_oscillator: bool = Field(
        default=False,
        description="Every receiver's sample clock and oscillator come from one crystal, as in an RTL-SDR: a clock "
        "that is off turns the carrier in proportion, beside what carrier offsets do.",
    )
    clock_offset_ns: float = Field(
        default=0.0, ge=0.0, le=1e9, description="Standard deviation of each receiver's constant clock offset."
    )
    clock_drift_ppb: float = Field(
        default=0.0, ge=0.0, le=100e3, description="Standard deviation of each receiver's sample rate error."
    )
    timing_jitter_ns: float = Field(
        default=0.0, ge=0.0, le=1e6, description="Rms of the slow random wander of each receiver's clock."
    )
    timing_jitter_s: float = Field(
        default=1.0, ge=0.01, le=1e6, description="Time over which that wander decorrelates to 1/e."
    )
    adc_bits: int | None = Field(
        default=None, ge=1, le=24, description="Quantise to so many bits and clip at full scale; left out: neither."
    )
    start_time: AwareDatetime = Field(
        default=datetime(2026, 1, 1, tzinfo=timezone.utc), description="Time of sample 0, ISO 8601 with a time zone."
    )
    channels: str = Field(
        default="", description="Channel data set (.npz) that says how the emitter is heard; empty: free space."
    )
    channel_rows: tuple[Row, ...] = Field(
        default=(), description="Rows of the channel data set that the emitter visits one after another; empty: all."
    )
    dwell_s: float = Field(default=1.0, gt=0.0, le=1e6, description="Time at each row of the channel data set.")
    emitter_gain_db: float = Field(
        default=0.0, ge=-200.0, le=200.0, description="Emitted power relative to that of the channel data set."
    )
    track: tuple[Point, ...] = Field(
        default=(),
        validate_default=True,
        description="The emitter's way as [latitude, longitude] in degrees; one point: it stands still.",
    )
    altitude_m: float = Field(
        default=0.0, ge=-500.0, le=50e3, description="The emitter's height, in the system of the receivers' heights."
    )
    speed_mps: float = Field(default=0.0, ge=0.0, le=3000.0, description="Speed along the track.")
    loop: bool = Field(
        default=True,
        description="From the last point or row back to the first and on; false: stop at the last.",
    )
    also: tuple[AlsoConfig, ...] = Field(
        default=(), max_length=16, description="Further emitters in the same band at the same time."
    )

    @classmethod
    def of(cls, **fields: Any) -> SceneConfig:
        """The configuration with these fields. Raises ConfigError naming key, value and what is allowed."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigError("; ".join(_problem(item) for item in error.errors())) from error

    @property
    def has_channels(self) -> bool:
        """Whether a channel data set says how the emitter is heard."""
        return bool(self.channels or self.channel_rows)

    @field_validator("track", mode="after")
    @classmethod
    def _track_or_channels(cls, track: tuple[Point, ...], info: ValidationInfo) -> tuple[Point, ...]:
        if not (track or info.data.get("channels") or info.data.get("channel_rows")):
            raise ValueError("needs at least one point, or `channels` a channel data set")
        return track

    @model_validator(mode="after")
    def _one_of_both(self) -> SceneConfig:
        """Fields that would do nothing are refused, unless they hold their default."""
        nothing = FREE_SPACE_FIELDS if self.has_channels else CHANNEL_FIELDS
        for name in nothing:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                without = "with a channel data set, which says it" if self.has_channels else "without `channels`"
                raise ValueError(f"{name}={value!r}: means nothing {without}")
        return self


def _problem(item: Any) -> str:
    place = ".".join(map(str, ("scene", *item["loc"])))
    given = f"={item['input']!r}" if item["loc"] else ""
    return f"{place}{given}: {item['msg'].removeprefix('Value error, ')}"
