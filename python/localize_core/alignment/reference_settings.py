"""The `[reference]` table of a station file: a transmitter at a known place whose signal all receivers hear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from localize_core.errors import ConfigError
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, LocalFrame, path_length_m
from localize_core.types.place import Placed

USABLE_BAND = 0.45
"""Of the sample rate, either side of the middle: beyond it receivers' filters fall off."""
REMOVED = 0.55
"""Of its bandwidth, either side of the reference's centre: what is removed from the streams entirely."""
FADED = 0.7
"""Up to here, in the same measure, what lies beside it is weakened."""


class ReferenceSettings(BaseModel):
    """What is sent, from where, and how receivers' clocks behave."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field("reference", min_length=1)
    latitude: float = Field(ge=-90.0, le=90.0, description="WGS84 degrees, of its antenna")
    longitude: float = Field(ge=-180.0, le=180.0, description="WGS84 degrees")
    altitude_m: float = Field(0.0, ge=-500.0, le=50_000.0)
    frequency_hz: float = Field(gt=0.0, le=1e12, description="its centre; in the band that the station samples")
    bandwidth_hz: float = Field(gt=0.0, le=1e9, description="what it occupies; this band is removed from the streams")
    carrier: Literal["shared", "independent"] = Field(
        "shared", description="whether a receiver's oscillator and sample clock come from one crystal"
    )
    max_ppm: float = Field(50.0, gt=0.0, le=200.0, description="largest error of a receiver's crystal")
    search_s: float = Field(1.0, ge=0.001, le=10.0, description="how far the streams' own times may be off")
    block_s: float = Field(0.1, ge=0.02, le=2.0, description="span of one measurement")
    wander_ppb: float = Field(
        2.0, gt=0.0, le=1000.0, description="by how much a crystal's rate changes within a second, as a random walk"
    )
    max_error_ns: float = Field(
        100.0, gt=0.0, le=1e6, description="where a clock is less sure than this, its stream has no time"
    )
    timing_sigma_ns: float = Field(
        30.0, ge=0.0, le=1e6, description="of the reference's delay: its antenna's place, and detours of its signal"
    )

    def offset_hz(self, station_hz: float, sample_rate_hz: float) -> float:
        """Where the reference lies in the sampled band. Raises ConfigError where it does not fit."""
        offset_hz = self.frequency_hz - station_hz
        reach_hz = abs(offset_hz) + max(FADED * self.bandwidth_hz, self.bandwidth_hz / 2.0 + self.margin_hz(station_hz))
        if reach_hz > USABLE_BAND * sample_rate_hz:
            raise ConfigError(
                f"reference.frequency_hz={self.frequency_hz} with bandwidth_hz={self.bandwidth_hz} and "
                f"max_ppm={self.max_ppm:g} reaches {reach_hz:g} Hz from the station's {station_hz:g}: at most "
                f"{USABLE_BAND:g} times sample_rate_hz={sample_rate_hz:g}, which is {USABLE_BAND * sample_rate_hz:g}; "
                "choose another frequency_hz of the station, a higher rate or a smaller max_ppm"
            )
        return offset_hz

    @property
    def clock_sigma_ns(self) -> float:
        """What a clock told by it may be off: its own delay, and the noise of a second's measurements at 10 dB."""
        spread_hz = self.bandwidth_hz / math.sqrt(12.0)
        noise_ns = 1e9 / (2.0 * math.pi * spread_hz * math.sqrt(10.0 * self.bandwidth_hz))
        return math.hypot(self.timing_sigma_ns, noise_ns)

    def path_delays_s(self, receivers: Sequence[Placed], *, along_surface: bool) -> list[float]:
        """How long the reference takes to every receiver, along straight lines or the ground."""
        frame = LocalFrame(self.latitude, self.longitude)
        places = np.array([frame.to_enu_m(r.latitude, r.longitude, r.altitude_m) for r in receivers])
        here = frame.to_enu_m(self.latitude, self.longitude, self.altitude_m)
        lengths_m = path_length_m(here[np.newaxis], places, along_surface=along_surface)[0]
        return [float(length_m) / SPEED_OF_LIGHT_MPS for length_m in lengths_m]

    def margin_hz(self, station_hz: float) -> float:
        """By how much oscillators may displace the reference."""
        return self.max_ppm * 1e-6 * station_hz
