"""Fixes from a real Redis, published by our own sink."""

from __future__ import annotations

import itertools
import socket

import pytest
from localize_core.client import NoFixError, SubscribeError, redis_client, subscribe
from localize_core.sinks.redis_sink import RedisFixSink

redis = pytest.importorskip("redis")

LIMIT_S = 20.0


@pytest.fixture
def server(start_redis):
    return start_redis()


@pytest.fixture
def publish(server, wait_for):
    sinks = []

    def publish(*fixes, **options):
        sinks.append(RedisFixSink(server.url, **options))
        sinks[-1].open()
        for fix in fixes:
            assert sinks[-1].publish(fix)
        wait_for(lambda: sinks[-1].sent == len(fixes))

    yield publish
    for sink in sinks:
        sink.close()


def test_follows_the_streams_of_all_stations_from_now_on(server, publish, make_fix, wait_for, monkeypatch):
    monkeypatch.setattr(redis_client, "LOOK_S", 0.1)
    publish(make_fix(station="a", sequence=1))
    with subscribe(server.url, timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        publish(make_fix(station="a", sequence=2))
        assert (next(fixes).station, fixes.missed) == ("a", 0)
        publish(make_fix(station="b", sequence=1), make_fix(station="b", sequence=2))  # nobody knew that one
        assert [(fix.station, fix.sequence) for fix in itertools.islice(fixes, 2)] == [("b", 1), ("b", 2)]
    assert fixes.received == 3


def test_on_an_empty_server_the_first_station_is_found(server, publish, make_fix, wait_for, monkeypatch):
    monkeypatch.setattr(redis_client, "LOOK_S", 0.1)
    with subscribe(server.url, timeout_s=LIMIT_S, prefix="my[own]") as fixes:
        wait_for(lambda: fixes.state == "connected")
        publish(make_fix(), make_fix(sequence=413), prefix="my[own]")
        assert [fix.sequence for fix in itertools.islice(fixes, 2)] == [412, 413]


def test_history_comes_first_oldest_first(server, publish, make_fix):
    publish(*(make_fix(station=station, sequence=number) for number in range(10) for station in "ab"))
    with subscribe(server.url, history=3, timeout_s=LIMIT_S) as fixes:
        got = [(fix.station, fix.sequence) for fix in itertools.islice(fixes, 6)]
    assert sorted(got) == [(station, number) for station in "ab" for number in (7, 8, 9)]
    with subscribe(server.url, station="a", history=300, timeout_s=LIMIT_S) as fixes:
        assert [fix.sequence for fix in itertools.islice(fixes, 10)] == list(range(10))


def test_goes_on_after_a_cursor(server, publish, make_fix):
    publish(*(make_fix(sequence=number) for number in range(150)))
    with subscribe(server.url, station="demo", history=150, timeout_s=LIMIT_S) as fixes:
        assert [fix.sequence for fix in itertools.islice(fixes, 5)] == list(range(5))
        cursor = fixes.cursor
    with subscribe(server.url, station="demo", since=cursor, timeout_s=LIMIT_S) as fixes:
        assert [fix.sequence for fix in itertools.islice(fixes, 145)] == list(range(5, 150))


def test_what_comes_while_the_connection_is_lost_comes_after_it(server, publish, make_fix, wait_for, relay):
    network = relay(server.port)
    with subscribe(f"redis://127.0.0.1:{network.port}", station="demo", timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        network.cut()
        wait_for(lambda: fixes.state == "disconnected")
        publish(*(make_fix(sequence=number) for number in range(20)))
        network.mend()
        assert [fix.sequence for fix in itertools.islice(fixes, 20)] == list(range(20))
    assert (fixes.missed, fixes.repeated) == (0, 0)


def test_waits_while_redis_is_away_and_says_so(server, publish, make_fix, wait_for, caplog):
    states = []
    with subscribe(
        server.url, station="demo", timeout_s=LIMIT_S, on_state=lambda *state: states.append(state)
    ) as fixes:
        wait_for(lambda: fixes.state == "connected")
        server.stop()
        wait_for(lambda: fixes.state == "disconnected")
        server.start()  # it has forgotten everything
        wait_for(lambda: fixes.state == "connected")
        publish(make_fix())
        assert next(fixes) == make_fix()
    assert [state for state, _ in states] == ["connected", "disconnected", "connected", "closed"]
    assert caplog.text.count("no connection, trying again") == 1


def test_what_is_no_fix_is_passed_over(server, make_fix, wait_for):
    with subscribe(server.url, station="demo", timeout_s=0.5) as fixes:
        wait_for(lambda: fixes.state == "connected")
        with redis.Redis.from_url(server.url) as client:
            client.xadd("gr-localize:stream:demo", {"fix": "{}"})
            client.xadd("gr-localize:stream:demo", {"other": "1"})
        with pytest.raises(NoFixError):
            next(fixes)
    assert fixes.malformed == 2


def test_a_wrong_password_is_an_error_at_once(start_redis):
    server = start_redis("--requirepass", "right")
    address = server.url.removeprefix("redis://")
    for url in (server.url, f"redis://:hush@{address}"):
        with subscribe(url) as fixes, pytest.raises(SubscribeError, match=f"^redis://{address}: ") as caught:
            next(fixes)
        assert "hush" not in str(caught.value)
    with subscribe(f"redis://:right@{address}", timeout_s=0.1) as fixes, pytest.raises(NoFixError):
        next(fixes)


def test_a_user_who_may_only_read_is_enough(server, publish, make_fix):
    publish(make_fix())
    url = server.url.replace("redis://", "redis://reader:hush@")
    with redis.Redis.from_url(server.url) as client:
        allowed = ("+ping", "+scan", "+xread", "+xrevrange")
        client.execute_command("ACL", "SETUSER", "reader", "on", ">hush", "~gr-localize:*", *allowed)
        with subscribe(url, history=1, timeout_s=LIMIT_S) as fixes:
            assert next(fixes) == make_fix()
        client.execute_command("ACL", "SETUSER", "reader", "-xread")
        with subscribe(url) as fixes, pytest.raises(SubscribeError, match="xread"):
            next(fixes)


def test_a_key_of_another_type_is_an_error_at_once(server):
    with redis.Redis.from_url(server.url) as client:
        client.set("gr-localize:stream:demo", "1")
    with subscribe(server.url, station="demo") as fixes, pytest.raises(SubscribeError, match="WRONGTYPE"):
        next(fixes)


def test_a_server_that_hangs_is_a_lost_connection(server, wait_for, monkeypatch):
    monkeypatch.setattr(redis_client, "CONNECT_S", 0.3)
    with subscribe(server.url, station="demo") as fixes:
        wait_for(lambda: fixes.state == "connected")
        server.hang()
        wait_for(lambda: fixes.state == "disconnected")
        server.wake()
        wait_for(lambda: fixes.state == "connected")


def test_over_tls(start_redis, certificate):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file, key = map(str, certificate)
    options = ["--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cert-file", file, "--tls-key-file", key]
    start_redis(*options, "--tls-ca-cert-file", file)
    url = f"rediss://localhost:{port}"
    with subscribe(url, ca_file=file, timeout_s=0.5) as fixes:
        with pytest.raises(NoFixError):
            next(fixes)
        assert fixes.state == "connected"
    with subscribe(url, timeout_s=0.5) as fixes, pytest.raises(NoFixError, match="CERTIFICATE_VERIFY_FAILED"):
        next(fixes)
