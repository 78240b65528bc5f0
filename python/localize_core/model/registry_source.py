"""The model source `models:/…`: versions out of an MLflow registry, and the one that served last out of this disk."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from localize_core.errors import ModelError
from localize_core.model.base import Model, Release
from localize_core.model.contract import Contract
from localize_core.model.downloads import Download, read_json, write_json
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.registry import ModelRegistry, time_text
from localize_core.model.session import SessionSettings
from localize_core.model.source import RegistryUri

log = logging.getLogger(__name__)


class RegistrySource:
    """What a source string `models:/…` names. `registry`: see `registry_uri`; `contract`: for files without one."""

    def __init__(
        self,
        uri: RegistryUri,
        *,
        registry: str | None = None,
        contract: Contract | None = None,
        session: SessionSettings | None = None,
    ) -> None:
        self._named = uri
        self._registry = ModelRegistry(registry)
        self._contract, self._session = contract, session

    @property
    def uri(self) -> str:
        suffix = f"/{self._named.version}" if self._named.alias is None else f"@{self._named.alias}"
        return f"models:/{self._named.name}{suffix}"

    def latest(self) -> Release:
        """The version that the string stands for now. Raises RegistryError, MissingExtraError."""
        return self._release(self._registry.resolve(self._named))

    def release(self, version: str) -> Release:
        """Another version of the model. Raises as `latest` does."""
        return self._release(self._registry.resolve(RegistryUri(self._named.name, version=version)))

    def _release(self, version: str) -> Release:
        created = self._registry.version(self._named.name, version).created
        return Release(
            self._key(version, time_text(created)),
            version,
            lambda: self._load(self._registry.fetch(self._named.name, version), version),
        )

    def _key(self, version: str, created: str) -> str:
        """Numbers come again where a version was deleted, or a whole registry; the time of its making does not."""
        return f"{self._registry.uri} {self._named.name} {version} {created}"

    def _load(self, path: Path, version: str) -> Model:
        return OnnxModel(path, contract=self._contract, session=self._session, name=self._named.name, version=version)

    def remember(self, release: Release) -> None:
        """Keep this release for a start without the registry. What cannot be kept is logged: it serves all the same."""
        folder = self._registry.model_folder(self._named.name)
        download = Download.read(folder / release.version)
        if download is None:
            log.warning("%s: version %s is not kept, as it has not been downloaded", self.uri, release.version)
            return
        note = {"uri": self.uri, "version": release.version, "sha256": download.sha256}
        try:
            write_json(self._note, note)
        except OSError as error:
            log.warning("%s: version %s is not kept: %s: %s", self.uri, release.version, self._note, error.strerror)

    def remembered(self) -> Release | None:
        """The release that served last, as far as it is still here and sound."""
        note = read_json(self._note)
        if note is None:
            return None
        version, sha256 = str(note.get("version")), note.get("sha256")
        download = Download.read(self._note.parent / version)
        if download is None or download.sha256 != sha256:
            return None
        try:
            path = download.checked()
        except ModelError as error:
            log.warning("%s: version %s served last, but is damaged: %s", self.uri, version, error)
            return None
        return Release(self._key(version, download.created), version, lambda: self._load(path, version))

    @property
    def _note(self) -> Path:
        """The file that says which version served last."""
        digest = hashlib.sha256(self.uri.encode()).hexdigest()[:12]
        return self._registry.model_folder(self._named.name) / f"served-{digest}.json"
