"""An rtl_tcp server without a radio: speaks its protocol, keeps the commands it gets, plays samples at their rate."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

R820T, R820T_GAINS = 5, 29
FREQUENCY, RATE, GAIN_MODE, GAIN, PPM, AGC, DIRECT_SAMPLING, OFFSET_TUNING, BIAS_TEE = 1, 2, 3, 4, 5, 8, 9, 10, 14
"""Numbers of the commands. A gain is in tenths of a dB, GAIN_MODE is 1 for gains set by hand."""
CHUNK_S = 0.02

Reader = Callable[[int, int], np.ndarray]
"""(first sample, how many) → cu8 bytes of these, fewer at the end."""


def missing() -> str | None:
    """Why there is no client for such servers here; None where there is one."""
    if importlib.util.find_spec("osmosdr") is None:
        return "no client of rtl_tcp here: apt-get install gr-osmosdr"
    return None


def to_cu8(samples: np.ndarray) -> np.ndarray:
    """Complex samples, full scale 1, as the nearest that an RTL-SDR sends: uint8, two for each sample."""
    parts = np.ascontiguousarray(samples, dtype=np.complex64).view(np.float32)
    return np.clip(np.rint(parts * 128.0 + 127.4), 0, 255).astype(np.uint8)


def from_cu8(octets: np.ndarray) -> np.ndarray:
    """The complex64 samples that gr-osmosdr makes of an RTL-SDR's bytes."""
    return ((octets.astype(np.float32) - np.float32(127.4)) * np.float32(1.0 / 128.0)).view(np.complex64)


class RtlTcpServer:
    """Serves one client at a time, as rtl_tcp does.

    `played`: a file of cu8 samples or an array of complex ones, over and over; or an iterator of complex arrays, played
    once. `rate_hz`: true rate; None for the one that the client asks for. `epoch`: `time.monotonic()` at which sample 0
    is on the air, the same for servers that start together, or who tells it when the first sample is to be sent: a
    client gets what is on the air while it listens. None: each client gets all from the start (of an iterator: from
    where the last one stopped). `paced`: False for as fast as the client reads. `greeting`: what a client gets first.
    """

    def __init__(
        self,
        played: Path | np.ndarray | Iterator[np.ndarray],
        *,
        rate_hz: float | None = None,
        epoch: float | Callable[[], float] | None = None,
        paced: bool = True,
        greeting: bytes | None = struct.pack(">4sII", b"RTL0", R820T, R820T_GAINS),
    ) -> None:
        self.commands: list[tuple[int, int]] = []
        self.clients = 0
        self._read = _reader(played)
        self._rate_hz = rate_hz
        self._epoch = epoch
        self._paced = paced
        self._greeting = greeting
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = threading.Event()
        self._news = threading.Condition()
        self._client: socket.socket | None = None
        self._listener: socket.socket | None = None
        self.port = 0
        self.restart()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def value(self, command: int) -> int | None:
        """The last value of a command, None where it never came."""
        return next((value for number, value in reversed(self.commands) if number == command), None)

    def wait_for(self, command: int, timeout_s: float = 10.0) -> int:
        """The last value of a command, as soon as there is one."""
        with self._news:
            assert self._news.wait_for(lambda: self.value(command) is not None, timeout_s), f"no command {command}"
        value = self.value(command)
        assert value is not None
        return value

    def stall(self) -> None:
        """Keep the connection and send nothing."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def cut(self, *, reset: bool = False) -> None:
        """End the client's connection, politely or with a reset. The next one is welcome."""
        client = self._client
        if client is None:
            return
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.shutdown(socket.SHUT_RD)  # whoever reads it would keep it open
            client.close()
        else:
            client.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Be gone: cut the client off and listen no more, until `restart`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self._thread.join()

    def restart(self) -> None:
        """Listen again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), name="rtl_tcp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self.resume()
        self.refuse()

    def _serve(self, listener: socket.socket) -> None:
        while listener is self._listener:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.clients += 1
            self._client = client
            with client:
                commands = threading.Thread(target=self._take_commands, args=(client,), daemon=True)
                commands.start()
                with contextlib.suppress(OSError):  # the client left, or was cut off
                    if self._greeting is not None:
                        client.sendall(self._greeting)
                    self._play(client, listener, commands)
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                commands.join()
                self._client = None

    def _take_commands(self, client: socket.socket) -> None:
        pending = b""
        while True:
            try:
                received = client.recv(4096)
            except OSError:
                received = b""
            if not received:
                with self._news:
                    self._news.notify_all()
                return
            pending += received
            whole = len(pending) // 5 * 5
            with self._news:
                self.commands += struct.iter_unpack(">BI", pending[:whole])
                self._news.notify_all()
            pending = pending[whole:]

    def _play(self, client: socket.socket, listener: socket.socket, commands: threading.Thread) -> None:
        def wanted() -> bool:
            return listener is self._listener and commands.is_alive()

        with self._news:
            while self._rate_hz is None and self.value(RATE) is None:
                self._news.wait(CHUNK_S)
                if not wanted():
                    return
        rate_hz = self._rate_hz or self.wait_for(RATE)
        if self._epoch is None:
            begun, position = time.monotonic(), 0
        else:
            begun = self._epoch() if callable(self._epoch) else self._epoch
            position = max(0, int((time.monotonic() - begun) * rate_hz))
        count = max(1, int(rate_hz * CHUNK_S))
        while wanted():
            if self._paced:
                ahead_s = begun + (position + count) / rate_hz - time.monotonic()
                if ahead_s > 0.0:
                    self._closed.wait(ahead_s)
            if not self._flowing.wait(CHUNK_S):
                if self._paced:  # what is on the air meanwhile is lost
                    position = max(position, int((time.monotonic() - begun) * rate_hz))
                continue
            octets = self._read(position, count)
            if len(octets) == 0:
                return
            client.sendall(octets)
            position += len(octets) // 2


def _reader(played: Path | np.ndarray | Iterator[Any]) -> Reader:
    if isinstance(played, (Path, np.ndarray)):
        octets = np.fromfile(played, dtype=np.uint8) if isinstance(played, Path) else to_cu8(played)
        samples = octets.reshape(-1, 2)

        def loop(first: int, count: int) -> np.ndarray:
            first %= len(samples)
            turns = -(-(first + count) // len(samples))
            whole = samples if turns == 1 else np.tile(samples, (turns, 1))
            return whole[first : first + count].reshape(-1)

        return loop
    parts = (to_cu8(part) for part in itertools.chain(played))
    held, held_from = np.empty(0, dtype=np.uint8), 0

    def follow(first: int, count: int) -> np.ndarray:
        nonlocal held, held_from
        first = max(first, held_from)
        while held_from + len(held) // 2 < first + count:
            part = next(parts, None)
            if part is None:
                break
            past = min(max(first - held_from, 0), len(held) // 2)
            held, held_from = np.append(held[2 * past :], part), held_from + past
        begin = 2 * (first - held_from)
        answer = held[begin : begin + 2 * count]
        held, held_from = held[begin + len(answer) :], first + len(answer) // 2
        return answer

    return follow
