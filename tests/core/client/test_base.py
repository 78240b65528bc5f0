"""What all subscribers do alike, over ZeroMQ."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
import zmq
from localize_core.client import MissingExtraError, NoFixError, SubscribeError, subscribe
from localize_core.errors import ConfigError
from localize_core.types.fix import ModelIdentity
from localize_core.wire.fix_json import fix_from_json, fix_to_json

LIMIT_S = 20.0


def sequence(make_fix, *numbers, **changes):
    return [make_fix(sequence=number, **changes) for number in numbers]


def test_gives_out_what_is_published_and_counts_what_is_missing(publisher, make_fix):
    published = [
        *sequence(make_fix, 1, 2),
        make_fix(sequence=7, dropped_windows=3),
        make_fix(sequence=8, reason="silence"),
        *sequence(make_fix, 3, 5, stream="other"),
    ]
    with subscribe(publisher.url, timeout_s=LIMIT_S) as fixes:
        publisher.until_heard(fixes, make_fix(sequence=0))
        publisher.publish(*published)
        assert list(itertools.islice(fixes, len(published))) == published
    assert (fixes.received, fixes.missed, fixes.dropped_windows) == (7, 5, 3)
    assert dataclasses.astuple(fixes.streams["demo", "a1b2"])[:4] == (8, 5, 4, 3)
    assert dataclasses.astuple(fixes.streams["demo", "other"])[:4] == (5, 2, 1, 0)


def test_what_came_before_is_passed_over(publisher, make_fix):
    with subscribe(publisher.url, timeout_s=LIMIT_S) as fixes:
        publisher.until_heard(fixes, make_fix(sequence=0))
        publisher.publish(*sequence(make_fix, 1, 2, 1, 2, 3))
        assert [next(fixes).sequence for _ in range(3)] == [1, 2, 3]
        assert fixes.repeated >= 2
        assert fixes.missed == 0


def test_a_named_stream_that_begins_anew_is_no_repetition(publisher, make_fix):
    later = make_fix().timestamp + timedelta(seconds=1)
    first, second = sequence(make_fix, 7, 8), sequence(make_fix, 0, 3, timestamp=later)
    with subscribe(publisher.url, timeout_s=LIMIT_S) as fixes:
        publisher.until_heard(fixes, make_fix(sequence=6))
        publisher.publish(*first, *second, *second)
        publisher.publish(make_fix(sequence=4, timestamp=later + timedelta(seconds=1)))
        assert [next(fixes).sequence for _ in range(5)] == [7, 8, 0, 3, 4]
    assert (fixes.missed, fixes.streams["demo", "a1b2"].received) == (2, 6)


def test_requests_and_shadows_have_no_numbers_of_their_own(publisher, make_fix):
    model = ModelIdentity("localization_model", "3", "0" * 64, arm="shadow")
    published = [make_fix(sequence=5, model=model), make_fix(sequence=0, id="x"), make_fix(sequence=0, id="y")]
    with subscribe(publisher.url, timeout_s=LIMIT_S) as fixes:
        publisher.until_heard(fixes, make_fix(sequence=5))
        publisher.publish(*published)
        assert list(itertools.islice(fixes, 3)) == published
    assert fixes.missed == 0


def test_only_the_station_that_is_asked_for(publisher, make_fix):
    with subscribe(publisher.url, station="mine", timeout_s=LIMIT_S) as fixes:
        publisher.until_heard(fixes, make_fix(station="mine"))
        publisher.publish(make_fix(station="other"), make_fix(station="mine", sequence=413))
        assert next(fixes).station == "mine"
    assert set(fixes.streams) == {("mine", "a1b2")}


def test_what_is_no_fix_is_counted_and_logged_once_a_burst(make_fix, caplog):
    bad = (b"{}", b"\xff", b"[" * 100_000, fix_to_json(make_fix()).replace("ok", "fine").encode())
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        with subscribe(f"tcp://127.0.0.1:{port}", timeout_s=LIMIT_S) as fixes:
            publisher.recv()  # the subscription
            for number in (1, 2):
                for payload in bad:
                    publisher.send_multipart([b"fix", payload])
                publisher.send(b"fix")
                publisher.send_multipart([b"fix", fix_to_json(make_fix(sequence=number)).encode()])
            assert [next(fixes).sequence for _ in range(2)] == [1, 2]
    assert fixes.malformed == 10
    assert caplog.text.count("passing over what is no fix") == 2


def test_no_fix_in_time_is_an_error_and_asking_again_is_allowed(publisher, make_fix):
    with subscribe(publisher.url, timeout_s=0.05) as fixes:
        for _ in range(2):
            with pytest.raises(NoFixError, match=f"no fix from {publisher.url} for 0.05 s"):
                next(fixes)
    with subscribe(publisher.url, station="other", timeout_s=0.2) as fixes, pytest.raises(NoFixError):
        publisher.until_heard(fixes, make_fix())  # those of another station are none


def test_comes_back_after_the_publisher_was_away(publisher, make_fix):
    states = []
    with subscribe(publisher.url, timeout_s=LIMIT_S, on_state=lambda *state: states.append(state)) as fixes:
        assert fixes.state == "connecting" or states
        publisher.until_heard(fixes, make_fix(sequence=1))
        publisher.stop()
        publisher.start()
        publisher.until_heard(fixes, make_fix(sequence=9))
        assert fixes.state == "connected"
    assert [state for state, _ in states] == ["connected", "disconnected", "connected", "closed"]
    assert states[1][1] in ("the connection was closed", "nobody answers")
    assert fixes.missed == 7


def test_waits_for_a_publisher_that_is_not_there_yet_and_says_so():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        subscribe(f"tcp://127.0.0.1:{port}", timeout_s=0.5) as fixes,
        pytest.raises(NoFixError, match=r"0\.5 s: nobody answers"),
    ):
        next(fixes)
    assert fixes.state == "closed"


def test_close_ends_the_iteration_from_another_thread(publisher):
    with subscribe(publisher.url) as fixes:
        timer = threading.Timer(0.05, fixes.close)
        timer.start()
        assert list(fixes) == []
        timer.join(LIMIT_S)
        assert not timer.is_alive()
    fixes.close()
    assert not any(thread.name == "localize-subscriber" for thread in threading.enumerate())


def test_is_used_once_and_within_its_block(publisher):
    fixes = subscribe(publisher.url)
    with pytest.raises(SubscribeError, match="with"):
        next(fixes)
    with fixes:
        pass
    assert list(fixes) == []
    with pytest.raises(SubscribeError, match="make another"):
        fixes.open()


def test_a_callback_gets_the_fixes_until_it_is_stopped(publisher, make_fix):
    got, three = [], threading.Event()

    def on_fix(fix):
        got.append(fix.sequence)
        if len(got) == 3:
            three.set()

    numbers = itertools.count()
    subscription = subscribe(publisher.url, timeout_s=LIMIT_S).start(on_fix)
    while not three.wait(0.01):
        publisher.publish(make_fix(sequence=next(numbers)))
    subscription.stop()
    assert subscription.wait(0)
    assert subscription.error is None
    count = len(got)
    publisher.publish(make_fix(sequence=next(numbers)))
    assert subscription.subscriber.state == "closed"
    assert len(got) == count
    assert got == sorted(set(got))


def test_a_callback_may_stop_its_own_subscription(publisher, make_fix):
    subscription = subscribe(publisher.url, timeout_s=LIMIT_S).start(lambda fix: subscription.stop())
    number = 0
    while not subscription.wait(0.01):
        publisher.publish(make_fix(sequence=(number := number + 1)))
    assert subscription.error is None
    assert subscription.subscriber.received == 1


def test_what_a_callback_raises_ends_it_and_is_told(publisher, make_fix, caplog):
    told = []
    for on_error in (told.append, None):
        subscription = subscribe(publisher.url, timeout_s=LIMIT_S).start(lambda fix: 1 / 0, on_error)
        number = 0
        while not subscription.wait(0.01):
            publisher.publish(make_fix(sequence=(number := number + 1)))
        assert isinstance(subscription.error, ZeroDivisionError)
        assert subscription.subscriber.received == 1
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert caplog.text.count("ZeroDivisionError") == 1


def test_a_callback_is_told_when_no_fix_came(publisher):
    told = []
    subscription = subscribe(publisher.url, timeout_s=0.05).start(print, told.append)
    assert subscription.wait(LIMIT_S)
    assert [type(error) for error in told] == [NoFixError]


def test_an_error_in_the_state_callback_is_logged_and_fixes_go_on(publisher, make_fix, caplog):
    with subscribe(publisher.url, timeout_s=LIMIT_S, on_state=lambda *_: 1 / 0) as fixes:
        publisher.until_heard(fixes, make_fix())
    assert caplog.text.count("on_state failed") == 2


@pytest.mark.parametrize(
    ("url", "options", "wanted"),
    [
        ("localhost", {}, r"url='localhost': wanted tcp://HOST:PORT, .*https://HOST:PORT"),
        ("ftp://me:hush@host", {}, r"url='ftp://host': wanted"),
        ("tcp://127.0.0.1:0", {}, "port"),
        ("tcp://127.0.0.1:1", {"history": 1}, "history: cannot be had with tcp://"),
        ("tcp://127.0.0.1:1", {"token": "t", "since": "1"}, "since, token: cannot be had"),
        ("tcp://127.0.0.1:1", {"curve_server_key_file": "k"}, "both or neither"),
        ("tcp://127.0.0.1:1", {"timeout_s": 0.0}, "timeout_s=0.0"),
        ("tcp://127.0.0.1:1", {"high_water_mark": 0}, "high_water_mark=0"),
        ("redis://127.0.0.1:1", {"history": -1}, "history=-1"),
        ("redis://127.0.0.1:1", {"since": "1-0"}, "and a station"),
        ("redis://127.0.0.1:1", {"since": "now", "station": "s"}, "since='now'"),
        ("redis://127.0.0.1:1", {"since": "1-0", "station": "s", "history": 2}, "one of them"),
        ("redis://:hush@127.0.0.1:1/zero", {}, "the database is a number"),
        ("redis://127.0.0.1:1", {"ca_file": "x"}, "rediss://"),
        ("redis://", {}, "wanted redis://HOST:PORT"),
        ("redis://me:hush?2@127.0.0.1:1", {}, "in a password are %2F"),
        ("mqtt://127.0.0.1:1", {"history": 2}, "history=2: wanted 0 or 1"),
        ("mqtt://127.0.0.1:1", {"since": "1"}, "since: cannot be had with mqtt://"),
        ("mqtt://127.0.0.1:70000", {}, "wanted mqtt://HOST:PORT"),
        ("mqtt://me:hush@127.0.0.1/topic", {}, "wanted mqtt://HOST:PORT"),
        ("mqtt://127.0.0.1", {"ca_file": "x"}, "mqtts://"),
        ("rediss://127.0.0.1", {"ca_file": "/no/such/file"}, "ca_file='/no/such/file'"),
        ("https://127.0.0.1", {"ca_file": "/dev/null"}, "ca_file='/dev/null'"),
        ("mqtts://127.0.0.1", {"ca_file": "/no/such/file"}, "ca_file='/no/such/file'"),
        ("http://127.0.0.1:1", {"history": -1}, "history=-1"),
        ("http://127.0.0.1:1", {"since": "x"}, "since='x'"),
        ("http://127.0.0.1:1", {"since": "1", "history": 1}, "one of them"),
        ("http://127.0.0.1:1", {"token": "a\nb"}, "token: wanted"),
        ("http://me:hush@127.0.0.1:1/?station=x", {}, "no query"),
        ("http://127.0.0.1:1", {"ca_file": "x"}, "https://"),
        ("http://", {}, "wanted http://HOST:PORT"),
    ],
)
def test_what_cannot_work_is_refused_and_credentials_are_not_shown(url, options, wanted):
    with pytest.raises(ConfigError, match=wanted) as caught:
        subscribe(url, **options)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("redis://127.0.0.1", "redis"),
        ("mqtt://127.0.0.1", "paho"),
        ("http://127.0.0.1", "httpx"),
        ("http://127.0.0.1", "httpx_sse"),
    ],
)
def test_a_missing_package_is_named_with_the_extra(url, package, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"gr-localize\[client\]"):
        subscribe(url)


PROGRAM = """
import sys
for name in ("gnuradio", "pmt", "onnx", "onnxruntime", "scipy", "pyproj", "pydantic"):
    sys.modules[name] = None
from localize_core.client import subscribe
print("started", flush=True)
with subscribe(sys.argv[1], timeout_s=20.0) as fixes:
    for fix in fixes:
        print(fix.sequence, flush=True)
"""


def test_needs_neither_gnuradio_nor_what_models_need_and_ends_with_ctrl_c(publisher, make_fix):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, publisher.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with program:
        assert program.stdout.readline() == "started\n", program.stderr.read()
        heard = threading.Event()

        def publish():
            for number in itertools.count():
                if heard.wait(0.01):
                    return
                publisher.publish(make_fix(sequence=number))

        thread = threading.Thread(target=publish)
        thread.start()
        assert program.stdout.readline().strip().isdigit()
        heard.set()
        thread.join()
        program.send_signal(signal.SIGINT)
        assert program.wait(LIMIT_S) in (-signal.SIGINT, 130)
        assert program.stderr.read().rstrip().endswith("KeyboardInterrupt")


def test_messages_wait_up_to_the_high_water_mark(publisher, make_fix):
    """A reader that does not take them holds the publisher up, and loses none of those that wait."""
    with subscribe(publisher.url, timeout_s=LIMIT_S, high_water_mark=5) as fixes:
        publisher.until_heard(fixes, make_fix(sequence=0))
        publisher.publish(*sequence(make_fix, *range(1, 31)))
        assert [next(fixes).sequence for _ in range(30)] == list(range(1, 31))
    assert fixes.overflowed == 0


def test_a_fix_survives_the_way(publisher, make_fix):
    with subscribe(publisher.url, timeout_s=LIMIT_S) as fixes:
        assert publisher.until_heard(fixes, make_fix()) == fix_from_json(fix_to_json(make_fix()))
