"""An engine and a real Triton server: answers from there, and from here while it is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from localize_core.engine.worker import InferenceWorker
from localize_core.errors import UnavailableError
from localize_core.model.contract import Receiver
from localize_core.model.triton_repository import export_model_repository
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings

DEADLINE_MS = 2000.0
"""One that a busy machine keeps."""


@pytest.fixture(scope="module")
def server(start_triton) -> Any:
    """One that is killed, and so belongs to these tests alone."""
    return start_triton()


@pytest.fixture
def put(server, make_version) -> Callable[..., str]:
    """Put version n of a model on the server; its source string."""

    def put(name: str, version: int) -> str:
        path = make_version(version, name=f"{name}-{version}.onnx")
        export_model_repository(
            path,
            server.repository,
            name=name,
            backend="python",
            version=str(version),
            site_packages=server.site_packages,
        )
        server.load(name)
        return f"grpc://{server.address}/{name}"

    return put


def test_a_killed_server_is_bridged_and_used_again(
    server, put, make_version, engines, make_window, make_context, wait_until
):
    """Under load, all the time: every window has its fix, in order, from there or from here."""
    uri = put("bridged", 1)
    engine = engines(uri, fallback=str(make_version(9, name="local.onnx")), deadline_ms=DEADLINE_MS)
    assert engine.is_remote
    window, fixes = make_window(engine.contract), []
    worker: InferenceWorker[Any, Any] = InferenceWorker(
        lambda contexts, dropped: engine.locate(window, contexts[0]),
        fixes.append,
        policy="block",
        threads=engine.settings.max_in_flight,
    )
    worker.start()
    ending, submitted = threading.Event(), []

    def feed() -> None:
        while not ending.is_set():
            worker.submit(make_context(len(submitted)))
            submitted.append(len(submitted))
            ending.wait(0.005)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        wait_until(lambda: len(fixes) > 50)
        assert {fix.model.backend for fix in fixes} == {"kserve"}
        server.kill()
        killed = len(fixes)
        wait_until(lambda: len(fixes) > killed + 200)
        assert engine.status()["reasons"][0]["reason"] == "model_unavailable"
        assert {fix.model.backend for fix in fixes[-100:]} == {"fallback:onnxruntime"}
        server.start()
        wait_until(lambda: bool(fixes) and fixes[-1].model.backend == "kserve")
        back = len(fixes)
        wait_until(lambda: len(fixes) > back + 50)
    finally:
        ending.set()
        feeder.join(30.0)
        worker.stop()
    assert worker.failure is None
    assert [fix.sequence for fix in fixes] == submitted
    for fix in fixes:
        assert fix.status == "ok"
        assert round(fix.position.latitude) == (1 if fix.model.backend == "kserve" else 9)
        assert fix.latency_ms < 2.0 * DEADLINE_MS
    assert engine.health.state == "ready"


def test_without_the_server_a_station_starts_with_its_fallback(
    server, put, make_version, engines, make_window, make_context, wait_until
):
    uri = put("later", 3)
    server.kill()
    try:
        with pytest.raises(UnavailableError):
            Engine(ServingSettings(uri=uri))
        engine = engines(uri, fallback=str(make_version(9, name="local.onnx")), poll_s=1.0, deadline_ms=DEADLINE_MS)
        fix = engine.locate(make_window(engine.contract), make_context())
        assert (fix.model.backend, round(fix.position.latitude)) == ("fallback:onnxruntime", 9)
        assert engine.health.state == "degraded"
    finally:
        server.start()
    wait_until(lambda: engine.locate(make_window(engine.contract), make_context()).model.backend == "kserve")
    wait_until(lambda: engine.health.state == "ready")


def test_another_version_on_the_server_takes_over(server, put, engines, make_window, make_context, wait_until):
    engine = engines(put("moving", 4), poll_s=0.5, deadline_ms=DEADLINE_MS)
    window = make_window(engine.contract)
    assert engine.locate(window, make_context()).model.version == "4"
    put("moving", 5)
    wait_until(lambda: engine.locate(window, make_context()).model.version == "5")
    fix = engine.locate(window, make_context())
    assert (fix.model.name, round(fix.position.latitude)) == ("moving", 5)
    engine.execute("activate", version="4")
    started = time.monotonic()
    while time.monotonic() < started + 1.2:  # more than a poll: what the operator chose stays
        assert engine.locate(window, make_context()).model.version == "4"


def test_a_model_of_another_station_on_the_server(server, put, make_version, engines, make_window, make_context):
    uri = put("station", 1)
    engine = engines(uri, deadline_ms=DEADLINE_MS)
    moved = tuple(Receiver(name=f"r{k}", latitude=40.0, longitude=8.0 + 0.1 * k) for k in range(2))
    path: Path = make_version(2, contract={"receivers": moved}, name="other.onnx")
    export_model_repository(
        path, server.repository, name="station", backend="python", version="2", site_packages=server.site_packages
    )
    server.load("station")
    engine._poll()
    assert engine.locate(make_window(engine.contract), make_context()).model.version == "1"
    assert [condition.name for condition in engine.health.conditions] == ["model_rejected"]
    assert "a model of another station" in engine.health.conditions[0].detail
