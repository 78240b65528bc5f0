"""Log lines: their form, how much of the same comes through, and whose lines come out that way."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from localize_apps.log_formats import JsonFormatter, TextFormatter
from localize_apps.logs import complain, goes_to_journal, say, set_up
from localize_apps.native_lines import NativeLines
from localize_apps.rate_limit import RateLimit

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
WAIT_S = 60.0


class Kept(logging.Handler):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.records: list[logging.LogRecord] = []
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.records.append(record)
        self.told.set()


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    yield handler
    for each in handler.filters:
        each.flush()  # ends its timer


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def record(
    message: str, *values: object, level: int = logging.WARNING, name: str = "a", **fields: Any
) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": name, "levelno": level, "levelname": logging.getLevelName(level), **fields})
    made.msg, made.args = message, values
    return made


def limited(kept: Kept, **options: Any) -> Callable[..., None]:
    kept.addFilter(RateLimit(kept, **options))
    return lambda *parts, **named: kept.handle(record(*parts, **named)) and None


def test_a_flood_becomes_its_beginning_and_a_count(kept):
    clock = Clock()
    tell = limited(kept, burst=3, clock=clock)
    for number in range(40):
        tell("lost %d samples of %s", number, "north", lost=number)
    assert kept.messages == [f"lost {number} samples of north" for number in range(3)]
    clock.now_s = 61.0
    tell("something else")
    assert kept.messages[3:] == ["lost 39 samples of north … and 37 more in 61 s", "something else"]
    assert (kept.records[3].held, kept.records[3].lost) == (37, 39)
    tell("lost %d samples of %s", 40, "north")
    assert kept.messages[-1] == "lost 40 samples of north"


def test_a_single_one_that_was_held_back_is_just_late(kept):
    tell = limited(kept, burst=1)
    tell("first")
    tell("first", created=1767323045.678)
    kept.filters[0].flush()
    assert kept.messages == ["first", "first"]
    assert kept.records[1].created == 1767323045.678  # its own time, not that of the flush


def test_a_flood_that_ends_is_counted_without_another_record(kept):
    tell = limited(kept, burst=1, interval_s=0.05)
    tell("first")
    kept.told.clear()
    tell("first")
    tell("first")
    assert kept.told.wait(WAIT_S)
    assert re.fullmatch(r"first … and 2 more in 0 s", kept.messages[1])


def test_messages_that_differ_in_numbers_only_are_of_one_kind(kept):
    """GNU Radio's come without their template."""
    tell = limited(kept, burst=1)
    for number in range(9):
        tell(f"overflow number {number} at 0.{number} s")
    assert len(kept.messages) == 1


def test_other_loggers_levels_and_names_come_through(kept):
    tell = limited(kept, burst=1)
    tell("%s is gone", "north")
    tell("%s is gone", "south")
    tell("%s is gone", "south", level=logging.ERROR)
    tell("%s is gone", "south", name="b")
    assert len(kept.messages) == 4
    tell("%s is gone", "south")
    assert len(kept.messages) == 4


def test_texts_without_end_are_of_one_template_but_errors_come_through(kept):
    tell = limited(kept, burst=3, by_template=True)
    for letters in (a + b for a in "abcdefgh" for b in "abcdefgh"):
        tell("not a fix: %s", letters)
        tell("the mast %s fell", letters, level=logging.ERROR)
    assert sum(message.startswith("not a fix") for message in kept.messages) == 3
    assert sum(message.startswith("the mast") for message in kept.messages) == 64


def test_the_last_word_on_a_topic_comes_soon_and_last(kept):
    """States that come and go are of one kind, whatever they say, and of no other limit."""
    clock = Clock()
    kept.addFilter(RateLimit(kept, burst=1, clock=clock))
    kept.addFilter(RateLimit(kept, burst=3, by_topic=True, interval_s=10.0, clock=clock))
    for number in range(8):
        kept.handle(record("degraded" if number % 2 else "ready", topic="status"))
        kept.handle(record("ready", topic="another"))
    assert [each.getMessage() for each in kept.records if each.topic == "status"] == ["ready", "degraded", "ready"]
    kept.records.clear()
    clock.now_s = 10.0
    kept.handle(record("ready", topic="another"))
    assert kept.records[0].getMessage() == "degraded … and 5 more in 10 s"


def test_what_is_kept_apart_is_bounded(kept):
    tell = limited(kept, burst=1, max_kinds=10)
    for letters in (a + b for a in "abcdefgh" for b in "abcdefgh"):
        tell(letters)
        tell(letters)
        tell(letters)
    assert len(kept.filters[0]._kinds) == 10
    assert kept.messages.count("aa … and 2 more in 0 s") == 1
    assert set("abcdefgh") == {message[0] for message in kept.messages}


def test_text():
    failure = record("the %s fell", "mast", level=logging.ERROR)
    assert re.fullmatch(TIME + " ERROR a: the mast fell", TextFormatter(False).format(failure))
    assert TextFormatter(True).format(failure) == "<3>ERROR a: the mast fell"
    assert TextFormatter(True).format(record("one\ntwo", level=logging.INFO)) == "<6>INFO a: one\n<6>two"


def test_json():
    try:
        raise ValueError("no mast")
    except ValueError:
        failure = record("the %s fell", "mast", level=logging.ERROR, exc_info=sys.exc_info(), height_m=3.5, made_of={1})
    parts = json.loads(JsonFormatter(False).format(failure))
    assert re.fullmatch(TIME, parts.pop("time"))
    assert parts.pop("traceback").endswith("ValueError: no mast")
    fields = {"height_m": 3.5, "made_of": "{1}"}
    assert parts == {"level": "error", "logger": "a", "message": "the mast fell", "fields": fields}
    line = JsonFormatter(True).format(record("one\ntwo"))
    assert line.startswith('<4>{"time"')
    assert "\n" not in line


@pytest.mark.parametrize("formatter", [TextFormatter(False), JsonFormatter(False)])
def test_passwords_are_left_out(formatter):
    shown = formatter.format(record("cannot reach %s", "redis://station:hunter2@cache.example:6379/0"))
    assert "hunter2" not in shown
    assert "redis://station:…@cache.example" in shown


def test_the_journal_is_known_by_its_stream(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert goes_to_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not goes_to_journal(stream)  # redirected since
    assert not goes_to_journal(io.StringIO())


def test_what_is_said_to_the_user(capsys):
    set_up(logging.ERROR)
    say("map: http://127.0.0.1:1", url="http://127.0.0.1:1")  # only errors are wanted
    assert capsys.readouterr().err == ""
    set_up(logging.WARNING)
    say("map: http://127.0.0.1:1", url="http://127.0.0.1:1")
    complain("nothing works")
    assert capsys.readouterr().err == "map: http://127.0.0.1:1\ngr-localize: nothing works\n"
    set_up(logging.WARNING, "json")
    say("map: http://127.0.0.1:1", url="http://127.0.0.1:1")
    complain("nothing works")
    told, wrong = map(json.loads, capsys.readouterr().err.splitlines())
    assert (told["level"], told["fields"]) == ("info", {"url": "http://127.0.0.1:1"})
    assert (wrong["level"], wrong["message"]) == ("error", "nothing works")
    set_up(logging.WARNING)


def test_lines_of_other_libraries(kept):
    lines = NativeLines(kept, logging.WARNING)
    lines.feed("time_align(1) :warning: a stream is absent\nbuffer :debug: no\n")
    lines.feed("scene(2) :error: scene failed: boom\nTraceback:\n  File x\n")
    lines.feed("[INFO] [UHD] linux; GNU C++\n\x1b[1m[ERROR] [USRP] no device\x1b[0m\n[WARNING] of Soapy\nO")
    lines.feed("OO")
    lines.end_line()
    lines.feed("terminate called\n  what(): x\n")
    lines.feed("gr-osmosdr 0.2.0.0 (0.2.0) gnuradio 3.10.5.1\nbuilt-in source types: file rtl\n")
    lines.feed("Using avx for xtrxdsp_iq8_ic16\nThe RTL TCP server reports a R820T tuner with 29 RF and 0 IF gains.\n")
    assert [(each.name, each.levelname, each.getMessage()) for each in kept.records] == [
        ("gnuradio.time_align(1)", "WARNING", "a stream is absent"),
        ("gnuradio.scene(2)", "ERROR", "scene failed: boom\nTraceback:\n  File x"),
        ("USRP", "ERROR", "no device"),
        ("driver", "WARNING", "of Soapy"),
        ("stderr", "WARNING", "OOO"),
        ("stderr", "WARNING", "terminate called"),
        ("stderr", "WARNING", "  what(): x"),
    ]


NATIVE = """
import ctypes, logging, os, signal, sys
from localize_apps import logs
from localize_apps.native_lines import native_lines
from gnuradio import gr
class probe(gr.sync_block):
    def __init__(self):
        gr.sync_block.__init__(self, "probe", None, None)
logs.owns_process = True
logs.set_up(logging.WARNING, sys.argv[1])
with native_lines():
    block = probe()
    block.logger.warn("one\\ntwo")
    block.logger.info("too quiet")
    for number in range(100):
        block.logger.warn(f"overflow {number}")
    logging.getLogger("ours").warning("of Python", extra={"lost": 3})
    os.write(2, b"")
    os.write(2, b"of a driver\\n")
    if sys.argv[2] == "abort":
        ctypes.CDLL(None).abort()
    elif sys.argv[2] == "kill":
        os.write(2, b"last words")
        os.kill(os.getpid(), signal.SIGKILL)
os.write(2, b"after all\\n")
"""


def native(form: str, end: str) -> tuple[int, list[str]]:
    environment = {**os.environ, "GR_CONF_LOG_LOG_FILE": "stderr", "GR_CONF_LOG_LOG_LEVEL": "info"}
    command = [sys.executable, "-c", NATIVE, form, end]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_everything_is_json():
    code, lines = native("json", "return")
    assert (code, lines.pop()) == (0, "after all")
    said = [json.loads(line) for line in lines]
    by_logger: dict[str, list[str]] = {}
    for each in said:
        by_logger.setdefault(each["logger"].partition("(")[0], []).append(each["message"])
    assert by_logger.pop("ours") == ["of Python"]
    assert by_logger.pop("stderr") == ["of a driver"]
    ((name, messages),) = by_logger.items()
    assert name.startswith("gnuradio.probe")
    assert messages[:2] == ["one\ntwo", "overflow 0"]
    assert re.fullmatch(r"overflow 99 … and 95 more in \d+ s", messages[-1])
    assert len(messages) == 1 + 5 + 1
    assert [each["fields"] for each in said if each["logger"] == "ours"] == [{"lost": 3}]


@pytest.mark.parametrize(("end", "number"), [("abort", signal.SIGABRT), ("kill", signal.SIGKILL)])
def test_the_last_words_of_a_process_that_dies_are_heard(end, number):
    code, lines = native("text", end)
    assert code == -number
    assert "of a driver" in lines
    assert ("last words" in lines) == (end == "kill")
    assert any(re.fullmatch(TIME + r" WARNING gnuradio\.probe\S*: one", line) for line in lines)
