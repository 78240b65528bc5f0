"""`gr-localize serve` as its own process: a station's model and a map, without GNU Radio."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from localize_apps.main import main
from localize_core.resources import shared_file
from localize_core.service.server import HttpServer
from localize_core.service.service import Service
from localize_core.service.settings import http_settings
from localize_core.sinks.zmq_sink import ZmqFixSink

WAIT_S = 60.0
BLIND = """
import sys
sys.modules["gnuradio"] = sys.modules["pmt"] = None
from localize_apps.main import main
sys.exit(main())
"""
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "http.md"
TOKEN = "0123456789abcdef"


@pytest.fixture
def start(tmp_path, model_cache) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """A starter of the command, in an interpreter that has no GNU Radio. Returns the process and its address."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, **environment: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", BLIND, "serve", "--port", "0", *map(str, arguments)]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ, **environment}
        )
        running.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"gr-localize: serving at (http://127\.0\.0\.1:\d+/)\n", line)
        assert found, line + process.stderr.read()
        return process, found[1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_a_station_answers_and_shows_its_answers(start):
    process, url = start(shared_file("examples/four_receivers.toml"))
    with httpx.Client(base_url=url, timeout=WAIT_S) as http:
        (station,) = http.get("/stations").json()["stations"]
        assert (station["state"], station["likelihood"], len(station["receivers"])) == ("ready", True, 4)
        assert station["area"]["south"] < station["receivers"][0]["latitude"] < station["area"]["north"]
        info = http.get("/api/v1/inference/model/info").json()
        noise = np.random.default_rng(0).standard_normal((4, info["samples"], 2)).astype(np.float32) * 1e-3
        answer = http.post(
            "/api/v1/inference/predict", content=noise.tobytes(), headers={"Content-Type": "application/octet-stream"}
        )
        assert answer.status_code == 200, answer.text
        assert http.get("/fixes/latest").json()["id"] == answer.json()["id"]
        likelihood = http.get(f"/stations/{station['name']}/likelihood").json()
        assert len(likelihood["probability"]) == likelihood["rows"] * likelihood["columns"]
        assert sum(likelihood["probability"]) == pytest.approx(1.0, abs=1e-3)
        metrics = http.get("/metrics").text
        assert 'localize_requests_total{endpoint="/api/v1/inference/predict"' in metrics
        (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        program = program.replace("http://127.0.0.1:8080/", url)
        example = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert example.stdout == "no_fix silence None\n"
        assert http.get("/").headers["Content-Type"].startswith("text/html")
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0


def test_a_map_of_what_another_station_publishes(start, make_fix):
    sink = ZmqFixSink("tcp://127.0.0.1:*")
    sink.open()
    try:
        process, url = start("--from", sink.bound_endpoint, GR_LOCALIZE_TOKEN=TOKEN)
        assert httpx.get(f"{url}fixes").status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        deadline, sequence = time.monotonic() + WAIT_S, 0
        while not (shown := httpx.get(f"{url}fixes", headers=headers).json()["fixes"]):
            assert time.monotonic() < deadline
            sink.publish(make_fix(sequence=sequence))  # again and again: a subscriber joins late
            sequence += 1
        assert shown[0]["fix"]["station"] == "demo"
        (station,) = httpx.get(f"{url}stations", headers=headers).json()["stations"]
        assert (station["name"], station["state"], station["likelihood"]) == ("demo", "unknown", False)
    finally:
        sink.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 0


def test_sources_that_refuse_are_told_without_password_and_end_it(capfd, monkeypatch):
    monkeypatch.delenv("GR_LOCALIZE_TOKEN", raising=False)
    server = HttpServer(Service(), http_settings(port=0, token=TOKEN))
    server.start()
    try:
        source = server.url.replace("//", "//anna:geheim@", 1)
        assert main(["serve", "--from", source, "--port", "0"]) == 1
    finally:
        server.stop()
    said = capfd.readouterr().err
    assert said.count(f"{server.url} is not shown any more: ") == 1
    assert "geheim" not in said


def test_a_source_with_a_token(start, make_fix, tmp_path):
    service = Service()
    server = HttpServer(service, http_settings(port=0, token=TOKEN))
    server.start()
    try:
        token = tmp_path / "token"
        token.write_text(f"{TOKEN}\n")
        token.chmod(0o600)
        process, url = start("--from", server.url, "--from-token-file", token, GR_LOCALIZE_TOKEN="")
        deadline, sequence = time.monotonic() + WAIT_S, 0
        while not (shown := httpx.get(f"{url}fixes").json()["fixes"]):
            assert time.monotonic() < deadline
            service.publish(make_fix(sequence=sequence))
            sequence += 1
            time.sleep(0.01)
        assert shown[0]["fix"]["station"] == "demo"
    finally:
        server.stop()
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to serve"),
        (("station.toml", "--model", "a.onnx"), "either STATION or --model"),
        (("--model", "missing.onnx"), "missing.onnx"),
        (("--from", "gopher://a"), "gopher"),
        (("--from", "http://127.0.0.1:1", "--from-token-file", "missing"), "token_file=missing: cannot be read"),
        (("--from", "tcp://127.0.0.1:1", "--from-secret-key", "missing"), "curve_server_key_file"),
        (("--from", "tcp://127.0.0.1:1", "--host", "0.0.0.0"), "a token is needed"),
        (("--from", "tcp://127.0.0.1:1", "--token", "too-short"), "16 or more printable"),
        (("--from", "tcp://127.0.0.1:1", "--token-file", "missing"), "token_file=missing: cannot be read"),
    ],
)
def test_what_cannot_be_served(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("GR_LOCALIZE_TOKEN", raising=False)
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "too-short" not in said


def test_an_address_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--from", "tcp://127.0.0.1:1", "--port", str(port)]) == 1
    assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err
