"""The sink blocks in real flowgraphs."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pmt
import pytest
import zmq
from gnuradio import blocks, gr, localize
from gnuradio.localize.pmt_codec import fix_to_pmt
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.cot_sink import DECLARATION
from localize_core.wire.cot import fix_to_cot
from localize_core.wire.fix_json import fix_from_json

WAIT_S = 20.0
WORK_DONE = -1


class message_source(gr.sync_block):
    """Posts its messages from one call of work() and ends."""

    def __init__(self, messages):
        gr.sync_block.__init__(self, "message_source", None, [np.float32])
        self.messages = messages
        self.message_port_register_out(pmt.intern("fix"))

    def work(self, input_items, output_items):
        for message in self.messages:
            self.message_port_pub(pmt.intern("fix"), message)
        return WORK_DONE


class repeating_source(message_source):
    """Posts its messages again and again until the flowgraph is stopped."""

    def work(self, input_items, output_items):
        message_source.work(self, input_items, output_items)
        time.sleep(0.001)
        return 1


def flowgraph(messages, *sinks, source_class=message_source):
    graph = gr.top_block()
    source = source_class(messages)
    graph.python_blocks = (source, *sinks)  # GNU Radio keeps no reference to the Python part of a block
    graph.connect(source, blocks.null_sink(gr.sizeof_float))
    for sink in sinks:
        graph.msg_connect(source, "fix", sink, pmt.symbol_to_string(sink.FIX_PORT))
    return graph


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.001)


def log_of(capfd):
    """What GNU Radio logged: where to is a setting of the machine."""
    return "".join(capfd.readouterr())


def sequences(path):
    return [fix_from_json(line).sequence for line in path.read_bytes().splitlines()]


def test_fixes_posted_just_before_the_end_all_arrive(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    messages = [fix_to_pmt(make_fix(sequence=n)) for n in range(5)]
    repetitions = 300
    for _ in range(repetitions):
        sink = localize.file_fix_sink(str(path))
        flowgraph(messages, sink).run()
        assert (sink.sent, sink.dropped, sink.malformed, sink.failure) == (5, 0, 0, None)
    assert sequences(path) == [*range(5)] * repetitions


def test_a_long_burst_just_before_the_end_all_arrives(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    flowgraph([fix_to_pmt(make_fix(sequence=n)) for n in range(500)], localize.file_fix_sink(str(path))).run()
    assert sequences(path) == [*range(500)]


def test_garbage_is_counted_and_the_next_fix_goes_through(make_fix, tmp_path, capfd):
    path = tmp_path / "fixes.jsonl"
    fix = fix_to_pmt(make_fix(sequence=1))
    impossible = pmt.dict_add(fix, pmt.intern("confidence"), pmt.from_double(7.0))
    unencodable = pmt.to_python(fix)
    unencodable["uncertainty"]["sigma_x"] = 1e300  # a covariance that follows from it is not finite
    pdu = pmt.cons(pmt.make_dict(), pmt.init_u8vector(3, [1, 2, 3]))
    sink = localize.file_fix_sink(str(path))
    flowgraph([pdu, impossible, pmt.PMT_NIL, fix, pmt.to_pmt(unencodable), pmt.from_long(1), fix], sink).run()
    assert (sink.sent, sink.malformed, sink.dropped, sink.failure) == (2, 5, 0, None)
    assert sequences(path) == [1, 1]
    assert log_of(capfd).count("no fix") == 2  # once per burst


def test_file_sink_rotates(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    flowgraph(
        [fix_to_pmt(make_fix(sequence=n)) for n in range(4)],
        localize.file_fix_sink(str(path), max_bytes=1, max_files=2),
    ).run()
    assert sequences(path) == [3]
    assert sequences(tmp_path / "fixes.jsonl.1") == [2]
    assert len(list(tmp_path.iterdir())) == 2


def test_zmq_subscribers_receive_json(make_fix):
    sink = localize.zmq_fix_sink("tcp://127.0.0.1:*", topic="here")
    graph = flowgraph([fix_to_pmt(make_fix())], sink, source_class=repeating_source)
    assert sink.bound_endpoint is None
    graph.start()
    wait_for(lambda: sink.bound_endpoint)
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"here")
        socket.connect(sink.bound_endpoint)
        assert socket.poll(1000 * WAIT_S)
        topic, line = socket.recv_multipart()
    graph.stop()
    graph.wait()
    assert (topic, fix_from_json(line)) == (b"here", make_fix())
    assert sink.sent > 0
    assert sink.bound_endpoint is None


def test_tak_clients_receive_events(make_fix):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(WAIT_S)
        sink = localize.cot_fix_sink(f"udp://127.0.0.1:{receiver.getsockname()[1]}", linger_ms=10_000)
        flowgraph([fix_to_pmt(make_fix(reason="silence")), fix_to_pmt(make_fix())], sink).run()
        assert receiver.recv(65536) == DECLARATION + fix_to_cot(make_fix()).encode()
    assert (sink.sent, sink.skipped, sink.dropped, sink.failure) == (2, 1, 0, None)


def test_a_sink_works_again_after_a_restart(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    zmq_sink = localize.zmq_fix_sink("tcp://127.0.0.1:*")
    file_sink = localize.file_fix_sink(str(path))
    graph = flowgraph([fix_to_pmt(make_fix(sequence=1))], file_sink, zmq_sink)
    graph.run()
    graph.run()
    assert sequences(path) == [1, 1]
    assert (file_sink.sent, zmq_sink.sent, zmq_sink.failure) == (2, 2, None)


def test_a_sink_that_cannot_open_says_so_and_drops(make_fix, tmp_path, capfd):
    with zmq.Context() as context, context.socket(zmq.PUB) as occupant:
        port = occupant.bind_to_random_port("tcp://127.0.0.1")
        zmq_sink = localize.zmq_fix_sink(f"tcp://127.0.0.1:{port}")
        file_sink = localize.file_fix_sink(str(tmp_path / "missing" / "fixes.jsonl"))
        flowgraph([fix_to_pmt(make_fix())] * 2, zmq_sink, file_sink).run()
    errors = log_of(capfd)
    for sink, name in ((zmq_sink, f"127.0.0.1:{port}"), (file_sink, "missing/fixes.jsonl")):
        assert isinstance(sink.failure, PublishError)
        assert name in str(sink.failure)
        assert name in errors
        assert (sink.sent, sink.dropped) == (0, 2)


class waiting_source(message_source):
    """Posts its messages when `go` is set."""

    def __init__(self, messages):
        message_source.__init__(self, messages)
        self.go = threading.Event()

    def work(self, input_items, output_items):
        assert self.go.wait(WAIT_S)
        return message_source.work(self, input_items, output_items)


def test_a_redis_that_hangs_holds_up_no_other_sink(start_redis, make_fix, tmp_path):
    server = start_redis()
    redis_sink = localize.redis_fix_sink(server.url, capacity=100, linger_ms=0)
    file_sink, zmq_sink = localize.file_fix_sink(str(tmp_path / "fixes.jsonl")), localize.zmq_fix_sink("tcp://*:*")
    messages = [fix_to_pmt(make_fix(sequence=n)) for n in range(400)]
    graph = flowgraph(messages, redis_sink, file_sink, zmq_sink, source_class=waiting_source)
    graph.start()
    wait_for(lambda: redis_sink.state == "connected")
    server.hang()
    graph.python_blocks[0].go.set()
    graph.wait()
    assert sequences(tmp_path / "fixes.jsonl") == [*range(400)]
    assert (file_sink.sent, zmq_sink.sent, zmq_sink.dropped) == (400, 400, 0)
    assert (redis_sink.sent, redis_sink.dropped, redis_sink.backlog, redis_sink.failure) == (0, 400, 0, None)


def test_redis_and_mqtt_have_all_fixes_at_the_end(start_redis, start_mosquitto, make_fix):
    redis = pytest.importorskip("redis")
    server, broker = start_redis(), start_mosquitto()
    sinks = localize.redis_fix_sink(server.url, "here"), localize.mqtt_fix_sink(broker.url, station="demo", qos=2)
    graph = flowgraph([fix_to_pmt(make_fix(sequence=n)) for n in range(100)], *sinks, source_class=waiting_source)
    graph.start()
    wait_for(lambda: [sink.state for sink in sinks] == ["connected"] * 2)
    graph.python_blocks[0].go.set()
    graph.wait()
    assert [(sink.sent, sink.dropped, sink.failure, sink.state) for sink in sinks] == [(100, 0, None, "closed")] * 2
    with redis.Redis.from_url(server.url) as client:
        entries = client.xrange("here:stream:demo")
    assert [fix_from_json(fields[b"fix"]).sequence for _, fields in entries] == [*range(100)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: localize.zmq_fix_sink("nowhere"),
        lambda: localize.zmq_fix_sink(high_water_mark=0),
        lambda: localize.file_fix_sink("fixes.jsonl", max_bytes=0),
        lambda: localize.redis_fix_sink("nowhere"),
        lambda: localize.mqtt_fix_sink("nowhere"),
        lambda: localize.cot_fix_sink("nowhere"),
    ],
)
def test_bad_parameters_are_refused_at_construction(make):
    with pytest.raises(ConfigError):
        make()
