"""From a trained network to an ONNX file with its contract, refused unless it answers as the network does."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
import spox
import spox.opset.ai.onnx.v17 as op
import torch
from spox import argument

import localize_core
from localize_core.dataset.windows import WindowSource
from localize_core.errors import ModelError
from localize_core.model.compiled.algebra import between
from localize_core.model.compiled.compile import GOLDEN_SEED, answers, compile_model, save_model, with_golden
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.contract import INPUT_NAME, OUTPUT_NAMES, Contract
from localize_core.model.onnx_model import OnnxModel
from localize_core.training.network import Calibrated
from localize_core.training.summaries import compiled_fix

PARITY_WINDOWS = 1000
PARITY_LIMIT = 1e-4
"""Largest difference between the file and the network: of the area's half size for places and axes (these relative to
the axis where it is longer), of a radian for directions as far as an ellipse has one, of 1 for confidences."""
EXAMPLE_STEPS = 16


@dataclass(frozen=True)
class Parity:
    """Largest differences between file and network over `windows` windows, in the units of `PARITY_LIMIT`."""

    windows: int
    position: float
    axes: float
    direction: float
    confidence: float

    @property
    def worst(self) -> float:
        return float(np.max([self.position, self.axes, self.direction, self.confidence]))  # keeps a NaN


def export(
    network: Calibrated, contract: Contract, prior: LikelihoodSpec | None, path: Path, parity_on: WindowSource
) -> tuple[Contract, Parity]:
    """Write the model, with its golden vector, and compare it with the network on `parity_on`.

    `prior`: specification of the compiled first stage that the network was trained beside. Raises ModelError, and
    leaves no file, where the file differs from the network by more than `PARITY_LIMIT`.
    """
    network = network.eval()
    graph = _graph(network, contract, prior)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / "draft.onnx"
        save_model(graph, contract, draft)
        found = parity(OnnxModel(draft), network, prior, parity_on)
        if not found.worst <= PARITY_LIMIT:
            raise ModelError(
                f"{path}: not written: the ONNX graph differs from the network by {found.worst:.2g}, at most "
                f"{PARITY_LIMIT:g} is allowed ({found})"
            )
        contract = with_golden(
            draft, contract, seed=GOLDEN_SEED, time_steps=contract.time_steps or parity_on.time_steps
        )
        save_model(graph, contract, draft)
        draft.replace(path)
    return contract, found


def parity(model: OnnxModel, network: Calibrated, prior: LikelihoodSpec | None, source: WindowSource) -> Parity:
    """Answers of the file against those of the network beside the compiled first stage, on up to `PARITY_WINDOWS`."""
    scale_m = network.layout.scale_m
    worst, count = np.zeros(4), 0
    with _compiled(prior) as first:
        for windows in source.batches(50):
            features = windows.features[: PARITY_WINDOWS - count]
            with torch.no_grad():
                fix = torch.from_numpy(compiled_fix(first, network.layout, features))
                place, ellipse, certain = (part.numpy() for part in network(torch.from_numpy(features), fix))
            answer = model.run(features)
            axes = np.abs(answer.uncertainty[:, :2] - ellipse[:, :2]) / np.maximum(ellipse[:, :2], scale_m)
            elongation = 1.0 - (ellipse[:, 1] / ellipse[:, 0]) ** 2
            turned = np.abs(np.sin(np.radians(answer.uncertainty[:, 2] - ellipse[:, 2]))) * elongation
            differences = (
                np.abs(answer.position - place).max() / scale_m,
                axes.max(),
                turned.max(),
                np.abs(answer.confidence - certain).max(),
            )
            worst = np.maximum(worst, differences)
            count += len(features)
            if count >= PARITY_WINDOWS:
                break
    return Parity(count, *worst.tolist())


@contextlib.contextmanager
def _compiled(prior: LikelihoodSpec | None) -> Any:
    """The compiled first stage as a model of its own, None without one."""
    if prior is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        compile_model(prior, Path(folder) / "prior.onnx")
        yield OnnxModel(Path(folder) / "prior.onnx")


def _graph(network: Calibrated, contract: Contract, prior: LikelihoodSpec | None) -> onnx.ModelProto:
    """Compiled first stage and network as one graph."""
    channels, receivers = len(contract.channels), len(contract.receivers)
    steps = contract.time_steps or "time_steps"
    if channels == 1:  # the plain form of a single receiver's model
        given = argument(spox.Tensor(np.float32, ("batch", contract.rows, steps)))
        features = op.unsqueeze(given, op.const(np.array([1], np.int64)))
    else:
        given = features = argument(spox.Tensor(np.float32, ("batch", channels, contract.rows, steps)))
    if prior is None:
        one = op.reduce_mean(features, axes=[1, 2, 3], keepdims=False)
        zeros = op.const(np.zeros((1, 6), np.float32))
        fix = op.mul(op.unsqueeze(one, op.const(np.array([1], np.int64))), zeros)
    else:
        first = receivers if prior.timing is not None and contract.mel_config is not None else 0
        compiled = answers(between(features, 1, first, channels), prior)
        fix = op.concat([compiled[name] for name in OUTPUT_NAMES], axis=1)
    first_stage = spox.build({INPUT_NAME: given}, {"same": op.identity(features), "fix": fix})
    return _joined(first_stage, _exported(network, contract))


def _joined(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """The network behind the first stage, which is lifted to its operator set."""
    version = next(each.version for each in second.opset_import if each.domain in ("", "ai.onnx"))
    first = onnx.version_converter.convert_version(first, version)
    first = onnx.compose.add_prefix(first, "stage/", rename_inputs=False)
    second = onnx.compose.add_prefix(second, "network/", rename_outputs=False)
    second.ir_version = first.ir_version = max(first.ir_version, second.ir_version)
    return onnx.compose.merge_models(
        first, second, io_map=[("stage/same", "network/features"), ("stage/fix", "network/fix")]
    )


def _exported(network: Calibrated, contract: Contract) -> onnx.ModelProto:
    """The network alone as PyTorch exports it."""
    steps = contract.time_steps or EXAMPLE_STEPS
    features = torch.rand(2, len(contract.channels), contract.rows, steps)
    fix = torch.rand(2, 6) + 1.0
    batch = torch.export.Dim("batch")
    shapes: dict[int, Any] = {0: batch}
    if contract.time_steps is None:
        shapes[3] = torch.export.Dim("time_steps", min=2)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter tells of operators that nobody uses here
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (features, fix),
                dynamo=True,
                input_names=["features", "fix"],
                output_names=list(OUTPUT_NAMES),
                dynamic_shapes=(shapes, {0: batch}),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of many kinds, all of which mean that this PyTorch cannot export it
        raise ModelError(f"PyTorch {torch.__version__} cannot export the network: {error}") from error
    finally:
        logging.disable(before)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    # The exporter notes for every node where in which source file it comes from: half of the file, and whose paths?
    for node in proto.graph.node:
        del node.metadata_props[:]
    del proto.graph.value_info[:]
    return proto


def provenance(kind: str, **told: Any) -> dict[str, Any]:
    """Who made a model, and what is told of how."""
    return {
        "kind": kind,
        "by": f"gr-localize {localize_core.__version__}",
        "torch": torch.__version__,
        **{key: value for key, value in told.items() if value is not None},
    }
