"""What every subscriber does, whatever its fixes come over: connect and reconnect, wait, decode, count."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Literal

from localize_core.client.link import Link, LinkError, Message, RefusedError
from localize_core.errors import ConfigError, NoFixError, SubscribeError
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_json

log = logging.getLogger(__name__)

State = Literal["connecting", "connected", "disconnected", "closed"]
OnFix = Callable[[Fix], object]
OnError = Callable[[Exception], object]
OnState = Callable[[State, str], object]

HIGH_WATER_MARK = 1000
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 10.0
"""Between two tries to connect: the first pause, and the longest. A connection that held for longer begins anew."""
STOP_S = 1.0
"""How long a stop waits for threads. One that is still connecting then ends by itself."""
MAX_STREAMS = 1000
"""Streams whose sequence numbers are remembered; a station's next start makes a new one."""


@dataclass
class StreamCount:
    """The account of one stream: `sequence` of its last fix, fixes `received`, sequence numbers `missed` between them,
    and how many of those are `dropped_windows`, which the station itself says it had no time for. `timestamp`: of its
    last fix.
    """

    sequence: int
    received: int = 1
    missed: int = 0
    dropped_windows: int = 0
    timestamp: datetime = field(kw_only=True)


class FixSubscriber:
    """Fixes as an iterator that waits for the next one; `subscribe` makes it. Use it in a `with` block, once.

    A lost connection is made again, for ever, with growing pauses. What is no fix is passed over and counted in
    `malformed`; a fix that came before (a publisher that is not sure sends again) in `repeated`. `missed` counts
    sequence numbers that never came, and `dropped_windows` those of them that the station itself dropped: the
    difference was lost on the way. `overflowed` counts messages that had to give way here, because more than
    `high_water_mark` of them waited and the publisher would not.

    One thread iterates; any thread may call close().
    """

    def __init__(
        self,
        link: Link,
        *,
        station: str | None = None,
        timeout_s: float | None = None,
        high_water_mark: int = HIGH_WATER_MARK,
        on_state: OnState | None = None,
    ) -> None:
        if timeout_s is not None and not 0.0 < timeout_s < math.inf:
            raise ConfigError(f"timeout_s={timeout_s}: wanted more than 0, or None to wait for ever")
        if high_water_mark < 1:
            raise ConfigError(f"high_water_mark={high_water_mark}: wanted at least 1 fix")
        self.received = self.missed = self.dropped_windows = self.repeated = self.malformed = self.overflowed = 0
        self.cursor: str | None = None
        self._link, self._station, self._timeout_s = link, station, timeout_s
        self._high_water_mark, self._on_state = high_water_mark, on_state
        self._changed = threading.Condition()
        self._waiting: deque[Message] = deque()
        self._streams: OrderedDict[tuple[str, str], StreamCount] = OrderedDict()
        self._state: State = "connecting"
        self._reason = ""
        self._failure: Exception | None = None
        self._closing = False
        self._burst = False
        self._reader: threading.Thread | None = None

    @property
    def name(self) -> str:
        """The address, without credentials."""
        return self._link.name

    @property
    def state(self) -> State:
        return self._state

    @property
    def reason(self) -> str:
        """Why it is disconnected; empty otherwise."""
        return self._reason

    @property
    def streams(self) -> dict[tuple[str, str], StreamCount]:
        """The accounts of the last MAX_STREAMS streams by (station, stream), the one that spoke last at the end."""
        with self._changed:
            return {key: replace(count) for key, count in self._streams.items()}

    def open(self) -> None:
        """Start to connect, and return at once. The `with` block does it. Raises SubscribeError the second time."""
        if self._reader is not None:
            raise SubscribeError(f"{self.name}: this subscriber was used before: make another")
        self._reader = threading.Thread(target=self._read, name="localize-subscriber", daemon=True)
        self._reader.start()

    def __enter__(self) -> FixSubscriber:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> FixSubscriber:
        return self

    def __next__(self) -> Fix:
        """Wait for the next fix; at the end of iteration, close() was called.

        Raises NoFixError after `timeout_s` without a fix, and may then be asked again. Raises SubscribeError if the
        other side refuses the first connection, or outside of a `with` block.
        """
        if self._reader is None:
            raise SubscribeError(f"{self.name}: not open: use it in a `with` block")
        deadline = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            fix = self._decoded(self._next_message(deadline))
            if fix is not None and self._station in (None, fix.station) and self._is_new(fix):
                self.received += 1
                return fix

    def close(self) -> None:
        """Disconnect and end the iteration, from any thread. Closing twice is harmless."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify_all()
        self._link.interrupt()
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(STOP_S)

    def start(self, on_fix: OnFix, on_error: OnError | None = None) -> Subscription:
        """Iterate in a thread of its own, which calls `on_fix` with each fix. Takes the place of the `with` block.

        An error ends it: what iterating raises, and what `on_fix` raises. `on_error` is then called once with it, from
        the same thread; without `on_error` it is logged.
        """
        subscription = Subscription(self, on_fix, on_error)
        subscription.start()
        return subscription

    # What came

    def _next_message(self, deadline: float) -> Message:
        with self._changed:
            wait_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            self._changed.wait_for(lambda: self._waiting or self._failure or self._closing, wait_s)
            if self._closing:
                raise StopIteration
            if self._waiting:
                message = self._waiting.popleft()
                self._changed.notify_all()
                return message
            if self._failure is not None:
                raise self._failure
        why = f": {self._reason}" if self._reason else ""
        raise NoFixError(f"no fix from {self.name} for {self._timeout_s:g} s{why}")

    def _decoded(self, message: Message) -> Fix | None:
        try:
            fix = fix_from_json(message.payload)
        except ConfigError as error:
            self.malformed += 1
            if not self._burst:
                log.warning("%s: passing over what is no fix: %s", self.name, error)
            self._burst = True
            return None
        finally:
            self.cursor = message.cursor
        self._burst = False
        return fix

    def _is_new(self, fix: Fix) -> bool:
        """Take account of the fix's number. A stream counts its windows; a request has no number of its own, and a
        shadow's fix has that of the champion's. A stream whose station gives it a name counts from 0 at each start.
        """
        if fix.id is not None or fix.model.arm == "shadow":
            return True
        key = fix.station, fix.stream
        with self._changed:
            stream = self._streams.get(key)
            if stream is None:
                self._streams[key] = StreamCount(fix.sequence, timestamp=fix.timestamp)
                if len(self._streams) > MAX_STREAMS:
                    self._streams.popitem(last=False)
                return True
            begun = fix.sequence <= stream.sequence and fix.timestamp > stream.timestamp
            if fix.sequence <= stream.sequence and not begun:
                self.repeated += 1
                return False
            missed = 0 if begun else fix.sequence - stream.sequence - 1
            dropped = min(missed, fix.dropped_windows)
            stream.sequence, stream.timestamp = fix.sequence, fix.timestamp
            stream.received += 1
            stream.missed += missed
            stream.dropped_windows += dropped
            self._streams.move_to_end(key)
        self.missed += missed
        self.dropped_windows += dropped
        return True

    # The thread that reads

    def _read(self) -> None:
        try:
            self._keep_reading()
        except Exception as error:  # whoever iterates is told, also of what nobody foresaw
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        self._enter_state("closed", "" if self._failure is None else str(self._failure))

    def _keep_reading(self) -> None:
        pause_s, was_connected = FIRST_PAUSE_S, False
        while not self._closing:
            began_s = time.monotonic()
            try:
                with contextlib.closing(self._link.session()) as session:
                    for item in session:
                        if self._closing:
                            return
                        if isinstance(item, Message):
                            self._put(item)
                        elif item is not None:
                            was_connected = was_connected or item.connected
                            self._enter_state("connected" if item.connected else "disconnected", item.reason)
            except RefusedError as error:
                if not was_connected:
                    raise SubscribeError(f"{self.name}: {error}") from error
                self._lost(str(error))
            except LinkError as error:
                self._lost(str(error))
            if time.monotonic() - began_s > LAST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2.0 * pause_s, LAST_PAUSE_S)

    def _put(self, message: Message) -> None:
        with self._changed:
            if self._link.CAN_WAIT:
                self._changed.wait_for(lambda: self._closing or len(self._waiting) < self._high_water_mark)
            elif len(self._waiting) == self._high_water_mark:
                self._waiting.popleft()
                if not self.overflowed:
                    log.warning("%s: more comes than is taken; the oldest gives way", self.name)
                self.overflowed += 1
            if not self._closing:
                self._waiting.append(message)
                self._changed.notify_all()

    def _lost(self, reason: str) -> None:
        if not self._closing:
            self._enter_state("disconnected", reason)

    def _enter_state(self, state: State, reason: str) -> None:
        before, self._state = self._state, state
        self._reason = reason
        if state == before:
            return
        if state == "disconnected":
            log.warning("%s: no connection, trying again: %s", self.name, reason)
        elif state == "connected":
            log.info("%s: connected", self.name)
        if self._on_state is not None:
            try:
                self._on_state(state, reason)
            except Exception:  # the fixes go on; whoever iterates cannot be told of it
                log.exception("%s: on_state failed", self.name)


class Subscription:
    """Fixes that a callback gets: see FixSubscriber.start, which makes it. `subscriber` has the counters."""

    def __init__(self, subscriber: FixSubscriber, on_fix: OnFix, on_error: OnError | None) -> None:
        self.subscriber = subscriber
        self.error: Exception | None = None
        self._on_fix, self._on_error = on_fix, on_error
        self._thread = threading.Thread(target=self._run, name="localize-callback", daemon=True)

    def start(self) -> None:
        """FixSubscriber.start has done it. Raises SubscribeError if the subscriber was used before."""
        self.subscriber.open()
        self._thread.start()

    def stop(self) -> None:
        """End it, from any thread, also from `on_fix`. Waits up to a second for a call of `on_fix` that is under way;
        no other begins.
        """
        self.subscriber.close()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended, at most `timeout_s`. Returns whether it has; `error` is None if it was stopped."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for fix in self.subscriber:
                self._on_fix(fix)
        except Exception as error:
            self.error = error
            if self._on_error is None:
                log.exception("%s: the subscription ended", self.subscriber.name)
            else:
                self._on_error(error)
        finally:
            self.subscriber.close()
