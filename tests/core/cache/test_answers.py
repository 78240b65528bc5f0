"""Answers found again: what decides a key, that numbers survive to the last bit, and that garbage never does."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.cache.answers import Answer, AnswerCache, AnswerKeys, decode_answer, encode_answer
from localize_core.cache.base import StoreStatistics
from localize_core.cache.lru import MemoryStore
from localize_core.model.base import ModelOutput
from localize_core.model.contract import Contract, Normalisation
from localize_core.types.fix import ModelIdentity

KEY = "ab" * 32
IDENTITY = ModelIdentity("tiny", "1", "0" * 64)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@dataclass
class NamedModel:
    """What keys are made of. It answers nothing."""

    contract: Contract
    identity: ModelIdentity = IDENTITY
    label: str = "named"

    def run(self, features: np.ndarray) -> ModelOutput:
        raise NotImplementedError

    def close(self) -> None:
        pass


def output(*values: float) -> ModelOutput:
    row = np.array([values or (47.25, 8.5, 200.0, 100.0, 30.0, 0.9)], np.float32)
    return ModelOutput(row[:, :2], row[:, 2:5], row[:, 5:])


def numbers(answer: ModelOutput) -> list[float]:
    return [*answer.position[0].tolist(), *answer.uncertainty[0].tolist(), *answer.confidence[0].tolist()]


@pytest.fixture
def features(make_contract) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, 16, 4)).astype(np.float32)


def memory(**options) -> MemoryStore:
    return MemoryStore(**{"max_items": 100, "max_bytes": 1 << 20} | options)


def cached(*stores, **options) -> AnswerCache:
    return AnswerCache(stores or [memory()], **{"ttl_s": 3600.0} | options)


def test_equal_windows_have_equal_keys(make_contract, features) -> None:
    keys = AnswerKeys(NamedModel(make_contract()))
    again = AnswerKeys(NamedModel(make_contract()))
    assert keys(features) == keys(features.copy()) == again(features)
    assert len(keys(features)) == 64
    # The same values, however they lie in memory.
    assert keys(np.asfortranarray(features)) == keys(features)


def test_everything_that_decides_an_answer_decides_the_key(make_contract, features) -> None:
    contract = make_contract()
    models = [
        NamedModel(contract),
        *(
            NamedModel(contract, replace(IDENTITY, **{field: "other"}))
            for field in ("sha256", "name", "version", "backend")
        ),
        NamedModel(make_contract(normalisation=Normalisation(kind="joint"))),
        NamedModel(make_contract(normalisation=Normalisation(kind="constants", mean=0.5))),
        NamedModel(make_contract(min_receivers=2)),
    ]
    changed = features.copy()
    changed[3, 7, 2] = np.nextafter(changed[3, 7, 2], np.float32(9.0))
    windows = [
        features,
        changed,
        features.reshape(6, 4, 16),
        features.reshape(3, 32, 4),
        features.view(np.int32),
        features.astype(">f4"),
        features[:, :, :3],
    ]
    keys = [AnswerKeys(model)(window) for model in models for window in windows]
    assert len(set(keys)) == len(models) * len(windows)


def test_parts_of_a_key_do_not_run_into_one_another(make_contract, features) -> None:
    one = NamedModel(make_contract(), replace(IDENTITY, name="ab", version="c"))
    other = NamedModel(make_contract(), replace(IDENTITY, name="a", version="bc"))
    assert AnswerKeys(one)(features) != AnswerKeys(other)(features)


def test_a_model_of_unknown_digest_has_no_keys(make_contract) -> None:
    assert AnswerKeys.of(NamedModel(make_contract(), replace(IDENTITY, sha256=""))) is None
    assert AnswerKeys.of(NamedModel(make_contract())) is not None


@settings(deadline=None, max_examples=300)
@given(st.tuples(*[floats] * 6), st.floats(0.0, 1e6), st.text("0123456789abcdef", min_size=1, max_size=64))
def test_numbers_survive_to_the_last_bit(values, inference_ms: float, key: str) -> None:
    found = decode_answer(key, encode_answer(key, Answer(output(*values), inference_ms, 1.7e9)))
    assert found is not None
    for name in ("position", "uncertainty", "confidence"):
        ours, theirs = getattr(output(*values), name), getattr(found.output, name)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.tobytes() == theirs.tobytes()
    assert (found.inference_ms, found.stored_s) == (inference_ms, 1.7e9)


def test_a_value_is_json_of_the_numbers() -> None:
    said = json.loads(encode_answer(KEY, Answer(output(), 1.5, 7.0)))
    assert said["position"] == [47.25, 8.5]
    assert said["uncertainty"] == [200.0, 100.0, 30.0]
    assert said["confidence"] == pytest.approx(0.9)
    assert said["inference_ms"] == 1.5


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_garbage_is_no_answer(value: bytes) -> None:
    assert decode_answer(KEY, value) is None


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_wrong_byte_is_no_answer(place: int, change: int) -> None:
    value = bytearray(encode_answer(KEY, Answer(output(), 1.5, 7.0)))
    value[place % len(value)] ^= change
    assert decode_answer(KEY, bytes(value)) is None


@pytest.mark.parametrize("cut", [0, 1, 20, 100])
def test_a_part_of_a_value_is_no_answer(cut: int) -> None:
    value = encode_answer(KEY, Answer(output(), 1.5, 7.0))
    assert decode_answer(KEY, value[:cut]) is None
    assert decode_answer(KEY, value[cut + 1 :]) is None
    assert decode_answer(KEY, value + b"x" * 3000) is None


def test_the_value_of_another_key_is_no_answer() -> None:
    assert decode_answer("cd" * 32, encode_answer(KEY, Answer(output(), 1.5, 7.0))) is None


def test_what_was_kept_is_found_and_counted(make_contract, features) -> None:
    cache, keys = cached(), AnswerKeys(NamedModel(make_contract()))
    first = cache.look_up(keys, [features])
    assert first.answers == [None]
    cache.keep(first.keys[0], output(), 2.0)
    second = cache.look_up(keys, [features, features + 1.0, features])
    assert second.answers[1] is None
    assert second.answers[0] is not None
    assert numbers(second.answers[0]) == numbers(output())
    assert second.answers[2] is second.answers[0]
    assert 0.0 < second.spent_ms < 1000.0
    figures = cache.as_dict()
    assert (figures["hits"], figures["misses"], figures["hit_ratio"]) == (2, 2, 0.5)
    assert figures["saved_ms"] == 4.0
    assert figures["spent_ms"] > 0.0
    assert figures["net_benefit_ms"] == figures["saved_ms"] - figures["spent_ms"]
    assert (figures["errors"], figures["evictions"]) == (0, 0)
    assert figures["stores"]["memory"]["items"] == 1


def test_evictions_are_counted(make_contract, features) -> None:
    cache, keys = cached(memory(max_items=1)), AnswerKeys(NamedModel(make_contract()))
    for value in range(3):
        cache.keep(keys(features + value), output(), 1.0)
    assert cache.as_dict()["evictions"] == 2


def test_garbage_in_a_store_is_a_miss_an_error_and_goes(make_contract, features) -> None:
    store = memory()
    cache, keys = cached(store), AnswerKeys(NamedModel(make_contract()))
    store.set(keys(features), b'{"position":[1,2]}', 10.0)
    assert cache.look_up(keys, [features]).answers == [None]
    assert cache.as_dict()["errors"] == 1
    assert store.get(keys(features)) is None


def test_what_a_slow_store_has_goes_to_the_quick_one(make_contract, features) -> None:
    quick, slow, keys = memory(), memory(), AnswerKeys(NamedModel(make_contract()))
    cached(slow).keep(keys(features), output(), 1.0)
    cache = cached(quick, slow)
    for _ in range(2):
        (found,) = cache.look_up(keys, [features]).answers
        assert found is not None
    assert quick.stats().hits == 1
    assert slow.stats().hits == 1


def test_an_answer_does_not_outlive_its_time_by_going_from_store_to_store(make_contract, features) -> None:
    now_s = [1000.0]
    quick, slow = memory(clock=lambda: now_s[0]), memory(clock=lambda: 0.0)
    keys = AnswerKeys(NamedModel(make_contract()))
    cache = cached(quick, slow, ttl_s=100.0, clock=lambda: now_s[0])
    cached(slow, ttl_s=100.0, clock=lambda: now_s[0]).keep(keys(features), output(), 1.0)
    now_s[0] += 90.0
    assert cache.look_up(keys, [features]).answers != [None]
    now_s[0] += 20.0
    assert quick.get(keys(features)) is None
    assert cache.look_up(keys, [features]).answers == [None]


def test_a_clock_ahead_lengthens_nothing(make_contract, features) -> None:
    quick, slow = memory(clock=lambda: 50.0), memory()
    keys = AnswerKeys(NamedModel(make_contract()))
    cached(slow, clock=lambda: 9e9).keep(keys(features), output(), 1.0)
    cached(quick, slow, ttl_s=10.0, clock=lambda: 1e9).look_up(keys, [features])
    assert [end_s for _, end_s in quick._entries.values()] == [60.0]


class Away:
    """A store without anything, which says why."""

    name = "away"

    def start(self) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def get_many(self, keys):
        return [None] * len(keys)

    def set(self, key: str, value: bytes, ttl_s: float) -> None: ...
    def delete(self, key: str) -> None: ...
    def stats(self) -> StoreStatistics:
        return StoreStatistics(errors=3, state="no route")

    def close(self) -> None: ...


def test_the_summary_says_which_store_is_away() -> None:
    assert cached().summary() == {"hits": 0, "misses": 0, "net_benefit_ms": 0.0, "state": "ready"}
    assert cached(memory(), Away()).summary()["state"] == "away: no route"
    assert cached(memory(), Away()).as_dict()["errors"] == 3
