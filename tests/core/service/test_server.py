"""The server's own life: addresses, starts and stops."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from localize_core.errors import MissingExtraError, PublishError
from localize_core.metrics.metrics import Metrics
from localize_core.service.http_sink import HttpFixSink
from localize_core.service.server import HttpServer
from localize_core.service.service import Service, model_service
from localize_core.service.settings import http_settings


def test_an_address_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer(Service(), http_settings(port=port))
        with pytest.raises(PublishError, match=f"cannot listen at 127.0.0.1 port {port}: Address already in use"):
            server.start()


def test_an_address_of_another_machine():
    server = HttpServer(Service(), http_settings(host="192.0.2.1", token="0123456789abcdef"))
    with pytest.raises(PublishError, match=r"cannot listen at 192\.0\.2\.1"):
        server.start()


def test_it_starts_and_stops_again_and_again():
    server = HttpServer(Service(), http_settings(port=0))
    for _ in range(2):
        server.start()
        assert httpx.get(f"{server.url}fixes").status_code == 200
        server.stop()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}fixes")
    server.stop()
    deadline = time.monotonic() + 10.0
    while any(thread.name.startswith(("localize-http", "localize-request")) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


def test_stopping_at_once():
    server = HttpServer(Service(), http_settings(port=0))
    server.start()
    server.stop()


def test_ipv6():
    server = HttpServer(Service(), http_settings(host="::1", port=0))
    try:
        server.start()
    except PublishError as error:
        pytest.skip(str(error))
    assert server.url.startswith("http://[::1]:")
    assert httpx.get(f"{server.url}fixes").status_code == 200
    server.stop()


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "msgspec", "simdjson"])
def test_without_the_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"gr-localize\[serve\]"):
        HttpServer(Service())


def test_no_gnuradio():
    program = (
        "import sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None; "
        "import localize_core.service.app, localize_core.service.http_sink"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_sink_shows_what_is_published(make_fix):
    sink = HttpFixSink(port=0, history=2)
    assert not sink.publish(make_fix())
    sink.open()
    try:
        assert [sink.publish(make_fix(sequence=number)) for number in range(3)] == [True] * 3
        shown = httpx.get(f"{sink.url}fixes").json()["fixes"]
        assert [each["fix"]["sequence"] for each in shown] == [2, 1]
        assert (sink.sent, sink.dropped, sink.backlog) == (3, 1, 0)
    finally:
        sink.close()
    sink.close()
    assert not sink.publish(make_fix())


def test_a_sink_at_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sink = HttpFixSink(port=taken.getsockname()[1])
        with pytest.raises(PublishError, match="cannot listen"):
            sink.open()


def test_requests_are_measured(serve, make_engine, samples):
    engine = make_engine()
    metrics = Metrics(engine.station)
    server = serve(model_service(engine, metrics=metrics))
    with httpx.Client(base_url=server.url) as http:
        route = "/api/v1/inference/predict"
        binary = {"Content-Type": "application/octet-stream"}
        assert http.post(route, content=samples(engine).tobytes(), headers=binary).status_code == 200
        assert http.post(route, json={}).status_code == 422
        assert http.get("/fixes", params={"limit": 0}).status_code == 422
        assert http.get("/stations/x/likelihood").status_code == 404
        assert http.get("/stations/y/likelihood").status_code == 404
        scraped = http.get("/metrics")
    assert scraped.headers["Content-Type"].startswith("text/plain")
    for line in (
        f'localize_requests_total{{endpoint="{route}",station="site"}} 2.0',
        f'localize_request_errors_total{{endpoint="{route}",station="site",type="invalid"}} 1.0',
        'localize_request_errors_total{endpoint="/fixes",station="site",type="invalid"} 1.0',
        'localize_requests_total{endpoint="/stations/{name:path}/likelihood",station="site"} 2.0',
        'localize_requests_active{station="site"} 0.0',
    ):
        assert line in scraped.text.splitlines()


def test_without_metrics_there_is_no_route(serve):
    assert httpx.get(f"{serve(Service()).url}metrics").status_code == 404


def test_fixes_that_come_while_it_stops_hurt_nobody(make_fix):
    service = Service()
    server = HttpServer(service, http_settings(port=0))
    server.start()
    httpx.get(f"{server.url}fixes")
    (ring,) = service.history._watchers  # what a publisher may still hold
    server.stop()
    assert service.history._watchers == []
    ring()
    service.publish(make_fix())


def test_a_page_can_be_asked_for_by_its_head(serve):
    response = httpx.head(serve(Service()).url)
    assert (response.status_code, response.content) == (200, b"")
