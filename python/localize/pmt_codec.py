"""A fix as a PMT message: a dict laid out like the fix's JSON. null is PMT_NIL, a list a PMT vector.

The timestamp is a tuple of whole seconds since 1970 and the rest, as in `rx_time`: as a symbol, each would stay in
GNU Radio's table of symbols for good, which would take some 140 bytes a fix and make new symbols ever slower.

Otherwise the result is that of `pmt.to_pmt` and `pmt.to_python`, which take several times as long: they try a dozen
types on every value, and walk through a dict from its beginning for each of its keys. Here the fix's own keys are
looked up; others are passed over, as they are in JSON.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pmt
from localize_core.errors import ConfigError
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_dict, fix_to_dict, format_timestamp

from . import tags

TIMESTAMP = pmt.intern("timestamp")
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MICROSECOND = timedelta(microseconds=1)


def fix_to_pmt(fix: Fix) -> Any:
    """The fix as a PMT dict. Raises ConfigError if a value cannot be published, naming the field."""
    message = _encoded({**fix_to_dict(fix), "timestamp": None})
    microseconds = max((fix.timestamp - EPOCH) // MICROSECOND, 0)  # a clock that starts at 0 has no time before
    return pmt.dict_add(message, TIMESTAMP, tags.time_to_pmt(microseconds // 1_000_000, microseconds % 1_000_000 / 1e6))


def fix_from_pmt(message: Any) -> Fix:
    """The fix in a PMT dict. Raises ConfigError, naming the field where it can, for any other message."""
    if not pmt.is_dict(message):
        raise ConfigError(f"not a fix: {str(message)[:80]}")
    try:
        encoded = _read(message, _FIX)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"not a fix: {str(error)[:80]}") from error
    time = tags.time_from_pmt(pmt.dict_ref(message, TIMESTAMP, pmt.PMT_NIL))
    if time is not None:
        seconds, fraction = time
        encoded["timestamp"] = format_timestamp(EPOCH + timedelta(seconds=seconds, microseconds=round(fraction * 1e6)))
    return fix_from_dict(encoded)


_Layout = tuple[tuple[str, Any, Any], ...]
"""Of a dict: for each key its name, its symbol, and what its value is made of: None for plain ones, a layout for a
dict, a list of one for a list of dicts."""


def _layout(**values: Any) -> _Layout:
    return tuple((name, pmt.intern(name), value) for name, value in values.items())


def _plain(names: str) -> _Layout:
    return _layout(**dict.fromkeys(names.split()))


_POSITION = _plain("latitude longitude")
_UNCERTAINTY = _plain("sigma_x sigma_y theta covariance_m2 probability semi_major_m semi_minor_m azimuth_deg")
_PLACED = _layout(position=_POSITION, uncertainty=_UNCERTAINTY)
_FIX = (
    *_PLACED,
    *_plain("schema station stream sequence timestamp time_source status reason confidence frequency_hz cache_hit"),
    *_plain("inference_time_ms latency_ms dropped_windows id"),
    *_layout(
        receivers=[_plain("name level_db used flags")],
        model=_plain("name version sha256 arm backend"),
        alignment=_plain("residual_ns gaps_filled gaps_skipped"),
        window=_plain("samples duration_s"),
        peaks=[(*_PLACED, *_plain("weight kind"))],
        tracks=[
            (
                *_PLACED,
                *_plain("id state covariance updates age_s idle_s lag_s nis"),
                *_layout(velocity=_plain("east_mps north_mps speed_mps course_deg")),
            )
        ],
    ),
)
_SYMBOLS: dict[str, Any] = {}


def _collect(layout: _Layout) -> None:
    for name, symbol, inner in layout:
        _SYMBOLS[name] = symbol
        if inner is not None:
            _collect(inner[0] if isinstance(inner, list) else inner)


_collect(_FIX)

_ENCODERS: dict[type, Any] = {
    str: pmt.intern,
    float: pmt.from_double,
    int: pmt.from_long,
    bool: pmt.from_bool,
    type(None): lambda _: pmt.PMT_NIL,
}


def _encoded(value: Any) -> Any:
    encoder = _ENCODERS.get(type(value))
    if encoder is not None:
        return encoder(value)
    if type(value) is dict:
        items = pmt.make_dict()
        for key in value:
            items = pmt.acons(_SYMBOLS[key], _encoded(value[key]), items)
        return items
    assert type(value) is list  # of all that the schema knows, nothing else is left
    vector = pmt.make_vector(len(value), pmt.PMT_NIL)
    for index, each in enumerate(value):
        pmt.vector_set(vector, index, _encoded(each))
    return vector


def _read(message: Any, layout: _Layout) -> dict[str, Any]:
    """What the layout names of a dict, as far as it is there."""
    found: dict[str, Any] = {}
    for name, symbol, inner in layout:
        value = pmt.dict_ref(message, symbol, pmt.PMT_EOF)
        if pmt.is_eof_object(value):
            continue
        if inner is None:
            found[name] = _value(value)
        elif isinstance(inner, list) and pmt.is_vector(value):
            each = (pmt.vector_ref(value, index) for index in range(pmt.length(value)))
            found[name] = [_read(item, inner[0]) if _is_filled(item) else _value(item) for item in each]
        else:
            found[name] = _read(value, inner) if _is_filled(value) else _value(value)
    return found


def _is_filled(value: Any) -> bool:
    return pmt.is_dict(value) and not pmt.is_null(value)


def _value(value: Any) -> Any:
    """A plain value; anything else as GNU Radio sees it, for whoever checks it to name."""
    if pmt.is_real(value):
        return pmt.to_double(value)
    if pmt.is_symbol(value):
        return pmt.symbol_to_string(value)
    return pmt.to_python(value)
