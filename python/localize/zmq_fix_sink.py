"""Publish fixes over ZeroMQ as JSON, for clients without GNU Radio."""

from __future__ import annotations

import os

from localize_core.sinks.zmq_sink import ZmqFixSink

from .fix_sink_base import fix_sink_base


class zmq_fix_sink(fix_sink_base):
    """A PUB socket: a topic frame and a JSON frame per fix. Parameters as of ZmqFixSink; no CURVE where empty."""

    def __init__(
        self,
        endpoint: str = "tcp://127.0.0.1:5555",
        topic: str = "fix",
        high_water_mark: int = 1000,
        linger_ms: int = 500,
        bind: bool = True,
        curve_secret_key_file: str | os.PathLike[str] = "",
        curve_clients: str | os.PathLike[str] = "",
    ) -> None:
        keys = (curve_secret_key_file or None, curve_clients or None)
        sink = ZmqFixSink(endpoint, topic, high_water_mark, linger_ms, bind, *keys)
        fix_sink_base.__init__(self, "zmq_fix_sink", sink)

    @property
    def bound_endpoint(self) -> str | None:
        """Where subscribers connect, with the port that was chosen; None while the flowgraph does not run."""
        return self._sink.bound_endpoint
