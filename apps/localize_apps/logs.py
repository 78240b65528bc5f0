"""Logs of a command: where its records go, in which form, and how much of the same."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, TextIO

import click

from localize_apps.log_formats import JsonFormatter, TextFormatter
from localize_apps.rate_limit import RateLimit

FORMATS = ("text", "json")
TEMPLATE_BURST = 30
TOPIC_INTERVAL_S = 10.0
NOTICE = "localize_apps"
"""The logger of what a command says to its user."""


def goes_to_journal(stream: TextIO) -> bool:
    """Whether `stream` is the connection to the journal that systemd made for this process."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Setup:
    """How the logs of this process are written now."""

    def __init__(self, level: int, form: str, stream: TextIO, journal: bool) -> None:
        self.level, self.form, self.journal = level, form, journal
        self.handler = logging.StreamHandler(stream)
        self.handler.setFormatter((JsonFormatter if form == "json" else TextFormatter)(journal))
        self._limits = (
            RateLimit(self.handler),
            RateLimit(self.handler, burst=TEMPLATE_BURST, by_template=True),
            RateLimit(self.handler, by_topic=True, interval_s=TOPIC_INTERVAL_S),
        )
        self.hooks: tuple[Any, Any] | None = None  # Python's, where ours are in their place
        if level > logging.DEBUG:  # who asks for all gets all
            for limit in self._limits:
                self.handler.addFilter(limit)

    def flush(self) -> None:
        """Say what is still held back."""
        for limit in self._limits:
            limit.flush()


current: Setup | None = None
"""Between `set_up` and `close`."""
owns_process = False
"""Whether nobody but the command writes to this process's standard error."""


def set_up(level: int, form: str = "text") -> None:
    """Send this process's logs from `level` on to standard error, in the form of one of FORMATS."""
    global current
    close()
    current = Setup(level, form, sys.stderr, goes_to_journal(sys.stderr))
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(current.handler)
    root.setLevel(level)
    if form == "json":
        current.hooks = (sys.excepthook, threading.excepthook)
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception


@atexit.register
def close() -> None:
    """Say what the rate limit still holds back, and leave errors and warnings to Python again."""
    global current
    if current is None:
        return
    current.flush()
    if current.hooks is not None:
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = current.hooks
    current = None


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(NOTICE).critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_thread_exception(hook: threading.ExceptHookArgs) -> None:
    _log_exception(hook.exc_type, hook.exc_value or hook.exc_type(), hook.exc_traceback)


def say(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Tell the user, unless only errors are wanted: as it stands in text, as a record in JSON."""
    if current is None:
        click.echo(message, err=True)
        return
    if level < current.level >= logging.ERROR:
        return
    record = logging.makeLogRecord(
        {"name": NOTICE, "levelno": level, "levelname": logging.getLevelName(level), "msg": message, **fields}
    )
    record.verbatim = record.summary = True
    current.handler.handle(record)


def complain(message: object) -> None:
    """Say why the command ends."""
    text = str(message)
    say(text if is_json() else f"gr-localize: {text}", level=logging.ERROR)


def is_json() -> bool:
    return current is not None and current.form == "json"
