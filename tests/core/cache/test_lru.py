"""What was used last stays, within bounds of items, bytes and time."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.cache.lru import ENTRY_BYTES, MemoryStore
from localize_core.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make(max_items: int = 100, max_bytes: int = 1 << 20, clock: Clock | None = None) -> MemoryStore:
    return MemoryStore(max_items=max_items, max_bytes=max_bytes, clock=clock or Clock())


def test_what_was_set_is_found_until_it_is_deleted() -> None:
    store = make()
    store.set("a", b"1", 10.0)
    assert store.get("a") == b"1"
    assert store.get_many(["b", "a"]) == [None, b"1"]
    store.delete("a")
    store.delete("never there")
    assert store.get("a") is None
    figures = store.stats()
    assert (figures.hits, figures.misses, figures.items, figures.bytes) == (2, 2, 0, 0)


def test_values_end_after_their_time() -> None:
    clock = Clock()
    store = make(clock=clock)
    store.set("a", b"1", 10.0)
    clock.now_s = 9.99
    assert store.get("a") == b"1"
    clock.now_s = 10.0
    assert store.get("a") is None
    assert store.stats().items == 0


def test_what_was_used_longest_ago_goes_first() -> None:
    store = make(max_items=2)
    for key in "ab":
        store.set(key, key.encode(), 10.0)
    store.get("a")
    store.set("c", b"c", 10.0)
    assert store.get_many(["a", "b", "c"]) == [b"a", None, b"c"]
    assert store.stats().evictions == 1


def test_bytes_are_bounded_and_what_is_too_large_is_not_kept() -> None:
    store = make(max_bytes=3 * (ENTRY_BYTES + 101))
    for key in "abcd":
        store.set(key, bytes(100), 10.0)
    assert store.get_many(list("abcd")) == [None, bytes(100), bytes(100), bytes(100)]
    store.set("b", bytes(10_000), 10.0)
    assert store.get("b") is None  # the value that was there before is not the one that was set last
    assert store.stats().dropped == 1


@pytest.mark.parametrize("bounds", [{"max_items": 0}, {"max_bytes": ENTRY_BYTES - 1}])
def test_bounds_that_hold_nothing(bounds: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        make(**bounds)


steps = st.lists(
    st.tuples(st.sampled_from(["set", "get", "delete", "wait"]), st.sampled_from("abcde"), st.integers(0, 300)),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(steps, st.integers(1, 4), st.integers(1, 5))
def test_it_behaves_as_a_plain_list_of_entries(steps, max_items: int, entries: int) -> None:
    """Held against the definition: a list in order of use, cut at its head."""
    clock, bound = Clock(), entries * (ENTRY_BYTES + 100)
    store = make(max_items=max_items, max_bytes=bound, clock=clock)
    model: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
    for action, key, size in steps:
        if action == "wait":
            clock.now_s += size / 10.0
        elif action == "delete":
            store.delete(key)
            model.pop(key, None)
        elif action == "set":
            value = bytes(size)
            store.set(key, value, 20.0)
            model.pop(key, None)
            if size + 1 + ENTRY_BYTES <= bound:
                model[key] = value, clock.now_s + 20.0
            while len(model) > max_items or sum(len(v) + 1 + ENTRY_BYTES for v, _ in model.values()) > bound:
                model.popitem(last=False)
        else:
            value, end_s = model.get(key, (None, 0.0))
            if value is not None and end_s <= clock.now_s:
                del model[key]
                value = None
            if value is not None:
                model.move_to_end(key)
            assert store.get(key) == value
        figures = store.stats()
        assert figures.items == len(model) <= max_items
        assert figures.bytes == sum(len(v) + 1 + ENTRY_BYTES for v, _ in model.values()) <= bound


def test_threads_may_share_it() -> None:
    store = make(max_items=50)
    failures: list[BaseException] = []

    def hammer(seed: int) -> None:
        try:
            for step in range(2000):
                key = str((seed * step) % 97)
                store.set(key, key.encode(), 10.0)
                assert store.get(key) in (None, key.encode())
                store.delete(str(step % 31))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in (3, 5, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    left = [f"{n}" for n in range(97) if store.get(str(n)) is not None]
    assert store.stats().items == len(left) <= 50
    assert store.stats().bytes == sum(2 * len(key) + ENTRY_BYTES for key in left)
