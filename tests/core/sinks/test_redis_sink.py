"""Fixes in a real Redis: whatever happens to it or to the way there, each is there once and in order."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from localize_core.errors import ConfigError, MissingExtraError
from localize_core.sinks import redis_sink
from localize_core.sinks.outbox import BATCH
from localize_core.sinks.redis_sink import RedisFixSink
from localize_core.wire.fix_json import fix_from_json, fix_to_json

redis = pytest.importorskip("redis")

WAIT_S = 30.0
OUTAGE_S = float(os.environ.get("GR_LOCALIZE_OUTAGE_S", "0.5"))
"""How long Redis is away in the test of that; 30 for the long form."""
DURABLE = ("--appendonly", "yes")


def wait_for(condition, timeout_s=WAIT_S):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


@pytest.fixture
def open_sink():
    sinks = []

    def open_one(url, **options):
        sinks.append(RedisFixSink(url, **options))
        sinks[-1].open()
        return sinks[-1]

    yield open_one
    for sink in sinks:
        sink.close()


@pytest.fixture
def connect():
    with contextlib.ExitStack() as clients:
        yield lambda url: clients.enter_context(redis.Redis.from_url(url, decode_responses=True))


def streamed(client, station="demo", prefix="gr-localize"):
    """Sequence numbers of the fixes in the stream."""
    return [fix_from_json(fields["fix"]).sequence for _, fields in client.xrange(f"{prefix}:stream:{station}")]


class Listener(threading.Thread):
    """Subscribes to a channel, anew when the connection breaks, and keeps the sequence numbers that come."""

    def __init__(self, url, channel="gr-localize:fixes:demo"):
        super().__init__(daemon=True)
        self.url, self.channel = url, channel
        self.received: list[int] = []
        self.listens = threading.Event()
        self.ends = threading.Event()
        self.start()
        assert self.listens.wait(WAIT_S)

    def run(self):
        while not self.ends.is_set():
            with (
                contextlib.suppress(redis.ConnectionError),
                redis.Redis.from_url(self.url) as client,
                client.pubsub() as subscription,
            ):
                subscription.subscribe(self.channel)
                while not self.ends.is_set():
                    message = subscription.get_message(timeout=0.05)
                    if message is None:
                        continue
                    if message["type"] == "subscribe":
                        self.listens.set()
                    else:
                        self.received.append(fix_from_json(message["data"]).sequence)
            self.listens.clear()
            self.ends.wait(0.02)

    def stop(self):
        self.ends.set()
        self.join()


@pytest.fixture
def listen():
    listeners = []

    def start(*arguments):
        listeners.append(Listener(*arguments))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.stop()


def test_told_kept_and_at_hand(start_redis, open_sink, connect, listen, make_fix):
    server = start_redis()
    client, listener = connect(server.url), listen(server.url, "here:fixes:two hills")
    sink = open_sink(server.url, prefix="here")
    first, second = (
        make_fix(station="two hills", sequence=7),
        make_fix(station="two hills", sequence=8, reason="silence"),
    )
    assert sink.publish(first)
    assert sink.publish(second)
    wait_for(lambda: sink.sent == 2)
    (id1, entry1), (id2, entry2) = client.xrange("here:stream:two hills")
    assert [fix_from_json(entry["fix"]) for entry in (entry1, entry2)] == [first, second]
    assert entry1["id"].rsplit("-", 1) == [entry2["id"].rsplit("-", 1)[0], "1"]
    assert id1 < id2
    assert set(entry1) == {"fix", "id"}
    latest = client.hgetall("here:latest:two hills")
    assert fix_from_json(latest.pop("fix")) == second
    assert latest == {"timestamp": "2026-01-02T03:04:05.678901Z", "sequence": "8", "status": "no_fix"}
    wait_for(lambda: listener.received == [7, 8])
    assert (sink.dropped, sink.backlog, sink.state) == (0, 0, "connected")
    (account,) = client.scan_iter("here:published:*")
    assert 0 < client.ttl(account) <= redis_sink.ACCOUNT_S


def test_the_stream_has_a_bound(start_redis, open_sink, connect, make_fix):
    server = start_redis("--stream-node-max-entries", "10")
    sink = open_sink(server.url, max_len=50)
    for sequence in range(300):
        sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: sink.sent == 300)
    kept = streamed(connect(server.url))
    assert kept == [*range(300 - len(kept), 300)]
    assert 50 <= len(kept) <= 60


@pytest.mark.parametrize("options", [DURABLE, ()], ids=["durable", "forgetful"])
def test_redis_dies_and_comes_back(start_redis, open_sink, connect, listen, make_fix, options):
    """Killed, not stopped, in the middle of 100 fixes a second; afterwards no fix is missing or there twice."""
    server = start_redis(*options)
    client, listener = connect(server.url), listen(server.url)
    sink = open_sink(server.url)
    ends = threading.Event()
    count = 0

    def produce():
        nonlocal count
        while not ends.wait(0.01):
            sink.publish(make_fix(sequence=count))
            count += 1

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        wait_for(lambda: sink.sent > 30)
        os.kill(server.pid, 9)
        server.stop()
        listener.listens.clear()
        until = count
        wait_for(lambda: sink.state != "connected")
        wait_for(lambda: count > until + 100 * OUTAGE_S, 10.0 * OUTAGE_S + WAIT_S)
        assert sink.backlog >= 100 * OUTAGE_S
        waiting = sink.sent
        server.start()
        assert listener.listens.wait(WAIT_S)
        wait_for(lambda: sink.backlog < 5)
        back = count
        wait_for(lambda: count > back + 30)
    finally:
        ends.set()
        producer.join()
    wait_for(lambda: sink.backlog == 0)
    assert (sink.sent, sink.dropped) == (count, 0)
    kept = streamed(client)
    if options:
        assert kept == [*range(count)]
    else:
        assert kept == [*range(waiting, count)]
    wait_for(lambda: listener.received[-1] == count - 1)
    assert listener.received == sorted(set(listener.received))
    assert set(range(waiting)) | set(range(back, count)) <= set(listener.received)


def test_an_answer_that_gets_lost_is_no_reason_to_publish_twice(
    start_redis, open_sink, connect, listen, start_proxy, make_fix
):
    server = start_redis()
    proxy = start_proxy(server.port)
    client, listener = connect(server.url), listen(server.url)
    sink = open_sink(f"redis://127.0.0.1:{proxy.port}/0")
    for sequence in range(200):
        if sequence % 20 == 10:
            proxy.cut_at = 1
        sink.publish(make_fix(sequence=sequence))
        if sequence % 7 == 0:
            wait_for(lambda: sink.backlog == 0)
    wait_for(lambda: sink.backlog == 0)
    assert proxy.cuts >= 8
    assert streamed(client) == [*range(200)]
    wait_for(lambda: len(listener.received) >= 200)
    assert listener.received == [*range(200)]
    assert (sink.sent, sink.dropped) == (200, 0)


def test_a_redis_that_pauses_or_throws_clients_out(start_redis, open_sink, connect, listen, make_fix, monkeypatch):
    monkeypatch.setattr(redis_sink, "ANSWER_S", 0.2)
    server = start_redis()
    client, listener = connect(server.url), listen(server.url)
    sink = open_sink(server.url)
    wait_for(lambda: sink.state == "connected")
    for sequence in range(100):
        if sequence == 30:
            client.client_pause(600)  # longer than the sink waits for an answer
        if sequence % 10 == 5 and sequence != 35:
            client.client_kill_filter(_type="normal", skipme=True)
        sink.publish(make_fix(sequence=sequence))
        time.sleep(0.002)
    wait_for(lambda: sink.backlog == 0)
    assert streamed(client) == [*range(100)]
    wait_for(lambda: len(listener.received) >= 100)
    assert listener.received == [*range(100)]
    assert (sink.sent, sink.dropped) == (100, 0)


def test_a_redis_that_hangs_holds_up_nobody(start_redis, open_sink, make_fix, monkeypatch):
    monkeypatch.setattr(redis_sink, "ANSWER_S", 0.2)
    server = start_redis()
    sink = open_sink(server.url, capacity=20, linger_ms=0)
    wait_for(lambda: sink.state == "connected")
    server.hang()
    for sequence in range(100):
        assert sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: "Timeout" in sink.state)
    assert sink.dropped >= 80 - BATCH
    sink.close()
    server.wake()
    assert (sink.sent + sink.dropped, sink.backlog) == (100, 0)


def test_a_full_redis_loses_nothing(start_redis, open_sink, connect, make_fix):
    server = start_redis("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    client = connect(server.url)
    sink = open_sink(server.url)
    for sequence in range(10):
        sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: "maxmemory" in sink.state)
    assert (sink.sent, sink.dropped, sink.backlog) == (0, 0, 10)
    client.config_set("maxmemory", 0)
    wait_for(lambda: sink.sent == 10)
    assert streamed(client) == [*range(10)]
    assert sink.state == "connected"


@pytest.mark.parametrize("broken", ["stream", "latest"])
def test_a_command_that_fails_half_way_repeats_none_of_the_others(
    start_redis, open_sink, connect, listen, make_fix, broken
):
    """A key of another type makes Redis refuse one of three commands, and it rolls nothing back."""
    server = start_redis()
    client, listener = connect(server.url), listen(server.url)
    client.set(f"gr-localize:{broken}:demo", "in the way")
    sink = open_sink(server.url)
    for sequence in range(5):
        sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: "WRONGTYPE" in sink.state)
    tries = client.info("commandstats")["cmdstat_eval"]["calls"]
    wait_for(lambda: client.info("commandstats")["cmdstat_eval"]["calls"] > tries + 1)
    client.delete(f"gr-localize:{broken}:demo")
    wait_for(lambda: sink.sent == 5)
    assert streamed(client) == [*range(5)]
    wait_for(lambda: len(listener.received) >= 5)
    assert listener.received == [*range(5)]


WRITER = """
import dataclasses, sys
from localize_core.sinks.redis_sink import RedisFixSink
from localize_core.wire.fix_json import fix_from_json
fix = fix_from_json(sys.argv[2])
sink = RedisFixSink(sys.argv[1], linger_ms=30_000)
sink.open()
for sequence in range(200):
    sink.publish(dataclasses.replace(fix, stream=sys.argv[3], sequence=sequence))
sink.close()
assert (sink.sent, sink.dropped) == (200, 0)
"""


def test_two_processes_of_one_station_do_not_get_in_each_others_way(start_redis, connect, make_fix):
    server = start_redis()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, server.url, fix_to_json(make_fix()), stream])
        for stream in ("one", "two")
    ]
    assert [writer.wait(WAIT_S) for writer in writers] == [0, 0]
    fixes = [fix_from_json(fields["fix"]) for _, fields in connect(server.url).xrange("gr-localize:stream:demo")]
    for stream in ("one", "two"):
        assert [fix.sequence for fix in fixes if fix.stream == stream] == [*range(200)]


def test_the_rights_that_the_manual_grants_are_enough(start_redis, open_sink, connect, make_fix):
    server = start_redis()
    admin = connect(server.url)
    manual = Path(__file__).parents[3] / "docs" / "operations.md"
    (rule,) = re.findall("^ACL SETUSER publisher .*$", manual.read_text(encoding="utf-8"), re.MULTILINE)
    admin.execute_command(*rule.split())
    sink = open_sink(f"redis://publisher:PASSWORD@127.0.0.1:{server.port}/0")
    sink.publish(make_fix(sequence=1))
    wait_for(lambda: sink.sent == 1)
    assert streamed(admin) == [1]


def test_a_wrong_password_is_said_and_not_repeated(start_redis, open_sink, make_fix, caplog):
    server = start_redis("--requirepass", "secret")
    sink = open_sink(f"redis://:hunter2@127.0.0.1:{server.port}/0")
    sink.publish(make_fix())
    wait_for(lambda: "password" in sink.state)
    wait_for(lambda: caplog.records)
    assert "hunter2" not in sink.state + caplog.text
    assert sink.backlog == 1


def test_what_has_no_redis_at_its_port(open_sink, make_fix):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sink = open_sink(f"redis://127.0.0.1:{port}/0", linger_ms=0)
    assert sink.publish(make_fix())
    wait_for(lambda: "refused" in sink.state)
    sink.close()
    assert (sink.sent, sink.dropped) == (0, 1)
    assert not sink.publish(make_fix())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "http://localhost"}, "url='http://localhost'"),
        ({"url": "redis://:hunter2@host/zero"}, "url='redis://:…@host/zero'"),
        ({"prefix": ""}, "prefix"),
        ({"max_len": 0}, "max_len=0"),
        ({"capacity": 0}, "capacity=0"),
        ({"linger_ms": -1}, "linger_ms=-1"),
    ],
)
def test_bad_parameter_is_named(options, named):
    with pytest.raises(ConfigError) as raised:
        RedisFixSink(**options)
    assert named in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtraError, match=r"gr-localize\[redis\]"):
        RedisFixSink()
