"""Fixes as Cursor on Target events, over UDP, TCP or TLS, as TAK clients and servers take them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit

from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.outbox import CAPACITY, OutboxFixSink, SendError, Transport
from localize_core.tls import tls_context
from localize_core.types.fix import Fix
from localize_core.wire.cot import check_cot, fix_to_cot_events

DECLARATION = b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
"""In front of each event, and nothing between it and the event before: so TAK's protocol 0 has it."""
CONNECT_S = 5.0
ACCEPTED_S = 1.0
"""How long a TLS server is given to turn our certificate down: with TLS 1.3, the handshake ends before that."""
STALLED_S = 10.0
"""A connection over which nothing gets through for so long is given up."""
_RECEIVE = 1 << 16
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class CotFixSink(OutboxFixSink):
    """Sends an event for each fix, or for each of its tracks where it has any, to `url`:

    - `udp://HOST:PORT`, a datagram each; HOST may be a multicast group, such as TAK's 239.2.3.1:6969. It then leaves
      through the network interface of that name, if `interface` is not empty, and passes `multicast_ttl` - 1 routers.
    - `tcp://HOST:PORT`, one after the other, as a TAK server's plain input takes them.
    - `tls://HOST:PORT`, the same with TLS: `ca_file` has the certificates to trust (the system's where it is None),
      `cert_file` and `key_file` our own and its key, all in PEM; `server_name` is what the server's certificate is
      made out to, where that is not HOST.

    While the network or the server is away, `capacity` fixes wait, then the oldest are dropped and counted. `close()`
    waits at most `linger_ms` for fixes to leave. A fix without position and tracks has no event: it counts in `sent` as
    there is nothing to send, and in `skipped`. `cot_type`, `stale_s`: see fix_to_cot.

    CoT has no acknowledgement. Sent means: left this machine (UDP); arrived at the other one, whatever becomes of it
    there (TCP, TLS). When a connection breaks, the last events may come twice; they carry the same uid and time.

    Raises ConfigError for a parameter that cannot work.
    """

    def __init__(
        self,
        url: str = "udp://239.2.3.1:6969",
        cot_type: str = "a-u-G",
        stale_s: float = 60.0,
        multicast_ttl: int = 1,
        interface: str = "",
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        server_name: str = "",
        capacity: int = CAPACITY,
        linger_ms: int = 500,
    ) -> None:
        scheme, host, port = _address(url)
        check_cot(stale_s, cot_type)
        if not 0 <= multicast_ttl <= 255:
            raise ConfigError(f"multicast_ttl={multicast_ttl}: wanted 0 to 255")
        files = (ca_file, cert_file, key_file)
        if scheme != "tls" and (any(files) or server_name):
            raise ConfigError(f"url={url!r}: ca_file, cert_file, key_file and server_name are for tls://HOST:PORT")
        make: Callable[[], Transport[list[bytes]]]
        if scheme == "udp":
            make = partial(_Datagrams, host, port, multicast_ttl, interface)
        elif scheme == "tls":
            make = partial(_Stream, host, port, tls_context(*files), server_name or host)
        else:
            make = partial(_Stream, host, port)
        self.skipped = 0
        self.cot_type, self.stale_s = cot_type, stale_s
        super().__init__(url, make, self._events, capacity=capacity, linger_ms=linger_ms)

    @property
    def sent(self) -> int:
        """Fixes whose events were sent, and those that have none."""
        return super().sent + self.skipped

    def publish(self, fix: Fix) -> bool:
        """Have the fix wait to be sent; False means that the sink is closed. Never blocks.

        Raises ConfigError if the fix cannot be encoded.
        """
        if fix.position is not None or fix.tracks:
            return super().publish(fix)
        if self._outbox.refuses():
            return False
        with self._in_order:
            self.skipped += 1
        return True

    def _events(self, fix: Fix) -> list[bytes]:
        events = fix_to_cot_events(fix, stale_s=self.stale_s, cot_type=self.cot_type)
        return [DECLARATION + event.encode() for event in events]


@contextlib.contextmanager
def _foreign_errors() -> Iterator[None]:
    """Those of the network as ours."""
    try:
        yield
    except OSError as error:
        raise PublishError(error.strerror or str(error)) from error


class _Datagrams:
    """A datagram for each of a fix's events."""

    def __init__(self, host: str, port: int, multicast_ttl: int, interface: str) -> None:
        self._host, self._port = host, port
        self._multicast_ttl, self._interface = multicast_ttl, interface
        self._socket: socket.socket | None = None
        self._address: tuple[object, ...] = ()

    @_foreign_errors()
    def connect(self) -> None:
        family, kind, *_, self._address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        number = self._interface_number()
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, self._multicast_ttl)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, self._multicast_ttl)
            any_address = bytes(4)
            request = struct.pack("@4s4si", any_address, any_address, number)  # struct ip_mreqn
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)

    def _interface_number(self) -> int:
        try:
            return socket.if_nametoindex(self._interface) if self._interface else 0
        except OSError as error:
            raise PublishError(f"no network interface {self._interface!r}") from error

    def send(self, items: Sequence[list[bytes]]) -> None:
        assert self._socket is not None
        for number, item in enumerate(items):
            try:
                for event in item:
                    self._socket.sendto(event, self._address)
            except OSError as error:
                too_long = error.errno == errno.EMSGSIZE
                raise SendError(error.strerror or str(error), acknowledged=number, refused=int(too_long)) from error

    def check(self) -> None:
        """There is nothing to look at."""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class _Stream:
    """One event after the other over a TCP connection. What the server sends is read and thrown away."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None, server_name: str = "") -> None:
        self._host, self._port = host, port
        self._tls, self._server_name = tls, server_name
        self._socket: socket.socket | None = None

    @_foreign_errors()
    def connect(self) -> None:
        self._socket = socket.create_connection((self._host, self._port), CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._socket = self._tls.wrap_socket(self._socket, server_hostname=self._server_name)
        self._socket.setblocking(False)
        if self._tls is not None:
            _wait(self._socket, select.POLLIN, ACCEPTED_S)
            self.check()

    @_foreign_errors()
    def send(self, items: Sequence[list[bytes]]) -> None:
        assert self._socket is not None
        left = memoryview(b"".join(event for item in items for event in item))
        least, give_up_at_s, pause_s = math.inf, 0.0, 0.001
        while True:
            self.check()
            with contextlib.suppress(*_WOULD_BLOCK):
                left = left[self._socket.send(left) :] if left else left
            missing = len(left) + _unacknowledged(self._socket)
            if missing == 0:
                return
            if missing < least:
                least, give_up_at_s = missing, time.monotonic() + STALLED_S
            elif time.monotonic() > give_up_at_s:
                raise PublishError(f"nothing gets through to the other side for {STALLED_S:g} s")
            _wait(self._socket, select.POLLIN | (select.POLLOUT if left else 0), pause_s)
            pause_s = min(2.0 * pause_s, 0.05)

    @_foreign_errors()
    def check(self) -> None:
        assert self._socket is not None
        for _ in range(64):  # a server that never stops is no reason to send nothing
            try:
                received = self._socket.recv(_RECEIVE)
            except _WOULD_BLOCK:
                return
            if not received:
                raise PublishError("the other side has closed the connection")

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
            self._socket.close()


def _wait(waited: socket.socket, events: int, timeout_s: float) -> None:
    poll = select.poll()  # unlike select, it takes any number of a descriptor
    poll.register(waited, events)
    poll.poll(1e3 * timeout_s)


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that wait in this machine, or whose arrival the other one's TCP has not acknowledged."""
    (count,) = struct.unpack("@i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def _address(url: str) -> tuple[str, str, int]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in ("udp", "tcp", "tls") or not host or not port or url != f"{scheme}://{parts.netloc}":
        raise ConfigError(f"url={url!r}: wanted udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")
    return scheme, host, port
