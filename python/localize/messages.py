"""Messages to an inference block: commands on `control`, requests on `pdus`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pmt
from localize_core.errors import ConfigError
from localize_core.serving.control import check_command
from localize_core.serving.requests import Request

from . import tags

ARGUMENTS = {"activate": "version", "share": "percent"}
"""What the value of a command's pair means."""


def command_from_pmt(message: Any) -> tuple[str, dict[str, Any]]:
    """A command and its parts: a symbol, a pair of command and value, or a dict with the key `command`.

    Raises ConfigError for anything else.
    """
    if pmt.is_symbol(message):
        return pmt.symbol_to_string(message), {}
    if pmt.is_dict(message) and not pmt.is_null(message):
        parts = _python(message)
        if not isinstance(parts, dict) or not isinstance(parts.get("command"), str):
            raise ConfigError(f"not a command: {str(message)[:80]}")
        command = parts.pop("command")
    elif pmt.is_pair(message) and pmt.is_symbol(pmt.car(message)):
        command, value = pmt.symbol_to_string(pmt.car(message)), _python(pmt.cdr(message))
        parts = {ARGUMENTS[command]: value} if command in ARGUMENTS else {}
    else:
        raise ConfigError(f"not a command: {str(message)[:80]}")
    return check_command(command, parts)


def requests_from_pmt(message: Any) -> list[Request]:
    """The requests of a PDU, or of a vector of PDUs. What is wrong with one request is left for its answer.

    A PDU is a pair of a metadata dict and a uniform vector: float32 for features, complex64 for samples. Metadata:
    `id`; `receivers`, names; `stream`; `rx_time` and `rx_freq` as in stream tags; `cache`, false where an answer that
    was given before will not do. Raises ConfigError for anything else.
    """
    if pmt.is_vector(message) and not pmt.is_uniform_vector(message):
        return [_request(pmt.vector_ref(message, index)) for index in range(pmt.length(message))]
    return [_request(message)]


def _request(message: Any) -> Request:
    if not pmt.is_pair(message) or not pmt.is_uniform_vector(pmt.cdr(message)):
        raise ConfigError(f"not a PDU: {str(message)[:80]}")
    meta = pmt.car(message)
    if not (pmt.is_dict(meta) or pmt.is_null(meta)):
        raise ConfigError(f"not a PDU: its metadata is {str(meta)[:80]}")

    def field(name: str) -> Any:
        return pmt.dict_ref(meta, pmt.intern(name), pmt.PMT_NIL) if pmt.is_dict(meta) else pmt.PMT_NIL

    return Request(
        id=_text(field("id")),
        data=_data(pmt.cdr(message)),
        receivers=_names(field("receivers")),
        stream=_text(field("stream")) or "requests",
        start=tags.time_from_pmt(field("rx_time")),
        frequency_hz=tags.frequency_from_pmt(field("rx_freq")),
        cache=not pmt.is_false(field("cache")),
    )


def _data(vector: Any) -> np.ndarray:
    """Float32 or complex64; other kinds become an empty array, which no model takes."""
    if pmt.is_f32vector(vector):
        return np.array(pmt.f32vector_elements(vector), np.float32)
    if pmt.is_c32vector(vector):
        return np.array(pmt.c32vector_elements(vector), np.complex64)
    return np.empty(0, np.float32)


def _text(value: Any) -> str:
    if pmt.is_null(value):
        return ""
    return pmt.symbol_to_string(value) if pmt.is_symbol(value) else str(_python(value))


def _names(value: Any) -> tuple[str, ...] | None:
    found = None if pmt.is_null(value) else _python(value)
    if found is None:
        return None
    return tuple(str(name) for name in found) if isinstance(found, (list, tuple)) else (str(found),)


def _python(value: Any) -> Any:
    try:
        return pmt.to_python(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"not understood: {str(error)[:80]}") from error
