"""An engine and a real MLflow server: what is promoted serves, and what dies and comes back interrupts nothing."""

from __future__ import annotations

import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from localize_core.errors import RegistryError
from localize_core.model.registry import ModelRegistry
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registered(mlflow_server, make_version) -> tuple[ModelRegistry, str]:
    """A registry with version 1 of a model as its champion, and the model's name."""
    models, name = ModelRegistry(mlflow_server.uri), f"m-{uuid.uuid4().hex[:8]}"
    promote(models, name, make_version(1))
    return models, name


def promote(models: ModelRegistry, name: str, path: Path) -> str:
    version = models.register(path, name).version
    models.promote(name, version, "champion")
    return str(version)


def answered(fix: Any) -> tuple[str, float]:
    return fix.model.version, fix.position.latitude


def test_the_registry_dies_and_comes_back(
    mlflow_server, registered, make_version, engines, make_window, make_context, wait_until
):
    models, name = registered
    engine = engines(f"models:/{name}@champion", registry=mlflow_server.uri, poll_s=0.5)
    window, ending, fixes = make_window(engine.contract), threading.Event(), []

    def stream() -> None:
        while not ending.is_set():
            fixes.append(engine.locate(window, make_context(len(fixes))))
            ending.wait(0.002)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        mlflow_server.kill()
        wait_until(lambda: engine.health.state == "degraded")
        assert [condition.name for condition in engine.health.conditions] == ["model_unreachable"]
        assert mlflow_server.uri in engine.health.conditions[0].detail
        mlflow_server.start()
        wait_until(lambda: engine.health.state == "ready")
        polls, poll = [], engine._watcher._poll
        engine._watcher._poll = lambda: (polls.append(len(fixes)), poll())[1]
        promote(models, name, make_version(2))
        before = len(polls)
        wait_until(lambda: bool(fixes) and answered(fixes[-1]) == ("2", 2.0))
        assert len(polls) - before <= 2  # the one under way when it was promoted, and the next
    finally:
        ending.set()
        thread.join(30.0)
    assert [fix.sequence for fix in fixes] == list(range(len(fixes)))
    order = [answered(fix) for fix in fixes]
    assert order == sorted(order)
    assert set(order) == {("1", 1.0), ("2", 2.0)}


def test_a_start_without_the_registry(mlflow_server, registered, engines, make_window, make_context, cache):
    _, name = registered
    uri = f"models:/{name}@champion"
    engines(uri, registry=mlflow_server.uri)
    mlflow_server.kill()
    try:
        engine = engines(uri, registry=mlflow_server.uri)
        assert answered(engine.locate(make_window(engine.contract), make_context())) == ("1", 1.0)
        assert engine.status()["state"] == "degraded"
        assert "started with version 1, which was kept here" in engine.status()["reasons"][0]["detail"]
        shutil.rmtree(cache)
        with pytest.raises(RegistryError, match=mlflow_server.uri):
            Engine(ServingSettings(uri=uri, registry=mlflow_server.uri))
    finally:
        mlflow_server.start()
    assert engine._poll()
    assert engine.health.state == "ready"


def test_a_start_while_the_alias_points_to_a_bad_model(
    mlflow_server, registered, make_version, engines, make_window, make_context
):
    """Whoever promoted it sees why it does not serve; the station comes up with what served last."""
    models, name = registered
    uri = f"models:/{name}@champion"
    engines(uri, registry=mlflow_server.uri)
    version = models.register(make_version(2), name).version
    models._client.set_model_version_tag(name, str(version), "localize.sha256", "0" * 64)
    models.promote(name, version, "champion")
    engine = engines(uri, registry=mlflow_server.uri)
    assert answered(engine.locate(make_window(engine.contract), make_context())) == ("1", 1.0)
    (reason,) = engine.status()["reasons"]
    assert reason["reason"] == "model_rejected"
    assert "started with version 1" in reason["detail"]
