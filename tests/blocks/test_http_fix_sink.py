"""A flowgraph's fixes on its own web server."""

from __future__ import annotations

import socket
import time

import httpx
import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize.pmt_codec import fix_to_pmt
from localize_core.errors import ConfigError, PublishError

WAIT_S = 20.0


class source(gr.sync_block):
    """Posts its messages from one call of work() and then waits for the end."""

    def __init__(self, messages):
        gr.sync_block.__init__(self, "source", None, [np.float32])
        self.messages = list(messages)
        self.message_port_register_out(pmt.intern("fix"))

    def work(self, input_items, output_items):
        while self.messages:
            self.message_port_pub(pmt.intern("fix"), self.messages.pop(0))
        time.sleep(0.001)
        return 1


def test_fixes_of_a_flowgraph_while_it_runs(make_fix):
    sink = localize.http_fix_sink(port=0)
    origin = source([fix_to_pmt(make_fix(sequence=1)), pmt.intern("no fix"), fix_to_pmt(make_fix(sequence=2))])
    graph = gr.top_block()
    graph.connect(origin, blocks.null_sink(gr.sizeof_float))
    graph.msg_connect(origin, "fix", sink, "fix")
    graph.start()
    deadline = time.monotonic() + WAIT_S
    while sink.sent < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shown = httpx.get(f"{sink.url}fixes").json()["fixes"]
    assert [each["fix"]["sequence"] for each in shown] == [2, 1]
    graph.stop()
    graph.wait()
    assert (sink.sent, sink.dropped, sink.backlog, sink.malformed, sink.failure) == (2, 0, 0, 1, None)
    with pytest.raises(httpx.ConnectError):
        httpx.get(sink.url)


def test_an_address_that_is_taken_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sink = localize.http_fix_sink(port=taken.getsockname()[1])
        assert not sink.start()
    assert isinstance(sink.failure, PublishError)


@pytest.mark.parametrize(
    "parameters",
    [
        {"host": "0.0.0.0"},
        {"host": "http://here"},
        {"port": -1},
        {"token": "short"},
        {"history": 0},
        {"tiles": "tiles"},
        {"attribution": "x" * 501},
    ],
)
def test_parameters_that_cannot_work(parameters):
    with pytest.raises(ConfigError, match=next(iter(parameters))):
        localize.http_fix_sink(**parameters)
