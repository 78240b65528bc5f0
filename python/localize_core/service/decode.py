"""From the bytes of a request to what the engine is asked: JSON of megabytes, or complex samples as they are.

A list of samples in JSON is mostly digits. It is left alone while the rest of the request is read, and then parsed by
simdjson into one flat array; that its brackets stand where they should is seen from what is left without the digits.
"""

from __future__ import annotations

import heapq
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import simdjson
from msgspec import UNSET, Meta, UnsetType

from localize_core.service.errors import ApiError
from localize_core.serving.requests import MAX_REQUESTS, Request

Body = bytes | bytearray | memoryview

DIGITS = b"0123456789+-.eE \t\r\n"
MAX_SLOW_BYTES = 8 << 20
"""Up to here a list that does not hold what it should is read again, value by value, to say where."""
MAX_RUN = 1000
MAX_MARKS = 20_000
"""Quotes and braces in a batch."""
NO_SESSION = "requests"
"""Stream of questions that belong to no session."""
MAX_TIME = datetime(2262, 1, 1, tzinfo=timezone.utc)
QUOTE, OPEN, BACKSLASH = b'"{\\'
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Pairs = list[tuple[float, float]]


class _Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What stands beside the samples of one question."""

    receivers: Annotated[list[Name], Meta(min_length=1, max_length=64)] | None = None
    session_id: Name | None = None
    cache_enabled: bool | None = None
    id: Name | None = None
    timestamp: Annotated[datetime, Meta(tz=True)] | None = None
    frequency_hz: Annotated[float, Meta(gt=0.0, le=1e12)] | None = None


class _Question(_Options, kw_only=True):
    iq_data: msgspec.Raw = msgspec.Raw()
    features: msgspec.Raw = msgspec.Raw()


class _Batch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    items: list[Any] | UnsetType = UNSET
    iq_samples: list[msgspec.Raw] | UnsetType = UNSET
    receivers: Annotated[list[Name], Meta(min_length=1, max_length=64)] | None = None
    session_id: Name | None = None
    cache_enabled: bool | None = None


_question = msgspec.json.Decoder(_Question)
_batch = msgspec.json.Decoder(_Batch)
_pairs = msgspec.json.Decoder(_Pairs)
_receivers = msgspec.json.Decoder(list[_Pairs])
_numbers = msgspec.json.Decoder(list[float])

T = TypeVar("T")


def decode_question(body: bytes | bytearray) -> Request:
    """The one question in a JSON body. Raises ApiError."""
    return _usual_question(body) or _asked(_decoded(_question, body), _Batch())


def _usual_question(body: bytes | bytearray) -> Request | None:
    """The question where it is as programs write it, with brackets side by side at the end of its samples, else None.

    Looking for the samples' end takes a fraction of the time that reading up to it does.
    """
    name = b'"iq_data"'
    at = body.find(name)
    begin, end = body.find(b"[", at), body.rfind(b"]]") + 2
    if at < 0 or not begin < end or body[at + len(name) : begin].strip() != b":" or body.find(name, at + 1) >= 0:
        return None
    samples = _flat_samples(memoryview(body)[begin:end], "iq_data")
    if samples is None:
        return None
    try:
        question = _decoded(_question, body[:begin] + b"[]" + body[end:])
    except ApiError:
        return None  # what is wrong is said where the whole is read
    if bytes(question.iq_data) != b"[]" or bytes(question.features):
        return None
    return _request(question, samples, _Batch())


def decode_batch(body: bytes | bytearray) -> list[Request | ApiError]:
    """The questions in a JSON body, or what is wrong with each. Raises ApiError where it is wrong with all."""
    hollow, items, samples = _hollowed(body)
    batch = _decoded(_batch, hollow)
    if (batch.items is UNSET) == (batch.iq_samples is UNSET):
        raise ApiError(422, "wanted either items or iq_samples", field="items")
    if batch.iq_samples is not UNSET:
        lists = [memoryview(raw) for raw in batch.iq_samples] or samples
        _check_count(len(lists), "iq_samples")
        return [_or_error(_of_samples, raw, f"iq_samples[{index}]", batch) for index, raw in enumerate(lists)]
    assert not isinstance(batch.items, UnsetType)
    _check_count(len(batch.items), "items")
    whole, found = iter(items), list[Request | ApiError]()
    for index, item in enumerate(batch.items):
        raw = next(whole, None) if item == {} else None
        if raw is None:
            message = f"items[{index}]: wanted an object"
            found.append(ApiError(422, message, field=f"items[{index}]", received=item))
            continue
        asked = _or_error(_of_item, raw, batch)
        found.append(asked.inside(f"items[{index}]") if isinstance(asked, ApiError) else asked)
    if next(whole, None) is not None:
        raise ApiError(400, "items stands in the body twice", field="items")
    return found


def binary_question(body: Body, query: Mapping[str, str]) -> Request:
    """The one question in a body of complex64, receiver after receiver. Raises ApiError."""
    return binary_batch(body, query, count=1)[0]


def binary_batch(body: Body, query: Mapping[str, str], *, count: int) -> list[Request]:
    """So many questions of equal length, one after the other. Raises ApiError."""
    values: dict[str, Any] = dict(query)
    if "receivers" in values:
        values["receivers"] = values["receivers"].split(",")
    try:
        options = msgspec.convert(values, _Options, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid(error, values) from error
    size = len(body)
    if size == 0 or size % (8 * count):
        what = "8 bytes each" if count == 1 else f"8 bytes each, the same number in each of {count} items"
        raise ApiError(400, f"{size} bytes: wanted complex64 samples, {what}", field="body", received=size)
    samples = np.frombuffer(body, "<c8").astype(np.complex64, copy=False).reshape(count, -1)
    if count > 1 and options.id is not None:
        raise ApiError(422, "id: items of a batch cannot share one", field="id", received=options.id)
    return [_request(options, each, _Batch()) for each in samples]


def _or_error(decode: Callable[..., Request], *parts: Any) -> Request | ApiError:
    try:
        return decode(*parts)
    except ApiError as error:
        return error


def _of_item(raw: memoryview, batch: _Batch) -> Request:
    return _asked(_decoded(_question, raw), batch)


def _of_samples(raw: memoryview, field: str, batch: _Batch) -> Request:
    return _request(_Options(), read_samples(raw, field), batch)


def _check_count(count: int, field: str) -> None:
    if not 1 <= count <= MAX_REQUESTS:
        raise ApiError(422, f"{field}: a batch has 1 to {MAX_REQUESTS}, found {count}", field=field, received=count)


def _decoded(decoder: msgspec.json.Decoder[T], body: Body) -> T:
    """Raises ApiError: 422 for a value of the wrong kind, 400 for what is no JSON."""
    if not len(body):
        raise ApiError(400, "the body is empty", field="body")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error, _read_again(body)) from error
    except (ValueError, RecursionError) as error:  # also of UTF-8
        raise ApiError(400, f"not JSON: {error}", field="body") from error


def _read_again(body: Body) -> Any:
    """What a body holds that is JSON up to where it is wrong, None where that cannot be had or takes too long."""
    try:
        return json.loads(bytes(body)) if len(body) <= MAX_SLOW_BYTES // 8 else None
    except (ValueError, RecursionError):
        return None


_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)


def _invalid(error: msgspec.ValidationError, values: Any) -> ApiError:
    """What msgspec has to say of `values`, with the field's path as its author writes it."""
    message, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if (unknown := _UNKNOWN.search(message)) is not None:
        field = f"{field}.{unknown[1]}".lstrip(".")[:200]
        message = f"unknown, there are {', '.join(_Question.__struct_fields__)}"
    message = message.replace("`", "").replace("Expected", "expected").replace("float", "number")
    received = _at(values, field)
    return ApiError(422, f"{field}: {message}" if field else message, field=field or "body", received=received)


def _at(values: Any, path: str) -> Any:
    """The value at a path such as `items[3].id`, None where there is none."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            values = values[key or int(index)]
        except (LookupError, TypeError):
            return None
    return values


def _asked(question: _Question, batch: _Batch) -> Request:
    iq, features = memoryview(question.iq_data), memoryview(question.features)
    if bool(iq) == bool(features):
        raise ApiError(422, "wanted either iq_data or features", field="iq_data")
    data = read_samples(iq) if iq else read_features(features)
    return _request(question, data, batch)


def _request(options: _Options, data: np.ndarray, batch: _Batch) -> Request:
    cached = batch.cache_enabled if options.cache_enabled is None else options.cache_enabled
    receivers = batch.receivers if options.receivers is None else options.receivers
    frequency_hz = options.frequency_hz
    if frequency_hz is not None and not math.isfinite(frequency_hz):
        raise ApiError(422, "frequency_hz: wanted a finite number", field="frequency_hz")
    return Request(
        id=options.id or uuid.uuid4().hex,
        data=data,
        receivers=None if receivers is None else tuple(receivers),
        stream=options.session_id or batch.session_id or NO_SESSION,
        start=None if options.timestamp is None else _start(options.timestamp),
        frequency_hz=frequency_hz,
        cache=True if cached is None else cached,
    )


def _start(timestamp: datetime) -> tuple[int, float]:
    if not EPOCH <= timestamp < MAX_TIME:
        shown = timestamp.isoformat()
        raise ApiError(422, "timestamp: wanted one from 1970 to 2261", field="timestamp", received=shown)
    since = timestamp - EPOCH
    return since.days * 86_400 + since.seconds, since.microseconds / 1e6


def read_samples(raw: memoryview, field: str = "iq_data") -> np.ndarray:
    """`[[I, Q], …]` as complex64 (1, samples); `[[[I, Q], …], …]`, a list for each receiver, as (receivers, samples).

    Raises ApiError naming the first value that is none.
    """
    if (flat := _flat_samples(raw, field)) is not None:
        return flat
    _check_slow(raw, field, "[[I, Q], …], or one such list for each receiver, all of the same length")
    nested = bytes(raw).translate(None, DIGITS).startswith(b"[[[")
    found = _named(_receivers, raw, field) if nested else [_named(_pairs, raw, field)]
    if not found or not found[0]:
        raise ApiError(422, f"{field}: no samples", field=field)
    for index, each in enumerate(found):
        if len(each) != len(found[0]):
            where = f"{field}[{index}]"
            message = f"{where}: {len(each)} samples, the first receiver has {len(found[0])}"
            raise ApiError(422, message, field=where, received=len(each))
    return _complex(np.array(found).ravel(), field).reshape(len(found), -1)


def _flat_samples(raw: memoryview, field: str) -> np.ndarray | None:
    """The same in one go, None for anything else. Raises ApiError for a number beyond single precision."""
    if (shape := _shape(raw)) is None:
        return None
    values = _flat(raw)
    if values is None or len(values) != 2 * shape[0] * shape[1]:
        return None
    return _complex(values, field).reshape(shape)


def _shape(raw: memoryview) -> tuple[int, int] | None:
    """Receivers and samples of each by the brackets and commas, None where these do not stand as they should."""
    marks = bytes(raw).translate(None, DIGITS)
    nested = marks.startswith(b"[[[")
    lists = marks.count(b"]],[[") + 1 if nested else 1
    samples = ((len(marks) - 1) // lists - 2) // 4 if nested else (len(marks) - 1) // 4
    one = b"[" + b"[,]," * (samples - 1) + b"[,]]"
    if samples < 1 or marks != (b"[" + (one + b",") * (lists - 1) + one + b"]" if nested else one):
        return None
    return lists, samples


def read_features(raw: memoryview, field: str = "features") -> np.ndarray:
    """`[x, …]` as float32. Raises ApiError naming the first value that is none."""
    marks = bytes(raw).translate(None, DIGITS)
    if len(marks) > 1 and marks == b"[" + b"," * (len(marks) - 2) + b"]":
        values = _flat(raw)
        if values is not None and len(values) == len(marks) - 1:
            return _single(values, field)
    _check_slow(raw, field, "[x, …]")
    found = _named(_numbers, raw, field)
    if not found:
        raise ApiError(422, f"{field}: empty", field=field)
    return _single(np.array(found), field)


def _flat(raw: memoryview) -> np.ndarray | None:
    """All numbers of nested lists, float64, None where simdjson does not take them.

    A parser of its own for each list: one that is shared is in use as long as anybody holds what it has found.
    """
    try:
        parsed = simdjson.Parser().parse(raw)
        return np.frombuffer(parsed.as_buffer(of_type="d")) if isinstance(parsed, simdjson.Array) else None
    except (ValueError, RuntimeError, TypeError):  # also whole numbers beyond 64 bits, which are fine
        return None


def _complex(values: np.ndarray, field: str) -> np.ndarray:
    found: np.ndarray = _single(values, field).view(np.complex64)
    return found


def _single(values: np.ndarray, field: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        worst = float(values[~np.isfinite(found)][0])
        raise ApiError(422, f"{field}: {worst:g} is beyond single precision", field=field, received=worst)
    return found


def _check_slow(raw: memoryview, field: str, wanted: str) -> None:
    if len(raw) > MAX_SLOW_BYTES:
        raise ApiError(422, f"{field}: wanted {wanted}", field=field)


def _named(decoder: msgspec.json.Decoder[T], raw: memoryview, field: str) -> T:
    try:
        return _decoded(decoder, raw)
    except ApiError as error:
        path = (error.field or "").removeprefix("body")
        message = error.message.removeprefix(path).removeprefix(": ")
        raise ApiError(error.status, f"{field}{path}: {message}", field=field + path, received=error.received) from None


def _hollowed(body: bytes | bytearray) -> tuple[bytes, list[memoryview], list[memoryview]]:
    """A batch without its items and its `iq_samples`, of which only `{}` and `[]` are left, and both of them.

    Reading all of it at once would keep everybody else waiting. Only quotes and braces are looked at: what is no JSON
    shows when the parts are read. Raises ApiError for more of them than a batch can have.
    """
    view, depth, quoted, begin, end = memoryview(body), 0, False, 0, 0
    key: int | None = None  # where the name iq_samples has just ended
    kept: list[memoryview | bytes] = []
    items: list[memoryview] = []
    samples: list[memoryview] = []
    marks = heapq.merge(*(_positions(body, mark) for mark in (b'"', b"{", b"}")))
    for number, at in enumerate(marks):
        if number == MAX_MARKS:
            raise ApiError(422, f"more than {MAX_MARKS} quotes and braces", field="body")
        if key is not None and (found := _split(body, key, at)) is not None:
            first, last, samples = found
            kept += [view[end:first], b"[]"]
            end = last
        key, mark = None, body[at]
        if mark == QUOTE and not quoted:
            quoted, begin = True, at if depth < 2 else begin
        elif mark == QUOTE:
            quoted = _is_escaped(body, at)
            key = at + 1 if depth == 1 and body.startswith(b'"iq_samples"', begin) else None
        elif not quoted and mark == OPEN:
            depth += 1
            begin = at if depth == 2 else begin
        elif not quoted:
            if depth == 2:
                kept += [view[end:begin], b"{}"]
                items.append(view[begin : at + 1])
                end = at + 1
            depth -= 1
    return b"".join([*kept, view[end:]]), items, samples


_LIST = re.compile(rb"\s*:\s*(\[)\s*(\[[\[\s]*)")
_REST = re.compile(rb"[\s,]*")


def _split(body: bytes | bytearray, begin: int, end: int) -> tuple[int, int, list[memoryview]] | None:
    """Where the list after a name begins and ends, and the lists in it; None where they are not plain to see."""
    opened, last = _LIST.match(body, begin, end), body.rfind(b"]", begin, end)
    if opened is None or _REST.fullmatch(body, last + 1, end) is None:
        return None
    view, at = memoryview(body), opened.start(2)
    # Each ends with as many brackets as the first one begins with.
    ends = re.compile(rb"\]\s*" * opened[2].count(b"[") + b",")
    parts = []
    for found in ends.finditer(body, at, last):
        parts.append(view[at : found.end() - 1])
        at = found.end()
    parts.append(view[at:last])
    if any(_shape(part) is None for part in parts):
        return None  # what is no list of samples may be cut anywhere
    return opened.start(1), last + 1, parts


def _positions(body: bytes | bytearray, mark: bytes) -> Iterator[int]:
    at = body.find(mark)
    while at >= 0:
        yield at
        at = body.find(mark, at + 1)


def _is_escaped(body: bytes | bytearray, at: int) -> bool:
    """Whether an odd number of backslashes stands before it. More than a name can hold are not counted."""
    count = 0
    while count < MAX_RUN and at - count > 0 and body[at - count - 1] == BACKSLASH:
        count += 1
    return count % 2 == 1
