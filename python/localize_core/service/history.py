"""The last fixes, numbered: what pages, streams and maps read, each reader at its own pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from localize_core.types.fix import Fix, Status
from localize_core.wire.fix_json import fix_from_json, fix_to_json

DEFAULT_CAPACITY = 10_000
PAGE = 100
"""Entries that a reader going backwards takes at a time."""


class Entry(NamedTuple):
    """A fix as one line of JSON, its cursor, and what readers choose by.

    The fix itself would be dozens of objects, which Python's garbage collector looks through again and again.
    """

    cursor: int
    station: str
    status: Status
    json: str

    @property
    def fix(self) -> Fix:
        """Made anew each time."""
        return fix_from_json(self.json)


class FixHistory:
    """Keeps the last `capacity` fixes. Cursors rise by one from fix to fix; readers ask for what comes after theirs.

    The first cursor is the time of construction in microseconds, so that a cursor of an earlier run lies below all
    cursors of this one. Threads may share it.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._entries: list[Entry] = []  # as a ring: a deque is slow in its middle, where slow readers are
        self._first = self._next = int(time.time() * 1e6)
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []

    @property
    def received(self) -> int:
        """How many fixes have come, those included that are no longer kept."""
        return self._next - self._first

    @property
    def newest(self) -> int:
        """Cursor of the last fix; before the first fix, one that all fixes come after."""
        return self._next - 1

    def append(self, fix: Fix) -> int:
        """Keep a fix, and return its cursor. Raises ConfigError for one that cannot be encoded."""
        json = fix_to_json(fix)
        with self._lock:
            cursor = self._next
            entry = Entry(cursor, fix.station, fix.status, json)
            if len(self._entries) < self._capacity:
                self._entries.append(entry)
            else:
                self._entries[(cursor - self._first) % self._capacity] = entry
            self._next += 1
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher()
        return cursor

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have it called after each fix, in the thread that brought it. It must neither wait nor raise."""
        with self._lock:
            self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], None]) -> None:
        with self._lock:
            self._watchers.remove(watcher)

    def after(self, cursor: int, limit: int) -> tuple[int, list[Entry]]:
        """The next entries after a cursor, oldest first, and how many are missing between it and the first of them.

        A cursor of another run, lower or higher than all of this one, stands for the beginning of this one.
        """
        with self._lock:
            if not self._first - 1 <= cursor < self._next:
                cursor = self._first - 1
            oldest = self._next - len(self._entries)
            missing = max(oldest - cursor - 1, 0)
            return missing, self._slice(max(cursor + 1, oldest), limit)

    def onwards(self, cursor: int) -> Iterator[Entry]:
        """All entries after a cursor, oldest first, as far as they are still kept when their turn comes."""
        while True:
            _, page = self.after(cursor, PAGE)
            if not page:
                return
            yield from page
            cursor = page[-1].cursor

    def backwards(self, cursor: int | None = None) -> Iterator[Entry]:
        """All entries before a cursor, newest first, as far as they are still kept when their turn comes."""
        while True:
            with self._lock:
                oldest = self._next - len(self._entries)
                end = self._next if cursor is None else min(cursor, self._next)
                cursor = max(oldest, end - PAGE)
                page = self._slice(cursor, end - cursor)
            if not page:
                return
            yield from reversed(page)

    def _slice(self, first: int, limit: int) -> list[Entry]:
        """Entries from a cursor on. Needs the lock."""
        cursors = range(first, min(first + limit, self._next))
        return [self._entries[(cursor - self._first) % self._capacity] for cursor in cursors]
