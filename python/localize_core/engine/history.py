"""Values that hold from one frame on until the next: what stream tags say, whenever windows ask."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class History(Generic[T]):
    """Values in order of the frames from which they hold. What no later window can ask for is forgotten."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, T]] = deque()

    def add(self, frame: int, value: T) -> None:
        """From `frame` on it is `value`; frames come in order, of two on one frame the later counts."""
        if self._entries and self._entries[-1][0] == frame:
            self._entries.pop()
        self._entries.append((frame, value))

    def at(self, frame: int, last: int) -> tuple[int, T] | None:
        """The value at `frame`, with the frame it holds from; else the first one up to frame `last`; else None.

        `frame` must not go back from one call to the next.
        """
        while len(self._entries) > 1 and self._entries[1][0] <= frame:
            self._entries.popleft()
        return self._entries[0] if self._entries and self._entries[0][0] <= last else None
