"""Fixes from a ZeroMQ PUB socket: messages of a topic frame and a JSON frame."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from localize_core.client.link import POLL_S, Link, LinkError, Message, RefusedError, Session, Status
from localize_core.errors import ConfigError
from localize_core.sinks.zmq_sink import check_endpoint
from localize_core.wire.curve import be_client, check_curve, read_public_key, read_secret_key

RECONNECT_MS, LAST_RECONNECT_MS = 100, 10_000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
"""A publisher that vanished without a word is noticed by this."""
MAX_MESSAGE_BYTES = 1 << 20

_BROKEN = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | _BROKEN
_EVENTS |= zmq.EVENT_HANDSHAKE_FAILED_AUTH


class ZmqLink(Link):
    """A SUB socket, connected. ZeroMQ makes lost connections again by itself."""

    OPTIONS: ClassVar = frozenset({"high_water_mark", "topic", "curve_server_key_file", "curve_secret_key_file"})

    def __init__(
        self,
        url: str,
        *,
        high_water_mark: int,
        topic: str = "fix",
        curve_server_key_file: str | os.PathLike[str] | None = None,
        curve_secret_key_file: str | os.PathLike[str] | None = None,
    ) -> None:
        check_endpoint(url, bind=False)
        self._server_key = self._secret_key = None
        if curve_server_key_file is not None and curve_secret_key_file is not None:
            check_curve()
            self._server_key = read_public_key(curve_server_key_file)
            self._secret_key = read_secret_key(curve_secret_key_file)
        elif curve_server_key_file is not None or curve_secret_key_file is not None:
            raise ConfigError("curve_server_key_file, curve_secret_key_file: wanted both or neither")
        super().__init__(url)
        self._url, self._topic, self._high_water_mark = url, topic, high_water_mark

    def session(self) -> Session:
        context = zmq.Context()
        try:
            socket = context.socket(zmq.SUB)
            monitor = socket.get_monitor_socket(_EVENTS)
            self._connect(socket)
            poller = zmq.Poller()
            poller.register(socket, zmq.POLLIN)
            poller.register(monitor, zmq.POLLIN)
            while True:
                ready = dict(poller.poll(int(1000.0 * POLL_S)))
                if monitor in ready:
                    yield self._status(parse_monitor_message(monitor.recv_multipart()))
                if socket in ready:
                    yield Message(socket.recv_multipart()[-1])
                if not ready:
                    yield None
        except zmq.ZMQError as error:
            raise LinkError(error.strerror or str(error)) from error
        finally:
            context.destroy(linger=0)

    def _connect(self, socket: zmq.Socket[Any]) -> None:
        socket.setsockopt(zmq.RCVHWM, self._high_water_mark)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)  # ZeroMQ adds jitter
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, LAST_RECONNECT_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if self._server_key is not None and self._secret_key is not None:
            be_client(socket, server_key=self._server_key, secret_key=self._secret_key)
        socket.subscribe(self._topic)
        try:
            socket.connect(self._url)
        except zmq.ZMQError as error:
            raise RefusedError(f"cannot connect: {error.strerror}") from error

    @staticmethod
    def _status(event: Mapping[str, Any]) -> Status:
        """What became of the connection. Raises LinkError where ZeroMQ might not try again."""
        kind = event["event"]
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return Status(True)
        if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise RefusedError("the publisher does not know our CURVE key")
        if kind & _BROKEN:
            raise LinkError("the handshake failed: look at the CURVE keys of both sides")
        return Status(False, "nobody answers" if kind == zmq.EVENT_CONNECT_RETRIED else "the connection was closed")
