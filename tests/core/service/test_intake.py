"""What is taken on at a time: each limit is refused in its own words, and the server goes on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from localize_core.service import app, intake
from localize_core.service.service import model_service

PREDICT = "/api/v1/inference/predict"
HEALTH = "/api/v1/inference/health"
BINARY = {"Content-Type": "application/octet-stream"}
WAIT_S = 30.0


class Gate:
    """An engine's `predict` that waits until it is let go."""

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        self._predict, self.go, self.asked = predict, threading.Event(), 0

    def __call__(self, requests: Any) -> Any:
        self.asked += 1
        assert self.go.wait(WAIT_S)
        return self._predict(requests)


@pytest.fixture
def gate(make_engine, monkeypatch) -> Iterator[tuple[Any, Gate]]:
    """An engine whose answers wait, in a service that works on two requests at once."""
    monkeypatch.setattr(app, "AT_ONCE", 2)
    engine = make_engine()
    gate = Gate(engine.predict)
    monkeypatch.setattr(engine, "predict", gate)
    yield engine, gate
    gate.go.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)


def facts(http: httpx.Client) -> dict[str, Any]:
    return http.get(HEALTH).json()["service"]


def taken_on(http: httpx.Client) -> int:
    found = facts(http)
    return found["requests_waiting"] + found["requests_working"]


def test_a_body_that_is_too_large(client, make_engine):
    http = client(make_engine(), max_body_bytes=2000)
    for content in (b"x" * 2001, (b"x" * 500 for _ in range(5))):  # said beforehand, or found while it comes
        response = http.post(PREDICT, content=content, headers=BINARY)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
    assert http.post(PREDICT, content=b"x" * 2000, headers=BINARY).status_code == 422
    assert facts(http)["body_bytes"] == 0


def test_a_body_that_is_too_large_is_refused_before_it_comes(client, make_engine):
    http = client(make_engine(), max_body_bytes=2000)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port), WAIT_S) as one:
        one.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode())
        assert one.recv(12) == b"HTTP/1.1 413"


def test_too_many_bytes_on_their_way(client, make_engine):
    http = client(make_engine(), max_body_bytes=2000)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    begun = [socket.create_connection((http.base_url.host, http.base_url.port), WAIT_S) for _ in range(2)]
    try:
        for each in begun:
            each.sendall(f"{head}Content-Length: 2000\r\n\r\n".encode() + b"x" * 1900)
        wait_for(lambda: facts(http)["body_bytes"] == 3800)
        response = http.post(PREDICT, content=b"x" * 400, headers=BINARY)
        assert (response.status_code, response.json()["error"]["field"]) == (429, "body")
        assert int(response.headers["Retry-After"]) > 0
        begun[0].sendall(b"x" * 100)
        assert begun[0].recv(12) == b"HTTP/1.1 422"
    finally:
        for each in begun:
            each.close()
    wait_for(lambda: facts(http)["body_bytes"] == 0)


def test_a_body_that_stops_coming(client, make_engine, monkeypatch):
    monkeypatch.setattr(intake, "STALLED_S", 0.1)
    http = client(make_engine())
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port), WAIT_S) as one:
        one.sendall(f"{head}Content-Length: 100\r\n\r\nhalf".encode())
        assert one.recv(12) == b"HTTP/1.1 408"


def test_requests_wait_and_more_of_them_are_refused(client, gate, samples):
    engine, held = gate
    http = client(engine, queue_requests=1)
    content = samples(engine).tobytes()

    def ask() -> httpx.Response:
        return httpx.post(f"{http.base_url}{PREDICT[1:]}", content=content, headers=BINARY, timeout=WAIT_S)

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        wait_for(lambda: facts(http)["requests_working"] == 2)
        asked.append(pool.submit(ask))
        wait_for(lambda: facts(http)["requests_waiting"] == 1)
        assert facts(http)["requests_working"] == 2
        refused = ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["Retry-After"]) > 0
        held.go.set()
        assert [each.result().status_code for each in asked] == [200] * 3
    assert ask().status_code == 200
    assert (facts(http)["requests_waiting"], facts(http)["requests_working"]) == (0, 0)


def test_who_hangs_up_waits_no_longer(client, gate, samples):
    engine, held = gate
    http = client(engine)
    content = samples(engine).tobytes()
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connections = []
    for number in range(1, 5):
        connections.append(socket.create_connection((http.base_url.host, http.base_url.port), WAIT_S))
        connections[-1].sendall(head.encode() + content)
        wait_for(
            lambda number=number: sum(facts(http)[f"requests_{what}"] for what in ("waiting", "working")) == number
        )
    connections[2].close()
    wait_for(lambda: facts(http)["requests_waiting"] == 1)
    connections[0].close()  # its turn has come: nothing can call the model back
    held.go.set()
    for each in (connections[1], connections[3]):
        assert each.recv(12) == b"HTTP/1.1 200"
        each.close()
    assert 1 < held.asked <= 3  # the second and the third may have been asked together
    wait_for(lambda: facts(http)["body_bytes"] == 0)


def test_requests_that_wait_are_answered_together(client, make_engine, samples, monkeypatch):
    engine = make_engine()
    held = Gate(engine.predict)
    asked_of: list[list[str]] = []
    monkeypatch.setattr(
        engine, "predict", lambda questions: asked_of.append([q.id for q in questions]) or held(questions)
    )
    http = client(engine)
    content = samples(engine).tobytes()

    def ask(number: int) -> tuple[int, str]:
        url = f"{http.base_url}{PREDICT[1:]}?id={number}&session_id=s{number}"
        response = httpx.post(url, content=content, headers=BINARY, timeout=WAIT_S)
        return response.status_code, response.json()["id"] + response.json()["session_id"]

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(ask, 0)
        wait_for(lambda: held.asked == 1)
        others = [pool.submit(ask, number) for number in range(1, 6)]
        wait_for(lambda: facts(http)["requests_working"] == 6)
        held.go.set()
        assert first.result() == (200, "0s0")
        assert [each.result() for each in others] == [(200, f"{number}s{number}") for number in range(1, 6)]
    assert asked_of[0] == ["0"]
    assert sorted(asked_of[1]) == ["1", "2", "3", "4", "5"]


def test_one_that_fails_leaves_those_beside_it_alone(client, gate, samples):
    engine, held = gate
    http = client(engine)
    content = samples(engine).tobytes()

    def ask(body: bytes) -> int:
        return httpx.post(f"{http.base_url}{PREDICT[1:]}", content=body, headers=BINARY, timeout=WAIT_S).status_code

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, content)]
        wait_for(lambda: held.asked == 1)
        asked.append(pool.submit(ask, content[:80]))
        wait_for(lambda: facts(http)["requests_working"] == 2)
        held.go.set()
        assert [each.result() for each in asked] == [200, 422]


def test_stopping_does_not_wait_for_the_model(serve, gate, samples):
    engine, held = gate
    server = serve(model_service(engine))
    content = samples(engine).tobytes()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{server.url}{PREDICT[1:]}", content=content, headers=BINARY, timeout=WAIT_S)
        wait_for(lambda: held.asked == 1)
        server.stop()
        assert not held.go.is_set()
        held.go.set()
        assert asked.exception() is not None or asked.result().status_code == 500


def test_health_answers_while_a_large_batch_is_read(client, make_engine, samples):
    engine = make_engine()
    http = client(engine)
    iq = samples(engine)
    one = {"iq_data": np.stack([iq.real, iq.imag], axis=-1).tolist()}
    body = json.dumps({"items": [one] * 100}).encode()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            httpx.post,
            f"{http.base_url}{PREDICT[1:]}/batch",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=WAIT_S,
        )
        answered = 0
        while not asked.done():
            assert http.get(HEALTH).status_code == 200
            answered += 1
        assert answered > 1
        assert [each["ok"] for each in asked.result().json()["results"]] == [True] * 100
