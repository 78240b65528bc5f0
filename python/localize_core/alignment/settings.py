"""How a station's streams are brought onto one time grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from localize_core.errors import ConfigError

Clocks = Literal["fitted", "trusted"]

MAX_FILL_S = 0.5
"""Recordings: lost samples up to this become zeros; more are skipped in all streams."""
MAX_WAIT_S = 1.0
"""Radios: a receiver that is later than this is done without."""
ACQUIRE_S = 2.0


@dataclass(frozen=True)
class AlignmentPlan:
    """What `time_align` gets: its parameters, with nothing left open. `max_wait_s` is None for recordings."""

    clocks: Clocks
    max_wait_s: float | None
    max_fill_s: float
    acquire_s: float


class AlignmentSettings(BaseModel):
    """The common time grid. What is left out is decided by whether the streams come from radios or recordings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clocks: Clocks | None = Field(
        None, description="whether every time stamp is true, or a line is fitted to them; trusted for radios"
    )
    max_wait_s: float | None = Field(
        None, gt=0.0, le=60.0, description="a receiver that is later than this is done without; 1 for radios"
    )
    fill_gaps_s: float | None = Field(
        None, ge=0.0, le=60.0, description="lost samples up to this become zeros; 0 for radios, 0.5 for recordings"
    )
    acquire_s: float = Field(
        ACQUIRE_S, gt=0.0, le=60.0, description="of each stream, to fit its clock, or to find that it has none"
    )

    @model_validator(mode="after")
    def _means_something(self) -> AlignmentSettings:
        if self.max_wait_s is not None and self.clocks == "fitted":
            raise ValueError(f"max_wait_s={self.max_wait_s:g}: needs clocks = 'trusted'")
        return self

    def plan(self, *, live: bool) -> AlignmentPlan:
        """With the defaults for radios (`live`) or recordings; with `max_wait_s` recordings are taken as radios were.

        Raises ConfigError where gaps are to be filled that are longer than anybody waits for.
        """
        live = live or self.max_wait_s is not None
        clocks = self.clocks or ("trusted" if live else "fitted")
        wait_s = None if clocks == "fitted" or not live else self.max_wait_s or MAX_WAIT_S
        fill_s = self.fill_gaps_s
        if fill_s is None:
            fill_s = MAX_FILL_S if wait_s is None else 0.0
        if wait_s is not None and fill_s > wait_s / 2.0:
            raise ConfigError(
                f"alignment.fill_gaps_s={fill_s:g}: at most half of max_wait_s={wait_s:g}, or its end is not known"
            )
        return AlignmentPlan(clocks, wait_s, fill_s, self.acquire_s)
