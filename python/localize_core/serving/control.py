"""Commands to an engine in another process: one JSON object asks, one answers, over ZeroMQ."""

from __future__ import annotations

import json
import logging
import socket as socketlib
import threading
from typing import Any

import zmq

from localize_core.errors import ConfigError, LocalizeError, PublishError, UnavailableError
from localize_core.serving.engine import Engine
from localize_core.wire.endpoint import check_endpoint

log = logging.getLogger(__name__)

PARTS = ("arm", "version", "percent")
POLL_MS = 200


class ControlServer:
    """Answers commands at `endpoint`, between `start` and `stop`, in a thread of its own.

    A command is a JSON object: `command` and what it takes, see `Engine.submit`. The answer is the engine's, with `ok`
    true; or `ok` false and `error`. Raises ConfigError for an endpoint beyond this machine.
    """

    def __init__(self, engine: Engine, endpoint: str) -> None:
        self._engine, self.endpoint = engine, check_endpoint(endpoint)
        self._stopping = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="localize-control", daemon=True)

    def start(self) -> None:
        """Raises PublishError where another station answers there, ConfigError where no server could."""
        if self.endpoint.startswith("ipc://") and _listens(self.endpoint):
            raise PublishError(f"control.endpoint={self.endpoint}: another station takes commands there")
        self._context = zmq.Context()  # of its own: its end waits until the endpoint is free again
        socket = self._context.socket(zmq.REP)
        socket.setsockopt(zmq.LINGER, 0)
        try:
            socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            self._context.destroy()
            kind = PublishError if error.errno == zmq.EADDRINUSE else ConfigError
            raise kind(f"control.endpoint={self.endpoint}: {error.strerror or error}") from error
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)  # with the port that was free
        self._socket = socket
        self._thread.start()

    def stop(self) -> None:
        """Afterwards another server may have the endpoint."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._context is not None:
            self._context.term()

    def _run(self) -> None:
        assert self._socket is not None
        with self._socket as socket:
            while not self._stopping.is_set():
                if socket.poll(POLL_MS):
                    message = b"".join(socket.recv_multipart())
                    socket.send(json.dumps(self._answer(message)).encode())

    def _answer(self, message: bytes) -> dict[str, Any]:
        try:
            command, parts = parse_command(message)
            return {"ok": True, **self._engine.execute(command, **parts)}
        except LocalizeError as error:
            return {"ok": False, "error": str(error)}
        except Exception as error:  # whoever asked gets to know, the station runs on
            log.exception("a command failed")
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def parse_command(message: str | bytes) -> tuple[str, dict[str, Any]]:
    """A command and its parts. Raises ConfigError for anything that is none."""
    try:
        found = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("command"), str):
        raise ConfigError("wanted a JSON object with a command")
    return check_command(found.pop("command"), found)


def check_command(command: str, parts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The command with its parts as an engine wants them. Raises ConfigError for a part that is none."""
    if unknown := [str(key) for key in parts if key not in PARTS]:
        raise ConfigError(f"{command}: unknown {', '.join(unknown)}; a command may have {', '.join(PARTS)}")
    checked: dict[str, Any] = {key: str(value) for key, value in parts.items() if key != "percent"}
    percent = parts.get("percent")
    if percent is not None:
        if isinstance(percent, bool) or not isinstance(percent, (int, float)):
            raise ConfigError(f"percent={percent!r}: wanted a number")
        checked["percent"] = float(percent)
    return command, checked


def send_command(endpoint: str, command: str, *, timeout_s: float = 30.0, **parts: Any) -> dict[str, Any]:
    """Have the station at `endpoint` carry out a command.

    Raises UnavailableError where nothing answers in time, ConfigError with what the station has to say against it.
    """
    if not _listens(check_endpoint(endpoint)):
        raise UnavailableError(f"{endpoint}: no station takes commands there")
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    with socket:
        socket.setsockopt(zmq.LINGER, 0)
        try:
            socket.connect(check_endpoint(endpoint))
        except zmq.ZMQError as error:
            raise ConfigError(f"endpoint {endpoint!r}: {error.strerror or error}") from error
        socket.send(json.dumps({"command": command, **parts}).encode())
        if not socket.poll(int(timeout_s * 1e3)):
            raise UnavailableError(f"{endpoint}: no station answered within {timeout_s:g} s")
        answer: dict[str, Any] = json.loads(socket.recv())
    if not answer.pop("ok"):
        raise ConfigError(str(answer["error"]))
    return answer


def _listens(endpoint: str) -> bool:
    """Whether anybody accepts connections at an endpoint: ZeroMQ alone would wait for somebody to come."""
    if endpoint.startswith("ipc://"):
        family, address = socketlib.AF_UNIX, endpoint.removeprefix("ipc://")
    else:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        if not port.isdecimal():
            return False
        family = socketlib.AF_INET6 if host.startswith("[") else socketlib.AF_INET
        address = (host.strip("[]"), int(port))  # type: ignore[assignment]
    with socketlib.socket(family, socketlib.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(address) == 0
