"""What only ZeroMQ has: CURVE, topics, sockets in the file system."""

from __future__ import annotations

import os
import threading

import pytest
import zmq.auth
from localize_core.client import ConfigError, SubscribeError, subscribe
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.wire.fix_json import fix_to_json

LIMIT_S = 20.0


@pytest.fixture
def keys(tmp_path):
    """The names of key files, for a publisher, a client that it knows and one that it does not."""
    (tmp_path / "known").mkdir()
    made = {}
    for name, folder in (("publisher", tmp_path), ("client", tmp_path / "known"), ("stranger", tmp_path)):
        made[name] = zmq.auth.create_certificates(folder, name)
        os.chmod(made[name][1], 0o600)
    return made


@pytest.fixture
def guarded(keys, tmp_path, make_fix):
    sink = ZmqFixSink(
        "tcp://127.0.0.1:*",
        linger_ms=0,
        curve_secret_key_file=keys["publisher"][1],
        curve_clients=tmp_path / "known",
    )
    sink.open()
    done = threading.Event()

    def publish():
        while not done.wait(0.01):
            sink.publish(make_fix())

    thread = threading.Thread(target=publish)
    thread.start()
    yield sink.bound_endpoint
    done.set()
    thread.join()
    sink.close()


def test_over_curve(guarded, keys, make_fix, wait_for):
    options = {"curve_server_key_file": keys["publisher"][0], "curve_secret_key_file": keys["client"][1]}
    with subscribe(guarded, timeout_s=LIMIT_S, **options) as fixes:
        assert next(fixes) == make_fix()
    stranger = options | {"curve_secret_key_file": keys["stranger"][1]}
    with subscribe(guarded, **stranger) as fixes, pytest.raises(SubscribeError, match="does not know our CURVE key"):
        next(fixes)
    for wrong in (options | {"curve_server_key_file": keys["stranger"][0]}, {}):
        with subscribe(guarded, **wrong) as fixes:
            wait_for(lambda fixes=fixes: fixes.state == "disconnected")
            assert "handshake failed" in fixes.reason
            assert fixes.received == 0


def test_keys_that_are_mended_are_enough(keys, tmp_path, make_fix, wait_for):
    """ZeroMQ itself does not try again after some failures."""
    plain = ZmqFixSink("tcp://127.0.0.1:*", linger_ms=0)
    plain.open()
    url = plain.bound_endpoint
    with subscribe(
        url, timeout_s=LIMIT_S, curve_server_key_file=keys["publisher"][0], curve_secret_key_file=keys["client"][1]
    ) as fixes:
        wait_for(lambda: fixes.state == "disconnected")
        plain.close()
        guarded = ZmqFixSink(
            url, linger_ms=0, curve_secret_key_file=keys["publisher"][1], curve_clients=tmp_path / "known"
        )
        guarded.open()
        wait_for(lambda: fixes.state == "connected")
        guarded.close()


def test_a_public_key_is_no_secret_one(keys):
    with pytest.raises(ConfigError, match="secret"):
        subscribe(
            "tcp://127.0.0.1:1",
            curve_server_key_file=keys["publisher"][0],
            curve_secret_key_file=keys["client"][0],
        )


def test_topics_begin_as_asked_for_over_a_socket_in_the_file_system(tmp_path, make_fix, wait_for):
    url = f"ipc://{tmp_path}/me@fixes"
    with (
        zmq.Context() as context,
        context.socket(zmq.XPUB) as publisher,
        subscribe(url, topic="st", timeout_s=LIMIT_S) as fixes,
    ):
        publisher.bind(url)
        assert publisher.recv() == b"\x01st"
        for topic, fix in ((b"fix", make_fix(sequence=1)), (b"station", make_fix(sequence=2))):
            publisher.send_multipart([topic, fix_to_json(fix).encode()])
        assert next(fixes).sequence == 2
