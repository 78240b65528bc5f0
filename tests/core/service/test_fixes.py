"""Fixes over HTTP: pages, latest, files for maps, and the stream of events."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import httpx
import numpy as np
import pytest
from localize_core.model.contract import LikelihoodGrid
from localize_core.service import fixes as routes
from localize_core.service.history import FixHistory
from localize_core.service.service import Service, StationInfo, model_service
from localize_core.serving.likelihood import Likelihood
from localize_core.wire.fix_json import fix_from_dict, fix_to_dict

WAIT_S = 30.0


class Events:
    """A stream of server-sent events, read by a client that knows the format from its specification."""

    def __init__(self, http: httpx.Client, *, headers: dict[str, str] | None = None, **query: Any) -> None:
        self._context = http.stream("GET", "/fixes/stream", params=query, headers=headers)
        self.response = self._context.__enter__()
        self._lines = self.response.iter_lines()

    def next(self) -> tuple[str, str | None, Any]:
        """Name, id and data of the next event."""
        name, number, data = "message", None, ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            if not line:
                return name, number, json.loads(data) if data else None
            if field == "event":
                name = value
            elif field == "id":
                number = value
            elif field == "data":
                data += value
            else:
                assert line.startswith(":")
                return "comment", None, line
        raise EOFError

    def close(self) -> None:
        self._context.__exit__(None, None, None)


@pytest.fixture
def service() -> Service:
    return Service(history=FixHistory(10))


@pytest.fixture
def events(client, service) -> Iterator[Callable[..., Events]]:
    http, opened = client(service), []

    def open_stream(**options: Any) -> Events:
        opened.append(Events(http, **options))
        return opened[-1]

    yield open_stream
    for each in opened:
        each.close()


def test_pages_go_back_and_forward(client, service, make_fix):
    cursors = [service.publish(make_fix(sequence=number)) for number in range(8)]
    http = client(service)
    first = http.get("/fixes", params={"limit": 3}).json()
    assert [each["fix"]["sequence"] for each in first["fixes"]] == [7, 6, 5]
    assert (first["newest"], first["older"]) == (cursors[7], cursors[5])
    fix_from_dict(first["fixes"][0]["fix"])
    second = http.get("/fixes", params={"limit": 10, "before": first["older"]}).json()
    assert [each["fix"]["sequence"] for each in second["fixes"]] == [4, 3, 2, 1, 0]
    assert second["older"] is None
    service.publish(make_fix(sequence=8))
    after = http.get("/fixes", params={"after": cursors[6]}).json()
    assert [each["fix"]["sequence"] for each in after["fixes"]] == [7, 8]
    assert http.get("/fixes", params={"after": after["newest"]}).json() == {
        "fixes": [],
        "older": None,
        "newest": after["newest"],
    }


def test_pages_of_a_station_or_a_status(client, service, make_fix):
    service.publish(make_fix(station="a", sequence=1))
    service.publish(make_fix(station="b", sequence=2, reason="no_emitter", confidence=0.1))
    service.publish(make_fix(station="a", sequence=3, reason="no_emitter", confidence=0.1))
    http = client(service)

    def sequences(**query: Any) -> list[int]:
        return [each["fix"]["sequence"] for each in http.get("/fixes", params=query).json()["fixes"]]

    assert sequences(station="a") == [3, 1]
    assert sequences(status="no_fix") == [3, 2]
    assert sequences(station="a", status="ok") == [1]
    assert http.get("/fixes/latest").json()["sequence"] == 3
    assert http.get("/fixes/latest", params={"station": "b"}).json()["sequence"] == 2


def test_before_the_first_fix(client, service):
    http = client(service)
    assert http.get("/fixes").json() == {"fixes": [], "older": None, "newest": None}
    assert http.get("/fixes/latest").status_code == 404
    assert http.get("/fixes.geojson").json()["features"] == []


def test_questions_that_make_no_sense(client, service):
    http = client(service)
    for path, field in (
        ("/fixes?limit=0", "limit"),
        ("/fixes?limit=1001", "limit"),
        ("/fixes?before=x", "before"),
        ("/fixes?before=-1", "before"),
        ("/fixes?before=1&after=1", "after"),
        ("/fixes?status=good", "status"),
        ("/fixes/stream?history=-1", "history"),
    ):
        response = http.get(path)
        assert (path, response.status_code, response.json()["error"]["field"]) == (path, 422, field)


def test_files_for_maps(client, service, make_fix):
    service.publish(make_fix(station="a"))
    service.publish(make_fix(station="b"))
    http = client(service)
    features = http.get("/fixes.geojson", params={"station": "a"})
    assert features.headers["Content-Type"] == "application/geo+json"
    assert features.json()["type"] == "FeatureCollection"
    assert "<kml" in http.get("/fixes.kml").text


def test_fixes_come_as_they_are_published(service, events, make_fix):
    stream = events()
    assert stream.response.headers["Content-Type"].startswith("text/event-stream")
    name, _, data = stream.next()
    assert (name, data) == ("stations", {"stations": []})
    fix = make_fix()
    cursor = service.publish(fix)
    found = [stream.next() for _ in range(2)]
    assert ("fix", str(cursor), fix_to_dict(fix)) in found
    assert [data["stations"][0]["name"] for name, _, data in found if name == "stations"] == ["demo"]


def test_history_comes_first_and_a_station_alone(service, events, make_fix):
    for number in range(4):
        service.publish(make_fix(station="ab"[number % 2], sequence=number))
    stream = events(history=3, station="b")
    assert stream.next()[0] == "stations"
    assert [stream.next()[2]["sequence"] for _ in range(2)] == [1, 3]
    service.publish(make_fix(station="a", sequence=4))
    service.publish(make_fix(station="b", sequence=5))
    assert stream.next()[2]["sequence"] == 5


def test_a_stream_goes_on_where_it_was(service, events, make_fix):
    cursors = [service.publish(make_fix(sequence=number)) for number in range(4)]
    stream = events(headers={"Last-Event-ID": str(cursors[1])}, history=1)
    assert stream.next()[0] == "stations"
    assert [stream.next()[2]["sequence"] for _ in range(2)] == [2, 3]


def test_what_a_slow_reader_has_missed_is_said(service, events, make_fix):
    cursors = [service.publish(make_fix(sequence=number)) for number in range(25)]
    stream = events(headers={"Last-Event-ID": str(cursors[3])})
    assert stream.next()[0] == "stations"
    assert stream.next() == ("skipped", None, {"count": 11})
    assert stream.next()[2]["sequence"] == 15


def test_a_cursor_of_another_run_begins_at_the_beginning(service, events, make_fix):
    service.publish(make_fix(sequence=7))
    for stranger in ("17", str(2**53)):
        stream = events(headers={"Last-Event-ID": stranger})
        assert stream.next()[0] == "stations"
        assert stream.next()[2]["sequence"] == 7
    assert events(headers={"Last-Event-ID": "none"}).next()[0] == "stations"


def test_a_reader_that_stalls_holds_nobody_up(service, client, make_fix):
    """It does not read: what it misses is neither kept for it nor sent to it later."""
    http = client(service)
    with socket.create_connection((http.base_url.host, http.base_url.port)) as stalled:
        stalled.sendall(b"GET /fixes/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(12) == b"HTTP/1.1 200"
        reader = Events(http)
        assert reader.next()[0] == "stations"
        many, long = 400, "x" * 50_000  # 20 MB: more than the kernel keeps for a connection
        for number in range(many):
            service.publish(make_fix(sequence=number, id=long))
        last = None
        while last != many - 1:
            name, _, data = reader.next()
            last = data["sequence"] if name == "fix" else last
        reader.close()
        stalled.settimeout(WAIT_S)
        received, skipped = b"", False
        while f'"sequence":{many - 1},'.encode() not in received:
            received = received[-100_000:] + stalled.recv(1 << 20)
            skipped |= b"event: skipped" in received
        assert skipped


def test_streams_end_when_the_server_stops(service, serve):
    server = serve(service)
    ended = threading.Event()
    with httpx.Client(base_url=server.url, timeout=WAIT_S) as http:
        stream = Events(http)
        assert stream.next()[0] == "stations"

        def read() -> None:
            try:
                while True:
                    stream.next()
            except EOFError:
                ended.set()

        reader = threading.Thread(target=read)
        reader.start()
        server.stop()
        assert ended.wait(WAIT_S)
        reader.join()
    server.stop()


def test_a_hundred_streams(service, client, make_fix):
    http = client(service)
    address = (http.base_url.host, http.base_url.port)
    streams = [socket.create_connection(address) for _ in range(100)]
    try:
        for stream in streams:
            stream.settimeout(WAIT_S)
            stream.sendall(b"GET /fixes/stream?history=10 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for number in range(5):
            service.publish(make_fix(sequence=number))
        for stream in streams:
            received = bytearray()
            while received.count(b"event: fix\n") < 5:
                received += stream.recv(1 << 16)
        assert http.get("/api/v1/inference/health").json()["service"]["streams"] == 100
    finally:
        for stream in streams:
            stream.close()
    deadline = time.monotonic() + WAIT_S
    while http.get("/api/v1/inference/health").json()["service"]["streams"]:
        assert time.monotonic() < deadline


def test_a_stream_that_has_nothing_to_say_is_kept_alive(service, events, monkeypatch):
    monkeypatch.setattr(routes, "HEARTBEAT_S", 0.05)
    stream = events()
    assert stream.next()[0] == "stations"
    assert stream.next()[0] == "comment"


def test_too_many_streams(service, events, monkeypatch):
    monkeypatch.setattr(routes, "MAX_STREAMS", 1)
    assert events().next()[0] == "stations"
    assert events().response.status_code == 503


def test_stations_tell_their_state(make_engine, client):
    engine = make_engine()
    service = model_service(engine)
    http = client(service)
    (station,) = http.get("/stations").json()["stations"]
    assert (station["name"], station["state"], station["area"], station["likelihood"]) == ("site", "ready", None, False)
    assert station["receivers"][1] == {"name": "r1", "latitude": 47.1, "longitude": 8.1, "altitude_m": 0.0}
    stream = Events(http)
    assert stream.next()[2]["stations"][0]["state"] == "ready"
    engine.health.report("model_error", "it fails")
    assert stream.next()[2]["stations"][0]["state"] == "degraded"
    stream.close()


def test_no_likelihood(make_engine, client):
    http = client(make_engine())
    for name in ("site", "elsewhere", "no where/at all"):
        response = http.get(f"/stations/{name}/likelihood")
        assert (name, response.status_code, response.json()["error"]["code"]) == (name, 404, "no_likelihood")


def test_one_likelihood_for_all_who_look(make_engine, client, monkeypatch):
    engine, asked = make_engine(), []
    grid = LikelihoodGrid(south=46.0, west=7.0, north=48.0, east=9.0, rows=2, columns=1)

    def likelihood():
        asked.append(len(asked))
        probability = np.array([[0.25], [0.75]], np.float32)
        return Likelihood("site", "a", asked[-1], datetime(2026, 1, 2, tzinfo=timezone.utc), grid, probability)

    monkeypatch.setattr(engine, "likelihood", likelihood)
    monkeypatch.setattr(routes, "LIKELIHOOD_S", 60.0)
    http = client(engine)
    found = [http.get("/stations/site/likelihood").json() for _ in range(3)]
    assert [each["sequence"] for each in found] == [0, 0, 0]
    assert found[0]["probability"] == [0.75, 0.25]  # north first
    monkeypatch.setattr(routes, "LIKELIHOOD_S", 0.0)
    http = client(engine)
    assert [http.get("/stations/site/likelihood").json()["sequence"] for _ in range(2)] == [1, 2]


def test_a_station_that_is_known_beforehand(client):
    http = client(Service(stations=(StationInfo("here", 1e8, (), (1.0, 2.0, 3.0, 4.0)),)))
    assert http.get("/stations").json()["stations"][0]["area"] == {
        "south": 1.0,
        "west": 2.0,
        "north": 3.0,
        "east": 4.0,
    }


def test_map_settings(client, service):
    tiles = "https://{s}.tiles.example.org/{z}/{x}/{y}.png"
    http = client(service, tiles=tiles, attribution="© somebody")
    assert http.get("/map/settings").json() == {"tiles": tiles, "attribution": "© somebody"}
    assert "img-src 'self' data: blob: https://*.tiles.example.org;" in http.get("/").headers["Content-Security-Policy"]
    assert client(service).get("/map/settings").json() == {"tiles": None, "attribution": ""}
