"""Reading requests: the fast way finds what a plain one finds, and nothing else ends in anything but a refusal."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from localize_core.service import decode
from localize_core.service.errors import ApiError
from localize_core.serving.requests import Request

numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-(10**6), 10**6), st.just(10**25)
)
pairs = st.lists(numbers, min_size=2, max_size=2)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=6,
)
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def plain(value: Any) -> np.ndarray | None:
    """What json and numpy make of samples, None where they are none."""

    def is_list_of(check: Any, found: Any) -> bool:
        return isinstance(found, list) and len(found) > 0 and all(map(check, found))

    def is_pair(found: Any) -> bool:
        return isinstance(found, list) and [type(part) in (int, float) for part in found] == [True, True]

    if is_list_of(is_pair, value):
        value = [value]
    if not is_list_of(lambda each: is_list_of(is_pair, each), value) or len({len(each) for each in value}) > 1:
        return None
    return np.array(value, float).astype(np.float32).view(np.complex64)[..., 0]


@quick
@given(st.one_of(st.lists(pairs, max_size=5), st.lists(st.lists(pairs, max_size=3), max_size=3), junk), st.booleans())
@example([[1, 2, 3], [4]], False)
@example([[[1, 2], [3]], [[4, 5, 6]]], False)
@example([[[1, 2]], [3, 4]], True)
@example([[1], [2]], False)
def test_samples(value, spaced):
    raw = json.dumps(value, indent=1 if spaced else None).encode()
    wanted = plain(value)
    if wanted is None:
        with pytest.raises(ApiError):
            decode.read_samples(memoryview(raw))
    else:
        np.testing.assert_array_equal(decode.read_samples(memoryview(raw)), wanted)


@quick
@given(st.one_of(st.lists(numbers, max_size=5), junk))
@example([])
@example([1, [2], 3])
def test_features(value):
    raw = json.dumps(value).encode()
    if isinstance(value, list) and value and all(type(each) in (int, float) for each in value):
        np.testing.assert_array_equal(decode.read_features(memoryview(raw)), np.array(value, np.float32))
    else:
        with pytest.raises(ApiError):
            decode.read_features(memoryview(raw))


FIELDS = ("iq_data", "features", "receivers", "session_id", "cache_enabled", "id", "timestamp", "frequency_hz", "x")
texts = st.fixed_dictionaries({"iq_data": st.just([[1, 2]]), "id": st.text(min_size=1, max_size=5)})
anything = st.dictionaries(st.sampled_from([*FIELDS, "items", "iq_samples"]), junk, max_size=4)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """JSON with a few bytes exchanged, put in or left out."""
    body = bytearray(
        json.dumps(draw(st.one_of(anything, st.fixed_dictionaries({"items": st.lists(anything)})))).encode()
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b"}", b"[", b",", b"\xff", b"\0"])
        )
    return bytes(body)


@settings(quick, max_examples=300)
@given(st.one_of(spoilt(), st.binary(max_size=40)))
@example(b'{"items": [{"id": "\\ud800"}]}')
@example(b'{"\\ud800": 1}')
@example(b'{"items": [{"timestamp": "9999-12-31T23:59:59-23:59", "iq_data": [[1, 2]]}]}')
@example(b'{"items": [{"timestamp": "0001-01-01T00:00:00+23:59", "iq_data": [[1, 2]]}]}')
@example(b'{"iq_data": [[1, 1e400]], "frequency_hz": 1e400}')
def test_whatever_comes_is_read_or_refused(body):
    for read in (decode.decode_question, decode.decode_batch):
        try:
            found = read(body)
        except ApiError as error:
            found = error
        for each in found if isinstance(found, list) else [found]:
            if isinstance(each, ApiError):
                assert each.status in (400, 422)
                json.loads(each.response().body.decode())
            else:
                assert isinstance(each, Request)
                assert np.isfinite(each.data).all()


TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(['"iq_data"', '"iq_data": [[1, 2]]', "]]", "\\\\", '"']))


@quick
@given(
    st.dictionaries(st.sampled_from(["id", "session_id", "features", "other"]), TEXTS, max_size=2),
    st.one_of(st.lists(pairs, max_size=3), st.lists(st.lists(pairs, max_size=2), max_size=2), junk),
    st.one_of(st.none(), st.lists(st.text(max_size=3), max_size=2)),
    st.randoms(use_true_random=False),
    st.sampled_from([None, 1]),
)
@example({}, [[1, 2], [3, 4]], None, random.Random(1), None)
@example({"id": '"iq_data": [[1, 2]]'}, [[1, 2]], ["a"], random.Random(2), None)
def test_one_pass_finds_what_reading_all_of_it_does(texts, samples, receivers, order, indent):
    parts = {**texts, "iq_data": samples, **({} if receivers is None else {"receivers": receivers})}
    keys = order.sample(sorted(parts), len(parts))
    body = json.dumps({key: parts[key] for key in keys}, indent=indent).encode()
    try:
        usual = decode._usual_question(body)
    except ApiError:  # a number beyond single precision
        with pytest.raises(ApiError):
            decode._asked(decode._decoded(decode._question, body), decode._Batch())
        return
    if usual is not None:
        whole = decode._asked(decode._decoded(decode._question, body), decode._Batch())
        assert replace(usual, data=None, id="") == replace(whole, data=None, id="")
        np.testing.assert_array_equal(usual.data, whole.data)


def test_a_question_as_programs_write_it_takes_one_pass():
    for body in (b'{"iq_data":[[1,2],[3,4]],"cache_enabled":false}', b'{"id": "a", "iq_data": [[[1, 2]], [[3, 4]]]}'):
        assert decode._usual_question(body) is not None
    for body in (b'{"iq_data":[[1,2,3],[4]]}', b'{"iq_data":[[1,2]],"iq_data":[[3,4]]}', b'{"x":{"iq_data":[[1,2]]}}'):
        assert decode._usual_question(body) is None


@quick
@given(
    st.lists(
        st.fixed_dictionaries({"iq_data": st.just([[1, 2]]), "id": st.text(min_size=1, max_size=5)}),
        max_size=4,
        min_size=1,
    )
)
@example([{"iq_data": [[1, 2]], "id": '"}{\\'}, {"iq_data": [[1, 2]], "id": "\\\\"}])
def test_items_are_told_apart_whatever_their_texts_hold(items):
    for ascii_only in (True, False):
        body = json.dumps({"items": items}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        found = decode.decode_batch(body)
        assert [each.id for each in found if isinstance(each, Request)] == [item["id"] for item in items]


def test_a_large_body_without_samples_is_not_read_value_by_value(monkeypatch):
    monkeypatch.setattr(decode, "MAX_SLOW_BYTES", 20)
    with pytest.raises(ApiError, match="wanted"):
        decode.read_samples(memoryview(b"[[1, 2], [3, 4], [5, 6], [7]]"))
    assert decode.read_samples(memoryview(b"[[1, 2], [3, 4], [5, 6], [7, 8]]")).shape == (1, 4)


def test_time_and_its_parts():
    request = decode.decode_question(b'{"iq_data": [[1, 2]], "timestamp": "2026-01-02T03:04:05.678901+01:00"}')
    assert request.start is not None
    assert request.start[0] == 1_767_319_445
    assert math.isclose(request.start[1], 0.678901)


@quick
@given(
    st.lists(
        st.one_of(st.lists(pairs, max_size=3), st.lists(st.lists(pairs, max_size=2), max_size=3), junk), max_size=4
    )
)
@example([[[1, 2]], [[[1, 2]], [[3, 4]]], [[1]]])
@example([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [[9, 10]]])
@example([[[1, 2], [3, 4]], [[[1, 2]], [[3, 4]]], "iq_samples"])
@example([[]])
@example([[], [[1, 2]]])
def test_lists_of_samples_are_told_apart(lists):
    for indent in (None, 1):
        for before in ({}, {"session_id": "iq_samples"}):
            body = json.dumps({**before, "iq_samples": lists, "cache_enabled": True}, indent=indent).encode()
            if not lists:
                with pytest.raises(ApiError, match="1 to 100"):
                    decode.decode_batch(body)
                continue
            found = decode.decode_batch(body)
            assert len(found) == len(lists)
            for value, each in zip(lists, found, strict=True):
                wanted = plain(value)
                assert isinstance(each, ApiError) == (wanted is None)
                if isinstance(each, Request):
                    np.testing.assert_array_equal(each.data, wanted)


def test_a_batch_that_is_split_says_where_it_is_wrong():
    (first, second) = decode.decode_batch(b'{"iq_samples": [[[1, 2]], [[3, null]]]}')
    assert isinstance(first, Request)
    assert isinstance(second, ApiError)
    assert second.field == "iq_samples[1][0][1]"
