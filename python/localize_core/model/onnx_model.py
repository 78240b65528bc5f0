"""An ONNX file with its contract, loaded into ONNX Runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from localize_core.errors import EngineError, ModelError
from localize_core.model.contract import METADATA_KEY, OUTPUT_NAMES, Contract
from localize_core.types.fix import ModelIdentity

OUTPUT_WIDTHS = {"position": 2, "uncertainty": 3, "confidence": 1}


@dataclass(frozen=True)
class ModelOutput:
    """Answers to a batch: `position` (batch, 2), `uncertainty` (batch, 3), `confidence` (batch, 1), float32."""

    position: np.ndarray
    uncertainty: np.ndarray
    confidence: np.ndarray


class OnnxModel:
    """A model that is ready to run.

    `contract` replaces the one in the file only where the file has none. Raises ModelError when the file cannot be
    loaded, carries no contract and none is given, disagrees with the one given, or breaks the tensor interface.
    """

    def __init__(self, path: str | Path, *, contract: Contract | None = None, threads: int = 1) -> None:
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read: {error}") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            # Loading by path lets ONNX Runtime find tensors stored in files beside the model.
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types for one cause: the file is no good
            raise ModelError(f"{self.path}: not a usable ONNX model: {error}") from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY in metadata:
            try:
                self.contract = Contract.from_json(metadata[METADATA_KEY])
            except ModelError as error:
                raise ModelError(f"{self.path}: {error}") from error
            if contract is not None and (differences := _differences(self.contract, contract)):
                raise ModelError(f"{self.path}: carries a contract that differs from the one given: {differences}")
        elif contract is not None:
            contract.check()
            self.contract = contract
        else:
            raise ModelError(
                f"{self.path}: has no '{METADATA_KEY}' in its metadata; give sample rate, channels, receivers and "
                "output frame as parameters"
            )
        self._check_interface()

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(name=self.contract.name, version=self.contract.model_version, sha256=self.sha256)

    def _check_interface(self) -> None:
        inputs = self._session.get_inputs()
        outputs = {output.name: output for output in self._session.get_outputs()}
        if len(inputs) != 1:
            raise ModelError(f"{self.path}: one input tensor is expected, found {[i.name for i in inputs]}")
        self._input = inputs[0].name
        if inputs[0].type != "tensor(float)":
            raise ModelError(f"{self.path}: input '{self._input}' is {inputs[0].type}, tensor(float) is expected")
        missing = [name for name in OUTPUT_NAMES if name not in outputs]
        if missing:
            raise ModelError(f"{self.path}: outputs {list(OUTPUT_NAMES)} are expected, found {sorted(outputs)}")
        channels, rows = len(self.contract.channels), self.contract.rows
        shape = list(inputs[0].shape)
        self._flat = len(shape) == 3
        wanted = (
            [None, rows, self.contract.time_steps] if self._flat else [None, channels, rows, self.contract.time_steps]
        )
        fits = len(shape) == len(wanted) and all(
            want is None or not isinstance(have, int) or have == want for have, want in zip(shape, wanted, strict=True)
        )
        if not fits or (self._flat and channels != 1):
            raise ModelError(
                f"{self.path}: input '{self._input}' has shape {shape}, the contract wants "
                f"(batch, {channels}, {rows}, {self.contract.time_steps or 'time_steps'})"
            )
        for name in OUTPUT_NAMES:
            width = outputs[name].shape[-1] if outputs[name].shape else None
            if isinstance(width, int) and width != OUTPUT_WIDTHS[name]:
                raise ModelError(f"{self.path}: output '{name}' is {width} wide, {OUTPUT_WIDTHS[name]} is expected")

    def run(self, features: np.ndarray) -> ModelOutput:
        """Answer a batch of normalised windows, float32 (batch, channels, rows, time_steps).

        Raises EngineError when ONNX Runtime fails or the answer has the wrong shape.
        """
        fed = features[:, 0] if self._flat else features
        try:
            position, uncertainty, confidence = self._session.run(list(OUTPUT_NAMES), {self._input: fed})
        except Exception as error:  # as above: many types, one meaning
            raise EngineError(f"{self.path}: inference failed on {features.shape}: {error}") from error
        batch = len(features)
        if (position.shape, uncertainty.shape, confidence.shape) != ((batch, 2), (batch, 3), (batch, 1)):
            raise EngineError(
                f"{self.path}: answers have shapes {position.shape}, {uncertainty.shape}, {confidence.shape} "
                f"for a batch of {batch}"
            )
        return ModelOutput(position, uncertainty, confidence)


def _differences(carried: Contract, given: Contract) -> str:
    """The fields in which two contracts differ, both sides; empty where they are equal."""
    pairs = ((name, getattr(carried, name), getattr(given, name)) for name in Contract.model_fields)
    return "; ".join(f"{name}={ours!r} in the file, {theirs!r} given" for name, ours, theirs in pairs if ours != theirs)
