"""Tags of a stream as a recording keeps them, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pmt
from localize_core.sources.recording import Mark

from . import tags


def to_tags(mark: Mark, *, later_s: int = 0) -> Iterator[tuple[Any, Any]]:
    """Keys and values of the tags, the time so many seconds later."""
    if mark.restart:
        yield tags.RESTART, tags.restart_to_pmt(mark.lost)
    if mark.rx_time is not None:
        seconds, fraction = mark.rx_time
        yield tags.RX_TIME, tags.time_to_pmt(seconds + later_s, fraction)
    for key, value in (
        (tags.RX_RATE, mark.rx_rate_hz),
        (tags.RX_FREQ, mark.rx_freq_hz),
        (tags.TIME_ERROR, mark.time_error_s),
    ):
        if value is not None:
            yield key, pmt.from_double(value)
    if mark.time_source is not None:
        yield tags.TIME_SOURCE, pmt.intern(mark.time_source)


def next_marks(block: Any, port: int, count: int) -> list[Mark]:
    """What the tags on the next `count` samples of a block's input say; each mark's index counts from the first.

    Tags of other kinds, and values that are none of theirs, are left out.
    """
    first = block.nitems_read(port)
    found: dict[int, Mark] = {}
    for tag in block.get_tags_in_range(port, first, first + count):
        index = tag.offset - first
        said = _said(tag)
        if said:
            found[index] = replace(found.get(index, Mark(index)), **said)
    return [found[index] for index in sorted(found)]


def _said(tag: Any) -> dict[str, Any]:
    if pmt.eq(tag.key, tags.RX_TIME):
        time = tags.time_from_pmt(tag.value)
        return {} if time is None else {"rx_time": time}
    if pmt.eq(tag.key, tags.RESTART):
        return {"restart": True, "lost": tags.restart_from_pmt(tag.value)}
    if pmt.eq(tag.key, tags.TIME_SOURCE):
        source = tags.time_source_from_pmt(tag.value)
        return {} if source is None else {"time_source": source}
    for key, name in (
        (tags.RX_RATE, "rx_rate_hz"),
        (tags.RX_FREQ, "rx_freq_hz"),
        (tags.TIME_ERROR, "time_error_s"),
    ):
        if pmt.eq(tag.key, key):
            real = pmt.is_number(tag.value) and not pmt.is_complex(tag.value)
            value = float(pmt.to_double(tag.value)) if real else math.nan
            return {name: value} if math.isfinite(value) else {}
    return {}
