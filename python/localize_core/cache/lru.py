"""A store in this process: what was used last stays, within bounds of items and of bytes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from localize_core.cache.base import StoreStatistics
from localize_core.errors import ConfigError

ENTRY_BYTES = 300
"""What Python itself needs for an entry, beside key and value."""


class MemoryStore:
    """Values of the keys that were used last.

    `max_items`, `max_bytes`: bounds; bytes count keys, values and what Python needs for them. `clock`: seconds that
    never go back. Raises ConfigError for bounds below one item and one entry.
    """

    name = "memory"

    def __init__(self, *, max_items: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        for key, value, least in (("max_items", max_items, 1), ("max_bytes", max_bytes, ENTRY_BYTES)):
            if value < least:
                raise ConfigError(f"{key}={value}: must be at least {least}")
        self._max_items, self._max_bytes, self._clock = max_items, max_bytes, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # value and end, used last at the end
        self._bytes = 0
        self._hits = self._misses = self._evictions = self._dropped = 0

    def start(self) -> None:
        """It needs nothing."""

    def get(self, key: str) -> bytes | None:
        with self._lock:
            return self._get(key)

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:
            return [self._get(key) for key in keys]

    def set(self, key: str, value: bytes, ttl_s: float) -> None:
        size = _size(key, value)
        with self._lock:
            self._forget(key)
            if size > self._max_bytes or ttl_s <= 0.0:
                self._dropped += 1
                return
            self._entries[key] = value, self._clock() + ttl_s
            self._bytes += size
            while len(self._entries) > self._max_items or self._bytes > self._max_bytes:
                self._forget(next(iter(self._entries)))
                self._evictions += 1

    def delete(self, key: str) -> None:
        with self._lock:
            self._forget(key)

    def stats(self) -> StoreStatistics:
        with self._lock:
            return StoreStatistics(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                dropped=self._dropped,
                items=len(self._entries),
                bytes=self._bytes,
            )

    def close(self) -> None:
        """What it holds stays: streams that start again find it."""

    def _get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is not None and entry[1] <= self._clock():
            self._forget(key)
            entry = None
        if entry is None:
            self._misses += 1
            return None
        self._entries.move_to_end(key)
        self._hits += 1
        return entry[0]

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(key, entry[0])


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
