"""Fixes from Redis streams, one stream for each station: what came while the connection was lost comes after it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from localize_core.addresses import checked_redis_url, without_credentials
from localize_core.client.link import (
    CONNECT_S,
    POLL_S,
    Link,
    LinkError,
    Message,
    RefusedError,
    Session,
    Status,
)
from localize_core.errors import ConfigError, MissingExtraError
from localize_core.tls import tls_context

BATCH = 100
"""Most entries of each stream that are asked for at once."""
LOOK_S = 5.0
"""New stations are looked for so often."""

_Entry = tuple[bytes, dict[bytes, bytes]]
"""The id of a stream's entry, and its fields."""
_ID = re.compile(r"\d+-\d+")
_GLOB = re.compile(r"([*?\[\]\\])")


class RedisLink(Link):
    """Follows the streams `PREFIX:stream:STATION` with XREAD.

    Without a station it follows all, found with SCAN at the start and every LOOK_S after that: a server with
    millions of other keys is better asked for one station. Those found later are read from their beginning.
    """

    OPTIONS: ClassVar = frozenset({"station", "history", "since", "prefix", "ca_file"})

    def __init__(
        self,
        url: str,
        *,
        station: str | None = None,
        history: int = 0,
        since: str | None = None,
        prefix: str = "gr-localize",
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if history < 0:
            raise ConfigError(f"history={history}: wanted 0 fixes or more")
        if since is not None and (station is None or not _ID.fullmatch(since)):
            raise ConfigError(
                f"since={since!r}: wanted the id of a stream's entry, like 1767323045678-0, and a station"
            )
        if since is not None and history:
            raise ConfigError("history, since: wanted one of them")
        try:
            checked_redis_url(url)
        except ValueError as error:
            raise ConfigError(f"url={without_credentials(url)!r}: {error}") from error
        super().__init__(url)
        self._redis = _library()
        self._options: dict[str, Any] = {}
        if ca_file is not None:
            if not url.startswith("rediss:"):
                raise ConfigError("ca_file: wanted a rediss:// address")
            tls_context(ca_file)  # the client would find out at each connection that the file is none
            self._options["ssl_ca_certs"] = os.fspath(ca_file)
        self._url, self._history, self._prefix, self._station = url, history, prefix, station
        self._last: dict[bytes, bytes] = {}
        """Each stream's key, and the id of its last entry that was read."""
        self._started = False
        if since is not None and station is not None:
            self._last[self._key(station)] = since.encode()
            self._started = True

    def session(self) -> Session:
        errors = self._redis.exceptions
        client = self._client()
        try:
            yield from self._follow(client)
        except (errors.AuthenticationError, errors.AuthorizationError, errors.ResponseError) as error:
            raise RefusedError(str(error)) from error
        except (errors.RedisError, OSError) as error:
            raise LinkError(str(error) or type(error).__name__) from error
        finally:
            client.close()

    def _client(self) -> Any:
        return self._redis.Redis.from_url(
            self._url,
            protocol=2,
            socket_connect_timeout=CONNECT_S,
            socket_timeout=CONNECT_S,
            retry=self._redis.retry.Retry(self._redis.backoff.NoBackoff(), 0),  # the subscriber's own
            **self._options,
        )

    def _follow(self, client: Any) -> Session:
        if self._station is None:
            yield from self._discover(client)
        elif not self._started:
            yield from self._begin(client, self._key(self._station))
        self._started = True
        answer = self._read(client, wait=False)
        yield Status(True)
        look_s = time.monotonic() + LOOK_S
        while True:
            for key, entries in answer:
                yield from self._messages(key, entries)
            if not answer:
                yield None
            if self._station is None and time.monotonic() > look_s:
                yield from self._discover(client)
                look_s = time.monotonic() + LOOK_S
            answer = self._read(client, wait=True)

    def _read(self, client: Any, *, wait: bool) -> list[tuple[bytes, list[_Entry]]]:
        """What came after the last entries; with `wait`, at most POLL_S later."""
        if self._last:
            return client.xread(self._last, count=BATCH, block=int(1000.0 * POLL_S) if wait else None) or []
        client.ping()
        if wait:
            time.sleep(POLL_S)
        return []

    def _discover(self, client: Any) -> Iterator[Message]:
        pattern = _GLOB.sub(r"\\\1", f"{self._prefix}:stream:") + "*"
        for key in client.scan_iter(match=pattern, count=1000, _type="stream"):
            if key not in self._last:
                if self._started:
                    self._last[key] = b"0-0"
                else:
                    yield from self._begin(client, key)

    def _begin(self, client: Any, key: bytes) -> Iterator[Message]:
        """The last entries of a stream, oldest first; what comes after them is followed."""
        entries = client.xrevrange(key, count=max(1, self._history))[::-1]
        self._last[key] = entries[-1][0] if entries else b"0-0"
        if self._history:
            yield from self._messages(key, entries)

    def _messages(self, key: bytes, entries: list[_Entry]) -> Iterator[Message]:
        for entry, fields in entries:
            self._last[key] = entry
            yield Message(fields.get(b"fix", b""), entry.decode())

    def _key(self, station: str) -> bytes:
        return f"{self._prefix}:stream:{station}".encode()


def _library() -> Any:
    try:
        import redis
        import redis.backoff
        import redis.exceptions
        import redis.retry
    except ImportError as error:
        raise MissingExtraError("subscribing to redis://", "client") from error
    return redis
