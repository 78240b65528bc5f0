"""An ONNX file with its contract, loaded into ONNX Runtime."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from localize_core.errors import ConfigError, EngineError, ModelError
from localize_core.model.base import ModelOutput
from localize_core.model.contract import LIKELIHOOD_NAME, METADATA_KEY, OUTPUT_NAMES, Contract, agreed_contract
from localize_core.model.session import SessionSettings
from localize_core.types.fix import ModelIdentity

OUTPUT_WIDTHS = {"position": 2, "uncertainty": 3, "confidence": 1}
IR_VERSION_TAG = b"\x08"
"""What an ONNX file begins with: the first field of its protocol buffer."""


class OnnxModel:
    """A model that is ready to run.

    `contract` replaces the one in the file only where the file has none. `name` and `version` are those under which a
    registry knows it, else the contract's. Raises ModelError when the file cannot be loaded, carries no contract and
    none is given, disagrees with the one given, or breaks the tensor interface; ConfigError for a provider that is
    missing here.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        contract: Contract | None = None,
        session: SessionSettings | None = None,
        name: str | None = None,
        version: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.sha256 = model_digest(self.path)
        try:
            # Loading by path lets ONNX Runtime find tensors stored in files beside the model.
            self._session = (session or SessionSettings()).open(str(self.path))
        except ConfigError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types for one cause: the file is no good
            raise ModelError(f"{self.path}: not a usable ONNX model: {error}") from error
        if model_digest(self.path) != self.sha256:
            raise ModelError(f"{self.path}: was written while it was loaded; write beside it and rename")
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            carried = Contract.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from error
        self.contract = agreed_contract(
            carried,
            contract,
            label=self.label,
            mending=f"has no '{METADATA_KEY}' in its metadata; give a contract beside it, with sample rate, channels, "
            "receivers and output frame",
        )
        self.identity = ModelIdentity(
            name=name or self.contract.name, version=version or self.contract.model_version, sha256=self.sha256
        )
        self._check_interface()

    @property
    def label(self) -> str:
        return str(self.path)

    def _check_interface(self) -> None:
        inputs = [(tensor.name, tensor.type, list(tensor.shape)) for tensor in self._session.get_inputs()]
        outputs = {tensor.name: list(tensor.shape) for tensor in self._session.get_outputs()}
        self._input, self._flat = check_interface(self.contract, inputs, outputs, "tensor(float)", label=self.label)
        if self.contract.likelihood is not None and LIKELIHOOD_NAME not in outputs:
            raise ModelError(f"{self.label}: output {LIKELIHOOD_NAME!r} of the contract is missing")
        self._one_by_one = inputs[0][2][0] == 1  # exported for a batch of one

    def run(self, features: np.ndarray) -> ModelOutput:
        """Answer a batch of normalised windows, float32 (batch, channels, rows, time_steps).

        Raises EngineError when ONNX Runtime fails or the answer has the wrong shape.
        """
        if self._one_by_one and len(features) > 1:
            answers = [self.run(features[k : k + 1]) for k in range(len(features))]
            return ModelOutput(*(np.concatenate([getattr(each, name) for each in answers]) for name in OUTPUT_NAMES))
        fed = features[:, 0] if self._flat else features
        try:
            answers = self._session.run(list(OUTPUT_NAMES), {self._input: fed})
        except Exception as error:  # as above: many types, one meaning
            raise EngineError(f"{self.path}: inference failed on {features.shape}: {error}") from error
        return checked_output(answers, len(features), label=self.label)

    def likelihood(self, features: np.ndarray) -> np.ndarray | None:
        """See `LikelihoodModel`."""
        grid = self.contract.likelihood
        if grid is None:
            return None
        try:
            (answer,) = self._session.run([LIKELIHOOD_NAME], {self._input: features[:, 0] if self._flat else features})
        except Exception as error:  # as in `run`
            raise EngineError(f"{self.path}: no likelihood of {features.shape}: {error}") from error
        if answer.shape != (len(features), grid.rows, grid.columns):
            raise EngineError(f"{self.path}: likelihood has shape {answer.shape}, the contract wants {grid}")
        return answer

    def close(self) -> None:
        """Nothing to do: the session goes with its last reference."""

    def flawed_weights(self) -> list[str]:
        """Names of the tensors in the file that hold NaN."""
        model = onnx.load(self.path)
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        tensors |= {
            node.output[0]: attribute.t
            for node in model.graph.node
            for attribute in node.attribute
            if attribute.type == onnx.AttributeProto.TENSOR
        }
        kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
        return [
            name
            for name, tensor in tensors.items()
            if tensor.data_type in kinds and np.isnan(onnx.numpy_helper.to_array(tensor)).any()
        ]


def model_files(path: Path) -> list[Path]:
    """The ONNX file and those beside it that hold its tensors, in the order of their names.

    Raises ModelError where one is missing or unreadable, lies elsewhere, or the file is not an ONNX model.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        problem = "damaged or cut short" if content.startswith(IR_VERSION_TAG) else "no ONNX file at all"
        raise ModelError(f"{path}: not a usable ONNX model: {problem}") from error
    beside = set()
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                beside.add(entry.value)
    folder = path.resolve().parent
    files = [path]
    for location in sorted(beside):
        file = folder / location
        if not file.resolve().is_relative_to(folder):
            raise ModelError(f"{path}: its tensors lie in {location}, outside the model's folder")
        if not file.is_file():
            raise ModelError(f"{path}: its tensors lie in {location}, which is missing beside it")
        files.append(file)
    return files


def model_digest(path: Path) -> str:
    """SHA-256 over the ONNX file and then the files with its tensors, as `cat model.onnx model.onnx.data | sha256sum`.

    Raises ModelError as `model_files` does.
    """
    digest = hashlib.sha256()
    for file in model_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _tensors(graph: Any) -> list[Any]:
    """All stored tensors of a graph and the graphs inside it."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += _tensors(inner)
    return found


def check_interface(
    contract: Contract,
    inputs: list[tuple[str, str, list[Any]]],
    outputs: dict[str, list[Any]],
    float_type: str,
    *,
    label: str,
) -> tuple[str, bool]:
    """The input's name, and whether it lacks the axis of channels.

    `inputs`: name, type and shape of each; `outputs`: shapes. A size that is no positive whole number is a free one.
    Raises ModelError where the tensors are not those of the contract.
    """
    if len(inputs) != 1:
        raise ModelError(f"{label}: one input tensor is expected, found {[name for name, _, _ in inputs]}")
    name, kind, shape = inputs[0]
    if kind != float_type:
        raise ModelError(f"{label}: input '{name}' is {kind}, {float_type} is expected")
    missing = [output for output in OUTPUT_NAMES if output not in outputs]
    if missing:
        raise ModelError(f"{label}: outputs {list(OUTPUT_NAMES)} are expected, found {sorted(outputs)}")
    channels, rows, steps = len(contract.channels), contract.rows, contract.time_steps
    flat = len(shape) == 3
    wanted = [None, rows, steps] if flat else [None, channels, rows, steps]
    fits = len(shape) == len(wanted) and all(
        want is None or not isinstance(have, int) or have < 0 or have == want
        for have, want in zip(shape, wanted, strict=True)
    )
    if not fits or (flat and channels != 1):
        raise ModelError(
            f"{label}: input '{name}' has shape {shape}, the contract wants "
            f"(batch, {channels}, {rows}, {steps or 'time_steps'})"
        )
    for output in OUTPUT_NAMES:
        width = outputs[output][-1] if outputs[output] else None
        if isinstance(width, int) and width >= 0 and width != OUTPUT_WIDTHS[output]:
            raise ModelError(f"{label}: output '{output}' is {width} wide, {OUTPUT_WIDTHS[output]} is expected")
    return name, flat


def checked_output(answers: list[np.ndarray], batch: int, *, label: str) -> ModelOutput:
    """Answers in the order of OUTPUT_NAMES. Raises EngineError where their shapes are not those of a batch."""
    shapes = [answer.shape for answer in answers]
    if shapes != [(batch, OUTPUT_WIDTHS[name]) for name in OUTPUT_NAMES]:
        shown = ", ".join(map(str, shapes))
        raise EngineError(f"{label}: answers have shapes {shown} for a batch of {batch}")
    return ModelOutput(*answers)
