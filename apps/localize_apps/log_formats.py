"""The form of log lines: one line an event, as text or JSON.

Written with the standard library: a formatter is a function of a record here.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from datetime import datetime, timezone
from typing import Any

from localize_core.addresses import without_password

PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "verbatim", "summary", "topic"}


def utc(seconds: float) -> str:
    """A Unix time as ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Formatter(ABC, logging.Formatter):
    """`journal`: begin each line with its priority, as sd-daemon(3) has it."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = without_password(self._text(record))
        if not self._journal:
            return text
        priority = next((number for level, number in PRIORITIES.items() if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))

    @abstractmethod
    def _text(self, record: logging.LogRecord) -> str: ...

    def _trace(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


class TextFormatter(_Formatter):
    """`2026-01-02T03:04:05.678Z WARNING logger: message`; the journal has a time of its own."""

    def _text(self, record: logging.LogRecord) -> str:
        message, trace = record.getMessage(), self._trace(record)
        if trace:
            message = f"{message}\n{trace}"
        if hasattr(record, "verbatim"):
            return message
        began = "" if self._journal else f"{utc(record.created)} "
        return f"{began}{record.levelname} {record.name}: {message}"


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message; fields and traceback where there are any."""

    def _text(self, record: logging.LogRecord) -> str:
        parts: dict[str, Any] = {
            "time": utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if fields := fields_of(record):
            parts["fields"] = fields
        if trace := self._trace(record):
            parts["traceback"] = trace
        return json.dumps(parts, ensure_ascii=False, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Figures that whoever logged it gave with it."""
    return {name: value for name, value in vars(record).items() if name not in KNOWN}
