"""A fix in one line for people."""

from __future__ import annotations

from localize_core.types.fix import Fix
from localize_core.wire.fix_json import format_timestamp


def fix_line(fix: Fix) -> str:
    """The fix in one line, without line end."""
    if fix.position is None or fix.uncertainty is None:
        place = f"no_fix ({fix.reason})"
    else:
        u = fix.uncertainty
        place = (
            f"ok {fix.position.latitude:.5f} {fix.position.longitude:.5f}"
            f" ±{u.semi_major_m:.0f} m ({100.0 * u.probability:g} %) azimuth {u.azimuth_deg:.0f}°"
        )
    line = (
        f"{format_timestamp(fix.timestamp)} {place} confidence {fix.confidence:.2f}"
        f" dropped {fix.dropped_windows} {fix.model.name} {fix.model.version}"
    )
    return " ".join(line.split())  # names may hold line ends
