"""What GNU Radio, drivers and other libraries write to standard error themselves, in the form of the logs.

A process of its own reads and writes it: the last words of a command that dies are not lost with it.
"""

from __future__ import annotations

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
from collections.abc import Iterator

from localize_apps import logs

IDLE_S = 0.2
"""A line without an end is taken for one after this time."""
MAX_PIECE = 1 << 20
"""Bytes; more than the kernel takes at once."""
DRAIN_S = 2.0

# Not `python -m`: that would put the current folder in front of the module search path.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from localize_apps.native_lines import read_lines; read_lines(int(sys.argv[2]), sys.argv[3], sys.argv[4] == '1')"
)

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
# what gr-osmosdr and what it is built on say each time that they begin
BANNER_LINE = re.compile(
    r"gr-osmosdr .* gnuradio .*|built-in source types: .*|Using \S+ for xtrxdsp_\S+|CPU Features: .*"
    r"|The RTL TCP server reports a .* tuner with .* gains\."
)


@contextlib.contextmanager
def native_lines() -> Iterator[None]:
    """Meanwhile, what anything in this process writes to standard error comes out in the form of the logs.

    Logs of Python go on as before. Its file descriptor 2 is another one meanwhile, so not where the process belongs to
    somebody else.
    """
    setup = logs.current
    if setup is None or not logs.owns_process:
        yield
        return
    stream = setup.handler.stream
    stream.flush()
    number = 2
    kept = os.dup(number)
    arguments = [str(setup.level), setup.form, str(int(setup.journal))]
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
    setup.handler.setStream(own)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, number)
        os.close(kept)
        setup.handler.setStream(stream)
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
    setup = logs.Setup(level, form, sys.stderr, journal)
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
