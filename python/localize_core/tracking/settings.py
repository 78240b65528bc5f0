"""How emitters are followed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrackerSettings(BaseModel):
    """Fixes over time become tracks. `[tracker]` alone has one, with the values below."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    acceleration_mps2: float = Field(
        3.0,
        gt=0.0,
        le=10_000.0,
        description="how emitters change their velocity, unforeseen: standard deviation after one second",
    )
    max_speed_mps: float = Field(50.0, gt=0.0, le=10_000.0, description="of emitters, before anything is known of one")
    gate: float = Field(
        0.999, ge=0.5, lt=1.0, description="share of a track's own fixes that it takes; others are outliers"
    )
    confirm: int = Field(3, ge=2, le=100, description="fixes that must agree before there is a track")
    lost_s: float = Field(10.0, gt=0.0, le=86_400.0, description="without a fix for so long, a track ends")
    common: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="share of a fix's variance that the fixes before have as well, as of clocks and paths; left out: "
        "what the station says of its clocks, where its model is compiled, else 0.25",
    )
    lag_s: float = Field(
        0.0, ge=0.0, le=600.0, description="later fixes that are waited for: tracks are smoother, and so much behind"
    )
    max_tracks: int = Field(16, ge=1, le=256, description="at a time")
