"""The model's source string, the same in blocks, station files and commands, and the sources on this machine's disk.

`compiled`                                  the station's own geometry, compiled
`path/to/model.onnx`                        a file
`models:/localization_model@champion`       what an alias of an MLflow registry stands for
`models:/localization_model/7`              a version there; `latest`, or a stage as of old (`Production`)
`grpc://host:8001/name`, `…/name/3`         a model behind the Open Inference Protocol; `grpcs://` with TLS
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from localize_core.errors import ConfigError
from localize_core.model.base import Release
from localize_core.model.contract import Contract
from localize_core.model.onnx_model import OnnxModel, model_digest, model_files
from localize_core.model.session import SessionSettings

STAGES = ("Staging", "Production", "Archived")
"""What MLflow had before aliases."""


@dataclass(frozen=True)
class CompiledUri:
    """`compiled`."""


@dataclass(frozen=True)
class FileUri:
    """An ONNX file."""

    path: Path


@dataclass(frozen=True)
class RegistryUri:
    """A registered model, and either an alias, or a version: a number, `latest`, or a stage."""

    name: str
    alias: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class RemoteUri:
    """A model of an inference server. `version` None is the server's choice."""

    host: str
    port: int
    name: str
    version: str | None = None
    tls: bool = False

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


ModelUri = CompiledUri | FileUri | RegistryUri | RemoteUri

_REGISTRY = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))")
_REMOTE = re.compile(
    r"grpc(?P<tls>s?)://(?P<host>\[[^\]/]+\]|[^:/\[\]]+):(?P<port>\d+)/(?P<name>[^/]+)(?:/(?P<version>\d+))?"
)


def parse_model_uri(text: str) -> ModelUri:
    """What a source string names. Raises ConfigError saying what is allowed."""
    if text == "compiled":
        return CompiledUri()
    if text.startswith("models:"):
        found = _REGISTRY.fullmatch(text)
        version = found["version"] if found else None
        if found is None or not (version is None or version.isdecimal() or version in (*STAGES, "latest")):
            raise ConfigError(
                f"model {text!r}: wanted models:/NAME@ALIAS or models:/NAME/VERSION; a version is a number, latest, or "
                f"one of the stages {', '.join(STAGES)}"
            )
        return RegistryUri(found["name"], found["alias"], version)
    if "://" in text:
        found = _REMOTE.fullmatch(text)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise ConfigError(
                f"model {text!r}: wanted grpc://HOST:PORT/NAME or grpc://HOST:PORT/NAME/VERSION, grpcs:// with TLS; "
                "or compiled, the path of a file, or models:/NAME@ALIAS"
            )
        return RemoteUri(found["host"], int(found["port"]), found["name"], found["version"], bool(found["tls"]))
    if not text:
        raise ConfigError(
            "model: empty; wanted compiled, the path of an ONNX file, models:/NAME@ALIAS, or grpc://HOST:PORT/NAME"
        )
    return FileUri(Path(text))


class FileSource:
    """A model file. Written anew, it is another release."""

    def __init__(self, path: Path, *, contract: Contract | None = None, session: SessionSettings | None = None) -> None:
        self._path, self._contract, self._session = path, contract, session
        self._seen: tuple[list[tuple[Path, int, int]], str] = [], ""

    @property
    def uri(self) -> str:
        return str(self._path)

    def latest(self) -> Release:
        states, digest = self._seen
        if not states or states != _states([path for path, _, _ in states]):
            states = _states(model_files(self._path))
            digest = model_digest(self._path)
            self._seen = states, digest
        return Release(digest, digest[:12], self._open)

    def _open(self) -> OnnxModel:
        return OnnxModel(self._path, contract=self._contract, session=self._session)

    def release(self, version: str) -> Release:
        raise ConfigError(f"model {self._path}: a file has no versions to choose from, there is no {version}")

    def remember(self, release: Release) -> None:
        """The file itself is at hand."""

    def remembered(self) -> Release | None:
        return None


def _states(paths: list[Path]) -> list[tuple[Path, int, int]]:
    """What changes with a file's content: when it was written, and its size. Empty where one is gone."""
    try:
        found = [(path, path.stat()) for path in paths]
    except OSError:
        return []
    return [(path, state.st_mtime_ns, state.st_size) for path, state in found]
