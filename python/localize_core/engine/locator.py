"""One window in, one fix out: normalisation, inference, and the decision whether the answer is a position."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from localize_core.engine.masking import ChannelMask
from localize_core.engine.windows import Window, window_centre
from localize_core.errors import ConfigError, EngineError
from localize_core.features.quality import SampleFlag
from localize_core.geodesy import LocalFrame
from localize_core.model.base import Model, ModelOutput
from localize_core.model.contract import Contract
from localize_core.types.fix import Alignment, Fix, Position, ReceiverReport, TimeSource, Uncertainty

HORIZON_M = 6_000e3
"""From a frame's origin: farther out, its plane no longer lies over the Earth."""


@dataclass(frozen=True)
class WindowContext:
    """What is known of a window beside its features.

    `start`: time of the first sample of its first hop, whole seconds since 1970 and the rest. `completed_s`:
    monotonic clock when its last frame came. `dropped`: windows of this stream lost just before it.
    """

    station: str
    stream: str
    sequence: int
    start: tuple[int, float]
    time_source: TimeSource
    frequency_hz: float | None
    alignment: Alignment | None
    completed_s: float
    dropped: int


class Locator:
    """Turns windows into fixes with one model.

    `min_confidence`: below it the answer is no fix. `probability`: what the ellipse of a fix is said to hold.
    Raises ConfigError unless `probability` lies between 0 and 1.
    """

    def __init__(self, model: Model, *, min_confidence: float = 0.5, probability: float = 0.95) -> None:
        if not 0.0 < probability < 1.0:
            raise ConfigError(f"probability={probability}: must lie between 0 and 1")
        self.model = model
        self.min_confidence = min_confidence
        self.probability = probability
        self._mask = ChannelMask(model.contract)

    def locate(self, window: Window, context: WindowContext) -> Fix:
        """Never raises on data: what cannot be answered is a fix without position that names its reason."""
        contract = self.model.contract
        sound = self._mask.sound(window)
        usable = self._mask.usable(sound)
        reason = None
        if int(usable.sum()) < contract.min_receivers:
            reason = _refusal(window)
        output: ModelOutput | None = None
        began = time.perf_counter()
        if reason is None:
            features = contract.normalisation.apply(self._mask.apply(window.features, sound))
            try:
                output = self.model.run(features[None])
            except EngineError:
                reason = "model_error"
        ended = time.perf_counter()
        position: Position | None = None
        uncertainty: Uncertainty | None = None
        confidence = 0.0
        if output is not None:
            values = np.concatenate([output.position[0], output.uncertainty[0], output.confidence[0]])
            if not np.isfinite(values).all() or min(output.uncertainty[0, :2]) <= 0.0:
                reason = "model_error"
            else:
                confidence = float(np.clip(output.confidence[0, 0], 0.0, 1.0))
                if confidence < self.min_confidence:
                    reason = "no_emitter"
                else:
                    placed = self._place(output)
                    if placed is None:
                        reason = "model_error"
                    else:
                        position, uncertainty = placed
        duration_s = window.features.shape[2] * contract.hop / contract.sample_rate_hz
        return Fix(
            station=context.station,
            stream=context.stream,
            sequence=context.sequence,
            timestamp=window_centre(context.start, window.features.shape[2], contract),
            time_source=context.time_source,
            status="ok" if reason is None else "no_fix",
            reason=reason,
            position=position,
            uncertainty=uncertainty,
            confidence=confidence,
            frequency_hz=context.frequency_hz,
            receivers=_reports(window, usable, contract),
            model=self.model.identity,
            window_samples=window.features.shape[2] * contract.hop,
            window_duration_s=duration_s,
            alignment=context.alignment,
            inference_time_ms=(ended - began) * 1e3,
            latency_ms=(time.monotonic() - context.completed_s) * 1e3,
            dropped_windows=context.dropped,
        )

    def _place(self, output: ModelOutput) -> tuple[Position, Uncertainty] | None:
        """Place and ellipse on the ground, None where the model's answer is no place on Earth."""
        sigma_x, sigma_y, theta = (float(value) for value in output.uncertainty[0])
        frame = self.model.contract.frame
        if frame.kind == "wgs84_deg":
            latitude, longitude = (float(value) for value in output.position[0])
            if abs(latitude) > 90.0 or abs(longitude) > 360.0:
                return None
            longitude = (longitude + 180.0) % 360.0 - 180.0  # an area may reach across the antimeridian
            return Position(latitude, longitude), Uncertainty(sigma_x, sigma_y, theta, self.probability)
        local: LocalFrame = frame.local
        point = output.position[0].astype(float)
        if math.hypot(*point) > HORIZON_M:
            return None
        lat, lon = local.to_wgs84(point)
        plane = Uncertainty(sigma_x, sigma_y, theta, self.probability)
        values, axes = np.linalg.eigh(local.covariance_at(point, plane.covariance_m2))
        major = math.degrees(math.atan2(axes[1, 1], axes[0, 1]))
        # A covariance whose minor axis drowns in the major one's rounding still has one.
        minor = max(values[0], values[1] * 1e-12)
        return Position(float(lat), float(lon)), Uncertainty(
            math.sqrt(values[1]), math.sqrt(minor), _half_turn(major), self.probability
        )


def _half_turn(angle_deg: float) -> float:
    """The same axis in (-90, 90] degrees."""
    return 90.0 - (90.0 - angle_deg) % 180.0


def _refusal(window: Window) -> str:
    """Why too few receivers are left."""
    if window.unusable.all() and all(flag & SampleFlag.SILENT for flag in window.flags):
        return "silence"
    invalid = (flag & SampleFlag.INVALID and lost for flag, lost in zip(window.flags, window.unusable, strict=True))
    return "invalid_samples" if any(invalid) or not np.isfinite(window.features).all() else "too_few_receivers"


def _reports(window: Window, usable: np.ndarray, contract: Contract) -> tuple[ReceiverReport, ...]:
    return tuple(
        ReceiverReport(
            name=receiver.name,
            level_db=float(level) if math.isfinite(level) else None,
            used=bool(fine),
            flags=flag.words,
        )
        for receiver, level, fine, flag in zip(contract.receivers, window.level_db, usable, window.flags, strict=True)
    )
