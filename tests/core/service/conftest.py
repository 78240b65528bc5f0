"""A model, and servers that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import spox.opset.ai.onnx.v17 as op
from localize_core.cache.settings import CacheSettings
from localize_core.service.server import HttpServer
from localize_core.service.service import Service, model_service
from localize_core.service.settings import http_settings
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings

STEPS = 4
RECEIVERS = 2


@pytest.fixture
def make_engine(make_contract, make_model) -> Iterator[Callable[..., Engine]]:
    """A maker of engines that run. By default the position is a function of the features, and so of the samples."""
    made: list[Engine] = []

    def make(*, start: bool = True, **model: Any) -> Engine:
        def position(means):
            near = op.mul(op.gather(means, op.const(np.array([0, 1])), axis=1), op.const(np.float32(1e-3)))
            return op.add(near, op.const(np.array([[47.0, 8.0]], np.float32)))

        path = make_model(make_contract(RECEIVERS, name="site"), **{"position": position, **model})
        engine = Engine(ServingSettings(uri=str(path), poll_s=0.0), cache=CacheSettings())
        engine.prepare(STEPS)
        made.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in made:
        engine.stop()
        engine.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., HttpServer]]:
    """A starter of servers on free ports."""
    servers: list[HttpServer] = []

    def start(service: Service, **settings: Any) -> HttpServer:
        server = HttpServer(service, http_settings(**{"port": 0, **settings}))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def client(serve) -> Iterator[Callable[..., httpx.Client]]:
    """A maker of clients of a server of their own: of a service, or of a model."""
    clients: list[httpx.Client] = []

    def make(shown: Service | Engine, *, headers: dict[str, str] | None = None, **settings: Any) -> httpx.Client:
        service = model_service(shown) if isinstance(shown, Engine) else shown
        clients.append(httpx.Client(base_url=serve(service, **settings).url, headers=headers, timeout=30.0))
        return clients[-1]

    yield make
    for each in clients:
        each.close()


@pytest.fixture
def samples() -> Callable[..., np.ndarray]:
    """A maker of samples, complex64 (receivers, samples), as many as a question to the model needs."""

    def make(engine: Engine, seed: int = 0, receivers: int = RECEIVERS) -> np.ndarray:
        shape = (receivers, engine.reader.samples_needed, 2)
        values = 0.1 * np.random.default_rng(seed).standard_normal(shape)
        return values.astype(np.float32).view(np.complex64)[..., 0]

    return make
