"""What systemd is told of a running station, by the protocol of sd_notify(3).

A notification is a datagram with a few words, and systemd promises that it stays one; its manual has an implementation
of this size for programs to take over. On PyPI, sdnotify has seen no release since 2017 and the bindings of libsystemd
want a compiler and systemd's headers, so that nothing but the standard library is asked for here.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

LONGEST_STATUS = 400


class Notifier:
    """The connection to the service manager; without one, says nothing to nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        own = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "") if own and address else ""
        self.watchdog_s = int(usec) / 1e6 if usec.isdecimal() else None

    @property
    def is_there(self) -> bool:
        return bool(self._address)

    def tell(self, **words: object) -> None:
        """Send assignments such as READY=1. One that cannot be sent is logged; the station does not hang on it."""
        if not self._address:
            return
        text = "\n".join(f"{name}={value}" for name, value in words.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
                link.settimeout(1.0)
                link.connect(self._address)
                link.sendall(text.encode())
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", "".join(text.splitlines()[:1]), error)


class ServiceReport:
    """Called with the state of a run about each second, and at each change of its `phase`; tells systemd.

    READY=1: for recordings and simulations once the graph runs, for receivers when samples go through it or when each
    receiver that is missing has said why. WATCHDOG=1: only where something has gone through the main graph since the
    last time, or no receiver streams and all say why; a graph that stands still gets no more, and is started anew.
    """

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier = notifier or Notifier()
        self._ready = False
        self._phase = ""
        self._progress: object = None
        self._shown = ""
        if self._notifier.watchdog_s is not None:
            faulthandler.enable()  # where each thread was when the watchdog ended it

    def __call__(self, status: Mapping[str, Any]) -> None:
        """`status`: that of the engine, with `phase` (running, reloading, stopping), `live`, `fixes` and `progress`."""
        if not self._notifier.is_there:
            return
        words: dict[str, object] = {}
        phase, shown = status["phase"], summary(status)
        moved = self._progress is not None and status["progress"] != self._progress
        knows_why = is_idle(status)
        if phase == "stopping":
            words["STOPPING"] = 1
        elif phase == "reloading":  # said once, at its beginning
            if self._phase != phase:
                words |= {"RELOADING": 1, "MONOTONIC_USEC": time.monotonic_ns() // 1000}
            self._ready = False
        elif not self._ready and (moved or knows_why or not status["live"]):
            words["READY"] = 1
            self._ready = True
        if self._notifier.watchdog_s is not None and (moved or knows_why or phase != "running"):
            words["WATCHDOG"] = 1
        if shown != self._shown:
            words["STATUS"] = self._shown = shown
        self._phase, self._progress = phase, status["progress"]
        if words:
            self._notifier.tell(**words)


def is_idle(status: Mapping[str, Any]) -> bool:
    """Whether nothing can go through the graph, for reasons that the receivers know."""
    receivers = (status.get("receivers") or {}).values()
    return bool(receivers) and all(each["state"] != "streaming" and each["error"] for each in receivers)


def summary(status: Mapping[str, Any]) -> str:
    """One line for people."""
    if status["phase"] != "running":
        return str(status["phase"])
    parts = [str(status["state"]), f"{status['fixes']} fixes"]
    if receivers := status.get("receivers"):
        here = [name for name, each in receivers.items() if each["state"] == "streaming"]
        missing = "".join(f", {name} {each['state']}" for name, each in receivers.items() if name not in here)
        parts.append(f"{len(here)} of {len(receivers)} receivers{missing}")
    if reasons := ", ".join(each["reason"] for each in status["reasons"]):
        parts.append(reasons)
    return "; ".join(parts)[:LONGEST_STATUS].replace("\n", " ")
