"""A store that processes share: Redis, asked within milliseconds or not at all."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from localize_core.addresses import checked_redis_url
from localize_core.cache.base import StoreStatistics
from localize_core.errors import ConfigError, MissingExtraError

log = logging.getLogger(__name__)

CONNECT_S = 1.0
"""How long opening a connection may take; that happens in a thread of its own."""
WRITE_S = 0.2
"""For an answer to a write: nobody waits for it."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0
"""Between two tries to reach Redis: the first pause, and the longest."""
FAILURES = 3
"""So many requests in a row without an answer, and Redis is left alone until a try finds it well."""
FULL_S = 1.0
"""Pause of writes after one that Redis refused, such as for want of memory."""
START_S, CLOSE_S = 0.2, 0.5
"""How long a start waits for the first connection, and a close for the writes that wait."""
MAX_CONNECTIONS = 16
UNCONNECTED = "not connected yet"
MAX_WRITES = 1024
"""That may wait."""
WRITES_AT_ONCE = 64
MEMORY_S = 10.0
"""How old a figure of the server's memory may be before the next look at it asks for another."""

_Command = tuple[str | bytes | int, ...]


class RedisStore:
    """Values in a Redis server.

    `url`: `redis://USER:PASSWORD@HOST:PORT/DATABASE`, `rediss://` with TLS. `timeout_s`: how long whoever asks waits at
    the most. `prefix`: of all keys.

    Whoever asks uses a connection that is open already, or goes without: connections are opened, tried and counted in a
    thread of the store's own, which carries out the writes as well, and asks for the server's memory where somebody
    looks at that and the user may (`+info`). After three requests in a row without an answer
    nobody is asked, until that thread has had an answer.

    Raises ConfigError for an address that is none, MissingExtraError without the extra `redis`.
    """

    name = "redis"

    def __init__(self, url: str, *, timeout_s: float = 0.005, prefix: str = "gr-localize:") -> None:
        try:
            checked_redis_url(url)
        except ValueError as error:
            raise ConfigError(f"cache.redis: {error}") from error
        self._redis, breaker = _libraries()
        self._make = _maker(url)
        self._timeout_s, self._prefix = timeout_s, prefix
        # It never half-opens by itself: a stream's windows are no probes.
        self._breaker = breaker.CircuitBreaker(fail_max=FAILURES, reset_timeout=1e9, throw_new_error_on_trip=False)
        self._opened: type[Exception] = breaker.CircuitBreakerError
        self._changed = threading.Condition()
        self._ready: list[Any] = []
        self._open = 0  # connections, those in use included
        self._wanted = 2  # connections: one that answers beside the one that writes
        self._writes: deque[_Command] = deque()
        self._writing = False
        self._full_until_s = 0.0
        self._refuses = False
        self._because: str | None = "closed"
        self._pause_s = self._try_at_s = 0.0
        self._opening: Any | None = None
        self._memory_bytes: int | None = None
        self._memory_due_s = 0.0  # before, nobody asks
        self._wants_memory = False
        self._closed = True
        self._thread: threading.Thread | None = None
        self._hits = self._misses = self._errors = self._skipped = self._dropped = 0

    # Life

    def start(self) -> None:
        with self._changed:
            if self._thread is not None:
                return
            self._closed, self._because = False, UNCONNECTED
            self._pause_s = self._try_at_s = self._memory_due_s = 0.0
            self._thread = threading.Thread(target=self._run, name="localize-redis", daemon=True)
            self._thread.start()
            self._changed.wait_for(lambda: self._because is None, START_S)  # or the first windows would go without

    def close(self) -> None:
        """Carry out the writes that wait, as far as that takes no time worth mentioning, and end."""
        thread = self._thread
        if thread is None:
            return
        if self.is_ready:
            self.flush(CLOSE_S)
        with self._changed:
            self._closed, self._because = True, "closed"
            self._drop_writes()
            opening = self._opening
            self._changed.notify_all()
        if opening is not None:
            with contextlib.suppress(Exception):  # it may be in any state
                opening.disconnect()
        thread.join(2.0 * CONNECT_S)
        self._thread = None
        self._let_go()

    @property
    def is_ready(self) -> bool:
        """Whether it is asked."""
        return self._because is None

    def flush(self, timeout_s: float) -> bool:
        """Wait until no write waits. Returns whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writes and not self._writing, timeout_s)

    # Asking

    def get(self, key: str) -> bytes | None:
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        nothing: list[bytes | None] = [None] * len(keys)
        if not keys:
            return nothing
        connection = self._taken()
        if connection is None:
            return nothing
        try:
            values = self._asked(connection, ("MGET", *(self._prefix + key for key in keys)))
            found = _checked(values, len(keys))
        except Exception as error:  # besides its own, whatever the client makes of garbage
            self._failed(connection, error)
            return nothing
        self._give_back(connection)
        with self._changed:
            self._hits += sum(value is not None for value in found)
            self._misses += sum(value is None for value in found)
        return found

    def set(self, key: str, value: bytes, ttl_s: float) -> None:
        self._queue(("SET", self._prefix + key, value, "EX", max(round(ttl_s), 1)))

    def delete(self, key: str) -> None:
        self._queue(("DEL", self._prefix + key))

    def stats(self) -> StoreStatistics:
        with self._changed:
            if self._because is None and time.monotonic() >= self._memory_due_s:
                self._wants_memory = True  # for the next look: this one waits for nobody
                self._changed.notify_all()
            return StoreStatistics(
                hits=self._hits,
                misses=self._misses,
                errors=self._errors,
                skipped=self._skipped,
                dropped=self._dropped,
                server_bytes=self._memory_bytes if self._because is None else None,
                state=self._because or "ready",
            )

    def _taken(self) -> Any | None:
        """A connection to ask over, None where there is none right now."""
        with self._changed:
            if self._ready:
                return self._ready.pop()
            self._skipped += 1
            if self._because is None and self._open >= self._wanted:
                self._wanted = min(self._wanted + 1, MAX_CONNECTIONS)
                self._changed.notify_all()
            return None

    def _give_back(self, connection: Any) -> None:
        with contextlib.suppress(self._opened):  # only a try closes it
            self._breaker.call(lambda: None)
        with self._changed:
            self._pause_s = 0.0
            if self._because is None and not self._closed:
                self._ready.append(connection)
                return
            self._open -= 1
        connection.disconnect()

    def _asked(self, connection: Any, command: _Command) -> Any:
        connection.send_command(*command)
        return connection.read_response()

    def _failed(self, connection: Any, error: Exception) -> None:
        """A request had no answer of use: that connection goes, and after a few of them all do."""
        with contextlib.suppress(Exception):  # it may be in any state
            connection.disconnect()

        def fail() -> None:
            raise error

        with contextlib.suppress(self._opened, type(error)):
            self._breaker.call(fail)
        with self._changed:
            self._errors += 1
            self._open -= 1
            away = self._breaker.current_state != "closed"
            if away and self._because is None:
                self._put_off(error)
            self._changed.notify_all()
        if away or isinstance(error, self._redis.ConnectionError):
            self._let_go()  # a server that was restarted has closed them all

    def _let_go(self) -> None:
        with self._changed:
            ready, self._ready = self._ready, []
            self._open -= len(ready)
            self._changed.notify_all()
        for connection in ready:
            with contextlib.suppress(Exception):
                connection.disconnect()

    # Writing and connecting, in a thread of its own

    def _queue(self, command: _Command) -> None:
        with self._changed:
            if self._closed or self._because is not None or time.monotonic() < self._full_until_s:
                self._dropped += 1
                return
            if len(self._writes) >= MAX_WRITES:
                self._writes.popleft()
                self._dropped += 1
            self._writes.append(command)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._lacks_connections or self._writes or self._wants_memory
                )
                if self._lacks_connections:
                    self._changed.wait_for(lambda: self._closed, max(self._try_at_s - time.monotonic(), 0.0))
                if self._closed:
                    return
                lacks, wants_memory = self._lacks_connections, self._wants_memory
            if lacks:
                self._connect()
            elif wants_memory:
                self._ask_memory()
            else:
                self._write()

    @property
    def _lacks_connections(self) -> bool:
        return self._open < self._wanted or self._because is not None

    def _connect(self) -> None:
        """Open a connection more, and see whether it answers."""
        connection = self._make()
        with self._changed:
            self._opening = connection
        # Each byte of an endless answer may come in time: somebody has to end that.
        watch = threading.Timer(2.0 * CONNECT_S, connection.disconnect)
        watch.daemon = True
        watch.start()
        try:
            connection.connect()
            _checked(self._asked(connection, ("MGET", f"{self._prefix}probe")), 1)
            _wait_for(connection, self._timeout_s)
        except Exception as error:  # besides its own, whatever the client makes of garbage
            self._not_connected(connection, error)
            return
        finally:
            watch.cancel()
        with self._changed:
            self._opening = None
            self._open += 1
            self._ready.append(connection)
            if self._because is not None and not self._closed:
                log.info("Redis answers")
                self._because = None
                self._breaker.close()
            self._changed.notify_all()

    def _not_connected(self, connection: Any, error: Exception) -> None:
        with contextlib.suppress(Exception):  # it may be in any state
            connection.disconnect()
        with self._changed:
            self._opening = None
            if self._closed:
                return
            self._errors += 1
            if self._because is None and self._open:
                self._wanted = self._open  # the server takes no more of them, and those there are may be fine
                return
            self._put_off(error)
        self._let_go()

    def _put_off(self, error: Exception) -> None:
        """Ask nobody until a try, after a pause, has had an answer. Needs the lock."""
        because = str(error)[:200] or type(error).__name__
        if self._because in (None, UNCONNECTED):
            log.warning("Redis is not asked until it is well again: %s", because)
        elif because != self._because:
            log.info("Redis is still not asked: %s", because)
        self._because = because
        self._drop_writes()
        self._pause_s = min(max(2.0 * self._pause_s, FIRST_PAUSE_S), LAST_PAUSE_S)
        self._try_at_s = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)

    def _drop_writes(self) -> None:
        self._dropped += len(self._writes)
        self._writes.clear()
        self._changed.notify_all()

    def _ask_memory(self) -> None:
        """How much memory the server has, all in all. A user who may not know is not asked again before a new start."""
        with self._changed:
            if not self._ready:
                self._changed.wait(self._timeout_s)  # as in _write
                return
            connection = self._ready.pop()
        found, due_s = None, time.monotonic() + MEMORY_S
        try:
            _wait_for(connection, WRITE_S)
            try:
                found = _used_memory(self._asked(connection, ("INFO", "memory")))
            except self._redis.ResponseError as error:
                log.info("Redis does not tell how much memory it has: %s", error)
                due_s = math.inf
            _wait_for(connection, self._timeout_s)
        except Exception as error:  # besides its own, whatever the client makes of garbage
            self._failed(connection, error)
        else:
            self._give_back(connection)
        with self._changed:
            self._memory_bytes, self._memory_due_s, self._wants_memory = found, due_s, False

    def _write(self) -> None:
        """Carry out some of the writes that wait."""
        with self._changed:
            if not self._ready or not self._writes:
                # Whoever asks has all connections; they come back at once.
                self._changed.wait(self._timeout_s)
                return
            connection = self._ready.pop()
            commands = [self._writes.popleft() for _ in range(min(len(self._writes), WRITES_AT_ONCE))]
            self._writing = True
        try:
            refused = self._carried_out(connection, commands)
        except Exception as error:  # besides its own, whatever the client makes of garbage
            self._failed(connection, error)
            refused = None
        else:
            self._give_back(connection)
        with self._changed:
            self._writing = False
            if refused is not None:
                if not self._refuses:
                    log.warning("Redis refuses to keep answers: %s", refused)
                self._full_until_s = time.monotonic() + FULL_S
            self._refuses = refused is not None
            self._changed.notify_all()

    def _carried_out(self, connection: Any, commands: Sequence[_Command]) -> Exception | None:
        """The last refusal of a server that works otherwise, None where it took all."""
        refused: Exception | None = None
        _wait_for(connection, WRITE_S)
        connection.send_packed_command(connection.pack_commands(commands))
        for _ in commands:
            try:
                connection.read_response()
            except self._redis.ResponseError as error:
                refused = error
                with self._changed:
                    self._errors += 1
        _wait_for(connection, self._timeout_s)
        return refused


def _maker(url: str) -> Callable[[], Any]:
    """What makes connections."""
    from redis.backoff import NoBackoff
    from redis.connection import Connection, parse_url
    from redis.retry import Retry

    values: dict[str, Any] = dict(parse_url(url))
    kind = values.pop("connection_class", Connection)
    values |= {"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S, "protocol": 2}
    return partial(kind, **values, retry=Retry(NoBackoff(), 0), health_check_interval=0)


def _wait_for(connection: Any, timeout_s: float) -> None:
    """How long it may take until more comes over a connection: connecting may take longer than an answer."""
    connection._sock.settimeout(timeout_s)  # there is no public way


def _checked(values: Any, count: int) -> list[bytes | None]:
    """The answer to MGET. Raises ValueError for anything else."""
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"not an answer to MGET: {str(values)[:80]}")
    if not all(value is None or isinstance(value, bytes) for value in values):
        raise ValueError(f"not an answer to MGET: {str(values)[:80]}")
    return values


def _used_memory(answer: Any) -> int:
    """From an answer to INFO. Raises ValueError for anything else."""
    found = re.search(rb"^used_memory:(\d+)\r?$", answer, re.MULTILINE) if isinstance(answer, bytes) else None
    if found is None:
        raise ValueError(f"not an answer to INFO: {str(answer)[:80]}")
    return int(found[1])


def _libraries() -> tuple[Any, Any]:
    try:
        import pybreaker
        import redis
    except ImportError as error:
        raise MissingExtraError("cache.redis", "redis") from error
    return redis, pybreaker
