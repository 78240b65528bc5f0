"""A fix as a PMT message: a dict laid out like the fix's JSON. null is PMT_NIL, a list a PMT vector.

The timestamp is a tuple of whole seconds since 1970 and the rest, as in `rx_time`: as a symbol, each would stay in
GNU Radio's table of symbols for good, which would take some 140 bytes a fix and make new symbols ever slower.

Otherwise the result is that of `pmt.to_pmt` and `pmt.to_python`, which take longer: they try a dozen types on every
value, and walk through a dict from its beginning for each of its keys.
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
    microseconds = (fix.timestamp - EPOCH) // MICROSECOND
    return pmt.dict_add(message, TIMESTAMP, tags.time_to_pmt(microseconds // 1_000_000, microseconds % 1_000_000 / 1e6))


def fix_from_pmt(message: Any) -> Fix:
    """The fix in a PMT dict. Raises ConfigError, naming the field where it can, for any other message."""
    if not pmt.is_dict(message):
        raise ConfigError(f"not a fix: {str(message)[:80]}")
    try:
        encoded = _decoded(message)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"not a fix: {str(error)[:80]}") from error
    time = tags.time_from_pmt(pmt.dict_ref(message, TIMESTAMP, pmt.PMT_NIL))
    if time is not None:
        seconds, fraction = time
        encoded["timestamp"] = format_timestamp(EPOCH + timedelta(seconds=seconds, microseconds=round(fraction * 1e6)))
    return fix_from_dict(encoded)


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
            items = pmt.acons(pmt.intern(key), _encoded(value[key]), items)
        return items
    if type(value) is list:
        vector = pmt.make_vector(len(value), pmt.PMT_NIL)
        for index, each in enumerate(value):
            pmt.vector_set(vector, index, _encoded(each))
        return vector
    return pmt.to_pmt(value)


def _decoded(value: Any) -> Any:
    if pmt.is_symbol(value):
        return pmt.symbol_to_string(value)
    if pmt.is_real(value):
        return pmt.to_double(value)
    if pmt.is_null(value):  # before dict, which an empty one is too
        return None
    if pmt.is_dict(value):
        found = {}
        while pmt.is_pair(value):
            item = pmt.car(value)
            found[_decoded(pmt.car(item))] = _decoded(pmt.cdr(item))
            value = pmt.cdr(value)
        return found
    if pmt.is_vector(value):
        return [_decoded(pmt.vector_ref(value, index)) for index in range(pmt.length(value))]
    return pmt.to_python(value)
