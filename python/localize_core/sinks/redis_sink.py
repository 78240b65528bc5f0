"""Fixes in Redis: told to whoever listens, kept in a stream, and the latest at hand."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from localize_core.addresses import checked_redis_url, without_password
from localize_core.errors import ConfigError, MissingExtraError, PublishError
from localize_core.sinks.outbox import CAPACITY, OutboxFixSink
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json, format_timestamp

ANSWER_S = 2.0
"""For a connection, and for each answer."""
ACCOUNT_S = 7 * 86_400
"""So long Redis remembers what a publisher that fell silent has published."""

_PUBLISH = """
-- KEYS: the publisher's account, then of each fix its stream and its latest.
-- ARGV: length of streams, seconds, publisher, then of each fix number, channel, JSON, timestamp, sequence, status.
-- The account holds the numbers of the last fix in a stream and of the last on a channel. What it has is passed over:
-- its answer got lost on the way. Nothing is rolled back when a command fails, so that the account is kept then too.
local streamed, told = string.match(redis.call('GET', KEYS[1]) or '0 0', '^(%d+) (%d+)$')
local function keep()
  return redis.call('SET', KEYS[1], streamed .. ' ' .. told, 'EX', ARGV[2])
end
local function failed(answer)
  return type(answer) == 'table' and answer.err
end
keep()  -- where it cannot be kept, nothing is published
local answer
for i = 1, (#KEYS - 1) / 2 do
  local number, channel, fix, timestamp, sequence, status = unpack(ARGV, 6 * i - 2, 6 * i + 3)
  if tonumber(number) > tonumber(streamed) then
    answer = redis.pcall(
      'XADD', KEYS[2 * i], 'MAXLEN', '~', ARGV[1], '*', 'fix', fix, 'id', ARGV[3] .. '-' .. number)
    if failed(answer) then break end
    streamed = number
  end
  if tonumber(number) > tonumber(told) then
    answer = redis.pcall('PUBLISH', channel, fix)
    if failed(answer) then break end
    told = number
  end
  answer = redis.pcall(
    'HSET', KEYS[2 * i + 1], 'fix', fix, 'timestamp', timestamp, 'sequence', sequence, 'status', status)
  if failed(answer) then break end
end
keep()
return answer
"""


class _Entry(NamedTuple):
    """A fix as it goes to Redis. `number`: counts what a sink publishes, from 1."""

    number: int
    station: str
    fix: str
    timestamp: str
    sequence: int
    status: str


class RedisFixSink(OutboxFixSink):
    """Publishes each fix three times, all or nothing: on the channel `{prefix}:fixes:{station}`, at the end of the
    stream `{prefix}:stream:{station}`, and in the hash `{prefix}:latest:{station}`.

    The stream holds about `max_len` fixes. While Redis is away, `capacity` fixes wait, then the oldest are dropped and
    counted. One whose answer got lost is sent again and published once: Redis keeps an account of each publisher.
    `close()` waits at most `linger_ms` for fixes to leave. `url`: `redis://USER:PASSWORD@HOST:PORT/DATABASE`,
    `rediss://` with TLS; one server, not a cluster.

    Raises ConfigError for a parameter that cannot work, MissingExtraError without the extra `redis`.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        prefix: str = "gr-localize",
        max_len: int = 10_000,
        capacity: int = CAPACITY,
        linger_ms: int = 500,
    ) -> None:
        try:
            checked_redis_url(url)
        except ValueError as error:
            raise ConfigError(f"url={without_password(url)!r}: {error}") from error
        if not prefix:
            raise ConfigError("prefix is empty; the keys in Redis need a name that is nobody else's")
        if max_len < 1:
            raise ConfigError(f"max_len={max_len}: wanted at least 1 fix")
        _library()
        self._numbers = itertools.count(1)
        super().__init__(
            url, lambda: _RedisTransport(url, prefix, max_len), self._entry, capacity=capacity, linger_ms=linger_ms
        )

    def _entry(self, fix: Fix) -> _Entry:
        text, timestamp = fix_to_json(fix), format_timestamp(fix.timestamp)
        return _Entry(next(self._numbers), fix.station, text, timestamp, fix.sequence, fix.status)


class _RedisTransport:
    def __init__(self, url: str, prefix: str, max_len: int) -> None:
        self._url, self._prefix, self._max_len = url, prefix, max_len
        self._publisher = uuid.uuid4().hex
        self._redis = _library()
        self._client: Any | None = None

    def connect(self) -> None:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._client = self._redis.Redis.from_url(
            self._url,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),  # the outbox tries again
            protocol=2,
        )
        self._ask("PING")

    def send(self, items: Sequence[_Entry]) -> None:
        keys, arguments = [f"{self._prefix}:published:{self._publisher}"], [self._max_len, ACCOUNT_S, self._publisher]
        for item in items:
            number, station, *fields = item
            keys += [f"{self._prefix}:stream:{station}", f"{self._prefix}:latest:{station}"]
            arguments += [number, f"{self._prefix}:fixes:{station}", *fields]
        self._ask("EVAL", _PUBLISH, len(keys), *keys, *arguments)

    def check(self) -> None:
        self._ask("PING")

    def close(self) -> None:
        if self._client is not None:
            self._client.connection_pool.disconnect()  # that in use too, which ends what waits for an answer

    def _ask(self, *command: Any) -> None:
        assert self._client is not None
        try:
            self._client.execute_command(*command)
        except (self._redis.RedisError, OSError) as error:
            raise PublishError(str(error) or type(error).__name__) from error


def _library() -> Any:
    try:
        import redis
    except ImportError as error:
        raise MissingExtraError("redis_fix_sink", "redis") from error
    return redis
