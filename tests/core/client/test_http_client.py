"""Fixes as server-sent events: from our own service, and from servers that behave otherwise."""

from __future__ import annotations

import http.server
import itertools
import socket
import ssl
import threading
import time

import pytest
from localize_core.client import NoFixError, SubscribeError, http_client, subscribe
from localize_core.wire.fix_json import fix_to_json

pytest.importorskip("httpx_sse")
pytest.importorskip("fastapi")

from localize_core.service.history import FixHistory
from localize_core.service.server import HttpServer
from localize_core.service.service import Service
from localize_core.service.settings import HttpSettings

LIMIT_S = 20.0
TOKEN = "0123456789abcdef"


@pytest.fixture
def serve():
    servers = []

    def serve(**settings):
        service = Service(history=FixHistory(50))
        servers.append(HttpServer(service, HttpSettings(**({"port": 0} | settings))))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.stop()


@pytest.fixture
def answer_with():
    """A maker of servers whose answers a function writes: the address, and the requests that came."""
    servers = []

    def make(write, tls=None):
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append((self.path, self.headers))
                write(self)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"{'http' if tls is None else 'https'}://localhost:{server.server_port}", requests

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def events(handler, *lines, content_type="text/event-stream"):
    handler.send_response(200)
    handler.send_header("Content-Type", content_type)
    handler.end_headers()
    handler.wfile.write("".join(f"{line}\n" for line in lines).encode())


def test_gets_the_fixes_of_the_service(serve, make_fix, wait_for):
    server = serve()
    with subscribe(server.url, timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        published = [make_fix(station=name, sequence=n) for n in (1, 2) for name in ("a/b c", "b")]
        for fix in published:
            server.service.publish(fix)
        assert list(itertools.islice(fixes, 4)) == published
    with subscribe(server.url, station="a/b c", history=3, timeout_s=LIMIT_S) as fixes:
        assert list(itertools.islice(fixes, 1)) == published[2:3]
        cursor = fixes.cursor
    with subscribe(server.url, since=cursor, timeout_s=LIMIT_S) as fixes:
        assert next(fixes) == published[3]


def test_what_comes_while_the_connection_is_lost_comes_after_it(serve, make_fix, wait_for, relay, caplog):
    server = serve()
    network = relay(server.port)
    with subscribe(f"http://127.0.0.1:{network.port}/", timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        server.service.publish(make_fix(sequence=0))
        assert next(fixes).sequence == 0
        for first in (1, 21):
            network.cut()
            wait_for(lambda: fixes.state == "disconnected")
            for number in range(first, first + 20):
                server.service.publish(make_fix(sequence=number))
            network.mend()
            assert [fix.sequence for fix in itertools.islice(fixes, 20)] == list(range(first, first + 20))
        assert fixes.missed == 0
        network.cut()
        for number in range(41, 111):  # the history holds 50
            server.service.publish(make_fix(sequence=number))
        network.mend()
        assert [fix.sequence for fix in itertools.islice(fixes, 50)] == list(range(61, 111))
    assert (fixes.missed, fixes.repeated) == (20, 0)
    assert caplog.text.count('skipped, older than its history: {"count":20}') == 1


def test_comes_back_after_the_service_was_away(serve, make_fix, wait_for):
    server = serve()
    with subscribe(server.url, timeout_s=LIMIT_S) as fixes:
        wait_for(lambda: fixes.state == "connected")
        server.stop()
        wait_for(lambda: fixes.state == "disconnected")
        again = serve(port=server.port)
        again.service.publish(make_fix())
        assert next(fixes) == make_fix()


@pytest.mark.parametrize("encrypted", [False, True])
def test_close_ends_it_while_the_service_says_nothing(encrypted, answer_with, certificate, wait_for):
    ended = threading.Event()

    def write(handler):
        events(handler, ": nothing yet", "")
        ended.wait(LIMIT_S)

    url, _ = answer_with(write, tls=certificate if encrypted else None)
    with subscribe(url, ca_file=certificate[0] if encrypted else None) as fixes:
        wait_for(lambda: fixes.state == "connected")
        fixes.close()
        assert list(fixes) == []
        wait_for(lambda: fixes.state == "closed")  # before the service says anything
    ended.set()


def test_asks_for_what_is_wanted_and_shows_its_token(answer_with, make_fix):
    line = fix_to_json(make_fix(station="a b"))
    url, requests = answer_with(lambda handler: events(handler, "event: fix", "id: 17", f"data: {line}", ""))
    with subscribe(f"{url}/below/", station="a b", history=5, token="secret", timeout_s=LIMIT_S) as fixes:
        assert next(fixes) == make_fix(station="a b")
        while len(requests) < 2:
            time.sleep(0.01)
    assert requests[0][0] == "/below/fixes/stream?station=a+b&history=5"
    assert requests[0][1]["Authorization"] == "Bearer secret"
    assert requests[0][1]["Last-Event-ID"] is None
    assert requests[1][0] == "/below/fixes/stream?station=a+b"
    assert requests[1][1]["Last-Event-ID"] == "17"


def test_what_is_no_fix_and_other_events_are_passed_over(answer_with, make_fix):
    lines = [": hello", "event: other", "data: {}", "", "event: fix", "data: {", "data: }", "", "data: {}", ""]
    lines += ["event: fix", f"data: {fix_to_json(make_fix())}", ""]
    url, _ = answer_with(lambda handler: events(handler, *lines))
    with subscribe(url, timeout_s=LIMIT_S) as fixes:
        assert next(fixes) == make_fix()
    assert fixes.malformed == 1


@pytest.mark.parametrize(
    ("code", "headers", "wanted"),
    [
        (401, {}, "401 Unauthorized: look at the token"),
        (404, {}, "404 Not Found"),
        (308, {"Location": "https://elsewhere/"}, "the address is https://elsewhere/"),
        (200, {"Content-Type": "text/html"}, "no stream of events at /fixes/stream"),
    ],
)
def test_an_answer_that_is_no_stream_is_an_error_at_once(answer_with, code, headers, wanted):
    def write(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    url, _ = answer_with(write)
    with subscribe(url) as fixes, pytest.raises(SubscribeError, match=f"^{url}: .*{wanted}"):
        next(fixes)


def test_a_service_that_is_overloaded_is_asked_again(answer_with, make_fix):
    def write(handler):
        if len(requests) < 3:
            handler.send_error(503)
        else:
            events(handler, "event: fix", f"data: {fix_to_json(make_fix())}", "")

    url, requests = answer_with(write)
    with subscribe(url, timeout_s=LIMIT_S) as fixes:
        assert next(fixes) == make_fix()


def test_a_service_that_falls_silent_is_a_lost_connection(wait_for, monkeypatch):
    monkeypatch.setattr(http_client, "SILENCE_S", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        subscribe(f"http://127.0.0.1:{mute.getsockname()[1]}") as fixes,
    ):
        wait_for(lambda: fixes.state == "disconnected")
        assert fixes.reason == "silent for 0.1 s"


def test_over_tls(answer_with, certificate, make_fix):
    url, _ = answer_with(
        lambda handler: events(handler, "event: fix", f"data: {fix_to_json(make_fix())}", ""), tls=certificate
    )
    with subscribe(url, ca_file=certificate[0], timeout_s=LIMIT_S) as fixes:
        assert next(fixes) == make_fix()
    with subscribe(url, timeout_s=0.5) as fixes, pytest.raises(NoFixError, match="CERTIFICATE_VERIFY_FAILED"):
        next(fixes)
