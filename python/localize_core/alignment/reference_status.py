"""What is told of the clocks that a reference tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from localize_core.alignment.reference_stream import ReferenceStream


@dataclass(frozen=True)
class ClockStatus:
    """A stream's clock. `offset_s`: the common time minus its own time stamps, positive where its clock is behind;
    `drift_ppm`: how slow its clock is against the common time; `residual_ns`: rms of what each block's measurement was
    off; `snr_db`: of the reference in its band.

    `locked`: it is known well enough for the stream to come out. None where nothing is known, as before that.
    """

    locked: bool
    base: bool
    offset_s: float | None = None
    drift_ppm: float | None = None
    carrier_hz: float | None = None
    residual_ns: float | None = None
    error_ns: float | None = None
    snr_db: float | None = None
    losses: int = 0


def status_of(stream: ReferenceStream, time: tuple[int, float], *, is_base: bool, any_other: bool) -> ClockStatus:
    """`time`: of the block in which the stream has its place. `any_other`: whether any but the base comes out; then the
    base's clock is known too.
    """
    if stream.place is None or not (any_other if is_base else stream.writing):
        return ClockStatus(False, is_base, losses=stream.losses)
    coherence = min(max(stream.coherence, 1e-6), 1.0 - 1e-6)
    return ClockStatus(
        True,
        is_base,
        offset_s=-stream.early_s(time),
        drift_ppm=1e6 * stream.place.rate,
        carrier_hz=stream.carrier_hz,
        residual_ns=None if is_base or not stream.residual else 1e9 * math.sqrt(stream.residual),
        error_ns=0.0 if stream.clock is None else 1e9 * stream.clock.offset_sigma_s,
        snr_db=10.0 * math.log10(coherence / (1.0 - coherence)),
        losses=stream.losses,
    )


def as_dict(status: ClockStatus) -> dict[str, Any]:
    """For messages: what is known."""
    return {key: value for key, value in status.__dict__.items() if value is not None}
