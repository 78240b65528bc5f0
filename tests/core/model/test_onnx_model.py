"""Model files that work, and all those that must not get as far as a stream."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import spox.opset.ai.onnx.v17 as op
from localize_core.errors import EngineError, ModelError
from localize_core.model.base import ModelOutput
from localize_core.model.contract import METADATA_KEY, Golden
from localize_core.model.golden import check_golden, golden_difference, golden_features
from localize_core.model.onnx_model import OnnxModel


def inputs(contract, batch: int = 1, steps: int = 5) -> np.ndarray:
    return np.ones((batch, len(contract.channels), contract.rows, steps), np.float32)


def test_a_model_answers_a_batch(make_contract, make_model):
    contract = make_contract()
    path = make_model(contract)
    model = OnnxModel(path)
    answer = model.run(inputs(contract, batch=3))
    np.testing.assert_allclose(answer.position, [[47.25, 8.5]] * 3)
    assert (answer.uncertainty.shape, answer.confidence.shape) == ((3, 3), (3, 1))
    assert model.identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (model.identity.name, model.identity.version) == ("tiny", "1")


def test_a_model_exported_for_one_window_answers_batches_too(make_contract, make_model):
    contract = make_contract(2)
    shape = (1, 3, contract.rows, "time_steps")
    path = make_model(
        contract, position=lambda means: op.gather(means, op.const(np.array([0, 1])), axis=1), shape=shape
    )
    features = np.random.default_rng(0).standard_normal((3, 3, contract.rows, 5)).astype(np.float32)
    output = OnnxModel(path).run(features)
    np.testing.assert_allclose(output.position, features.mean(axis=(2, 3))[:, :2], atol=1e-6)
    assert output.confidence.shape == (3, 1)


def test_one_receiver_without_a_channel_axis(make_contract, make_model):
    contract = make_contract(1, correlation=False)
    model = OnnxModel(make_model(contract, shape=("batch", 16, "time_steps")))
    assert model.run(inputs(contract, batch=2)).position.shape == (2, 2)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file(make_contract, make_model, keep):
    path = make_model(make_contract())
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ModelError, match=r"tiny\.onnx"):
        OnnxModel(path)


@pytest.mark.parametrize("content", [b"no model at all", b"\x00" * 1000, b"PK\x03\x04"])
def test_not_onnx(tmp_path, content):
    path = tmp_path / "else.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"else\.onnx.*not a usable ONNX model"):
        OnnxModel(path)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            OnnxModel(path)


@pytest.mark.parametrize(
    ("receivers", "shape"),
    [
        (1, ("batch", 1, 17, "time_steps")),
        (1, ("batch", 2, 16, "time_steps")),
        (1, ("batch", 17, "time_steps")),
        (1, ("batch", 1, 16, "time_steps", 1)),
        (2, ("batch", 16, "time_steps")),
    ],
)
def test_a_shape_that_is_not_the_contracts(make_contract, make_model, receivers, shape):
    contract = make_contract(receivers, correlation=False)
    with pytest.raises(ModelError, match=r"has shape .*the contract wants"):
        OnnxModel(make_model(contract, shape=shape))


def test_a_model_for_another_number_of_frames(make_contract, make_model):
    contract = make_contract(1, correlation=False, time_steps=8)
    assert OnnxModel(make_model(contract)).contract.time_steps == 8
    with pytest.raises(ModelError, match="contract wants"):
        OnnxModel(make_model(contract, shape=("batch", 1, 16, 9)))


def test_an_output_is_missing_or_too_wide(make_contract, make_model):
    contract = make_contract()
    with pytest.raises(ModelError, match=r"outputs .* are expected, found \['confidence', 'position'\]"):
        OnnxModel(make_model(contract, outputs=("position", "confidence")))
    with pytest.raises(ModelError, match="'uncertainty' is 2 wide"):
        OnnxModel(make_model(contract, uncertainty=(1.0, 2.0)))


def test_two_inputs(make_contract, make_model):
    path = make_model(make_contract())
    model = onnx.load(path)
    extra = onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(extra)
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"one input tensor is expected, found \['features', 'more'\]"):
        OnnxModel(path)


def test_no_contract_needs_one_beside_it(make_contract, make_model):
    contract = make_contract()
    path = make_model(contract, embed=False)
    with pytest.raises(ModelError, match=f"has no '{METADATA_KEY}'"):
        OnnxModel(path)
    assert OnnxModel(path, contract=contract).contract == contract


def test_a_contract_beside_the_file_never_overrides_the_one_inside(make_contract, make_model):
    contract = make_contract()
    path = make_model(contract)
    assert OnnxModel(path, contract=contract).contract == contract
    other = contract.model_copy(update={"min_receivers": 3})
    with pytest.raises(ModelError, match=r"differs from the one given: min_receivers=1 in the model, 3 given"):
        OnnxModel(path, contract=other)


def test_a_given_contract_is_checked_too(make_contract, make_model):
    contract = make_contract()
    wrong = contract.model_copy(update={"rows": 15})
    with pytest.raises(ModelError, match="rows=15"):
        OnnxModel(make_model(contract, embed=False), contract=wrong)


def test_a_broken_contract_names_the_file(make_contract, make_model):
    path = make_model(make_contract())
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: "{}"})
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"tiny\.onnx: the model's contract is not usable"):
        OnnxModel(path)


def test_inference_that_fails(make_contract, make_model):
    contract = make_contract()
    path = make_model(contract, position=lambda means: op.reshape(means, op.const(np.array([-1, 2], np.int64))))
    model = OnnxModel(path)
    with pytest.raises(EngineError, match="answers have shapes"):
        model.run(inputs(contract))
    with pytest.raises(EngineError, match="inference failed"):
        model.run(inputs(contract)[:, :2])


def with_golden(make_model, contract, path: Path | None = None) -> Path:
    """A model that adds its input up, with the golden vector that it gives."""
    answers = {
        "position": lambda means: op.gather(means, op.const(np.array([0, 1], np.int64)), axis=1),
        "uncertainty": (200.0, 100.0, 30.0),
    }
    model = OnnxModel(make_model(contract, **answers))
    answer = model.run(golden_features(contract, seed=5, time_steps=6))
    golden = Golden(
        seed=5,
        time_steps=6,
        position=tuple(answer.position[0].tolist()),
        uncertainty=(200.0, 100.0, 30.0),
        confidence=0.9,
    )
    return make_model(contract.model_copy(update={"golden": golden}), **answers)


def test_golden_vector_of_an_unharmed_model(make_contract, make_model):
    check_golden(OnnxModel(with_golden(make_model, make_contract())))
    check_golden(OnnxModel(make_model(make_contract())))  # without one there is nothing to check


@pytest.mark.parametrize(("index", "factor"), [(0, 1.03), (1, 0.97), (2, 2.0)])
def test_an_altered_weight_is_refused(make_contract, make_model, index, factor):
    path = with_golden(make_model, make_contract())
    model = onnx.load(path)
    (bias,) = (
        tensor
        for node in model.graph.node
        for attribute in node.attribute
        if (tensor := attribute.t).dims == [1, 3] and tensor.data_type == onnx.TensorProto.FLOAT
    )
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0, index] *= factor
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"golden vector: expected .* the model answers"):
        check_golden(OnnxModel(path))


def test_a_golden_vector_that_cannot_run(make_contract, make_model):
    contract = make_contract(time_steps=8)
    golden = Golden(seed=5, time_steps=6, position=(1.0, 1.0), uncertainty=(1.0, 1.0, 0.0), confidence=1.0)
    with pytest.raises(ModelError, match=r"golden vector: .*inference failed"):
        check_golden(OnnxModel(make_model(contract.model_copy(update={"golden": golden}))))


def test_golden_features_depend_on_contract_seed_and_length_only(make_contract):
    contract = make_contract()
    features = golden_features(contract, seed=1, time_steps=5)
    assert features.shape == (1, 6, 16, 5)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(features, golden_features(contract, seed=1, time_steps=5))
    assert (features != golden_features(contract, seed=2, time_steps=5)).any()


def difference(position=(0.0, 0.0), uncertainty=(2.0, 1.0, 30.0), confidence=0.9) -> float:
    answer = ModelOutput(*(np.array([values], np.float32) for values in (position, uncertainty, (confidence,))))
    return golden_difference(answer, (0.0, 0.0), (2.0, 1.0, 30.0), 0.9)


def test_golden_difference():
    assert difference() == pytest.approx(0.0, abs=1e-6)
    assert difference(position=(0.0, -0.5)) == pytest.approx(0.5)
    assert difference(uncertainty=(2.2, 1.0, 30.0)) == pytest.approx(0.1, rel=1e-5)
    assert difference(uncertainty=(2.0, 1.0, 210.0)) == pytest.approx(0.0, abs=1e-6)
    assert difference(uncertainty=(2.0, 1.0, 40.0)) == pytest.approx(np.sin(np.radians(10.0)) * 0.75, rel=1e-5)
    assert difference(confidence=0.7) == pytest.approx(0.2, rel=1e-5)
    for broken in ({"position": (np.nan, 0.0)}, {"uncertainty": (1.0, np.nan, 0.0)}, {"confidence": np.nan}):
        assert np.isnan(difference(**broken))
