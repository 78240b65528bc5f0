"""What tests of every room use."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import spox
import spox.opset.ai.onnx.v17 as op
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.model.contract import METADATA_KEY, Channel, Contract, Frame, Golden, Receiver
from localize_core.model.golden import golden_features
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.registry import ENVIRONMENT
from localize_core.types.fix import Fix, ModelIdentity, Position, ReceiverReport, Uncertainty

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """What a command sets up for its process ends with the test: it writes to a standard error that is gone then."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The recordings and channel data sets, which are not part of the repository."""
    folder = Path(os.environ.get("GR_LOCALIZE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set GR_LOCALIZE_DATA to where it is")
    return folder


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for compiled models that all tests share, those of other workers too, instead of the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        own = tmp_path_factory.getbasetemp()
        folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def make_fix() -> Callable[..., Fix]:
    """A maker of fixes: a complete one, with the fields that the test names changed. A `reason` makes it a no_fix."""

    def make(**changes: Any) -> Fix:
        fields: dict[str, Any] = {
            "station": "demo",
            "stream": "a1b2",
            "sequence": 412,
            "timestamp": datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc),
            "time_source": "rx_time",
            "status": "ok",
            "reason": None,
            "position": Position(45.123, 7.456),
            "uncertainty": Uncertainty(45.0, 38.0, 25.0),
            "confidence": 0.92,
            "frequency_hz": 433920000.0,
            "receivers": (ReceiverReport("north", -71.2, True),),
            "model": ModelIdentity("localization_model", "3", "0" * 64),
            "window_samples": 16384,
            "window_duration_s": 0.008,
            "inference_time_ms": 1.9,
            "latency_ms": 4.2,
        }
        if "reason" in changes:
            fields |= {"status": "no_fix", "position": None, "uncertainty": None}
        return Fix(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def kiwi_wav() -> Callable[..., bytes]:
    """A maker of KiwiSDR IQ recordings: each block of `samples` after its `(age_s, second_of_week, ns)` stamp.

    `before_block`: chunks put before block number n. A block whose stamp is None has none.
    """

    def make(
        samples: np.ndarray,
        stamps: Sequence[tuple[int, int, int] | None],
        *,
        header_rate_hz: int = 12001,
        block: int = 512,
        before_block: Mapping[int, bytes] | None = None,
    ) -> bytes:
        scaled = np.stack([samples.real, samples.imag], axis=1) * 32768.0
        raw = np.clip(np.round(scaled), -32768, 32767).astype("<i2").tobytes()
        chunks = [struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, header_rate_hz, 4 * header_rate_hz, 4, 16)]
        for number, stamp in enumerate(stamps):
            chunks.append((before_block or {}).get(number, b""))
            if stamp is not None:
                chunks.append(struct.pack("<4sIBBII", b"kiwi", 10, stamp[0], 0, *stamp[1:]))
            part = raw[4 * block * number : 4 * block * (number + 1)]
            chunks.append(struct.pack("<4sI", b"data", len(part)) + part)
        body = b"WAVE" + b"".join(chunks)
        return struct.pack("<4sI", b"RIFF", len(body)) + body

    return make


@pytest.fixture(scope="session")
def write_sigmf() -> Callable[..., Path]:
    """A writer of SigMF recordings, by the specification and without the library that reads them.

    `samples`: complex, (n,) or (n, channels). `captures`: (first sample, datetime or None, frequency or None) each.
    `datatype` as `core:datatype` has it. `fields`: global ones to add; None takes one out. Returns the metadata file.
    """

    def write(
        path: Path,
        samples: np.ndarray,
        *,
        rate_hz: float = 8000.0,
        captures: Sequence[tuple[int, str | None, float | None]] = ((0, None, None),),
        datatype: str = "cf32_le",
        fields: Mapping[str, Any] | None = None,
    ) -> Path:
        name, _, order = datatype.partition("_")
        kind = np.dtype(f"{'>' if order == 'be' else '<'}{name[1]}{int(name[2:]) // 8}")
        parts = np.stack([samples.real, samples.imag], axis=-1)
        if name[1] != "f":
            half = 2.0 ** (int(name[2:]) - 1)
            parts = np.clip(np.round(parts * half), -half, half - 1.0) + (half if name[1] == "u" else 0.0)
        path.with_suffix(".sigmf-data").write_bytes(parts.astype(kind).tobytes())
        about = {
            "core:datatype": datatype,
            "core:version": "1.2.0",
            "core:sample_rate": rate_hz,
            "core:num_channels": samples.shape[1] if samples.ndim == 2 else 1,
        } | dict(fields or {})
        listed = [
            {"core:sample_start": first, "core:datetime": time, "core:frequency": frequency_hz}
            for first, time, frequency_hz in captures
        ]
        metadata = {
            "global": {key: value for key, value in about.items() if value is not None},
            "captures": [{key: value for key, value in each.items() if value is not None} for each in listed],
            "annotations": [],
        }
        meta = path.with_suffix(".sigmf-meta")
        meta.write_text(json.dumps(metadata))
        return meta

    return write


@pytest.fixture(scope="session")
def make_contract() -> Callable[..., Contract]:
    """A maker of contracts for `n_receivers` receivers r0, r1, ... at 8 kHz, 16 rows; fields as the test names them."""

    def make(n_receivers: int = 3, *, mel: bool = True, correlation: bool = True, **changes: Any) -> Contract:
        names = [f"r{k}" for k in range(n_receivers)]
        channels: list[Channel] = []
        if mel:
            parameters = MelConfig(8000.0, n_fft=128, hop=64, n_mels=16).as_dict()
            channels += [Channel(feature="log_mel", receivers=(name,), parameters=parameters) for name in names]
        if correlation:
            config = CorrelationConfig(8000.0, n_receivers, n_fft=64, hop=64, n_lags=16)
            channels += [
                Channel(feature="cross_correlation", receivers=(names[i], names[j]), parameters=config.as_dict())
                for i, j in config.pairs
            ]
        fields: dict[str, Any] = {
            "name": "tiny",
            "sample_rate_hz": 8000.0,
            "rows": 16,
            "channels": tuple(channels),
            "receivers": tuple(
                Receiver(name=name, latitude=47.0 + 0.1 * k, longitude=8.0 + 0.1 * (k % 2))
                for k, name in enumerate(names)
            ),
            "frame": Frame(kind="wgs84_deg"),
        }
        return Contract(**(fields | changes))

    return make


Answer = Sequence[float] | Callable[[spox.Var], spox.Var]


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """A maker of small ONNX models. Each output is constant, or a function of the channels' means, (batch, channels).

    `embed`: write the contract into the file. `shape`: of the input, by default the contract's; `outputs`: which.
    """

    def make(
        contract: Contract,
        *,
        position: Answer = (47.25, 8.5),
        uncertainty: Answer = (200.0, 100.0, 30.0),
        confidence: Answer = (0.9,),
        embed: bool = True,
        shape: tuple[int | str | None, ...] | None = None,
        outputs: Sequence[str] = ("position", "uncertainty", "confidence"),
        likelihood: Answer | None = None,
        name: str = "tiny.onnx",
    ) -> Path:
        shape = shape or ("batch", len(contract.channels), contract.rows, contract.time_steps or "time_steps")
        features = spox.argument(spox.Tensor(np.float32, shape))
        axes = [-1, -2] if len(shape) == 4 else [-1]
        means = op.reduce_mean(features, axes=axes, keepdims=False)
        answers = {"position": position, "uncertainty": uncertainty, "confidence": confidence}
        answers |= {} if likelihood is None else {"likelihood": likelihood}

        def output(answer: Answer) -> spox.Var:
            if callable(answer):
                return answer(means)
            zeros = op.const(np.zeros((int(shape[1]), len(answer)), np.float32))
            return op.add(op.matmul(means, zeros), op.const(np.array([answer], np.float32)))

        model = spox.build({"features": features}, {key: output(answers[key]) for key in outputs})
        if embed:
            onnx.helper.set_model_props(model, {METADATA_KEY: contract.model_dump_json()})
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return make


def _benchmark(name: str) -> Any:
    """A module of benchmarks/, which is no package that tests could import."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """A starter of Triton servers that only this test has, without models: see benchmarks/triton_server.py."""
    module = _benchmark("triton_server")
    if (why := module.missing()) is not None:
        pytest.skip(why)
    servers: list[Any] = []

    def start() -> Any:
        servers.append(module.TritonServer(tmp_path_factory.mktemp("triton")))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def triton_server(start_triton: Callable[[], Any]) -> Any:
    """A Triton server that tests share: each loads models under names of its own, and leaves it running."""
    return start_triton()


@pytest.fixture
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """A starter of Redis servers that only this test has: see benchmarks/redis_server.py."""
    module = _benchmark("redis_server")
    if (why := module.missing()) is not None:
        pytest.skip(why)
    servers: list[Any] = []

    def start(*options: str) -> Any:
        servers.append(module.RedisServer(tmp_path_factory.mktemp("redis"), *options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def start_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """A starter of MQTT brokers that only this test has: see benchmarks/mosquitto_server.py."""
    module = _benchmark("mosquitto_server")
    if (why := module.missing()) is not None:
        pytest.skip(why)
    servers: list[Any] = []

    def start(*settings: str) -> Any:
        servers.append(module.MosquittoServer(tmp_path_factory.mktemp("mosquitto"), *settings))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def rtl_tcp() -> Any:
    """benchmarks/rtl_tcp_server.py: its servers, the numbers of commands, samples as bytes and back."""
    module = _benchmark("rtl_tcp_server")
    if (why := module.missing()) is not None:
        pytest.skip(why)
    return module


@pytest.fixture
def start_rtl_tcp(rtl_tcp: Any) -> Iterator[Callable[..., Any]]:
    """A starter of `RtlTcpServer`s of what is to be played and their options."""
    servers: list[Any] = []

    def start(played: Any, **options: Any) -> Any:
        servers.append(rtl_tcp.RtlTcpServer(played, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class MlflowServer:
    """An MLflow server on a port of its own, with its data in a folder. Killed and started again it is the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        data = ["--backend-store-uri", store, "--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *address, *data],
                cwd=self._folder,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers end with it
            )
        deadline = time.monotonic() + 120.0
        while not self._answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self._folder / "log").read_text())

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5.0) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server that tests share: each takes names of its own, and leaves it running."""
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("no mlflow with its server here: pip install mlflow")
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    uri = f"sqlite:///{path}"
    os.environ.update(ENVIRONMENT)  # as the registry does before its own import
    pytest.importorskip("mlflow").MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models()
    return path


@pytest.fixture
def golden_of(make_contract: Callable[..., Contract], make_model: Callable[..., Path]) -> Golden:
    """The golden vector of what `make_model` makes of `make_contract()`."""
    contract = make_contract()
    answer = OnnxModel(make_model(contract)).run(golden_features(contract, seed=1, time_steps=6))
    return Golden(
        seed=1,
        time_steps=6,
        position=answer.position[0].tolist(),
        uncertainty=answer.uncertainty[0].tolist(),
        confidence=float(answer.confidence[0, 0]),
    )
