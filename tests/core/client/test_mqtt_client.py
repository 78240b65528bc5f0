"""Fixes from a real Mosquitto, published by our own sink."""

from __future__ import annotations

import itertools
import socket
import subprocess

import pytest
from localize_core.client import NoFixError, SubscribeError, mqtt_client, subscribe
from localize_core.sinks.mqtt_sink import MqttFixSink

pytest.importorskip("paho.mqtt")

LIMIT_S = 20.0


@pytest.fixture
def server(start_mosquitto):
    return start_mosquitto()


@pytest.fixture
def publish(server, wait_for):
    def publish(*fixes, **options):
        sink = MqttFixSink(server.url, **options)
        sink.open()
        try:
            for fix in fixes:
                assert sink.publish(fix)
            wait_for(lambda: sink.sent == len(fixes))
        finally:
            sink.close()

    return publish


def test_gets_the_fixes_of_all_stations_or_of_one(server, publish, make_fix, wait_for):
    with (
        subscribe(server.url, timeout_s=LIMIT_S) as all_of_them,
        subscribe(server.url, station="a/+", timeout_s=LIMIT_S) as one,
    ):
        wait_for(lambda: all_of_them.state == one.state == "connected")
        published = [make_fix(station=name, sequence=n) for n in (1, 2) for name in ("a/+", "b")]
        publish(*published)
        assert list(itertools.islice(all_of_them, 4)) == published
        assert list(itertools.islice(one, 2)) == published[::2]


def test_the_retained_fix_comes_first_where_it_is_wanted(server, publish, make_fix):
    publish(make_fix(sequence=7), topic="own/topic", retain=True)
    with subscribe(server.url, topic="own/topic", history=1, timeout_s=LIMIT_S) as fixes:
        assert next(fixes).sequence == 7
    with subscribe(server.url, topic="own/topic", timeout_s=0.3) as fixes, pytest.raises(NoFixError):
        next(fixes)


def test_the_broker_keeps_what_comes_while_the_connection_is_lost(server, publish, make_fix, wait_for, relay):
    network = relay(server.port)
    with subscribe(f"mqtt://127.0.0.1:{network.port}", timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        network.cut()
        wait_for(lambda: fixes.state == "disconnected")
        publish(*(make_fix(sequence=number) for number in range(20)))
        network.mend()
        assert [fix.sequence for fix in itertools.islice(fixes, 20)] == list(range(20))
    assert (fixes.missed, fixes.repeated) == (0, 0)


def test_comes_back_after_the_broker_was_away(server, publish, make_fix, wait_for):
    with subscribe(server.url, timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        server.stop()
        wait_for(lambda: fixes.state == "disconnected")
        server.start()  # it has forgotten everything
        wait_for(lambda: fixes.state == "connected")
        publish(make_fix())
        assert next(fixes) == make_fix()


def test_the_oldest_give_way_to_a_reader_that_is_slow(server, publish, make_fix, wait_for, caplog):
    with subscribe(server.url, timeout_s=LIMIT_S, high_water_mark=5) as fixes:
        wait_for(lambda: fixes.state == "connected")
        publish(*(make_fix(sequence=number) for number in range(30)))
        wait_for(lambda: fixes.overflowed == 25)
        assert [fix.sequence for fix in itertools.islice(fixes, 5)] == list(range(25, 30))
    assert caplog.text.count("the oldest gives way") == 1


def test_a_wrong_password_is_an_error_at_once(start_mosquitto, tmp_path, make_fix):
    (tmp_path / "passwords").write_text("me:right\n")
    subprocess.run(["mosquitto_passwd", "-U", tmp_path / "passwords"], check=True)
    server = start_mosquitto(f"password_file {tmp_path / 'passwords'}")
    address = server.url.removeprefix("mqtt://")
    for url in (server.url, f"mqtt://me:hush@{address}"):
        with subscribe(url) as fixes, pytest.raises(SubscribeError, match=f"^mqtt://{address}: Not auth") as caught:
            next(fixes)
        assert "hush" not in str(caught.value)
    with subscribe(f"mqtt://me:right@{address}", timeout_s=0.3) as fixes:
        with pytest.raises(NoFixError):
            next(fixes)
        assert fixes.state == "connected"


def test_a_broker_that_hangs_is_a_lost_connection(server, wait_for, monkeypatch):
    monkeypatch.setattr(mqtt_client, "KEEPALIVE_S", 1)
    with subscribe(server.url) as fixes:
        wait_for(lambda: fixes.state == "connected")
        server.hang()
        wait_for(lambda: fixes.state == "disconnected")
        server.wake()
        wait_for(lambda: fixes.state == "connected")


def test_over_tls(start_mosquitto, certificate, make_fix, wait_for):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file, key = certificate
    listener = [f"listener {port} 127.0.0.1", f"certfile {file}", f"keyfile {key}"]
    start_mosquitto(*listener)
    url = f"mqtts://localhost:{port}"
    with subscribe(url, ca_file=file, timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        sink = MqttFixSink(url, ca_file=str(file))
        sink.open()
        sink.publish(make_fix())
        assert next(fixes) == make_fix()
        sink.close()
    with subscribe(url, timeout_s=0.5) as fixes, pytest.raises(NoFixError, match="CERTIFICATE_VERIFY_FAILED"):
        next(fixes)
