"""What tells a running station what to do: signals, commands at its control endpoint, another `[model]` of its file."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from localize_core.errors import ConfigError
from localize_core.serving.control import ControlServer
from localize_core.serving.engine import Engine
from localize_core.station.config import Station

from localize_apps import early, logs

log = logging.getLogger(__name__)

IMPATIENT_S = 0.5
"""A signal that comes sooner after the first is taken for the same: `timeout`, for one, sends two."""
FIXED = ("probability", "peaks", "max_in_flight", "queue", "fallback")
"""Keys of `[model]` that stay what they are while an engine runs."""


SOURCE = ("uri", "registry", "contract")
"""Keys of `[model]` that say together where the model comes from."""


def not_followed(station: Station, wanted: Station, *, has_compiled: bool) -> list[str]:
    """What an engine that runs `station` cannot follow of `wanted`: tables as `[name]`, keys as `model.key`.

    `has_compiled`: whether it knows the station's compiled model.
    """
    tables = [name for name in type(station).model_fields if name != "model"]
    return [
        *(f"[{name}]" for name in tables if getattr(station, name) != getattr(wanted, name)),
        *(f"model.{key}" for key in FIXED if getattr(station.model, key) != getattr(wanted.model, key)),
        *(["model.uri"] if wanted.model.uri == "compiled" and not has_compiled else []),
    ]


def reload_model(engine: Engine, station: Station, wanted: Station) -> Station:
    """Have the engine go over to the `[model]` that is wanted, but for what it cannot follow.

    Returns the station that runs then. Where its model is no good, the engine says so later, goes on with the one
    before, and tries again when it is next asked.
    """
    left = FIXED if wanted.model.uri != "compiled" or engine.has_compiled else (*FIXED, *SOURCE)
    model = wanted.model.model_copy(update={key: getattr(station.model, key) for key in left})

    def tell(done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            engine.set_min_confidence(model.min_confidence)
            logs.say("reload: done")
        else:
            log.error("reload: going on with the model that serves: %s", error)

    try:
        engine.configure(model).add_done_callback(tell)
    except ConfigError as error:  # it does not run any more
        log.error("reload: %s", error)
        return station
    return station.model_copy(update={"model": model})


@contextmanager
def controlled(engine: Engine, station: Station) -> Iterator[None]:
    """Take commands meanwhile, where the station says so."""
    if station.control is None:
        yield
        return
    server = ControlServer(engine, station.control.endpoint)
    server.start()
    log.info("commands are taken at %s", server.endpoint)
    try:
        yield
    finally:
        server.stop()


@contextmanager
def signals(stopped: threading.Event, hung_up: threading.Event | None) -> Iterator[None]:
    """SIGINT and SIGTERM set `stopped`, and end the process at once when they come again; SIGHUP sets `hung_up` where
    there is one. None does outside the main thread. Afterwards a signal ends the process as it does by default.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked_s: list[float] = []

    def stop(number: int, _: Any) -> None:
        if asked_s and time.monotonic() - asked_s[0] > IMPATIENT_S:
            os._exit(128 + number)
        asked_s.append(time.monotonic())
        stopped.set()

    handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: stop, signal.SIGTERM: stop}
    if hung_up is not None:
        handlers[signal.SIGHUP] = lambda *_: hung_up.set()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is early.leave else handler)
