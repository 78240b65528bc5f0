"""Fixes over ZeroMQ, for any client in any language: a PUB socket, a topic frame and a JSON frame per fix."""

from __future__ import annotations

import logging
import os
import re

import zmq

from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.zmq_curve import CurveServer
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json

log = logging.getLogger(__name__)

STALLED_MS = 10_000
"""A subscriber that takes nothing for so long while data waits for it is cut off: mostly, it is gone."""

_TCP = re.compile(r"tcp://[^\s/]+:(?P<port>\d+|\*)")
_IPC = re.compile(r"ipc://.+")


def check_endpoint(endpoint: str, *, bind: bool) -> None:
    """Raises ConfigError unless `endpoint` is `tcp://HOST:PORT` or `ipc://PATH`; only who binds may leave PORT open."""
    tcp = _TCP.fullmatch(endpoint)
    if tcp is None and _IPC.fullmatch(endpoint) is None:
        raise ConfigError(f"endpoint={endpoint!r}: wanted tcp://HOST:PORT or ipc://PATH")
    port = tcp["port"] if tcp else None
    if port in ("*", "0") and not bind:
        raise ConfigError(f"endpoint={endpoint!r}: connecting needs a port number")
    if port not in ("*", None) and int(port) > 65535:
        raise ConfigError(f"endpoint={endpoint!r}: a port is at most 65535")


class ZmqFixSink:
    """Publishes fixes to every subscriber of `topic`.

    Each subscriber's queue holds `high_water_mark` fixes. One that is full misses what comes until there is room, and
    nobody else does; `stalls` counts how often one was found full, and the subscriber sees the gap in `sequence`. What
    is published is sent, whoever has subscribed; dropped is what came while the socket was not open.

    `bind` False connects to a forwarder instead. `close()` waits at most `linger_ms` for queued fixes to leave.

    With `curve_secret_key_file` (this server's, NAME.key_secret) and `curve_clients` (a folder with a file NAME.key for
    each client) connections are encrypted, and nobody else gets anything: CURVE, see wire/curve.py. Keys are read here,
    once: whoever is to be let in or shut out later takes another sink.

    Not thread-safe. Raises ConfigError for an endpoint, topic, number or key that cannot work.
    """

    def __init__(
        self,
        endpoint: str,
        topic: str = "fix",
        high_water_mark: int = 1000,
        linger_ms: int = 500,
        bind: bool = True,
        curve_secret_key_file: str | os.PathLike[str] | None = None,
        curve_clients: str | os.PathLike[str] | None = None,
    ) -> None:
        check_endpoint(endpoint, bind=bind)
        if not topic:
            raise ConfigError("topic is empty; subscribers need a name to ask for")
        if high_water_mark < 1:
            raise ConfigError(f"high_water_mark={high_water_mark}: wanted at least 1 fix")
        if linger_ms < 0:
            raise ConfigError(f"linger_ms={linger_ms}: wanted 0 or more")
        self._curve: CurveServer | None = None
        if curve_secret_key_file is not None and curve_clients is not None:
            if not bind:
                raise ConfigError("bind=False: a socket with curve_secret_key_file has to bind")
            self._curve = CurveServer(curve_secret_key_file, curve_clients)
        elif curve_secret_key_file is not None or curve_clients is not None:
            raise ConfigError("curve_secret_key_file and curve_clients: wanted both, or neither")
        self.endpoint = endpoint
        self.topic = topic
        self.high_water_mark = high_water_mark
        self.linger_ms = linger_ms
        self.bind = bind
        self.bound_endpoint: str | None = None
        self.sent = 0
        self.dropped = 0
        self.stalls = 0
        self._dropping = False
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None

    @property
    def backlog(self) -> int:
        """Nothing waits here: queued fixes are ZeroMQ's, which tells nobody how many they are."""
        return 0

    def open(self) -> None:
        """Bind or connect; `bound_endpoint` then holds the port that was chosen.

        Raises PublishError naming the endpoint if that is impossible, such as an address in use.
        """
        context = zmq.Context()
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, self.high_water_mark)
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.TCP_MAXRT, STALLED_MS)
        try:
            if self._curve is not None:
                self._curve.guard(context, socket)
            (socket.bind if self.bind else socket.connect)(self.endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            context.term()
            action = "bind" if self.bind else "connect"
            raise PublishError(f"cannot {action} {self.endpoint}: {error.strerror}") from error
        self.bound_endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._context, self._socket = context, socket

    def publish(self, fix: Fix) -> bool:
        """Queue the fix for every subscriber that has room; False means that it was dropped. Never blocks."""
        frames = [self.topic.encode(), fix_to_json(fix).encode()]
        if self._socket is None:
            return self._drop("the socket is not open")
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            self._send_to_the_others(self._socket, frames)
        except zmq.ZMQError as error:
            return self._drop(str(error))
        self.sent += 1
        self._dropping = False
        return True

    def close(self) -> None:
        """Send what is queued, for at most `linger_ms`, and release the endpoint."""
        if self._context is not None and self._socket is not None:
            self._socket.close(linger=self.linger_ms)
            self._context.term()
        self._context = self._socket = self.bound_endpoint = None

    def _send_to_the_others(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """Nobody has been given the fix, because somebody's queue is full: with ZMQ_XPUB_NODROP that is told, once for
        each time, and without it the fix goes to all who have room."""
        self.stalls += 1
        if self.stalls == 1:
            log.warning("%s: a subscriber is too slow, and misses fixes", self.endpoint)
        socket.setsockopt(zmq.XPUB_NODROP, 0)
        socket.send_multipart(frames, zmq.DONTWAIT)
        socket.setsockopt(zmq.XPUB_NODROP, 1)

    def _drop(self, reason: str) -> bool:
        self.dropped += 1
        if not self._dropping:
            log.warning("dropping fixes for %s: %s", self.endpoint, reason)
        self._dropping = True
        return False
