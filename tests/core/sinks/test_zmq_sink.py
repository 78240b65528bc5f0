from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import zmq
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks import zmq_sink
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.wire.fix_json import fix_from_json

WAIT_S = 30.0


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


@pytest.fixture
def open_sink():
    sinks = []

    def open_one(endpoint="tcp://127.0.0.1:*", **options):
        sink = ZmqFixSink(endpoint, **{"linger_ms": 0, **options})
        sink.open()
        sinks.append(sink)
        return sink

    yield open_one
    for sink in sinks:
        sink.close()


def publish_until(sink, fix, condition):
    """Subscriptions arrive in their own time: publish until `condition` holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        sink.publish(fix)


def subscribed(context, sink, fix, topic=b"fix"):
    """A subscriber that has received its first fix."""
    socket = context.socket(zmq.SUB)
    socket.subscribe(topic)
    socket.connect(sink.bound_endpoint)
    publish_until(sink, fix, lambda: socket.poll(1))
    return socket


def sequences(socket, last):
    """The sequence numbers that a subscriber receives, up to `last`."""
    received = []
    while not received or received[-1] != last:
        assert socket.poll(1000 * WAIT_S), f"nothing more after {received[-3:]}"
        received.append(fix_from_json(socket.recv_multipart()[1]).sequence)
    return received


@pytest.mark.parametrize("port", ["*", "0"])
def test_a_topic_frame_and_a_json_frame(context, open_sink, make_fix, port):
    sink = open_sink(f"tcp://127.0.0.1:{port}")
    assert int(sink.bound_endpoint.rpartition(":")[2]) > 0
    frames = subscribed(context, sink, make_fix()).recv_multipart()
    assert frames[0] == b"fix"
    assert len(frames) == 2
    assert json.loads(frames[1])["schema"] == "gr-localize/fix/1"
    assert fix_from_json(frames[1]) == make_fix()


def test_subscribers_choose_by_topic(context, open_sink, make_fix):
    sink = open_sink(topic="north")
    everything = subscribed(context, sink, make_fix(), b"")
    other = context.socket(zmq.SUB)
    other.subscribe(b"south")
    other.connect(sink.bound_endpoint)
    subscribed(context, sink, make_fix(), b"north")
    assert everything.recv_multipart()[0] == b"north"
    assert not other.poll(0)


def test_ipc(context, open_sink, make_fix, tmp_path):
    sink = open_sink(f"ipc://{tmp_path}/fixes")
    assert fix_from_json(subscribed(context, sink, make_fix()).recv_multipart()[1]) == make_fix()


def test_connects_to_a_subscriber_that_binds(context, make_fix):
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"fix")
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    sink = ZmqFixSink(f"tcp://127.0.0.1:{port}", bind=False, linger_ms=0)
    sink.open()
    publish_until(sink, make_fix(), lambda: socket.poll(1))
    assert fix_from_json(socket.recv_multipart()[1]) == make_fix()
    sink.close()


def test_close_lets_queued_fixes_leave_and_frees_the_port(context, open_sink, make_fix):
    sink = open_sink(linger_ms=10_000)
    endpoint = sink.bound_endpoint
    socket = subscribed(context, sink, make_fix())
    for sequence in range(1000, 1500):
        sink.publish(make_fix(sequence=sequence))
    sink.close()
    assert [s for s in sequences(socket, 1499) if s >= 1000] == list(range(1000, 1500))
    assert sink.bound_endpoint is None
    sink.close()
    assert open_sink(endpoint).bound_endpoint == endpoint


def test_address_in_use_is_named(open_sink):
    endpoint = open_sink().bound_endpoint
    with pytest.raises(PublishError, match=f"{endpoint}.*in use"):
        open_sink(endpoint)


def test_path_that_cannot_be_bound_is_named(open_sink, tmp_path):
    with pytest.raises(PublishError, match="missing"):
        open_sink(f"ipc://{tmp_path}/missing/fixes")


def test_publishing_while_closed_is_a_drop(make_fix):
    sink = ZmqFixSink("tcp://127.0.0.1:*")
    assert not sink.publish(make_fix())
    assert (sink.sent, sink.dropped) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "127.0.0.1:5555"}, "endpoint"),
        ({"endpoint": "tcp://127.0.0.1"}, "endpoint"),
        ({"endpoint": "tcp://127.0.0.1:70000"}, "65535"),
        ({"endpoint": "udp://127.0.0.1:5555"}, "endpoint"),
        ({"endpoint": "tcp://127.0.0.1:0", "bind": False}, "port"),
        ({"topic": ""}, "topic"),
        ({"high_water_mark": 0}, "high_water_mark"),
        ({"linger_ms": -1}, "linger_ms"),
    ],
)
def test_bad_parameter_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ZmqFixSink(**({"endpoint": "tcp://127.0.0.1:5555"} | options))


LONG = "x" * 100_000
"""A station name that fills queues and socket buffers quickly."""

SUBSCRIBER = """
import sys, zmq
from localize_core.wire.fix_json import fix_from_json
context = zmq.Context()
socket = context.socket(zmq.SUB)
socket.setsockopt(zmq.RCVHWM, 10)
socket.setsockopt(zmq.RCVBUF, 65536)
socket.subscribe(b"fix")
socket.connect(sys.argv[1])
while True:
    print(fix_from_json(socket.recv_multipart()[1]).sequence, flush=True)
"""


@pytest.fixture
def stopped_subscriber():
    """A process that subscribed, received at least one fix and is stopped: it reads nothing, but stays connected."""
    processes = []

    def start(sink, fix):
        process = subprocess.Popen([sys.executable, "-c", SUBSCRIBER, sink.bound_endpoint], stdout=subprocess.PIPE)
        processes.append(process)
        os.set_blocking(process.stdout.fileno(), False)
        publish_until(sink, fix, lambda: time.sleep(0.001) or process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_slow_subscriber_misses_fixes_and_nobody_else(open_sink, make_fix, stopped_subscriber, context, caplog):
    sink = open_sink(high_water_mark=10)
    process = stopped_subscriber(sink, make_fix(sequence=0))
    healthy = subscribed(context, sink, make_fix(sequence=0))
    while healthy.poll(0):
        healthy.recv_multipart()
    received = []
    for sequence in itertools.count(1):
        assert sink.publish(make_fix(sequence=sequence, station=LONG))
        assert healthy.poll(1000 * WAIT_S)
        received.append(fix_from_json(healthy.recv_multipart()[1]).sequence)
        if sink.stalls and sequence > 200:
            break
        assert sequence < 5000, "the stopped subscriber's queue never was full"
    assert received == list(range(1, sequence + 1))
    assert sink.dropped == 0
    assert sum("too slow" in record.message for record in caplog.records) == 1
    process.send_signal(signal.SIGCONT)
    os.set_blocking(process.stdout.fileno(), True)
    sink.publish(make_fix(sequence=1_000_000))
    late = [int(process.stdout.readline())]
    while late[-1] != 1_000_000:  # what waited for it, then what came when there was room again
        late.append(int(process.stdout.readline()))
        sink.publish(make_fix(sequence=1_000_000))
    waited = [number for number in late if 0 < number < 1_000_000]
    assert waited == sorted(set(waited))
    assert len(waited) < sequence


def test_a_subscriber_that_takes_nothing_is_cut_off(open_sink, make_fix, stopped_subscriber, monkeypatch):
    monkeypatch.setattr(zmq_sink, "STALLED_MS", 500)
    sink = open_sink(high_water_mark=10)
    stopped_subscriber(sink, make_fix(sequence=0))
    monitor = sink._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    while not sink.stalls:
        sink.publish(make_fix(sequence=1, station=LONG))
    assert monitor.poll(1000 * WAIT_S), "it is still connected"
    sink._socket.disable_monitor()
