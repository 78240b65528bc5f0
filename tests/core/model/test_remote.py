"""Models on a server: a real Triton, and a small one of the same protocol for what Triton cannot be made to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from localize_core.errors import ConfigError, EngineError, MissingExtraError, ModelError, UnavailableError
from localize_core.model.admission import admit
from localize_core.model.contract import Contract, Golden
from localize_core.model.golden import check_golden, golden_features
from localize_core.model.onnx_model import OnnxModel, model_digest
from localize_core.model.remote import RemoteModel, RemoteSource
from localize_core.model.source import RemoteUri, parse_model_uri
from localize_core.model.triton_repository import export_model_repository
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

ROOT = Path(__file__).resolve().parents[3]
PATIENT_S = 30.0
"""A deadline that a busy machine keeps."""
DEADLINE_S = 2.0
"""One that tests wait for."""

HELD_MODEL = '''
import os, time
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    """Answers constants, but not while there is a file `hold` beside it."""

    def initialize(self, args):
        self.hold = os.path.join(args["model_repository"], "hold")

    def execute(self, requests):
        while os.path.exists(self.hold):
            time.sleep(0.01)
        responses = []
        for request in requests:
            batch = len(triton.get_input_tensor_by_name(request, "features").as_numpy())
            values = (("position", 2), ("uncertainty", 3), ("confidence", 1))
            tensors = [triton.Tensor(name, np.full((batch, width), 0.5, np.float32)) for name, width in values]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses
'''


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it never came to that"
        time.sleep(0.01)


def remote(server: Any, name: str, version: str | None = None) -> RemoteUri:
    host, _, port = server.address.partition(":")
    return RemoteUri(host, int(port), name, version)


def put(server: Any, path: Path, name: str, version: str = "1") -> Path:
    """Export a model for a server that has the Python backend only."""
    return export_model_repository(
        path, server.repository, name=name, backend="python", version=version, site_packages=server.site_packages
    )


def windows(contract: Contract, batch: int = 1, steps: int = 5, seed: int = 1) -> np.ndarray:
    return np.concatenate([golden_features(contract, seed=seed + k, time_steps=steps) for k in range(batch)])


def recoveries() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("recovery of ")]


@pytest.fixture
def opened() -> Iterator[Callable[..., RemoteModel]]:
    """Opens remote models, and closes them."""
    models: list[RemoteModel] = []

    def make(uri: RemoteUri, **settings: Any) -> RemoteModel:
        models.append(RemoteModel(uri, **{"deadline_s": PATIENT_S, **settings}))
        return models[-1]

    yield make
    for model in models:
        model.close()
    assert recoveries() == []


@pytest.fixture
def tiny(make_contract, make_model) -> Callable[..., Path]:
    """Makes tiny models with a golden vector."""

    def make(name: str = "tiny.onnx", **answers: Any) -> Path:
        contract = make_contract()
        path = make_model(contract, name=name, **answers)
        answer = OnnxModel(path).run(golden_features(contract, seed=3, time_steps=8))
        golden = Golden(
            seed=3,
            time_steps=8,
            position=tuple(answer.position[0].tolist()),
            uncertainty=tuple(answer.uncertainty[0].tolist()),
            confidence=float(answer.confidence[0, 0]),
        )
        return make_model(contract.model_copy(update={"golden": golden}), name=name, **answers)

    return make


# Against Triton


@pytest.mark.parametrize("model", ["demo", "access_road"])
def test_the_same_answers_as_in_process(triton_server, opened, model):
    path = ROOT / "models" / f"{model}.onnx"
    put(triton_server, path, model)
    triton_server.load(model)
    here, there = OnnxModel(path), opened(remote(triton_server, model))
    assert there.contract == here.contract
    identity = there.identity
    assert (identity.name, identity.version, identity.sha256) == (model, "1", here.sha256)
    assert identity.backend == "kserve"
    assert there.label == f"grpc://{triton_server.address}/{model}/1"
    check_golden(there)
    admit(there, time_steps=16, like=here.contract)
    for batch, steps in ((1, 24), (2, 24), (7, 9), (70, 8)):  # the last needs two requests
        features = windows(here.contract, batch, steps)
        mine, theirs = here.run(features), there.run(features)
        for name in ("position", "uncertainty", "confidence"):
            have = getattr(theirs, name)
            assert have.dtype == np.float32
            np.testing.assert_allclose(have, getattr(mine, name), rtol=1e-4, atol=1e-3)
    there.close()
    there.close()
    with pytest.raises(UnavailableError, match="closed"):
        there.run(features)
    triton_server.unload(model)


def test_threads_share_a_model(triton_server, opened, make_contract, make_model):
    contract = make_contract()
    put(triton_server, make_model(contract, position=(1.0, 2.0)), "shared")
    triton_server.load("shared")
    model = opened(remote(triton_server, "shared"), max_in_flight=4)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda k: model.run(windows(contract, 1 + k % 3)), range(200)))
    assert [len(answer.position) for answer in answers] == [1 + k % 3 for k in range(200)]
    assert all((answer.position == [[1.0, 2.0]]).all() for answer in answers)
    assert model.available
    triton_server.unload("shared")


def test_a_fixed_batch_is_kept(triton_server, opened, make_contract, make_model):
    contract = make_contract(1, correlation=False)
    path = make_model(contract, shape=(1, 1, 16, "time_steps"))
    put(triton_server, path, "single")
    triton_server.load("single")
    assert opened(remote(triton_server, "single")).run(windows(contract, 3)).position.shape == (3, 2)
    triton_server.unload("single")


def test_where_the_contract_comes_from(triton_server, opened, make_contract, make_model):
    contract = make_contract()
    target = put(triton_server, make_model(contract), "contracts")
    triton_server.load("contracts")
    uri = remote(triton_server, "contracts")
    assert opened(uri, contract=contract).contract == contract
    other = contract.model_copy(update={"min_receivers": 3})
    with pytest.raises(ModelError, match=r"differs from the one given: min_receivers=1 in the model, 3 given"):
        RemoteModel(uri, contract=other)

    config = text_format.Parse((target / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    config.parameters["localize.contract"].string_value = "{}"
    (target / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    triton_server.load("contracts")
    with pytest.raises(ModelError, match=r"contracts/1: the model's contract is not usable"):
        RemoteModel(uri)

    for key in ("localize.contract", "localize.sha256"):
        del config.parameters[key]
    (target / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    triton_server.load("contracts")
    with pytest.raises(ModelError, match=r"'localize\.contract' in the model's configuration .* a contract beside it"):
        RemoteModel(uri)
    beside = opened(uri, contract=contract)
    assert beside.contract == contract
    assert beside.identity.sha256 == ""
    with pytest.raises(ModelError, match=r"shape \[-1, 6, 16, -1\], the contract wants \(batch, 10, 16, time_steps\)"):
        RemoteModel(uri, contract=make_contract(4))
    triton_server.unload("contracts")


def test_versions(triton_server, opened, make_contract, make_model):
    contract = make_contract()
    paths = [make_model(contract, confidence=(0.1 * k,), name=f"{k}.onnx") for k in (1, 2)]
    put(triton_server, paths[0], "versions")
    triton_server.load("versions")
    source = RemoteSource(remote(triton_server, "versions"), deadline_s=PATIENT_S)
    assert source.uri == f"grpc://{triton_server.address}/versions"
    old = source.latest()
    assert source.latest().key == old.key
    first = old.open()
    assert first.identity.version == "1"

    put(triton_server, paths[1], "versions", "2")
    triton_server.load("versions")
    new = source.latest()
    assert new.key != old.key
    second = new.open()
    assert (second.identity.version, second.identity.sha256) == ("2", model_digest(paths[1]))
    # Whoever has the first keeps it.
    assert first.run(windows(contract)).confidence[0, 0] == pytest.approx(0.1)
    assert second.run(windows(contract)).confidence[0, 0] == pytest.approx(0.2)
    assert source.release("1").key == old.key
    assert source.remembered() is None
    source.remember(new)
    pinned = RemoteSource(parse_model_uri(f"grpc://{triton_server.address}/versions/1"))
    assert pinned.uri.endswith("/versions/1")
    assert pinned.latest().key == old.key
    with pytest.raises(UnavailableError, match="version 3"):
        source.release("3")
    with pytest.raises(ConfigError, match="'newest': a server's versions are whole numbers"):
        source.release("newest")

    shutil.rmtree(triton_server.repository / "versions" / "1")
    triton_server.load("versions")
    with pytest.raises(UnavailableError, match="version 1"):
        first.run(windows(contract))
    assert second.run(windows(contract)).confidence[0, 0] == pytest.approx(0.2)
    with pytest.raises(UnavailableError, match="version 1"):
        pinned.latest()
    for model in (first, second):
        model.close()
    triton_server.unload("versions")
    with pytest.raises(UnavailableError, match="versions"):
        source.latest()


def test_another_model_under_the_same_version_is_another_release(triton_server, make_contract, make_model):
    contract = make_contract()
    put(triton_server, make_model(contract), "swapped")
    triton_server.load("swapped")
    source = RemoteSource(remote(triton_server, "swapped"))
    old = source.latest()
    shutil.rmtree(triton_server.repository / "swapped")
    put(triton_server, make_model(contract, confidence=(0.5,)), "swapped")
    triton_server.load("swapped")
    assert source.latest().key != old.key
    with pytest.raises(ModelError, match="another model under this version meanwhile"):
        old.open()
    triton_server.unload("swapped")


def test_windows_that_the_server_refuses(triton_server, opened, make_contract, make_model):
    contract = make_contract()
    put(triton_server, make_model(contract), "strict")
    triton_server.load("strict")
    model = opened(remote(triton_server, "strict"))
    for _ in range(5):
        with pytest.raises(EngineError, match=r"inference failed on \(1, 5, 16, 5\)") as caught:
            model.run(windows(contract)[:, :5])
        assert not isinstance(caught.value, UnavailableError)
    assert model.available
    triton_server.unload("strict")


def test_no_answer_by_the_deadline(triton_server, opened, make_contract, make_model):
    contract = make_contract()
    target = put(triton_server, make_model(contract), "held")
    (target / "1" / "model.py").write_text(HELD_MODEL)
    triton_server.load("held")
    model = opened(remote(triton_server, "held"), deadline_s=DEADLINE_S)
    assert model.run(windows(contract, 2)).confidence.tolist() == [[0.5]] * 2
    hold = target / "hold"
    hold.touch()
    for _ in range(3):
        assert model.available
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match="no answer"):
            model.run(windows(contract))
        assert 0.9 * DEADLINE_S < time.monotonic() - started_s < DEADLINE_S + 5.0
    assert not model.available
    assert "Deadline" in model.unavailable_because
    with pytest.raises(UnavailableError, match="not asked"):
        model.run(windows(contract))
    hold.unlink()
    wait_until(lambda: model.available)
    wait_until(lambda: not recoveries())
    assert model.run(windows(contract)).confidence[0, 0] == 0.5
    triton_server.unload("held")


def test_a_killed_server_comes_back(start_triton, opened, tiny):
    server = start_triton()
    path = tiny()
    target = put(server, path, "tiny")
    server.load("tiny")
    contract = OnnxModel(path).contract
    model = opened(remote(server, "tiny"), deadline_s=DEADLINE_S)
    source = RemoteSource(remote(server, "tiny"))
    before = model.run(windows(contract))
    server.kill()
    for _ in range(3):
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match="no answer"):
            model.run(windows(contract))
        assert time.monotonic() - started_s < 0.9 * DEADLINE_S  # at once, not at the deadline
    with pytest.raises(UnavailableError, match="not asked"):
        model.run(windows(contract))
    with pytest.raises(UnavailableError, match="connect"):
        source.latest()
    assert len(recoveries()) == 1

    server.start()
    wait_until(lambda: model.available)
    wait_until(lambda: not recoveries())
    after = model.run(windows(contract))
    np.testing.assert_array_equal(after.position, before.position)

    # It comes back with another model under the same version, of the same tensors.
    os.rename(target, target.parent.parent / "kept")
    put(server, tiny("other.onnx", confidence=(0.2,)), "tiny")
    server.kill()
    for _ in range(3):
        with pytest.raises(UnavailableError):
            model.run(windows(contract))
    server.start()
    wait_until(lambda: "another model under version 1" in (model.unavailable_because or ""))
    with pytest.raises(UnavailableError, match="another model under version 1"):
        model.run(windows(contract))
    other = source.latest().open()
    assert other.identity.sha256 != model.identity.sha256
    other.close()

    # And with the one it had.
    server.stop()
    shutil.rmtree(target)
    os.rename(target.parent.parent / "kept", target)
    server.start()
    wait_until(lambda: model.available)
    np.testing.assert_array_equal(model.run(windows(contract)).position, before.position)

    # One that says it is the same and answers something else stays out, too.
    shutil.copy(tiny("third.onnx", confidence=(0.3,)), target / "1" / "model.onnx")
    server.kill()
    for _ in range(3):
        with pytest.raises(UnavailableError):
            model.run(windows(contract))
    server.start()
    wait_until(lambda: "golden vector" in (model.unavailable_because or ""))
    model.close()
    assert recoveries() == []
    assert model.unavailable_because == "closed"
    server.stop()


def test_a_frozen_server(start_triton, opened, tiny):
    """Its machine still takes what is sent, and nothing ever answers."""
    server = start_triton()
    path = tiny()
    put(server, path, "tiny")
    server.load("tiny")
    contract = OnnxModel(path).contract
    model = opened(remote(server, "tiny"), deadline_s=DEADLINE_S)
    model.run(windows(contract))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        threads = list(Path(f"/proc/{server.pid}/task").glob("*/stat"))
        wait_until(lambda: all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads))
        for _ in range(3):
            with pytest.raises(UnavailableError):
                model.run(windows(contract))
        assert not model.available
    finally:
        os.kill(server.pid, signal.SIGCONT)
    wait_until(lambda: model.available)
    model.run(windows(contract))
    server.stop()


# Against a server of the same protocol without Triton's extensions


class SmallServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """What the Open Inference Protocol asks for, and no more. `answer` says what it does with a request."""

    def __init__(self, contract: Contract, credentials: grpc.ServerCredentials | None = None) -> None:
        self.inputs = [("features", "FP32", [-1, len(contract.channels), contract.rows, -1])]
        self.outputs = [("position", [-1, 2]), ("uncertainty", [-1, 3]), ("confidence", [-1, 1])]
        self.versions: list[str] = []
        self.ready = True
        self.asked = self.inside = self.peak = 0
        self.answer: Callable[[Any, Any], Any] = self.well
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ModelMetadata(self, request, context):
        metadata = service_pb2.ModelMetadataResponse(name=request.name, versions=self.versions, platform="other")
        for name, kind, shape in self.inputs:
            metadata.inputs.add(name=name, datatype=kind, shape=shape)
        for name, shape in self.outputs:
            metadata.outputs.add(name=name, datatype="FP32", shape=shape)
        return metadata

    def ModelInfer(self, request, context):
        with self._lock:
            self.asked += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)
        try:
            return self.answer(request, context)
        finally:
            with self._lock:
                self.inside -= 1

    def well(self, request, context=None, widths=(2, 3, 1), version=None):
        """Constants; as typed contents, which Triton never sends."""
        batch = request.inputs[0].shape[0]
        version = request.model_version if version is None else version
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=version)
        for (name, _), width in zip(self.outputs, widths, strict=True):
            output = response.outputs.add(name=name, datatype="FP32", shape=[batch, width])
            output.contents.fp32_contents.extend([0.5] * (batch * width))
        return response


def unavailable(request, context):
    context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


@pytest.fixture
def small(make_contract) -> Iterator[SmallServer]:
    server = SmallServer(make_contract())
    yield server
    server.stop()


def test_a_server_that_says_nothing_of_its_models(small, opened, make_contract):
    contract = make_contract()
    uri = remote(small, "plain")
    with pytest.raises(ModelError, match="or give a contract beside it"):
        RemoteModel(uri)
    with pytest.raises(ModelError, match="rows=15"):
        RemoteModel(uri, contract=contract.model_copy(update={"rows": 15}))
    model = opened(uri, contract=contract)
    assert model.run(windows(contract, 5)).confidence.tolist() == [[0.5]] * 5
    assert (model.identity.name, model.identity.version, model.identity.sha256) == ("plain", contract.model_version, "")
    small.versions = ["3", "21", "v100"]
    assert opened(uri, contract=contract).identity.version == "21"


def test_other_tensors_than_the_contracts(small, make_contract):
    contract, uri = make_contract(), remote(small, "plain")
    good = small.inputs, small.outputs
    for inputs, outputs, said in (
        ([("features", "FP16", [-1, 6, 16, -1])], good[1], "input 'features' is FP16, FP32 is expected"),
        ([("features", "FP32", [-1, 6, 17, -1])], good[1], r"shape \[-1, 6, 17, -1\]"),
        ([*good[0], ("more", "FP32", [1])], good[1], r"one input tensor is expected, found \['features', 'more'\]"),
        (good[0], good[1][:2], "outputs .* are expected"),
        (good[0], [("position", [-1, 3]), *good[1][1:]], "'position' is 3 wide"),
    ):
        small.inputs, small.outputs = inputs, outputs
        with pytest.raises(ModelError, match=said):
            RemoteModel(uri, contract=contract)


def test_a_model_that_is_not_ready(small, make_contract):
    small.ready = False
    with pytest.raises(UnavailableError, match="not ready"):
        RemoteSource(remote(small, "plain"), contract=make_contract()).latest()


def test_nobody_there(small, make_contract):
    small.stop()
    with pytest.raises(UnavailableError, match="connect"):
        RemoteModel(remote(small, "plain"), contract=make_contract())


@pytest.mark.parametrize("steps", [5, 1000])  # the latter is more than gRPC keeps for a second try by default
def test_one_second_try_within_the_deadline(small, opened, make_contract, steps):
    contract = make_contract()
    model = opened(remote(small, "plain"), contract=contract)
    small.asked = 0

    def once(request, context):
        return unavailable(request, context) if small.asked == 1 else small.well(request)

    small.answer = once
    assert model.run(windows(contract, steps=steps)).confidence[0, 0] == 0.5
    assert small.asked == 2
    small.asked, small.answer = 0, unavailable
    with pytest.raises(UnavailableError, match="not now"):
        model.run(windows(contract, steps=steps))
    assert small.asked == 2
    assert model.available


def test_nobody_is_asked_while_the_breaker_is_open(small, opened, make_contract):
    contract = make_contract()
    model = opened(remote(small, "plain"), contract=contract)
    small.answer = unavailable
    small.ready = False  # so that no probe gets as far as a window
    for _ in range(2):
        with pytest.raises(UnavailableError, match="no answer"):
            model.run(windows(contract))
    small.answer = small.well
    model.run(windows(contract))  # failures count in a row only
    small.answer = unavailable
    for _ in range(3):
        assert model.available
        with pytest.raises(UnavailableError, match="no answer"):
            model.run(windows(contract))
    asked = small.asked
    for _ in range(20):
        with pytest.raises(UnavailableError, match="not asked"):
            model.run(windows(contract))
    assert small.asked == asked
    assert len(recoveries()) == 1
    wait_until(lambda: "not ready" in (model.unavailable_because or ""))
    small.ready, small.answer = True, small.well
    wait_until(lambda: model.available)
    assert model.unavailable_because is None
    wait_until(lambda: not recoveries())


def test_close_ends_requests_and_thread(small, opened, make_contract):
    contract = make_contract()
    model = opened(remote(small, "plain"), contract=contract)
    release = threading.Event()
    small.answer = lambda request, context: release.wait(PATIENT_S) and small.well(request)
    try:
        with ThreadPoolExecutor(1) as pool:
            before = small.inside
            pending = pool.submit(model.run, windows(contract))
            wait_until(lambda: small.inside > before)
            model.close()
            with pytest.raises(EngineError):
                pending.result(10.0)
    finally:
        release.set()
    assert recoveries() == []
    assert not model.available


def test_bounded_in_flight(small, opened, make_contract):
    contract = make_contract()
    model = opened(remote(small, "plain"), contract=contract, max_in_flight=2)
    release = threading.Event()
    small.peak, small.answer = 0, lambda request, context: release.wait(PATIENT_S) and small.well(request)
    with ThreadPoolExecutor(8) as pool:
        try:
            pending = [pool.submit(model.run, windows(contract)) for _ in range(8)]
            wait_until(lambda: small.inside == 2)
        finally:
            release.set()
        assert all(each.result(PATIENT_S).confidence[0, 0] == 0.5 for each in pending)
    assert small.peak == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls(make_contract, tmp_path):
    """In another process: gRPC reads once which authorities it trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*made, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    pair = (key.read_bytes(), certificate.read_bytes())
    contract = make_contract()
    server = SmallServer(contract, grpc.ssl_server_credentials([pair]))
    script = (
        "import sys; from localize_core.model.source import parse_model_uri\n"
        "from localize_core.model.contract import Contract; from localize_core.model.remote import RemoteSource\n"
        "contract = Contract.from_json(sys.stdin.read())\n"
        "print(RemoteSource(parse_model_uri(sys.argv[1]), contract=contract).latest().open().label)"
    )

    def ask(scheme: str, roots: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, f"{scheme}://{server.address}/plain"],
            input=contract.model_dump_json(),
            env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(roots)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    try:
        trusted = ask("grpcs", certificate)
        assert trusted.stdout == f"grpcs://{server.address}/plain\n", trusted.stderr
        for refused in (ask("grpcs", tmp_path / "none.pem"), ask("grpc", certificate)):
            assert refused.returncode == 1
            assert "UnavailableError" in refused.stderr
    finally:
        server.stop()


def test_waiting_for_a_place_counts_against_the_deadline(small, opened, make_contract):
    """And is no failure of the server."""
    contract = make_contract()
    model = opened(remote(small, "plain"), contract=contract, max_in_flight=1, deadline_s=0.3)
    taken = model._slots
    taken.acquire()
    for _ in range(4):
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match=r"1 requests are in flight, none ended within 0\.3 s"):
            model.run(windows(contract))
        assert 0.25 < time.monotonic() - started_s < 5.0
    taken.release()
    assert model.available
    model.run(windows(contract))


def test_answers_of_no_use(small, opened, make_contract):
    contract = make_contract()
    small.versions = ["1"]
    model = opened(remote(small, "plain"), contract=contract)

    def lacking(request, context):
        response = small.well(request)
        del response.outputs[2]
        return response

    def broken(request, context):
        context.abort(grpc.StatusCode.INTERNAL, "out of paper")

    def twice(request, context):
        request.inputs[0].shape[0] *= 2
        return small.well(request)

    for answer, said in (
        (lambda request, _: small.well(request, widths=(3, 3, 1)), "answers have shapes"),
        (twice, "answers have shapes"),
        (lacking, "the answer lacks confidence in FP32"),
        (broken, "out of paper"),
        (lambda request, _: small.well(request, version="2"), "version 2 answered instead"),
    ):
        small.answer = answer
        with pytest.raises(EngineError, match=said) as caught:
            model.run(windows(contract))
        assert not isinstance(caught.value, UnavailableError)
    assert model.available


@pytest.mark.parametrize(
    ("wrong", "said"), [({"deadline_s": 0.0}, "deadline_s=0"), ({"max_in_flight": 0}, "max_in_flight=0")]
)
def test_bounds_that_cannot_be(wrong, said):
    for kind in (RemoteSource, RemoteModel):
        with pytest.raises(ConfigError, match=said):
            kind(RemoteUri("127.0.0.1", 1, "plain"), **wrong)


@pytest.mark.parametrize("package", ["tritonclient.grpc", "pybreaker"])
def test_without_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"grpc:// models needs .*gr-localize\[triton\]"):
        RemoteSource(RemoteUri("127.0.0.1", 1, "plain"))
