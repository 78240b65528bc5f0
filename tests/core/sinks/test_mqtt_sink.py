"""Fixes over a real MQTT broker: what arrives, what stays, and what becomes of it when broker or station die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from localize_core.errors import ConfigError, MissingExtraError
from localize_core.sinks import mqtt_sink, outbox
from localize_core.sinks.mqtt_sink import MqttAddress, MqttFixSink, mqtt_address, topic_level
from localize_core.wire.fix_json import fix_from_json, fix_to_json

mqtt = pytest.importorskip("paho.mqtt.client")

WAIT_S = 30.0


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


class Listener:
    """Subscribes to everything below `topic`, and keeps what comes. With `lasting`, the broker keeps what comes while
    it is away, over a restart too; only in MQTT 3, for Mosquitto 2.0.11 forgets the sessions of MQTT 5 then.
    """

    def __init__(self, port, topic="gr-localize/#", *, lasting=False):
        self.messages = []
        self._subscribed = threading.Event()
        protocol = {"protocol": mqtt.MQTTv311, "clean_session": False} if lasting else {"protocol": mqtt.MQTTv5}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="listener", **protocol)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, 2)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = lambda client, data, message: self.messages.append(message)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self._subscribed.wait(WAIT_S)

    def payloads(self, topic):
        return [message.payload.decode() for message in self.messages if message.topic == topic]

    def sequences(self, topic="gr-localize/demo/fix"):
        return [fix_from_json(payload).sequence for payload in self.payloads(topic)]

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def open_sink():
    sinks = []

    def open_one(url, **options):
        sinks.append(MqttFixSink(url, **options))
        sinks[-1].open()
        return sinks[-1]

    yield open_one
    for sink in sinks:
        sink.close()


@pytest.fixture
def listen():
    listeners = []

    def start(*arguments, **options):
        listeners.append(Listener(*arguments, **options))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.stop()


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_fixes_arrive_as_json(start_mosquitto, open_sink, listen, make_fix, qos):
    broker = start_mosquitto()
    listener = listen(broker.port, "sites/#")
    sink = open_sink(broker.url, topic="sites/here", qos=qos, linger_ms=5000)
    fixes = [make_fix(station="two hills", sequence=number) for number in range(150)]
    assert all(sink.publish(fix) for fix in fixes)
    wait_for(lambda: sink.backlog == 0)
    assert (sink.sent, sink.dropped, sink.state) == (150, 0, "connected")
    wait_for(lambda: len(listener.messages) >= 150)
    assert [fix_from_json(payload) for payload in listener.payloads("sites/here/two hills/fix")] == fixes
    first = listener.messages[0]
    assert (first.qos, first.retain) == (qos, False)
    assert (first.properties.ContentType, first.properties.PayloadFormatIndicator) == ("application/json", 1)


@pytest.mark.parametrize("retain", [False, True])
def test_the_latest_fix_stays_if_wanted(start_mosquitto, open_sink, listen, make_fix, retain):
    broker = start_mosquitto()
    sink = open_sink(broker.url, station="demo", retain=retain)
    for sequence in range(3):
        sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: sink.sent == 3)
    late = listen(broker.port)
    late.client.publish("gr-localize/after", qos=2)  # what stays comes first
    wait_for(lambda: late.payloads("gr-localize/after"))
    assert late.payloads("gr-localize/demo/state") == ["online"]
    assert late.sequences() == ([2] if retain else [])


def test_it_says_whether_the_station_is_there(start_mosquitto, open_sink, listen):
    broker = start_mosquitto()
    listener = listen(broker.port)
    sink = open_sink(broker.url, station="a/b+c")
    wait_for(lambda: sink.state == "connected")
    sink.close()
    sink.open()
    wait_for(lambda: sink.state == "connected")
    sink.close()
    wait_for(lambda: len(listener.messages) == 4)
    assert listener.payloads("gr-localize/a%2Fb%2Bc/state") == ["online", "offline"] * 2
    listener.stop()
    late = listen(broker.port)
    wait_for(lambda: late.messages)
    assert (late.messages[0].payload, late.messages[0].retain) == (b"offline", True)


WRITER = """
import sys, time
from localize_core.sinks.mqtt_sink import MqttFixSink
from localize_core.wire.fix_json import fix_from_json
sink = MqttFixSink(sys.argv[1], station="demo")
sink.open()
sink.publish(fix_from_json(sys.argv[2]))
time.sleep(60)
"""


def test_the_broker_says_that_the_station_died(start_mosquitto, listen, make_fix):
    broker = start_mosquitto()
    listener = listen(broker.port)
    with subprocess.Popen([sys.executable, "-c", WRITER, broker.url, fix_to_json(make_fix())]) as station:
        wait_for(lambda: listener.sequences())
        assert listener.payloads("gr-localize/demo/state") == ["online"]
        station.send_signal(signal.SIGKILL)
    wait_for(lambda: listener.payloads("gr-localize/demo/state") == ["online", "offline"])


@pytest.mark.parametrize("qos", [1, 2])
def test_the_broker_restarts_and_nothing_is_lost(start_mosquitto, open_sink, listen, make_fix, qos):
    broker = start_mosquitto("persistence true", "autosave_interval 3600", "max_queued_messages 0")
    listener = listen(broker.port, lasting=True)
    sink = open_sink(broker.url, station="demo", qos=qos)
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
        broker.stop()
        until = count
        wait_for(lambda: sink.state != "connected" and count > until + 50)
        broker.start()
        wait_for(lambda: sink.backlog < 5)
        until = count
        wait_for(lambda: count > until + 30)
    finally:
        ends.set()
        producer.join()
    wait_for(lambda: sink.backlog == 0)
    assert (sink.sent, sink.dropped) == (count, 0)
    wait_for(lambda: listener.sequences() and listener.sequences()[-1] == count - 1)
    assert list(dict.fromkeys(listener.sequences())) == [*range(count)]  # each came, and first in its order
    wait_for(lambda: listener.payloads("gr-localize/demo/state")[-1] == "online")


@pytest.mark.parametrize("qos", [1, 2])
def test_acknowledgements_get_lost(start_mosquitto, open_sink, listen, start_proxy, make_fix, qos, monkeypatch):
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(outbox, "LAST_PAUSE_S", 0.02)
    broker = start_mosquitto()
    proxy, listener = start_proxy(broker.port, refusals=2), listen(broker.port)
    sink = open_sink(f"mqtt://127.0.0.1:{proxy.port}", qos=qos)
    for sequence in range(150):
        if sequence % 10 == 5:
            wait_for(lambda: sink.backlog == 0)
            proxy.cut_at = 1 if sequence % 20 == 5 or qos == 1 else 2  # for QoS 2 PUBREC and PUBCOMP in turn
        sink.publish(make_fix(sequence=sequence))
        wait_for(lambda: proxy.cut_at == 0)
    wait_for(lambda: sink.backlog == 0)
    assert proxy.cuts == 15
    assert (sink.sent, sink.dropped) == (150, 0)
    wait_for(lambda: listener.sequences()[-1] == 149)
    received = listener.sequences()
    if qos == 2:
        assert received == [*range(150)]
    else:
        assert len(received) > 150  # what the standard calls at least once
    assert list(dict.fromkeys(received)) == [*range(150)]


def test_acknowledgements_of_the_state_get_lost(start_mosquitto, open_sink, listen, start_proxy, make_fix, monkeypatch):
    """As often as a broker would take them at a time, and more. What is not acknowledged is sent again by itself."""
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(outbox, "LAST_PAUSE_S", 0.02)
    broker = start_mosquitto()
    proxy, listener = start_proxy(broker.port, refusals=2), listen(broker.port)
    proxy.cut_at = 2  # the first answer of a connection is that it is one
    sink = open_sink(f"mqtt://127.0.0.1:{proxy.port}", station="demo")
    for cuts in range(1, 26):
        wait_for(lambda cuts=cuts: proxy.cuts == cuts)
        proxy.cut_at = 2 if cuts < 25 else 0
    sink.publish(make_fix())
    wait_for(lambda: sink.sent == 1)
    wait_for(lambda: listener.payloads("gr-localize/demo/state")[-1] == "online")
    assert listener.payloads("gr-localize/demo/state").count("online") <= 26


def test_a_broker_that_hangs_holds_up_nobody(start_mosquitto, open_sink, make_fix, monkeypatch):
    monkeypatch.setattr(mqtt_sink, "ANSWER_S", 0.2)
    monkeypatch.setattr(mqtt_sink, "CONNECT_S", 0.2)
    broker = start_mosquitto()
    sink = open_sink(broker.url, capacity=20, linger_ms=0)
    wait_for(lambda: sink.state == "connected")
    broker.hang()
    for sequence in range(200):
        assert sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: "no answer" in sink.state)
    assert sink.dropped >= 100
    broker.wake()
    wait_for(lambda: sink.backlog == 0)
    assert sink.sent + sink.dropped == 200


@pytest.mark.parametrize("qos", [1, 2])
def test_who_may_not_publish_keeps_what_it_has(start_mosquitto, open_sink, listen, make_fix, tmp_path, qos):
    rules = tmp_path / "acl"
    rules.write_text("topic read #\n")
    broker = start_mosquitto(f"acl_file {rules}")
    listener = listen(broker.port)
    sink = open_sink(broker.url, qos=qos)
    for sequence in range(3):
        sink.publish(make_fix(sequence=sequence))
    wait_for(lambda: "gr-localize/demo/fix" in sink.state)
    assert (sink.sent, sink.dropped, sink.backlog) == (0, 0, 3)
    rules.write_text("topic readwrite #\n")
    os.kill(broker.pid, signal.SIGHUP)
    wait_for(lambda: sink.sent == 3)
    wait_for(lambda: listener.sequences() == [0, 1, 2])


def test_a_fix_that_is_too_long_for_the_broker_does_not_hold_up_the_others(
    start_mosquitto, open_sink, listen, make_fix
):
    broker = start_mosquitto("max_packet_size 2000")
    listener = listen(broker.port)
    sink = open_sink(broker.url)
    sink.publish(make_fix(sequence=1))
    sink.publish(make_fix(sequence=2, stream="x" * 2000))
    sink.publish(make_fix(sequence=3))
    wait_for(lambda: sink.backlog == 0)
    assert (sink.sent, sink.dropped) == (2, 1)
    wait_for(lambda: listener.sequences() == [1, 3])


def test_passwords(start_mosquitto, open_sink, listen, make_fix, tmp_path, caplog):
    file = tmp_path / "passwords"
    file.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", file, "station", "p@ss/w"], check=True, capture_output=True)
    broker = start_mosquitto(f"password_file {file}")
    wrong = open_sink(f"mqtt://station:hunter2@127.0.0.1:{broker.port}")
    wrong.publish(make_fix())
    wait_for(lambda: "refuses the connection: Not authorized" in wrong.state)
    wait_for(lambda: caplog.records)
    assert "hunter2" not in wrong.state + caplog.text
    assert wrong.backlog == 1
    right = open_sink(f"mqtt://station:p%40ss%2Fw@127.0.0.1:{broker.port}")
    right.publish(make_fix())
    wait_for(lambda: right.sent == 1)


def test_tls(start_mosquitto, open_sink, make_fix, tmp_path):
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out certificate.pem"
    )
    subject = " -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run((request + subject).split(), cwd=tmp_path, check=True, capture_output=True)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    files = (f"certfile {certificate}", f"keyfile {key}", f"cafile {certificate}", "require_certificate true")
    url = f"mqtts://localhost:{start_mosquitto(*files).port}"
    sink = open_sink(url, ca_file=certificate, cert_file=certificate, key_file=key, station="demo")
    sink.publish(make_fix())
    wait_for(lambda: sink.sent == 1)
    nobody = open_sink(url, ca_file=certificate)
    wait_for(lambda: nobody.state not in ("connected", "not connected yet"))
    stranger = open_sink(url)
    wait_for(lambda: "certificate verify failed" in stranger.state)


def test_what_has_no_broker_at_its_port(open_sink, make_fix):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sink = open_sink(f"mqtt://127.0.0.1:{port}", linger_ms=0)
    assert sink.publish(make_fix())
    wait_for(lambda: "refused" in sink.state)
    sink.close()
    assert (sink.sent, sink.dropped) == (0, 1)


def test_something_else_at_its_port(start_redis, open_sink, monkeypatch):
    """It never says what a broker would."""
    monkeypatch.setattr(mqtt_sink, "CONNECT_S", 0.3)
    sink = open_sink(f"mqtt://127.0.0.1:{start_redis().port}")
    wait_for(lambda: sink.state not in ("connected", "not connected yet"))


def test_a_name_becomes_one_level():
    assert topic_level("two hills") == "two hills"
    assert topic_level("a/b+c#d%e\0") == "a%2Fb%2Bc%23d%25e%00"
    assert topic_level("Zürich") == "Zürich"


def test_a_name_that_no_topic_holds(open_sink, start_mosquitto, make_fix):
    sink = open_sink(start_mosquitto().url)
    with pytest.raises(ConfigError, match="too long"):
        sink.publish(make_fix(station="x" * 66_000))
    assert json.loads(fix_to_json(make_fix(station="x" * 66_000)))  # as JSON it is all right


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://host", MqttAddress("host", 1883, None, None, False)),
        ("mqtts://host/", MqttAddress("host", 8883, None, None, True)),
        ("mqtt://u%40:p%3A%2F@[::1]:99", MqttAddress("::1", 99, "u@", "p:/", False)),
    ],
)
def test_addresses(url, address):
    assert mqtt_address(url) == address


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "tcp://host"}, "url='tcp://host'"),
        ({"url": "mqtt://"}, "url='mqtt://'"),
        ({"url": "mqtt://host:99999"}, "url='mqtt://host:99999'"),
        ({"url": "mqtt://u:hunter2@host:0"}, "url='mqtt://u:…@host:0'"),
        ({"url": "mqtt://:hunter2@host"}, "a password belongs to a user"),
        ({"url": "mqtt://station:hunter2/2@host"}, "in a password are %2F"),
        ({"url": "mqtt://host/topic"}, "url='mqtt://host/topic'"),
        ({"topic": ""}, "topic=''"),
        ({"topic": "a//b"}, "topic='a//b'"),
        ({"topic": "a/+"}, "topic='a/+'"),
        ({"topic": "$SYS"}, "topic='$SYS'"),
        ({"qos": 3}, "qos=3"),
        ({"capacity": 0}, "capacity=0"),
        ({"linger_ms": -1}, "linger_ms=-1"),
        ({"ca_file": "ca.pem"}, "ca_file, cert_file and key_file are for mqtts://"),
        ({"url": "mqtts://host", "ca_file": "/nowhere/ca.pem"}, "ca_file='/nowhere/ca.pem'"),
        ({"url": "mqtts://host", "key_file": "ours.key"}, "wanted both"),
    ],
)
def test_bad_parameter_is_named(options, named):
    with pytest.raises(ConfigError) as raised:
        MqttFixSink(**options)
    assert named in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingExtraError, match=r"gr-localize\[mqtt\]"):
        MqttFixSink()
