"""A fix and its tracks as rows of a flat table: what CSV, GeoJSON properties and KML data have in common."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from localize_core.types.fix import Fix, TrackReport
from localize_core.wire.fix_json import fix_to_dict, format_timestamp

FIX_FIELDS = (
    "station",
    "stream",
    "sequence",
    "request_id",
    "timestamp",
    "time_source",
    "status",
    "reason",
    "latitude",
    "longitude",
    "semi_major_m",
    "semi_minor_m",
    "azimuth_deg",
    "probability",
    "confidence",
    "frequency_hz",
    "receivers_used",
    "model_name",
    "model_version",
    "model_arm",
    "residual_ns",
    "inference_time_ms",
    "latency_ms",
    "dropped_windows",
)
"""Of a fix. Names and units are those of the JSON form, but for its `id`, which GIS would take for the row's own."""
TRACK_FIELDS = (
    "station",
    "stream",
    "sequence",
    "timestamp",
    "track",
    "state",
    "latitude",
    "longitude",
    "semi_major_m",
    "semi_minor_m",
    "azimuth_deg",
    "probability",
    "east_mps",
    "north_mps",
    "speed_mps",
    "course_deg",
    "updates",
    "age_s",
    "idle_s",
)
"""Of a track."""
CSV_FIELDS = (*FIX_FIELDS, *(name for name in TRACK_FIELDS if name not in FIX_FIELDS))
"""Columns of a table with both. `track` is empty in rows of fixes, and only in those."""


def fix_columns(fix: Fix) -> dict[str, Any]:
    """Text, number or None for each of FIX_FIELDS. Raises ConfigError as `fix_to_dict` does."""
    encoded = fix_to_dict(fix)
    everything = {
        **encoded,
        **(encoded["position"] or {}),
        **(encoded["uncertainty"] or {}),
        **(encoded["alignment"] or {}),
        **{f"model_{name}": value for name, value in encoded["model"].items()},
        "receivers_used": sum(receiver["used"] for receiver in encoded["receivers"]),
        "request_id": fix.id,
    }
    return {name: everything.get(name) for name in FIX_FIELDS}


def track_columns(fix: Fix, track: TrackReport) -> dict[str, Any]:
    """Text and numbers of one of the fix's tracks, for each of TRACK_FIELDS: the names are those of the JSON form."""
    ellipse = track.uncertainty
    return {
        "station": fix.station,
        "stream": fix.stream,
        "sequence": fix.sequence,
        "timestamp": format_timestamp(fix.timestamp - timedelta(seconds=track.lag_s)),
        "track": track.id,
        "state": track.state,
        "latitude": float(track.position.latitude),
        "longitude": float(track.position.longitude),
        "semi_major_m": float(ellipse.semi_major_m),
        "semi_minor_m": float(ellipse.semi_minor_m),
        "azimuth_deg": float(ellipse.azimuth_deg) % 180.0,
        "probability": float(ellipse.probability),
        "east_mps": float(track.east_mps),
        "north_mps": float(track.north_mps),
        "speed_mps": float(track.speed_mps),
        "course_deg": float(track.course_deg),
        "updates": int(track.updates),
        "age_s": float(track.age_s),
        "idle_s": float(track.idle_s),
    }


def fix_to_csv_rows(fix: Fix) -> list[list[Any]]:
    """The fix's row, and one for each of its tracks, in the order of CSV_FIELDS, for `csv.writer`: None, which it
    leaves empty, where there is nothing.

    Raises ConfigError as `fix_to_dict` does.
    """
    everything = [fix_columns(fix), *(track_columns(fix, track) for track in fix.tracks)]
    return [[columns.get(name) for name in CSV_FIELDS] for columns in everything]
