"""What waits to be sent over a connection that may fail: a bounded queue, and one thread that empties it."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from localize_core.addresses import without_password
from localize_core.errors import ConfigError, PublishError
from localize_core.types.fix import Fix

log = logging.getLogger(__name__)

CAPACITY = 10_000
BATCH = 64
"""Most items that a transport is given at once."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0
"""Between two tries to connect: the first pause, and the longest."""
CHECK_S = 2.0
"""Without anything to send, the connection is looked at so often."""
END_S = 2.0
"""How long a close waits for a transport that it has interrupted."""

Item = TypeVar("Item")
_Contravariant = TypeVar("_Contravariant", contravariant=True)


class SendError(PublishError):
    """Not all of a batch was sent. `acknowledged`: how many items were, counted from the first; `refused`: how many
    after those can never be sent, and are dropped. All others are sent again.
    """

    def __init__(self, message: str, *, acknowledged: int = 0, refused: int = 0) -> None:
        super().__init__(message)
        self.acknowledged, self.refused = acknowledged, refused


class Transport(Protocol[_Contravariant]):
    """A connection to one destination, of one opening of an outbox. One thread calls it, except for close().

    Each call gives up by itself within seconds. Whatever it raises means that the connection is of no more use: the
    outbox closes it and connects anew. A PublishError's message is for people; it may hold an address.
    """

    def connect(self) -> None:
        """Open the connection, and see that the other side is there."""

    def send(self, items: Sequence[_Contravariant]) -> None:
        """Send the items in order, and return when all are acknowledged.

        Raises SendError if only a part is; any other error means that nothing is known of any of them. Items whose
        acknowledgement got lost come again, first, and in the same order.
        """

    def check(self) -> None:
        """Raise PublishError if the connection is gone. Called now and then while there is nothing to send."""

    def close(self) -> None:
        """Let go of the connection, whatever its state. From another thread it ends a call that is waiting."""


class _Opening(Generic[Item]):
    """What lives from open() to close()."""

    def __init__(self, transport: Transport[Item]) -> None:
        self.transport = transport
        self.thread: threading.Thread | None = None
        self.busy = self.ended = False

    def disconnect(self) -> None:
        with contextlib.suppress(Exception):  # it may be in any state
            self.transport.close()


class Outbox(Generic[Item]):
    """Hands items to a transport, in order, each until it is acknowledged.

    `transport`: makes one, for each opening a fresh one. `capacity`: how many wait at the most, besides the BATCH that
    may be on its way; the oldest of them gives way for one more, and counts as dropped. Those on their way are kept
    over a lost connection: whether they arrived shows only when they are sent again. `linger_s`: how long close()
    waits for items to leave; what is left counts as dropped. `name`: of the destination, for logs.

    Raises ConfigError for a capacity or time that cannot be.
    """

    def __init__(
        self, name: str, transport: Callable[[], Transport[Item]], *, capacity: int = CAPACITY, linger_s: float = 0.5
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity={capacity}: wanted at least 1")
        if not 0.0 <= linger_s < float("inf"):
            raise ConfigError(f"linger_s={linger_s}: wanted 0 or more")
        self.name = without_password(name)
        self._make, self._capacity, self._linger_s = transport, capacity, linger_s
        self._changed = threading.Condition()
        self._waiting: deque[Item] = deque()
        self._sending: list[Item] = []
        self._sent = self._dropped = 0
        self._state = "closed"
        self._down = self._full = False
        self._closing = False
        self._opening: _Opening[Item] | None = None

    @property
    def sent(self) -> int:
        """Items that were acknowledged."""
        return self._sent

    @property
    def dropped(self) -> int:
        return self._dropped

    @property
    def backlog(self) -> int:
        """Items that wait, or are on their way."""
        with self._changed:
            return len(self._sending) + len(self._waiting)

    @property
    def state(self) -> str:
        """`connected`, or why not."""
        return self._state

    def open(self) -> None:
        """Start to connect, and return at once. Opening twice is harmless."""
        with self._changed:
            if self._opening is not None:
                return
            self._opening = _Opening(self._make())
            self._closing = self._down = self._full = False
            self._state = "not connected yet"
            thread = threading.Thread(target=self._run, args=(self._opening,), name="localize-outbox", daemon=True)
            self._opening.thread = thread
            thread.start()

    def refuses(self) -> bool:
        """Whether the outbox is closed; what would have been published counts as dropped then."""
        with self._changed:
            closed = self._opening is None or self._closing
            self._dropped += closed
            return closed

    def publish(self, item: Item) -> bool:
        """Append the item, without blocking; False means that the outbox is closed, and it was dropped."""
        with self._changed:
            if self._opening is None or self._closing:
                self._dropped += 1
                return False
            overflows = len(self._waiting) == self._capacity
            if overflows:
                self._waiting.popleft()
                self._dropped += 1
            first, self._full = overflows and not self._full, self._full or overflows
            self._waiting.append(item)
            self._changed.notify_all()
        if first:
            log.warning("%s: dropping the oldest of what waits: %s", self.name, self._state)
        return True

    def close(self) -> None:
        """Send what waits, for at most `linger_s`, and disconnect. Closing twice is harmless."""
        with self._changed:
            opening = self._opening
            if opening is None or self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._sending and not self._waiting, self._linger_s)
            opening.ended, self._opening = True, None
            left = len(self._sending) + len(self._waiting)
            self._dropped += left
            self._sending.clear()
            self._waiting.clear()
            why, self._state = self._state, "closed"
            busy = opening.busy
            self._changed.notify_all()
        if left:
            log.warning("%s: closed with %d not sent: %s", self.name, left, why)
        if busy:
            opening.disconnect()
        if opening.thread is not None:
            opening.thread.join(END_S)

    # The thread of an opening

    def _run(self, opening: _Opening[Item]) -> None:
        connected, pause_s = False, 0.0
        while (batch := self._next(opening, connected, pause_s)) is not None:
            try:
                if not connected:
                    opening.transport.connect()
                elif batch:
                    opening.transport.send(batch)
                else:
                    opening.transport.check()
            except Exception as error:  # besides its own, whatever a client makes of garbage
                self._failed(opening, error)
                opening.disconnect()
                connected, pause_s = False, min(max(2.0 * pause_s, FIRST_PAUSE_S), LAST_PAUSE_S)
            else:
                if self._succeeded(opening, batch, connected):
                    pause_s = 0.0
                connected = True
        opening.disconnect()

    def _next(self, opening: _Opening[Item], connected: bool, pause_s: float) -> list[Item] | None:
        """Wait until there is something to do. Returns what to send, in case of a connection; None at the end."""
        with self._changed:
            opening.busy = False
            if connected:
                self._changed.wait_for(
                    lambda: opening.ended or self._closing or self._sending or self._waiting, CHECK_S
                )
            else:
                closing = self._closing  # a close that comes meanwhile does not wait for the next try
                pause_s *= random.uniform(0.5, 1.0)
                self._changed.wait_for(lambda: opening.ended or self._closing != closing, pause_s)
            if opening.ended or (self._closing and not self._sending and not self._waiting):
                return None
            if connected and not self._sending:
                self._sending = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            opening.busy = True
            return list(self._sending)

    def _succeeded(self, opening: _Opening[Item], batch: Sequence[Item], connected: bool) -> bool:
        """Take note of what went well. Returns whether all is well: not while what waits has still to go through."""
        with self._changed:
            if opening.ended or (not connected and (self._sending or self._waiting)):
                return False
            if connected:
                self._take(len(batch))
            mended, self._down, self._state = self._down, False, "connected"
        if mended:
            log.info("%s: connected again", self.name)
        return True

    def _failed(self, opening: _Opening[Item], error: Exception) -> None:
        because = without_password(str(error)[:500]) or type(error).__name__
        with self._changed:
            if opening.ended:
                return
            if isinstance(error, SendError):
                self._take(error.acknowledged)
                del self._sending[: error.refused]
                self._dropped += error.refused
                self._changed.notify_all()
            first, self._down = not self._down, True
            changed, self._state = because != self._state, because
        if first:
            unknown = None if isinstance(error, PublishError) else error
            log.warning("%s: what is published waits here: %s", self.name, because, exc_info=unknown)
        elif changed:
            log.info("%s: still waiting: %s", self.name, because)

    def _take(self, count: int) -> None:
        """So many are acknowledged. Needs the lock."""
        del self._sending[:count]
        self._sent += count
        self._full = self._full and bool(self._sending or self._waiting)
        self._changed.notify_all()


class OutboxFixSink:
    """What sinks of fixes with an outbox share: they encode a fix when it is published, and the rest is the outbox's.

    Such a sink opens also while the other side is away. Raises ConfigError for numbers that cannot be.
    """

    def __init__(
        self,
        name: str,
        transport: Callable[[], Transport[Any]],
        encode: Callable[[Fix], Any],
        *,
        capacity: int,
        linger_ms: int,
    ) -> None:
        if linger_ms < 0:
            raise ConfigError(f"linger_ms={linger_ms}: wanted 0 or more")
        self._outbox: Outbox[Any] = Outbox(name, transport, capacity=capacity, linger_s=1e-3 * linger_ms)
        self._encode = encode
        self._in_order = threading.Lock()

    @property
    def sent(self) -> int:
        """Fixes that the other side has acknowledged."""
        return self._outbox.sent

    @property
    def dropped(self) -> int:
        return self._outbox.dropped

    @property
    def backlog(self) -> int:
        return self._outbox.backlog

    @property
    def state(self) -> str:
        """`connected`, or why not."""
        return self._outbox.state

    def open(self) -> None:
        """Start to connect; fixes wait until that came about."""
        self._outbox.open()

    def publish(self, fix: Fix) -> bool:
        """Have the fix wait to be sent; False means that the sink is closed. Never blocks, whichever threads call.

        Raises ConfigError if the fix cannot be encoded.
        """
        with self._in_order:
            return self._outbox.publish(self._encode(fix))

    def close(self) -> None:
        """Send what waits, for at most the linger time, and disconnect. Closing twice is harmless."""
        self._outbox.close()
