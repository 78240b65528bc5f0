"""Logs of a command: one line an event on standard error, as text or JSON, and no flood of the same.

Written with the standard library: a formatter is a function of a record here, and what there is on PyPI for
rate limits holds nothing but a dictionary either.

What GNU Radio, drivers and other libraries write to standard error themselves is read by a process of its own, which
writes it in the same form: the last words of a command that dies are not lost with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, TextIO

import click
from localize_core.addresses import without_password

FORMATS = ("text", "json")
BURST, TEMPLATE_BURST = 5, 30
INTERVAL_S = 60.0
TOPIC_INTERVAL_S = 10.0
MAX_KINDS = 1000
IDLE_S = 0.2
"""A line without an end is taken for one after this time."""
MAX_PIECE = 1 << 20
"""Bytes; more than the kernel takes at once."""
DRAIN_S = 2.0

# Not `python -m`: that would put the current folder in front of the module search path.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from localize_apps.logs import read_lines; read_lines(int(sys.argv[2]), sys.argv[3], sys.argv[4] == '1')"
)

NOTICE = "localize_apps"
"""The logger of what a command says to its user."""

PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
GNURADIO_LINE = re.compile(
    r"(?P<logger>.{1,200}?) :(?P<level>trace|debug|info|warning|error|critical): (?P<message>.*)"
)
# of UHD and SoapySDR, in colour where they believe that somebody looks
DRIVER_LINE = re.compile(
    r"\[(?P<level>TRACE|DEBUG|INFO|NOTICE|WARNING|ERROR|CRITICAL|FATAL)\] "
    r"(?:\[(?P<logger>[^\]]{1,100})\] )?(?P<message>.*)"
)
COLOUR = re.compile(r"\x1b\[[\d;]*m")
NUMBER = re.compile(r"\d+")
# what gr-osmosdr and what it is built on say each time that they begin
BANNER_LINE = re.compile(
    r"gr-osmosdr .* gnuradio .*|built-in source types: .*|Using \S+ for xtrxdsp_\S+|CPU Features: .*"
    r"|The RTL TCP server reports a .* tuner with .* gains\."
)
KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "verbatim", "summary", "topic"}


@dataclass
class _Kind:
    """Records of one kind in the interval that began at `since_s`."""

    since_s: float
    passed: int = 0
    held: int = 0
    last: logging.LogRecord | None = None


class RateLimit(logging.Filter):
    """Lets `burst` records of a kind pass in `interval_s`; then one says how many more there were.

    A kind: what one logger says at one level, numbers aside; or, `by_template`, what it says with one template, and
    then errors pass whatever they say; or, `by_topic`, all that it says with one `topic`: of a state that comes and
    goes, the last that is said is what is true. Records with a topic are for `by_topic` alone. `handler` gets the
    summaries, from the thread of the next record or, where none comes, from one of its own. At most `max_kinds` are
    kept apart; the oldest gives way.
    """

    def __init__(
        self,
        handler: logging.Handler,
        *,
        burst: int = BURST,
        by_template: bool = False,
        by_topic: bool = False,
        interval_s: float = INTERVAL_S,
        max_kinds: int = MAX_KINDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._handler, self._by_template, self._by_topic = handler, by_template, by_topic
        self._burst, self._interval_s, self._max_kinds, self._clock = burst, interval_s, max_kinds, clock
        self._kinds: OrderedDict[tuple[str, int, str], _Kind] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "summary") or (self._by_template and record.levelno >= logging.ERROR):
            return True
        topic = getattr(record, "topic", None)
        if (topic is not None) != self._by_topic:
            return True
        now_s = self._clock()
        if self._by_topic:
            key = (record.name, 0, str(topic))
        else:
            text = str(record.msg) if self._by_template else record.getMessage()
            key = (record.name, record.levelno, NUMBER.sub("#", text[:500]))
        with self._lock:
            over = self._over(now_s)
            kind = self._kinds.get(key)
            if kind is None:
                if len(self._kinds) >= self._max_kinds:
                    over.append(self._kinds.popitem(last=False)[1])
                kind = self._kinds[key] = _Kind(now_s)
            passes = kind.passed < self._burst
            if passes:
                kind.passed += 1
            else:
                kind.held += 1
                kind.last = record
                self._wake_later()
        self._tell(over, now_s)
        return passes

    def flush(self, *, everything: bool = True) -> None:
        """Say what was held back: where its interval is over, or all."""
        now_s = self._clock()
        with self._lock:
            if everything:
                over = list(self._kinds.values())
                self._kinds.clear()
                if self._timer is not None:
                    self._timer.cancel()
            else:
                over = self._over(now_s)
            self._timer = None
            if any(kind.held for kind in self._kinds.values()):
                self._wake_later()
        self._tell(over, now_s)

    def _over(self, now_s: float) -> list[_Kind]:
        """Take out the kinds whose interval is over; they stand in the order in which theirs began."""
        over = []
        while self._kinds and now_s - next(iter(self._kinds.values())).since_s >= self._interval_s:
            over.append(self._kinds.popitem(last=False)[1])
        return over

    def _wake_later(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._interval_s, lambda: self.flush(everything=False))
            self._timer.daemon = True
            self._timer.start()

    def _tell(self, over: list[_Kind], now_s: float) -> None:
        for kind in over:
            if kind.last is None:
                continue
            last = kind.last
            summary = logging.makeLogRecord({"name": last.name, "levelno": last.levelno, "levelname": last.levelname})
            summary.msg, summary.summary, summary.held = last.getMessage(), True, kind.held
            if kind.held > 1:
                summary.msg += f" … and {kind.held} more in {now_s - kind.since_s:.0f} s"
            else:
                summary.created = last.created  # it comes late, and may be true no longer
            self._handler.handle(summary)


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
        if fields := {name: value for name, value in vars(record).items() if name not in KNOWN}:
            parts["fields"] = fields
        if trace := self._trace(record):
            parts["traceback"] = trace
        return json.dumps(parts, ensure_ascii=False, default=str)


def goes_to_journal(stream: TextIO) -> bool:
    """Whether `stream` is the connection to the journal that systemd made for this process."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Setup:
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


_setup: _Setup | None = None
owns_process = False
"""Whether nobody but the command writes to this process's standard error."""


def set_up(level: int, form: str = "text") -> None:
    """Send this process's logs from `level` on to standard error, in the form of one of FORMATS."""
    global _setup
    close()
    _setup = _Setup(level, form, sys.stderr, goes_to_journal(sys.stderr))
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(_setup.handler)
    root.setLevel(level)
    if form == "json":
        _setup.hooks = (sys.excepthook, threading.excepthook)
        logging.captureWarnings(True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception


@atexit.register
def close() -> None:
    """Say what the rate limit still holds back, and leave errors and warnings to Python again."""
    global _setup
    if _setup is None:
        return
    _setup.flush()
    if _setup.hooks is not None:
        logging.captureWarnings(False)
        sys.excepthook, threading.excepthook = _setup.hooks
    _setup = None


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(NOTICE).critical("%s: %s", kind.__name__, error, exc_info=(kind, error, trace))


def _log_thread_exception(hook: threading.ExceptHookArgs) -> None:
    _log_exception(hook.exc_type, hook.exc_value or hook.exc_type(), hook.exc_traceback)


def say(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Tell the user, unless only errors are wanted: as it stands in text, as a record in JSON."""
    if _setup is None:
        click.echo(message, err=True)
        return
    if level < _setup.level >= logging.ERROR:
        return
    record = logging.makeLogRecord(
        {"name": NOTICE, "levelno": level, "levelname": logging.getLevelName(level), "msg": message, **fields}
    )
    record.verbatim = record.summary = True
    _setup.handler.handle(record)


def complain(message: object) -> None:
    """Say why the command ends."""
    text = str(message)
    say(text if is_json() else f"gr-localize: {text}", level=logging.ERROR)


def is_json() -> bool:
    return _setup is not None and _setup.form == "json"


@contextlib.contextmanager
def native_lines() -> Iterator[None]:
    """Meanwhile, what anything in this process writes to standard error comes out in the form of the logs.

    Logs of Python go on as before. Its file descriptor 2 is another one meanwhile, so not where the process belongs to
    somebody else.
    """
    if _setup is None or not owns_process:
        yield
        return
    stream = _setup.handler.stream
    stream.flush()
    number = 2
    kept = os.dup(number)
    arguments = [str(_setup.level), _setup.form, str(int(_setup.journal))]
    # Of a session of its own: Ctrl-C in the terminal is for the command, and this ends when the command has.
    # A packet for each write, unlike a pipe: it tells where a message of several lines ends.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader = subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(sys.path), *arguments],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=kept,
        start_new_session=True,
    )
    own = os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    os.dup2(ours.fileno(), number)
    ours.close()
    theirs.close()
    _setup.handler.setStream(own)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, number)
        os.close(kept)
        _setup.handler.setStream(stream)
        own.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child of ours may keep its end open
            reader.wait(DRAIN_S)


class NativeLines:
    """Text of other libraries, as it comes, to log records for `handler`, those below `level` left out.

    What belongs to no known form has no level and always comes through.
    """

    def __init__(self, handler: logging.Handler, level: int) -> None:
        self._handler, self._level = handler, level
        self._rest = ""

    def feed(self, text: str) -> None:
        """Take what was written at once: lines after a record's first, as of a traceback, belong to it."""
        *lines, self._rest = (self._rest + text).split("\n")
        parts: list[tuple[str, int | None, list[str]]] = []
        for line in lines:
            plain = COLOUR.sub("", line)
            if found := GNURADIO_LINE.fullmatch(plain):
                parts.append((f"gnuradio.{found['logger']}", LEVELS[found["level"]], [found["message"]]))
            elif found := DRIVER_LINE.fullmatch(plain):
                parts.append((found["logger"] or "driver", LEVELS[found["level"].lower()], [found["message"]]))
            elif BANNER_LINE.fullmatch(plain):
                parts.append(("driver", logging.INFO, [plain]))
            elif parts and parts[-1][0].startswith("gnuradio."):
                parts[-1][2].append(line)
            else:
                parts.append(("stderr", None, [line]))
        for name, level, message in parts:
            text = "\n".join(message).rstrip()
            if text and (level is None or level >= self._level):
                self._emit(name, level, text)

    def end_line(self) -> None:
        """What has no end yet is a line."""
        if self._rest:
            self.feed("\n")

    def _emit(self, name: str, level: int | None, message: str) -> None:
        number = logging.WARNING if level is None else level
        record = logging.makeLogRecord(
            {"name": name, "levelno": number, "levelname": logging.getLevelName(number), "msg": message}
        )
        if level is None:
            record.verbatim = True
        self._handler.handle(record)


def read_lines(level: int, form: str, journal: bool) -> None:
    """Lines of standard input to logs on standard error, until its end."""
    # whoever ends all of a service ends this too early
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT):
        signal.signal(number, signal.SIG_IGN)
    setup = _Setup(level, form, sys.stderr, journal)
    lines = NativeLines(setup.handler, level)
    source = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    source.settimeout(IDLE_S)
    ended = select.poll()
    ended.register(source, 0)  # hanging up is told in any case
    while True:
        try:
            piece = source.recv(MAX_PIECE)
        except TimeoutError:
            lines.end_line()
            continue
        if not piece:  # the end, or a write of nothing
            if ended.poll(0) and not source.recv(1, socket.MSG_PEEK):
                break
            continue
        lines.feed(piece.decode("utf-8", "replace"))
    lines.end_line()
    setup.flush()
