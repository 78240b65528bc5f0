from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
import zmq
from localize_apps.main import main
from localize_apps.subscribe import fix_line
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.wire.fix_json import fix_from_json

COMMAND = [sys.executable, "-m", "localize_apps.main", "subscribe"]


@pytest.fixture
def station(make_fix):
    """The endpoint of a sink that publishes a fix and a no_fix by turns until the test ends."""
    sink = ZmqFixSink("tcp://127.0.0.1:*", linger_ms=0)
    sink.open()
    done = threading.Event()

    def publish():
        while not done.wait(0.001):
            sink.publish(make_fix())
            sink.publish(make_fix(reason="silence"))

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
    assert set(fixes) == {make_fix(), make_fix(reason="silence")}
    assert captured.err == ""


def test_lines_for_people(station, make_fix, capsys):
    assert main(["subscribe", station, "--count", "2", "--timeout", "20"]) == 0
    assert set(capsys.readouterr().out.splitlines()) == {fix_line(make_fix()), fix_line(make_fix(reason="silence"))}


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
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def publish():
            socket.recv()  # the subscription
            for line in (b"{}", b"\xff"):
                socket.send_multipart([b"fix", line])
            socket.send(b"fix")

        thread = threading.Thread(target=publish)
        thread.start()
        assert main(["subscribe", f"tcp://127.0.0.1:{port}", "--timeout", "1"]) == 1
        thread.join()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("a message that is no fix") == 3


def test_a_reader_that_leaves_ends_it_quietly(station):
    with subprocess.Popen([*COMMAND, station, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert json.loads(process.stdout.readline())["schema"] == "gr-localize/fix/1"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "arguments",
    [["localhost"], ["tcp://127.0.0.1:0"], ["--count", "0"], ["--timeout", "0"], ["tcp://127.0.0.1:5555", "extra"]],
)
def test_wrong_usage_is_2(arguments, capsys):
    assert main(["subscribe", *arguments]) == 2
    assert capsys.readouterr().out == ""
