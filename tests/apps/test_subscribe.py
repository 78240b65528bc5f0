from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import http.server
import io
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import zmq
from localize_apps.main import main
from localize_apps.subscribe_view import FixTable
from localize_core.client import subscribe
from localize_core.sinks.redis_sink import RedisFixSink
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.types.fix import Position, TrackReport, Uncertainty
from localize_core.wire.fix_csv import CSV_FIELDS
from localize_core.wire.fix_json import fix_from_json, fix_to_json
from localize_core.wire.text import fix_line
from rich.console import Console

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "subscriber.py"
COMMAND = [sys.executable, "-m", "localize_apps.main", "subscribe"]


def read(stream, wanted, limit_s=30.0):
    """What comes out of a terminal until the text is there."""
    seen, deadline = "", time.monotonic() + limit_s
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([stream], [], [], 0.1)[0]:
            seen += os.read(stream, 65536).decode()
    return seen


@pytest.fixture
def station(make_fix):
    """The endpoint of a sink that publishes a fix and a no_fix by turns until the test ends."""
    sink = ZmqFixSink("tcp://127.0.0.1:*", linger_ms=0)
    sink.open()
    done = threading.Event()

    def publish():
        for number in itertools.count():
            if done.wait(0.001):
                return
            sink.publish(make_fix(sequence=number, **({"reason": "silence"} if number % 2 else {})))

    thread = threading.Thread(target=publish)
    thread.start()
    yield sink.bound_endpoint
    done.set()
    thread.join()
    sink.close()


def test_json_lines_and_nothing_else(station, make_fix, capsys):
    assert main(["subscribe", station, "--json", "--count", "4", "--timeout", "20"]) == 0
    captured = capsys.readouterr()
    fixes = [fix_from_json(line) for line in captured.out.splitlines()]
    assert len(fixes) == 4
    assert {dataclasses.replace(fix, sequence=412) for fix in fixes} == {make_fix(), make_fix(reason="silence")}
    assert captured.err == ""


def test_lines_for_people(station, make_fix, capsys):
    assert main(["subscribe", station, "--count", "2", "--timeout", "20"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == {fix_line(make_fix()), fix_line(make_fix(reason="silence"))}


def test_rows_for_tables_have_one_header(station, capsys):
    assert main(["subscribe", station, "--csv", "--count", "3", "--timeout", "20"]) == 0
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert tuple(header) == CSV_FIELDS
    assert len(rows) == 3
    named = dict(zip(header, rows[0], strict=True))
    assert named["station"] == "demo"
    assert named["timestamp"] == "2026-01-02T03:04:05.678901Z"
    assert named["latitude"] in ("45.123", "")


def test_a_terminal_shows_a_table(station):
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment["TERM"] = "xterm-256color"
    with subprocess.Popen(
        [*COMMAND, station, "--station", "demo"], stdout=far, stderr=far, stdin=far, env=environment
    ) as process:
        os.close(far)
        seen = read(near, "no fix: silence")
        seen += read(near, "45.12300 7.45600")
        for wanted in ("station", "missed", "connected", "433.92", "03:04:05.678", "110 × 93 m 65°", "0.92"):
            assert wanted in seen, wanted
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal's end
            while os.read(near, 65536):
                pass
        assert process.wait(20) == 130
    os.close(near)


def test_the_table_counts_by_stream_and_says_what_is_wrong(make_fix):
    with ZmqSource() as source, subscribe(source.url, timeout_s=20) as fixes:
        table = FixTable(fixes)
        source.wait()
        source.send(
            make_fix(sequence=1), make_fix(sequence=5, dropped_windows=2), make_fix(station="[red]", sequence=1)
        )
        source.socket.send(b"fix")
        source.send(make_fix(station="[red]", sequence=2, reason="silence", frequency_hz=None))
        for _ in range(4):
            table.add(next(fixes))
        text = drawn(table)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert [(row[0], row[1], row[3], row[8], row[9]) for row in rows] == [
        ("[red]", "", "no fix: silence", "0", "0"),
        ("demo", "433.92", "45.12300 7.45600", "3", "2"),
    ]
    assert "connected, 4 fixes" in text
    narrow = drawn(table, 80)
    assert "…" not in narrow
    assert "45.12300 7.45600 │ 110 × 93 m" in narrow
    assert "1 messages were no fix" in text


def test_the_table_has_the_tracks_below_their_stream(make_fix):
    def track(number, **said):
        place, rows = Position(45.2, -122.1), ((1.0, 0.0, 0.0, 0.0),) * 4
        state = TrackReport(number, "confirmed", place, Uncertainty(9.0, 5.0, 0.0), -3.0, 4.0, rows, 5, 2.0, 0.0)
        return dataclasses.replace(state, **said)

    table = FixTable(subscribe("tcp://127.0.0.1:1"))
    table.add(make_fix(tracks=(track(7), track(2, state="coasting", idle_s=1.5))))
    table.add(make_fix(station="other", reason="silence"))
    for width in (80, 120):
        text = drawn(table, width)
        rows = [[cell.strip() for cell in line.split("│")[1:6]] for line in text.splitlines() if "│" in line]
        assert [row[0] for row in rows] == ["demo", "track\N{NO-BREAK SPACE}2", "track\N{NO-BREAK SPACE}7", "other"]
        assert rows[1][2:] == ["coasting", "45.20000 -122.10000", "5.0 m/s 323°"]
        assert rows[2][2:] == ["", "45.20000 -122.10000", "5.0 m/s 323°"]
        assert "…" not in text
    table.add(make_fix(tracks=tuple(track(n, idle_s=float(n)) for n in range(20))))
    text = drawn(table)
    assert "track\N{NO-BREAK SPACE}7 " in text
    assert "track\N{NO-BREAK SPACE}8 " not in text
    assert "12 more tracks" in text


def test_the_table_is_bounded(make_fix):
    table = FixTable(subscribe("tcp://127.0.0.1:1"))
    for number in range(100):
        table.add(make_fix(stream=str(number)))
    assert drawn(table).count("demo") == 30


def drawn(table, width=160):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


class ZmqSource:
    """A publisher that sees its subscriber come."""

    def __enter__(self):
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.XPUB)
        self.url = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        return self

    def __exit__(self, *_):
        self._context.destroy(linger=0)

    def wait(self):
        self.socket.recv()

    def send(self, *fixes):
        for fix in fixes:
            self.socket.send_multipart([b"fix", fix_to_json(fix).encode()])


def test_the_example_prints_fixes_and_at_the_end_what_was_missing(station, make_fix):
    command = [sys.executable, EXAMPLE, station]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline().rstrip() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        *_, last = process.stdout.read().splitlines()
        assert process.wait(20) == 0
    assert set(lines) == {fix_line(make_fix()), fix_line(make_fix(reason="silence"))}
    assert re.fullmatch(r"\d+ fixes, 0 missed, 0 of those dropped by stations", last)


def test_the_station_that_is_asked_for(make_fix, capsys):
    with ZmqSource() as source:

        def publish():
            source.wait()
            source.send(make_fix(station="a"), make_fix(station="b"))

        thread = threading.Thread(target=publish)
        thread.start()
        assert main(["subscribe", source.url, "--station", "b", "--json", "--count", "1", "--timeout", "20"]) == 0
        thread.join()
    assert json.loads(capsys.readouterr().out)["station"] == "b"


def test_history_of_a_redis(start_redis, make_fix, capsys):
    server = start_redis()
    sink = RedisFixSink(server.url, prefix="own", linger_ms=20_000)
    sink.open()
    for number in range(5):
        sink.publish(make_fix(sequence=number))
    sink.close()
    assert main(["subscribe", server.url, "--prefix", "own", "--history", "2", "--json", "--count", "2"]) == 0
    assert [json.loads(line)["sequence"] for line in capsys.readouterr().out.splitlines()] == [3, 4]


def test_the_token_comes_from_the_environment_and_goes_to_http_only(station, capsys, monkeypatch):
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            self.send_error(403)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("GR_LOCALIZE_TOKEN", "from-the-environment")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["subscribe", url]) == 1
        assert f"{url}: the service answered 403 Forbidden: look at the token" in capsys.readouterr().err
        assert main(["subscribe", url, "--token", "given"]) == 1
        server.shutdown()
        thread.join()
    assert seen == ["Bearer from-the-environment", "Bearer given"]
    assert main(["subscribe", station, "--count", "1", "--timeout", "20"]) == 0


def test_the_address_comes_from_the_environment(station, monkeypatch, capsys):
    monkeypatch.setenv("GR_LOCALIZE_URL", station)
    assert main(["subscribe", "--count", "1", "--timeout", "20"]) == 0
    assert capsys.readouterr().out


def test_line_for_people(make_fix):
    assert fix_line(make_fix(dropped_windows=3)) == (
        "2026-01-02T03:04:05.678901Z ok 45.12300 7.45600 ±110 m (95 %) azimuth 65° confidence 0.92"
        " dropped 3 localization_model 3"
    )
    assert " no_fix (silence) confidence" in fix_line(make_fix(reason="silence"))


def test_another_topic_is_silence(station, capsys):
    assert main(["subscribe", station, "--topic", "other", "--timeout", "0.2"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"no fix from {station} for 0.2 s" in captured.err


def test_what_is_no_fix_is_passed_over_and_does_not_count(capsys):
    with ZmqSource() as source:

        def publish():
            source.wait()
            source.socket.send(b"fix")

        thread = threading.Thread(target=publish)
        thread.start()
        assert main(["subscribe", source.url, "--timeout", "1"]) == 1
        thread.join()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("passing over what is no fix") == 1


def test_a_reader_that_leaves_ends_it_quietly(station):
    with subprocess.Popen([*COMMAND, station, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["schema"] == "gr-localize/fix/1"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ["localhost"],
        ["tcp://127.0.0.1:1", "--history", "3"],
        ["redis://127.0.0.1:1", "--history", "-1"],
        ["tcp://127.0.0.1:1", "--server-key", "no-such-file"],
        ["ftp://127.0.0.1"],
        ["tcp://127.0.0.1:0"],
        ["--count", "0"],
        ["--timeout", "0"],
        ["tcp://127.0.0.1:5555", "extra"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    assert main(["subscribe", *arguments]) == 2
    assert capsys.readouterr().out == ""
