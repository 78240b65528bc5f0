"""A fix as JSON, schema `gr-localize/fix/1`: the form that every other encoder starts from."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection
from datetime import datetime, timezone
from importlib import resources
from typing import Any, cast, get_args

from localize_core.errors import ConfigError
from localize_core.types.fix import (
    FIX_SCHEMA,
    REASONS,
    RECEIVER_FLAGS,
    Alignment,
    Fix,
    ModelIdentity,
    Peak,
    PeakKind,
    Position,
    ReceiverReport,
    Row4,
    Status,
    TimeSource,
    TrackReport,
    TrackState,
    Uncertainty,
)

TIMESTAMP_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def fix_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a fix."""
    text = resources.files(__package__).joinpath("fix.schema.json").read_text(encoding="utf-8")
    return cast("dict[str, Any]", json.loads(text))


def fix_to_dict(fix: Fix) -> dict[str, Any]:
    """The fix as plain dicts, lists, strings, numbers and None, laid out as the schema says.

    Raises ConfigError naming the field if a value cannot be published: not finite, or out of its range.
    """
    encoded = {
        "schema": fix.schema,
        "station": fix.station,
        "stream": fix.stream,
        "sequence": int(fix.sequence),
        "timestamp": format_timestamp(fix.timestamp),
        "time_source": fix.time_source,
        "status": fix.status,
        "reason": fix.reason,
        "position": None if fix.position is None else _position(fix.position),
        "uncertainty": None if fix.uncertainty is None else _uncertainty(fix.uncertainty),
        "confidence": float(fix.confidence),
        "frequency_hz": _float_or_none(fix.frequency_hz),
        "receivers": [_receiver(report) for report in fix.receivers],
        "model": {
            "name": fix.model.name,
            "version": fix.model.version,
            "sha256": fix.model.sha256,
            "arm": fix.model.arm,
            "backend": fix.model.backend,
        },
        "alignment": None if fix.alignment is None else _alignment(fix.alignment),
        "cache_hit": bool(fix.cache_hit),
        "inference_time_ms": float(fix.inference_time_ms),
        "latency_ms": float(fix.latency_ms),
        "window": {"samples": int(fix.window_samples), "duration_s": float(fix.window_duration_s)},
        "dropped_windows": int(fix.dropped_windows),
    }
    if fix.id is not None:
        encoded["id"] = fix.id
    if fix.peaks:
        encoded["peaks"] = [_peak(peak) for peak in fix.peaks]
    if fix.tracks:
        encoded["tracks"] = [_track(track) for track in fix.tracks]
    fix_from_dict(encoded)  # nothing leaves that could not be read back
    return encoded


def fix_to_json(fix: Fix) -> str:
    """The fix as one line of JSON without a line end. Raises ConfigError as `fix_to_dict` does."""
    return json.dumps(fix_to_dict(fix), separators=(",", ":"), allow_nan=False)


def fix_from_dict(encoded: Any) -> Fix:
    """The fix that `encoded` describes. Fields that the schema does not know are ignored.

    Raises ConfigError naming the field if one is missing, of another type, out of range or contradicts the status.
    """
    top = _Fields(encoded, "")
    top.word("schema", (FIX_SCHEMA,))
    status = cast("Status", top.word("status", get_args(Status)))
    reason = top.word("reason", REASONS, nullable=True)
    position, uncertainty = top.table("position", nullable=True), top.table("uncertainty", nullable=True)
    for name, present, wanted in (
        ("reason", reason is not None, status == "no_fix"),
        ("position", position is not None, status == "ok"),
        ("uncertainty", uncertainty is not None, status == "ok"),
    ):
        if present != wanted:
            raise ConfigError(f"{name}: must {'not ' if wanted else ''}be null when status is {status!r}")
    model, window = top.table("model"), top.table("window")
    alignment = top.table("alignment", nullable=True)
    return Fix(
        station=top.text("station"),
        stream=top.text("stream", empty=True),
        sequence=top.count("sequence"),
        timestamp=parse_timestamp(top.text("timestamp")),
        time_source=cast("TimeSource", top.word("time_source", get_args(TimeSource))),
        status=status,
        reason=reason,
        position=None if position is None else _read_position(position),
        uncertainty=None if uncertainty is None else _read_uncertainty(uncertainty),
        confidence=top.number("confidence", 0.0, 1.0),
        frequency_hz=top.number_or_none("frequency_hz", 0.0),
        receivers=tuple(_read_receiver(fields) for fields in top.tables("receivers")),
        model=ModelIdentity(
            name=model.text("name"),
            version=model.text("version", empty=True),
            sha256=model.text("sha256", empty=True),
            arm=model.text("arm", empty=True),
            backend=model.text("backend", empty=True),
        ),
        window_samples=window.count("samples"),
        window_duration_s=window.number("duration_s", 0.0),
        alignment=None if alignment is None else _read_alignment(alignment),
        cache_hit=top.truth("cache_hit"),
        inference_time_ms=top.number("inference_time_ms", 0.0),
        latency_ms=top.number("latency_ms"),
        dropped_windows=top.count("dropped_windows"),
        id=top.text("id", empty=True) if "id" in encoded else None,
        peaks=tuple(_read_peak(fields) for fields in top.tables("peaks")) if "peaks" in encoded else (),
        tracks=tuple(_read_track(fields) for fields in top.tables("tracks")) if "tracks" in encoded else (),
    )


def fix_from_json(line: str | bytes) -> Fix:
    """The fix in one line of JSON. Raises ConfigError if it is not JSON, or as `fix_from_dict` does."""
    try:
        encoded = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from error
    return fix_from_dict(encoded)


def format_timestamp(timestamp: datetime) -> str:
    """ISO 8601 in UTC with microseconds and Z. `timestamp` carries a time zone."""
    return timestamp.astimezone(timezone.utc).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_timestamp(text: str) -> datetime:
    """The inverse of `format_timestamp`. Raises ConfigError for anything else."""
    try:
        timestamp = datetime.strptime(text, TIMESTAMP_FORMAT).replace(tzinfo=timezone.utc)
        if format_timestamp(timestamp) == text:  # strptime alone is satisfied with fewer digits
            return timestamp
    except ValueError:
        pass
    raise ConfigError(f"timestamp={text!r}: wanted ISO 8601 like 2026-01-02T03:04:05.678901Z")


def _position(position: Position) -> dict[str, Any]:
    return {"latitude": float(position.latitude), "longitude": float(position.longitude)}


def _uncertainty(uncertainty: Uncertainty) -> dict[str, Any]:
    try:
        covariance_m2 = uncertainty.covariance_m2.tolist()
    except OverflowError as error:
        raise ConfigError(f"uncertainty: no finite covariance follows from {uncertainty}") from error
    return {
        "sigma_x": float(uncertainty.sigma_x),
        "sigma_y": float(uncertainty.sigma_y),
        "theta": float(uncertainty.theta),
        "covariance_m2": covariance_m2,
        "probability": float(uncertainty.probability),
        "semi_major_m": float(uncertainty.semi_major_m),
        "semi_minor_m": float(uncertainty.semi_minor_m),
        "azimuth_deg": float(uncertainty.azimuth_deg) % 180.0,  # an angle just below 0 rounds to 180
    }


def _receiver(report: ReceiverReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "level_db": _float_or_none(report.level_db),
        "used": bool(report.used),
        "flags": list(report.flags),
    }


def _alignment(alignment: Alignment) -> dict[str, Any]:
    return {
        "residual_ns": _float_or_none(alignment.residual_ns),
        "gaps_filled": int(alignment.gaps_filled),
        "gaps_skipped": int(alignment.gaps_skipped),
    }


def _peak(peak: Peak) -> dict[str, Any]:
    return {
        "position": _position(peak.position),
        "uncertainty": _uncertainty(peak.uncertainty),
        "weight": float(peak.weight),
        "kind": peak.kind,
    }


def _track(track: TrackReport) -> dict[str, Any]:
    return {
        "id": int(track.id),
        "state": track.state,
        "position": _position(track.position),
        "uncertainty": _uncertainty(track.uncertainty),
        "velocity": {
            "east_mps": float(track.east_mps),
            "north_mps": float(track.north_mps),
            "speed_mps": float(track.speed_mps),
            "course_deg": float(track.course_deg),
        },
        "covariance": [[float(value) for value in row] for row in track.covariance],
        "updates": int(track.updates),
        "age_s": float(track.age_s),
        "idle_s": float(track.idle_s),
        "lag_s": float(track.lag_s),
        "nis": _float_or_none(track.nis),
    }


def _float_or_none(value: float | None) -> float | None:
    return None if value is None else float(value)


def _read_position(fields: _Fields) -> Position:
    return Position(fields.number("latitude", -90.0, 90.0), fields.number("longitude", -180.0, 180.0))


def _read_uncertainty(fields: _Fields) -> Uncertainty:
    """What follows from the sigmas is not kept, but must be there: others read it."""
    fields.square("covariance_m2")
    fields.positive("semi_major_m")
    fields.positive("semi_minor_m")
    fields.number("azimuth_deg", 0.0, math.nextafter(180.0, 0.0))
    return Uncertainty(
        sigma_x=fields.positive("sigma_x"),
        sigma_y=fields.positive("sigma_y"),
        theta=fields.number("theta"),
        probability=fields.number("probability"),
    )


def _read_receiver(fields: _Fields) -> ReceiverReport:
    return ReceiverReport(
        name=fields.text("name"),
        level_db=fields.number_or_none("level_db"),
        used=fields.truth("used"),
        flags=fields.words("flags", RECEIVER_FLAGS),
    )


def _read_alignment(fields: _Fields) -> Alignment:
    return Alignment(
        residual_ns=fields.number_or_none("residual_ns", 0.0),
        gaps_filled=fields.count("gaps_filled"),
        gaps_skipped=fields.count("gaps_skipped"),
    )


def _read_peak(fields: _Fields) -> Peak:
    return Peak(
        position=_read_position(fields.table("position")),
        uncertainty=_read_uncertainty(fields.table("uncertainty")),
        weight=fields.number("weight", 0.0, 1.0),
        kind=cast("PeakKind", fields.word("kind", get_args(PeakKind))),
    )


def _read_track(fields: _Fields) -> TrackReport:
    """Speed and course follow from the velocity, but must be there: others read them."""
    velocity = fields.table("velocity")
    velocity.number("speed_mps", 0.0)
    velocity.number("course_deg", 0.0, math.nextafter(360.0, 0.0))
    return TrackReport(
        id=fields.count("id"),
        state=cast("TrackState", fields.word("state", get_args(TrackState))),
        position=_read_position(fields.table("position")),
        uncertainty=_read_uncertainty(fields.table("uncertainty")),
        east_mps=velocity.number("east_mps"),
        north_mps=velocity.number("north_mps"),
        covariance=cast("tuple[Row4, Row4, Row4, Row4]", fields.square("covariance", 4)),
        updates=fields.count("updates"),
        age_s=fields.number("age_s", 0.0),
        idle_s=fields.number("idle_s", 0.0),
        lag_s=fields.number("lag_s", 0.0),
        nis=fields.number_or_none("nis", 0.0),
    )


class _Fields:
    """Typed reading of a dict. Every error names the field by its path, the value and what is allowed."""

    def __init__(self, encoded: Any, path: str) -> None:
        if not isinstance(encoded, dict):
            raise ConfigError(f"{path or 'fix'}: wanted an object, got {type(encoded).__name__}")
        self._encoded = encoded
        self._path = path

    def number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise self._error(name, value, "a finite number")
        if not low <= value <= high:
            raise self._error(name, value, f"a number in [{low:g}, {high:g}]")
        return float(value)

    def number_or_none(self, name: str, low: float = -math.inf) -> float | None:
        return None if self._get(name) is None else self.number(name, low)

    def positive(self, name: str) -> float:
        value = self.number(name)
        if value <= 0.0:
            raise self._error(name, value, "a number above 0")
        return value

    def count(self, name: str) -> int:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._error(name, value, "a whole number, 0 or more")
        return value

    def text(self, name: str, *, empty: bool = False) -> str:
        value = self._get(name)
        if not isinstance(value, str) or not (value or empty):
            raise self._error(name, value, "text")
        return value

    def truth(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._error(name, value, "true or false")
        return value

    def word(self, name: str, allowed: Collection[str], *, nullable: bool = False) -> Any:
        value = self._get(name)
        if not (value is None and nullable) and not (isinstance(value, str) and value in allowed):
            raise self._error(name, value, f"one of {', '.join(allowed)}")
        return value

    def words(self, name: str, allowed: Collection[str]) -> tuple[str, ...]:
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(word, str) and word in allowed for word in value):
            raise self._error(name, value, f"a list out of {', '.join(allowed)}")
        if len(set(value)) != len(value):
            raise self._error(name, value, "each word once")
        return tuple(value)

    def square(self, name: str, size: int = 2) -> tuple[tuple[float, ...], ...]:
        rows = self._get(name)
        if not isinstance(rows, list) or [isinstance(row, list) and len(row) for row in rows] != [size] * size:
            raise self._error(name, rows, "two rows of two numbers" if size == 2 else f"{size} rows of {size} numbers")
        return tuple(tuple(_Fields({name: value}, self._path).number(name) for value in row) for row in rows)

    def table(self, name: str, *, nullable: bool = False) -> Any:
        value = self._get(name)
        return None if value is None and nullable else _Fields(value, self._where(name))

    def tables(self, name: str) -> list[_Fields]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self._error(name, value, "a list")
        return [_Fields(item, f"{self._where(name)}[{index}]") for index, item in enumerate(value)]

    def _get(self, name: str) -> Any:
        if name not in self._encoded:
            raise ConfigError(f"{self._where(name)}: missing")
        return self._encoded[name]

    def _where(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _error(self, name: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f"{self._where(name)}={value!r}: wanted {wanted}")
