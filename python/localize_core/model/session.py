"""How ONNX Runtime runs models on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, field_validator

from localize_core.errors import ConfigError

log = logging.getLogger(__name__)

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""ONNX Runtime's execution providers by the names used here."""

OPTIMISATIONS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

Optimisation = Literal["none", "basic", "extended", "all"]


class SessionSettings(BaseModel):
    """Settings of an ONNX Runtime session. The defaults suit a station beside GNU Radio on two cores.

    Providers are tried in their order. Where one is missing, the next takes over with a warning, at last the CPU; with
    `strict` a missing one is an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int = Field(1, ge=1, le=256, description="that one inference may use; further ones pay for large models")
    providers: tuple[str, ...] = Field(("cpu",), min_length=1, description="what runs the model, best first")
    strict: bool = Field(False, description="whether a provider that is missing is an error")
    optimisation: Optimisation = Field("all", description="how far ONNX Runtime rewrites the graph when it loads it")
    arena: bool = Field(True, description="whether memory is kept between inferences: faster, but never given back")

    @field_validator("providers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PROVIDERS:
                raise ValueError(f"{name!r} is no provider, known are {', '.join(PROVIDERS)}")
        return value

    def open(self, path: str) -> onnxruntime.InferenceSession:
        """A session for the file. Raises ConfigError for a missing provider, what ONNX Runtime raises for the file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.graph_optimization_level = OPTIMISATIONS[self.optimisation]
        options.enable_cpu_mem_arena = self.arena
        providers = self._installed()
        while True:
            try:
                # ONNX Runtime's own fallback tells standard output of it, which is for results.
                session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=False)
                break
            except Exception as error:
                if self.strict or len(providers) == 1:
                    raise
                log.warning("provider %s does not start: %s; going on with the next", providers[0], error)
                providers = providers[1:]
        started = [name for name in self.providers if PROVIDERS[name] in providers]
        self._check(session.get_providers(), "does not run here", started)
        return session

    def _installed(self) -> list[str]:
        installed = onnxruntime.get_available_providers()
        problem = f"is not part of this ONNX Runtime, which has {', '.join(_names(installed))}"
        self._check(installed, problem, self.providers)
        found = [PROVIDERS[name] for name in self.providers if PROVIDERS[name] in installed]
        return [*found, *([] if PROVIDERS["cpu"] in found else [PROVIDERS["cpu"]])]

    def _check(self, present: list[str], problem: str, wanted: Iterable[str]) -> None:
        for name in wanted:
            if PROVIDERS[name] in present:
                continue
            if self.strict:
                raise ConfigError(f"session.providers: {name} {problem}; install one that has it, or take it out")
            log.warning("provider %s %s; going on with the next", name, problem)


def _names(providers: list[str]) -> list[str]:
    return [name for name, provider in PROVIDERS.items() if provider in providers]
