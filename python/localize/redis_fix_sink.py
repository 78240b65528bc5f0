"""Publish fixes in Redis: on a channel, in a stream, and the latest in a hash."""

from __future__ import annotations

from localize_core.sinks.outbox import CAPACITY
from localize_core.sinks.redis_sink import RedisFixSink

from .fix_sink_base import fix_sink_base


class redis_fix_sink(fix_sink_base):
    """Fixes wait while Redis is away. Parameters as of RedisFixSink."""

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        prefix: str = "gr-localize",
        max_len: int = 10_000,
        capacity: int = CAPACITY,
        linger_ms: int = 500,
    ) -> None:
        fix_sink_base.__init__(self, "redis_fix_sink", RedisFixSink(url, prefix, max_len, capacity, linger_ms))

    @property
    def state(self) -> str:
        """`connected`, or why not."""
        return self._sink.state
