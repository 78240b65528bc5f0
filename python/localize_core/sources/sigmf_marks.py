"""Tags of a recorded stream as this project's recorder keeps them in SigMF captures, in the namespace `localize`.

`localize:rx_time` [seconds, fraction], `rx_rate`, `rx_freq`, `time_source`, `time_error`, `restart` (lost samples, or
null where their number is unknown): the tags on the capture's first sample. `localize:holds`: what held there, in the
first capture of a part that follows another. docs/recording.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localize_core.errors import SourceError
from localize_core.sources.recording import Gap, Mark

NAMESPACE = "localize"
STREAM = f"{NAMESPACE}:stream"
HOLDS = f"{NAMESPACE}:holds"
ON_LINE = 0.5
"""Samples: an `rx_time` closer than that to where those before it lead tells of no loss."""

_KEYS = ("rx_time", "rx_rate", "rx_freq", "time_source", "time_error", "restart")


def marks_of_parts(parts: Sequence[tuple[Path, int, int, list[tuple[int, dict[str, Any]]]]]) -> tuple[Mark, ...]:
    """The tags of consecutive parts: of each its metadata file, first sample, length, and captures.

    The first sample of all also has what held there; after parts that are missing the stream begins anew. Raises
    SourceError for values that are no such tags.
    """
    marks: list[Mark] = []
    due = None
    for path, start, length, captures in parts:
        for number, (first, capture) in enumerate(captures):
            said = {key: capture[f"{NAMESPACE}:{key}"] for key in _KEYS if f"{NAMESPACE}:{key}" in capture}
            index = capture.get("core:global_index")
            missing = 0
            if number == 0 and isinstance(index, int):
                missing = 0 if due is None else index - due
                if (due is None or missing) and isinstance(held := capture.get(HOLDS, {}), dict):
                    said = {key: value for key, value in held.items() if key in _KEYS} | said
            if missing and "restart" not in said:
                said["restart"] = missing if missing > 0 else None
            if said:
                marks.append(_mark(path, start + first, said))
            if isinstance(index, int):
                due = index + length - first
    return tuple(marks)


def gaps_of(marks: Sequence[Mark], rate_hz: float) -> tuple[Gap, ...]:
    """Where the times of marks tell that samples were lost; a clock that went back tells nothing."""
    gaps = []
    before: Mark | None = None
    for mark in marks:
        if mark.rx_time is None:
            continue
        if before is not None and before.rx_time is not None:
            apart_s = mark.rx_time[0] - before.rx_time[0] + mark.rx_time[1] - before.rx_time[1]
            missing = apart_s * rate_hz - (mark.index - before.index)
            if missing > ON_LINE:
                gaps.append(Gap(mark.index, round(missing)))
        before = mark
    return tuple(gaps)


def _mark(path: Path, index: int, said: dict[str, Any]) -> Mark:
    def wrong(key: str) -> SourceError:
        return SourceError(f"{path}: {NAMESPACE}:{key}={said[key]!r}: no such tag")

    def number(key: str) -> float | None:
        value = said.get(key)
        if value is not None and not _is_number(value):
            raise wrong(key)
        return None if value is None else float(value)

    time, source, lost = (said.get(key) for key in ("rx_time", "time_source", "restart"))
    if time is not None:
        if not (isinstance(time, list) and len(time) == 2 and isinstance(time[0], int) and _is_number(time[1])):
            raise wrong("rx_time")
        if not (time[0] >= 0 and 0.0 <= time[1] < 1.0):
            raise wrong("rx_time")
    if not isinstance(source, str | None):
        raise wrong("time_source")
    if not isinstance(lost, int | None) or (lost is not None and lost < 0):
        raise wrong("restart")
    return Mark(
        index,
        rx_time=None if time is None else (time[0], float(time[1])),
        rx_rate_hz=number("rx_rate"),
        rx_freq_hz=number("rx_freq"),
        time_source=source,
        time_error_s=number("time_error"),
        restart="restart" in said,
        lost=lost,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
