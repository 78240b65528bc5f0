"""A model as a Triton inference server wants it: a folder with its configuration and its versions."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from localize_core.errors import ConfigError, MissingExtraError, ModelError
from localize_core.model.contract import METADATA_KEY, OUTPUT_NAMES, Contract
from localize_core.model.onnx_model import OUTPUT_WIDTHS, OnnxModel, model_files

DIGEST_KEY = "localize.sha256"
"""Beside the contract in a configuration's parameters: the digest of the model's file."""
SITE_PACKAGES_KEY = "localize.site_packages"

Backend = Literal["onnxruntime", "python"]

CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.onnx"
PYTHON_FILE = "model.py"
MAX_BATCH = 64
"""Windows that one request may hold, and that the server puts together at most."""

PYTHON_MODEL = '''"""Runs the ONNX file beside it, for a server without the backend onnxruntime."""

import json
import os
import sys

import numpy as np
import triton_python_backend_utils as triton

OUTPUTS = ["position", "uncertainty", "confidence"]


class TritonPythonModel:
    def initialize(self, args):
        found = json.loads(args["model_config"])["parameters"].get("localize.site_packages")
        if found is not None:
            sys.path.insert(0, found["string_value"])
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def execute(self, requests):
        windows = [triton.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        alike = {}
        for index, each in enumerate(windows):
            alike.setdefault(each.shape[1:], []).append(index)
        responses = [None] * len(requests)
        for indices in alike.values():
            self.answer([windows[index] for index in indices], indices, responses)
        return responses

    def answer(self, windows, indices, responses):
        """Run windows of one length together, and hand each request its share."""
        try:
            answers = self.session.run(OUTPUTS, {self.input: np.concatenate(windows)})
        except Exception as error:
            for index in indices:
                responses[index] = triton.InferenceResponse(error=triton.TritonError(str(error)))
            return
        first = 0
        for index, each in zip(indices, windows):
            tensors = [
                triton.Tensor(name, np.ascontiguousarray(answer[first : first + len(each)]))
                for name, answer in zip(OUTPUTS, answers)
            ]
            responses[index] = triton.InferenceResponse(output_tensors=tensors)
            first += len(each)
'''


def contract_key(version: str) -> str:
    """The parameter with the contract of one version: a server has one configuration for all versions of a model."""
    return f"{METADATA_KEY}.{version}"


def digest_key(version: str) -> str:
    return f"{DIGEST_KEY}.{version}"


def export_model_repository(
    model_path: Path,
    folder: Path,
    *,
    name: str | None = None,
    backend: str = "onnxruntime",
    version: str = "1",
    site_packages: Path | None = None,
) -> Path:
    """Write `folder`/`name`, the contract's name by default, and return it. Other versions there stay.

    `backend`: `onnxruntime`, or `python` for a server that has no other; `site_packages` then says where it finds
    ONNX Runtime. The first version's contract and digest are in the parameters `localize.contract` and
    `localize.sha256`, those of versions added later in `localize.contract.VERSION` and `localize.sha256.VERSION`.

    Raises ModelError for a file that is no model with a contract, ConfigError for a name, version or backend that
    cannot be, a version that is there already, a model there that takes or gives something else, and a folder that
    cannot be written.
    """
    if backend not in get_args(Backend):
        raise ConfigError(f"backend={backend!r}: known are {', '.join(get_args(Backend))}")
    if site_packages is not None and backend != "python":
        raise ConfigError(f"site_packages={site_packages}: the backend {backend} does not need it, only python does")
    if re.fullmatch(r"[1-9]\d*", version) is None:
        raise ConfigError(f"version={version!r}: a whole number from 1 is wanted")
    model = OnnxModel(model_path)
    name = name or model.contract.name
    if re.fullmatch(r"\w[\w.-]*", name) is None:
        raise ConfigError(f"name={name!r}: letters, digits, '_', '-' and '.' are wanted, the first a letter or digit")
    files = _placed(model_path, backend)
    config = _config(model, name, backend)
    if site_packages is not None:
        config.parameters[SITE_PACKAGES_KEY].string_value = str(site_packages)
    target = folder / name
    try:
        return _write(target, version, config, model, files)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror}") from error


def _write(target: Path, version: str, config: Any, model: OnnxModel, files: dict[Path, Path]) -> Path:
    if (target / version).exists():
        raise ConfigError(f"{target / version}: is there already; a version is never written anew, give another")
    first = not (target / CONFIG_FILE).exists()
    if not first:
        there = _read(target / CONFIG_FILE)
        _check_same(there, config, target)
        config = there
    # The bare keys belong to the first version alone, and hold for any that somebody puts beside it by hand.
    for key, value in (
        (METADATA_KEY if first else contract_key(version), model.contract.model_dump_json()),
        (DIGEST_KEY if first else digest_key(version), model.sha256),
    ):
        config.parameters[key].string_value = value
    target.mkdir(parents=True, exist_ok=True)
    # A server that watches the folder must see neither half a file nor a version whose contract is yet to come.
    with tempfile.TemporaryDirectory(dir=target, prefix=".") as scratch:
        draft = Path(scratch) / version
        draft.mkdir()
        for source, place in files.items():
            (draft / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, draft / place)
        if config.backend == "python":
            (draft / PYTHON_FILE).write_text(PYTHON_MODEL, encoding="utf-8")
        written = Path(scratch) / CONFIG_FILE
        written.write_text(_text_format().MessageToString(config, as_utf8=True), encoding="utf-8")
        written.replace(target / CONFIG_FILE)
        draft.replace(target / version)
    return target


def _placed(path: Path, backend: str) -> dict[Path, Path]:
    """Each file of the model, and what it is called in the version's folder."""
    own, *beside = model_files(path)
    folder = path.resolve().parent
    placed = {own: Path(MODEL_FILE), **{file: file.relative_to(folder) for file in beside}}
    taken = {Path(MODEL_FILE), *([Path(PYTHON_FILE)] if backend == "python" else [])}
    for file in beside:
        if placed[file] in taken:
            raise ModelError(f"{path}: its tensors lie in {placed[file]}, a name that the server's folder needs itself")
    return placed


def _config(model: OnnxModel, name: str, backend: str) -> Any:
    """The configuration, but for what belongs to a version."""
    pb = _config_classes()
    graph = onnx.load(model.path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    (entry,) = (tensor for tensor in graph.input if tensor.name not in stored)
    results = {tensor.name: tensor for tensor in graph.output}
    shape = _sizes(entry)
    firsts = [shape[0], *(sizes[0] for output in OUTPUT_NAMES if (sizes := _sizes(results[output])))]
    batches = all(size < 0 for size in firsts)
    contract = model.contract
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH if batches else 0)
    lead = [] if batches else [shape[0]]
    dims = [contract.rows, contract.time_steps or -1]
    if len(shape) == 4:
        dims.insert(0, len(contract.channels))
    config.input.add(name=entry.name, data_type=pb.TYPE_FP32, dims=[*lead, *dims])
    for output in OUTPUT_NAMES:
        config.output.add(name=output, data_type=pb.TYPE_FP32, dims=[*lead, OUTPUT_WIDTHS[output]])
    if batches:
        # Requests of another length wait for their own batch: nothing here allows ragged ones. No queue policy with a
        # timeout: with one, Triton's batcher now and then sleeps for half a second over a waiting request.
        config.dynamic_batching.SetInParent()
    config.version_policy.all.SetInParent()  # adding a version takes none away from the stations that use it
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    if backend == "onnxruntime":
        config.default_model_filename = MODEL_FILE
    return config


def _sizes(tensor: Any) -> list[int]:
    """A tensor's shape, -1 for a free size."""
    return [each.dim_value if each.dim_value > 0 else -1 for each in tensor.type.tensor_type.shape.dim]


def _read(path: Path) -> Any:
    text_format, config = _text_format(), _config_classes().ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a model configuration: {error}") from error
    return config


def _check_same(there: Any, wanted: Any, target: Path) -> None:
    """Versions share one configuration. Raises ConfigError where these two cannot."""
    for field in ("backend", "max_batch_size", "input", "output"):
        have, want = (str(getattr(each, field)).strip() for each in (there, wanted))
        if have != want:
            raise ConfigError(
                f"{target}: the versions there have another {field}, {_line(have)}, than this model, {_line(want)}; "
                "give it another name"
            )


def _line(text: str) -> str:
    return " ".join(text.split())


def contract_of(parameters: dict[str, str], version: str) -> tuple[Contract | None, str]:
    """Contract and digest of a version in a configuration's parameters, None and "" where there are none.

    Raises ModelError for a contract that is no good.
    """
    text = parameters.get(contract_key(version), parameters.get(METADATA_KEY))
    digest = parameters.get(digest_key(version), parameters.get(DIGEST_KEY, ""))
    return (None if text is None else Contract.from_json(text)), digest


def _config_classes() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError) as error:  # the latter where tritonclient lacks its own extra
        raise MissingExtraError("a Triton model repository", "triton") from error
    return model_config_pb2


def _text_format() -> Any:
    from google.protobuf import text_format

    return text_format
