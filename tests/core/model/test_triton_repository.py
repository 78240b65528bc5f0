"""Model repositories as Triton reads them: what is in the folder, what is refused, and that the server takes it."""

from __future__ import annotations

import hashlib
import re
import sys
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import spox
import spox.opset.ai.onnx.v17 as op
import tritonclient.grpc as triton
import yaml
from google.protobuf import text_format
from localize_core.errors import ConfigError, MissingExtraError, ModelError
from localize_core.model.contract import Contract
from localize_core.model.onnx_model import OnnxModel, model_digest
from localize_core.model.triton_repository import contract_of, export_model_repository
from tritonclient.grpc import model_config_pb2 as pb

ROOT = Path(__file__).resolve().parents[3]


def read(folder: Path) -> pb.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig())


def parameters(config: pb.ModelConfig) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def tensors(entries) -> list[tuple[str, int, list[int]]]:
    return [(entry.name, entry.data_type, list(entry.dims)) for entry in entries]


def first_two(means: spox.Var) -> spox.Var:
    return op.slice(means, *(op.const(np.array([value], np.int64)) for value in (0, 2, 1)))


def settle(answer: Future, result: triton.InferResult | None, error: Exception | None) -> None:
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def test_the_folder_of_the_shipped_model(tmp_path):
    source = ROOT / "models" / "demo.onnx"
    target = export_model_repository(source, tmp_path)
    assert target == tmp_path / "demo"
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    assert (target / "1" / "model.onnx").read_bytes() == source.read_bytes()
    config = read(target)
    assert (config.name, config.backend, config.max_batch_size) == ("demo", "onnxruntime", 64)
    assert tensors(config.input) == [("features", pb.TYPE_FP32, [6, 128, -1])]
    assert tensors(config.output) == [
        ("position", pb.TYPE_FP32, [2]),
        ("uncertainty", pb.TYPE_FP32, [3]),
        ("confidence", pb.TYPE_FP32, [1]),
    ]
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not any(entry.allow_ragged_batch for entry in config.input)
    assert config.version_policy.HasField("all")
    (group,) = config.instance_group
    assert (group.kind, group.count) == (pb.ModelInstanceGroup.KIND_CPU, 1)
    found = parameters(config)
    assert Contract.from_json(found["localize.contract"]) == OnnxModel(source).contract
    assert found["localize.sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_fixed_number_of_frames_and_no_axis_of_channels(make_contract, make_model, tmp_path):
    contract = make_contract(1, correlation=False, time_steps=8)
    config = read(export_model_repository(make_model(contract, shape=("batch", 16, "time_steps")), tmp_path / "r"))
    assert tensors(config.input) == [("features", pb.TYPE_FP32, [16, 8])]


def test_a_fixed_batch_is_not_for_the_server_to_put_together(make_contract, make_model, tmp_path):
    path = make_model(make_contract(1, correlation=False), shape=(1, 1, 16, "time_steps"))
    config = read(export_model_repository(path, tmp_path / "r"))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors(config.input) == [("features", pb.TYPE_FP32, [1, 1, 16, -1])]
    assert tensors(config.output)[0] == ("position", pb.TYPE_FP32, [1, 2])


def test_tensors_in_files_beside_the_model(make_contract, make_model, tmp_path):
    path = make_model(make_contract())
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True)
    target = export_model_repository(path, tmp_path / "r", name="tiny-1.0")
    version = target / "1"
    assert sorted(file.name for file in version.iterdir()) == ["model.onnx", "weights.bin"]
    assert parameters(read(target))["localize.sha256"] == model_digest(version / "model.onnx")
    np.testing.assert_allclose(
        OnnxModel(version / "model.onnx").run(np.ones((1, 6, 16, 4), np.float32)).confidence, 0.9
    )


def test_tensors_in_a_file_whose_name_the_server_needs(make_contract, make_model, tmp_path):
    path = make_model(make_contract())
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.py", size_threshold=0, convert_attribute=True)
    assert export_model_repository(path, tmp_path / "a")
    with pytest.raises(ModelError, match=r"model\.py, a name that the server's folder needs itself"):
        export_model_repository(path, tmp_path / "b", backend="python")


def test_versions_side_by_side_keep_their_contracts(make_contract, make_model, tmp_path):
    first, second = make_contract(), make_contract(min_receivers=2)
    for version, contract in (("1", first), ("2", second)):
        path = make_model(contract, confidence=(0.1 * int(version),), name=f"{version}.onnx")
        target = export_model_repository(path, tmp_path / "r", version=version)
    found = parameters(read(target))
    assert contract_of(found, "1") == (first, model_digest(tmp_path / "1.onnx"))
    assert contract_of(found, "2") == (second, model_digest(tmp_path / "2.onnx"))
    assert sorted(path.name for path in target.iterdir()) == ["1", "2", "config.pbtxt"]


def test_adding_a_version_keeps_what_somebody_has_set(make_contract, make_model, tmp_path):
    path = make_model(make_contract())
    target = export_model_repository(path, tmp_path / "r")
    config = read(target)
    config.instance_group[0].count = 4
    (target / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    export_model_repository(path, tmp_path / "r", version="2")
    assert read(target).instance_group[0].count == 4


def test_a_version_is_never_written_anew(make_contract, make_model, tmp_path):
    path = make_model(make_contract())
    target = export_model_repository(path, tmp_path / "r")
    before = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=r"tiny/1: is there already"):
        export_model_repository(path, tmp_path / "r")
    assert {file: file.read_bytes() for file in target.rglob("*") if file.is_file()} == before


def test_a_version_with_other_tensors(make_contract, make_model, tmp_path):
    export_model_repository(make_model(make_contract()), tmp_path / "r")
    other = make_model(make_contract(4), name="other.onnx")
    with pytest.raises(ConfigError, match=r"another input, .*dims: 6 .*dims: 10 .*give it another name"):
        export_model_repository(other, tmp_path / "r", version="2")
    with pytest.raises(ConfigError, match="another backend, onnxruntime, than this model, python"):
        export_model_repository(make_model(make_contract()), tmp_path / "r", version="2", backend="python")


def test_a_folder_with_something_else_in_it(make_contract, make_model, tmp_path):
    path = make_model(make_contract())
    (tmp_path / "r" / "tiny").mkdir(parents=True)
    (tmp_path / "r" / "tiny" / "config.pbtxt").write_text("no configuration")
    with pytest.raises(ConfigError, match=r"config\.pbtxt: not a model configuration"):
        export_model_repository(path, tmp_path / "r")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_model_repository(path, tmp_path / "file")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"version": "0"}, "version='0'"),
        ({"version": "newest"}, "version='newest'"),
        ({"name": "../elsewhere"}, "name="),
        ({"name": ".hidden"}, "name="),
        ({"backend": "tensorflow"}, "backend='tensorflow': known are onnxruntime, python"),
        ({"site_packages": Path("/somewhere")}, "the backend onnxruntime does not need it"),
    ],
)
def test_what_cannot_be(make_contract, make_model, tmp_path, wrong, said):
    with pytest.raises(ConfigError, match=said):
        export_model_repository(make_model(make_contract()), tmp_path / "r", **wrong)
    assert not (tmp_path / "r").exists()


def test_a_file_without_contract(make_contract, make_model, tmp_path):
    with pytest.raises(ModelError, match=r"has no 'localize\.contract'"):
        export_model_repository(make_model(make_contract(), embed=False), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_without_the_extra(make_contract, make_model, tmp_path, monkeypatch):
    path = make_model(make_contract())
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingExtraError, match=r"gr-localize\[triton\]"):
        export_model_repository(path, tmp_path / "r")


def test_the_server_puts_requests_of_one_length_together(make_contract, make_model, triton_server, tmp_path):
    """And answers each of them its own, of whatever length."""
    contract = make_contract(1, correlation=False)
    path = make_model(contract, shape=("batch", 16, "time_steps"), position=first_two)
    name = "batched"
    export_model_repository(
        path, triton_server.repository, name=name, backend="python", site_packages=triton_server.site_packages
    )
    triton_server.load(name)
    requests = [
        np.full((1 + k % 3, 16, (5, 9)[k // 12]), k, np.float32) + np.arange(16, dtype=np.float32)[:, None]
        for k in range(24)
    ]
    with triton.InferenceServerClient(triton_server.address) as client:
        for wave in range(1, 21):  # whether any wait while another runs is up to the machine
            pending = []
            for features in requests:
                entry = triton.InferInput("features", list(features.shape), "FP32")
                entry.set_data_from_numpy(features)
                answer: Future[triton.InferResult] = Future()
                client.async_infer(name, [entry], partial(settle, answer), client_timeout=30.0)
                pending.append(answer)
            for k, answer in enumerate(pending):
                position = answer.result(30.0).as_numpy("position")
                np.testing.assert_allclose(position, [[k, k + 1]] * (1 + k % 3))
            (statistics,) = client.get_inference_statistics(name, "1").model_stats
            if statistics.execution_count < wave * len(requests):
                break
        else:
            pytest.fail("no two requests were put together")
    assert statistics.inference_count == wave * sum(len(features) for features in requests)
    triton_server.unload(name)


def test_the_manifests_of_the_guide_agree_with_themselves():
    page = (ROOT / "docs" / "scale-out.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    deployment, service, inference = [document for block in blocks for document in yaml.safe_load_all(block)]
    kinds = [each["kind"] for each in (deployment, service, inference)]
    assert kinds == ["Deployment", "Service", "InferenceService"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (port,) = service["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"] == 8001
    assert container["readinessProbe"]["httpGet"]["port"] in ports
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
