"""One position estimate, as every later stage sees it: the schema `gr-localize/fix/1`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np

from localize_core.errors import ConfigError

FIX_SCHEMA = "gr-localize/fix/1"

Status = Literal["ok", "no_fix"]
TimeSource = Literal["rx_time", "host", "none"]
TrackState = Literal["confirmed", "coasting"]
PeakKind = Literal["emitter", "alternative"]

REASONS: dict[str, str] = {
    "no_emitter": "confidence below the threshold: nothing that the model recognises as an emitter was received",
    "too_few_receivers": "fewer usable receivers than the model needs",
    "invalid_samples": "NaN or infinite samples in receivers that the model cannot do without",
    "silence": "every receiver delivers zeros",
    "model_error": "inference failed or returned values that are not finite",
    "model_unavailable": "the inference server did not answer in time, and no fallback is named",
    "invalid_request": "a request whose features or samples do not fit the model",
    "overloaded": "more requests than can be answered were waiting",
}
"""Why there is no position: the word in a fix's `reason`, and what it means."""

RECEIVER_FLAGS: dict[str, str] = {
    "invalid": "NaN or infinite samples; the receiver was left out",
    "silent": "only zeros; the receiver was left out",
    "saturated": "samples at full scale; levels are lower bounds",
    "unaligned": "no usable time stamps; correlations with receivers that have some were left out",
    "gap": "samples were missing and filled with zeros",
    "absent": "no samples came, or they came too late; the receiver was left out",
}
"""What was wrong with a receiver in this window: words in a receiver's `flags`."""


@dataclass(frozen=True)
class Position:
    """A place on the WGS84 ellipsoid, in degrees."""

    latitude: float
    longitude: float


@dataclass(frozen=True)
class Uncertainty:
    """A Gaussian error ellipse in the east-north plane at the position.

    `sigma_x`, `sigma_y`: standard deviations along the ellipse's own axes, metres. `theta`: direction
    of the x axis, degrees counter-clockwise from east. `probability`: what the semi-axes hold.
    """

    sigma_x: float
    sigma_y: float
    theta: float
    probability: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ConfigError(f"probability={self.probability}: must lie between 0 and 1")
        if not (0.0 < self.sigma_x < math.inf and 0.0 < self.sigma_y < math.inf and math.isfinite(self.theta)):
            raise ConfigError(
                f"uncertainty {self.sigma_x}, {self.sigma_y}, {self.theta}: sigmas must be positive and finite"
            )

    @staticmethod
    def of_covariances(ee: float, en: float, nn: float, probability: float) -> Uncertainty:
        """The ellipse of a covariance of east, of east with north, of north, square metres; its x axis is the major."""
        half = math.hypot((ee - nn) / 2.0, en)
        major = (ee + nn) / 2.0 + half
        # A covariance whose minor axis drowns in the major one's rounding still has one.
        minor = max((ee + nn) / 2.0 - half, major * 1e-12)
        theta = math.degrees(math.atan2(2.0 * en, ee - nn)) / 2.0
        return Uncertainty(math.sqrt(major), math.sqrt(minor), 90.0 - (90.0 - theta) % 180.0, probability)

    @property
    def scale(self) -> float:
        """Semi-axis of the ellipse that holds `probability`, in standard deviations (chi-square, 2 degrees)."""
        return math.sqrt(-2.0 * math.log1p(-self.probability))

    @property
    def covariances_m2(self) -> tuple[float, float, float]:
        """Covariance of east, of east with north, of north, square metres."""
        angle = math.radians(self.theta)
        cosine, sine = math.cos(angle), math.sin(angle)
        along, across = self.sigma_x**2, self.sigma_y**2
        mixed = (along - across) * sine * cosine
        return along * cosine**2 + across * sine**2, mixed, along * sine**2 + across * cosine**2

    @property
    def covariance_m2(self) -> np.ndarray:
        """Covariance of (east, north), square metres, shape (2, 2)."""
        east, mixed, north = self.covariances_m2
        return np.array([[east, mixed], [mixed, north]])

    @property
    def semi_major_m(self) -> float:
        return self.scale * max(self.sigma_x, self.sigma_y)

    @property
    def semi_minor_m(self) -> float:
        return self.scale * min(self.sigma_x, self.sigma_y)

    @property
    def azimuth_deg(self) -> float:
        """Direction of the major axis, clockwise from true north, in [0, 180)."""
        major = self.theta if self.sigma_x >= self.sigma_y else self.theta + 90.0
        azimuth = (90.0 - major) % 180.0
        return 0.0 if azimuth == 180.0 else azimuth  # the remainder of a tiny negative number rounds up


@dataclass(frozen=True)
class ReceiverReport:
    """What one receiver contributed: level in dB relative to full scale, and the words of RECEIVER_FLAGS."""

    name: str
    level_db: float | None
    used: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelIdentity:
    """Which model answered. `sha256` is the digest of the ONNX file."""

    name: str
    version: str
    sha256: str
    arm: str = "champion"
    backend: str = "onnxruntime"


@dataclass(frozen=True)
class Alignment:
    """Quality of the common time grid during the window.

    `residual_ns`: largest standard error of a receiver's time line; None when streams carried no time.
    """

    residual_ns: float | None
    gaps_filled: int = 0
    gaps_skipped: int = 0


@dataclass(frozen=True)
class Peak:
    """A further place that a window points to, beside the fix's position.

    `kind`: "emitter" for another one heard at the same time, "alternative" for a place where the same one may be
    instead. `weight`: probability that it is there, 0 to 1.
    """

    position: Position
    uncertainty: Uncertainty
    weight: float
    kind: PeakKind


Row4 = tuple[float, float, float, float]


@dataclass(frozen=True)
class TrackReport:
    """An emitter that was followed up to this fix.

    `id` stays the same for as long as it is followed. `state`: "confirmed" where this fix belongs to it, "coasting"
    where it goes on without. It stands for the time `lag_s` before the fix's. `covariance`: of east, north (metres) and
    the velocities east and north (m/s), 4 rows of 4. `updates`: fixes that belong to it; `age_s` since the first,
    `idle_s` since the last of them; `nis`: how far that last one was from where it was expected, squared, over what was
    allowed for (chi-square, 2 degrees), None for the first.
    """

    id: int
    state: TrackState
    position: Position
    uncertainty: Uncertainty
    east_mps: float
    north_mps: float
    covariance: tuple[Row4, Row4, Row4, Row4]
    updates: int
    age_s: float
    idle_s: float
    lag_s: float = 0.0
    nis: float | None = None

    @property
    def speed_mps(self) -> float:
        return math.hypot(self.east_mps, self.north_mps)

    @property
    def course_deg(self) -> float:
        """Direction of the velocity, clockwise from true north, in [0, 360)."""
        course = math.degrees(math.atan2(self.east_mps, self.north_mps)) % 360.0
        return 0.0 if course == 360.0 else course  # the remainder of a tiny negative number rounds up


@dataclass(frozen=True)
class Fix:
    """One position estimate, or the reason why there is none. Immutable; all encoders start from it.

    `timestamp` is the UTC time of the window's centre. `dropped_windows` counts windows of this stream that
    were lost since its previous fix. `id`: of the request that it answers, None for streams. `peaks`: further places,
    where a model was asked for them; `tracks`: what a tracker follows.
    """

    station: str
    stream: str
    sequence: int
    timestamp: datetime
    time_source: TimeSource
    status: Status
    reason: str | None
    position: Position | None
    uncertainty: Uncertainty | None
    confidence: float
    frequency_hz: float | None
    receivers: tuple[ReceiverReport, ...]
    model: ModelIdentity
    window_samples: int
    window_duration_s: float
    alignment: Alignment | None = None
    cache_hit: bool = False
    inference_time_ms: float = 0.0
    latency_ms: float = 0.0
    dropped_windows: int = 0
    id: str | None = None
    peaks: tuple[Peak, ...] = ()
    tracks: tuple[TrackReport, ...] = ()
    schema: str = field(default=FIX_SCHEMA, init=False)

    def __post_init__(self) -> None:
        if self.status == "ok" and (self.position is None or self.uncertainty is None or self.reason is not None):
            raise ConfigError("a fix with status 'ok' has a position, an uncertainty and no reason")
        if self.status == "no_fix" and (
            self.position is not None or self.uncertainty is not None or self.reason not in REASONS
        ):
            raise ConfigError(
                f"a fix with status 'no_fix' has no position, no uncertainty, and a reason of {sorted(REASONS)}"
            )
        if self.timestamp.tzinfo is None:
            raise ConfigError("timestamp carries no time zone; fixes are in UTC")
