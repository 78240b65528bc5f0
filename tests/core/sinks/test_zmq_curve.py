"""Who is let in, by real sockets on both sides."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import zmq
import zmq.auth
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.wire.curve import be_client, read_public_key, read_secret_key
from localize_core.wire.fix_json import fix_from_json
from zmq.utils.monitor import recv_monitor_message

WAIT_S = 30.0
TURNED_AWAY = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}


@pytest.fixture
def keys(tmp_path):
    """A folder with keys: server, clients/anna, others/bob."""
    for folder, name in (("server", "server"), ("clients", "anna"), ("others", "bob")):
        (tmp_path / folder).mkdir()
        zmq.auth.create_certificates(tmp_path / folder, name)
        (tmp_path / folder / f"{name}.key_secret").chmod(0o600)
    return tmp_path


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context
        context.destroy(linger=0)


@pytest.fixture
def open_sink(keys):
    sinks = []

    def open_one(endpoint="tcp://127.0.0.1:*"):
        sink = ZmqFixSink(
            endpoint,
            linger_ms=0,
            curve_secret_key_file=keys / "server" / "server.key_secret",
            curve_clients=keys / "clients",
        )
        sink.open()
        sinks.append(sink)
        return sink

    yield open_one
    for sink in sinks:
        sink.close()


def client(context, keys, *, server="server/server", own="clients/anna"):
    """A subscriber that is not connected yet; without a `server` it has no keys either."""
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"fix")
    if server:
        server_key, secret_key = read_public_key(keys / f"{server}.key"), read_secret_key(keys / f"{own}.key_secret")
        be_client(socket, server_key=server_key, secret_key=secret_key)
    return socket


def received(sink, socket, fix):
    """What a subscriber receives first, of a fix that is published again and again."""
    deadline = time.monotonic() + WAIT_S
    while not socket.poll(1):
        assert time.monotonic() < deadline, "timed out"
        sink.publish(fix)
    return fix_from_json(socket.recv_multipart()[1])


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_listed_client_is_let_in_again_and_again(context, keys, open_sink, make_fix, scheme):
    endpoint = {"tcp": "tcp://127.0.0.1:*", "ipc": f"ipc://{keys}/fixes"}[scheme]
    sink = open_sink(endpoint)
    for _ in range(2):
        with client(context, keys) as socket:
            socket.connect(sink.bound_endpoint)
            assert received(sink, socket, make_fix()) == make_fix()
        sink.close()
        sink.open()


@pytest.mark.parametrize(
    "who", [{"own": "others/bob"}, {"server": None}, {"server": "others/bob"}], ids=["unlisted", "no key", "misled"]
)
def test_others_get_nothing(context, keys, open_sink, make_fix, who):
    """Whose key is not listed; who has none; who takes another key for the server's."""
    sink = open_sink()
    with client(context, keys, **who) as stranger, client(context, keys) as listed:
        monitor = stranger.get_monitor_socket()
        stranger.connect(sink.bound_endpoint)
        event = 0
        while event not in TURNED_AWAY:
            assert monitor.poll(1000 * WAIT_S)
            event = recv_monitor_message(monitor)["event"]
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        listed.connect(sink.bound_endpoint)
        for _ in range(2):
            received(sink, listed, make_fix())
        assert not stranger.poll(0)
        stranger.disable_monitor()
        monitor.close()


def test_without_an_answer_nobody_is_let_in(context, keys, open_sink, make_fix, monkeypatch):
    """Left alone, libzmq would take everybody who knows the server's public key."""
    monkeypatch.setattr("localize_core.sinks.zmq_curve.ZAP_ENDPOINT", "inproc://elsewhere")
    sink = open_sink()
    with client(context, keys) as listed:
        monitor = listed.get_monitor_socket()
        listed.connect(sink.bound_endpoint)
        events = []
        while zmq.EVENT_DISCONNECTED not in events:
            assert monitor.poll(1000 * WAIT_S)
            events.append(recv_monitor_message(monitor)["event"])
        assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in events
        listed.disable_monitor()
        monitor.close()


def test_nothing_stays_after_closing(keys, open_sink):
    def answering():
        return [thread for thread in threading.enumerate() if thread.name == "localize-zap"]

    sink = open_sink()
    assert len(answering()) == 1
    taken = sink.bound_endpoint
    with pytest.raises(PublishError, match="in use"):
        open_sink(taken)
    sink.close()
    deadline = time.monotonic() + WAIT_S
    while answering():
        assert time.monotonic() < deadline
    open_sink(taken)


def test_a_sink_that_is_not_closed_lets_the_process_end(keys):
    program = (
        "import sys; from localize_core.sinks.zmq_sink import ZmqFixSink\n"
        "sink = ZmqFixSink('tcp://127.0.0.1:*', curve_secret_key_file=sys.argv[1], curve_clients=sys.argv[2])\n"
        "sink.open()\n"
    )
    arguments = [keys / "server" / "server.key_secret", keys / "clients"]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=WAIT_S)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curve_clients": None}, "curve_secret_key_file and curve_clients: wanted both"),
        ({"curve_secret_key_file": None}, "curve_secret_key_file and curve_clients: wanted both"),
        ({"bind": False}, "bind=False"),
        ({"curve_secret_key_file": "clients/anna.key"}, r"anna\.key: holds no secret key"),
        ({"curve_clients": "clients/anna.key"}, r"wanted a file NAME\.key"),
    ],
)
def test_bad_parameter_is_named(keys, monkeypatch, changes, message):
    monkeypatch.chdir(keys)
    good = {"curve_secret_key_file": "server/server.key_secret", "curve_clients": "clients"}
    with pytest.raises(ConfigError, match=message):
        ZmqFixSink("tcp://127.0.0.1:5555", **(good | changes))
