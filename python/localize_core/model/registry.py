"""Models in an MLflow registry: registered with their figures, promoted and rolled back by aliases, fetched once.

Needs `mlflow-skinny`, not the whole of MLflow. Several registries may be in use at once: nothing here changes what
MLflow keeps for the process, except environment variables that are unset when it is imported.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from localize_core.errors import (
    ConfigError,
    DigestError,
    LocalizeError,
    MissingExtraError,
    ModelError,
    RegistryError,
    UnknownModelError,
)
from localize_core.model.admission import admit
from localize_core.model.contract import METADATA_KEY, Contract
from localize_core.model.downloads import Download, discard, prune
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel, model_digest, model_files
from localize_core.model.source import RegistryUri
from localize_core.model.store import cache_folder

log = logging.getLogger(__name__)

DEFAULT_NAME = "localization_model"
EXPERIMENT = "gr-localize"
"""Where runs of registrations are filed, unless MLFLOW_EXPERIMENT_NAME says otherwise."""
MODEL_FILE = "model.onnx"

CONTRACT_TAG = METADATA_KEY
OMITTED_TAG = f"{METADATA_KEY}.omitted"
SHA256_TAG = "localize.sha256"
ACCURACY_TAG = "localize.accuracy."
HISTORY_TAG = "localize.history."

MAX_TAG_CHARACTERS = 100_000
"""MLflow's limit for tags of versions. Old servers take 5000, MySQL 65 535 bytes."""
MAX_HISTORY = 100
"""Former versions of an alias that are remembered: a registered model's tag holds 5000 characters."""

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # stations do not phone home
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A dead server is noticed within seconds; MLflow's own settings make it minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}
"""What MLflow is told before it is imported, where the user has not said otherwise."""
CHATTY = ("mlflow", "alembic")
"""Loggers that would tell of every migration of a database."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model. `accuracy`: figures measured, as the registry has them, text."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created: datetime
    sha256: str | None
    accuracy: Mapping[str, str] = field(default_factory=dict)
    stage: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"aliases": list(self.aliases), "created": time_text(self.created)}


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model: its newest version, None without any, and where its aliases point."""

    name: str
    latest: str | None
    aliases: Mapping[str, str]
    changed: datetime

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"changed": time_text(self.changed)}


def registry_uri(uri: str | None = None) -> str:
    """The registry that is meant: `uri`, else MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI, else a file of the user's.

    That file is `$XDG_DATA_HOME/gr-localize/mlflow.db`, by default under `~/.local/share`, in SQLite.
    """
    found = uri or os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if not found:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        return f"sqlite:///{data.absolute() / 'gr-localize' / 'mlflow.db'}"
    if "://" not in found and found != "databricks":
        raise ConfigError(
            f"registry={found!r}: wanted the URI of a server, http://HOST:PORT, or of a database, sqlite:///PATH"
        )
    path = _sqlite_file(found)
    # From another working directory it is the same registry, and its downloads the same.
    return f"sqlite:///{path.absolute()}" if path else found.rstrip("/")


class ModelRegistry:
    """An MLflow registry: a server (`http://…`), or a database (`sqlite:///…`). See `registry_uri` for the default.

    Nothing is opened before it is needed. Threads may share it, and several processes may fetch at once. Methods raise
    MissingExtraError without the extra `mlflow`; RegistryError where the registry cannot be reached, as
    UnknownModelError where it does not have what is asked for.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = registry_uri(uri)
        # A registry named alone serves runs and artifacts too.
        self._tracking_uri = self.uri if uri else registry_uri(os.environ.get("MLFLOW_TRACKING_URI") or self.uri)
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """The URI without a password, for messages."""
        parts = urlsplit(self.uri)
        if "@" not in parts.netloc:
            return self.uri
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def folder(self) -> Path:
        """Where downloads from this registry are kept."""
        return cache_folder() / "registry" / hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    def model_folder(self, name: str) -> Path:
        """Where downloads of a model are kept, a folder for each version."""
        encoded = quote(name, safe="")
        return self.folder / (f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded)

    def models(self) -> list[RegisteredModel]:
        """All registered models by name."""
        if self._is_absent():
            return []
        with self._asking() as client:
            found = [_registered_model(each) for each in _pages(client.search_registered_models)]
        return sorted(found, key=lambda model: model.name)

    def model(self, name: str) -> RegisteredModel:
        """One registered model."""
        if self._is_absent():
            raise UnknownModelError(f"registry {self.label}: does not exist, and so has no model {name}")
        try:
            with self._asking() as client:
                return _registered_model(client.get_registered_model(name))
        except UnknownModelError:
            names = ", ".join(model.name for model in self.models()) or "none at all"
            raise UnknownModelError(f"registry {self.label}: has no model {name}; it has {names}") from None

    def versions(self, name: str) -> list[RegisteredVersion]:
        """All versions of a model, newest first."""
        model = self.model(name)
        quoted = f"'{name}'" if "'" not in name else f'"{name}"'
        with self._asking() as client:
            found = _pages(partial(client.search_model_versions, f"name={quoted}"))
        versions = [_registered_version(each, model.aliases) for each in found]
        return sorted(versions, key=lambda each: int(each.version), reverse=True)

    def version(self, name: str, version: str) -> RegisteredVersion:
        """One version of a model."""
        model = self.model(name)
        try:
            with self._asking() as client:
                return _registered_version(client.get_model_version(name, version), model.aliases)
        except UnknownModelError:
            numbers = ", ".join(each.version for each in self.versions(name)) or "none at all"
            raise UnknownModelError(
                f"registry {self.label}: {name} has no version {version}; it has {numbers}"
            ) from None

    def resolve(self, uri: RegistryUri) -> str:
        """The number of the version that an alias, a number, `latest` or a stage stands for now."""
        if uri.alias is not None:
            aliases = self.model(uri.name).aliases
            if uri.alias not in aliases:
                known = ", ".join(f"{alias} ({version})" for alias, version in sorted(aliases.items())) or "none at all"
                raise UnknownModelError(f"registry {self.label}: {uri.name} has no alias {uri.alias}; it has {known}")
            return aliases[uri.alias]
        wanted = uri.version or "latest"
        if wanted.isdecimal():
            return self.version(uri.name, str(int(wanted))).version
        # Stages are read here, as MLflow's own call for them warns that it will go.
        found = self.versions(uri.name)
        fitting = [each.version for each in found if wanted in ("latest", each.stage)]
        if not fitting:
            stages = ", ".join(f"{each.version} in {each.stage}" for each in found if each.stage) or "none in a stage"
            known = stages if found else "no versions at all"
            raise UnknownModelError(f"registry {self.label}: {uri.name} has no version for {wanted}; it has {known}")
        return fitting[0]

    def fetch(self, name: str, version: str) -> Path:
        """The ONNX file of a version, downloaded once, with what belongs beside it.

        A download is used without the registry where that does not answer. Raises ModelError where the version holds no
        usable ONNX file, or one with another digest than the registry or the first download says; that download is
        thrown away, and the next try fetches anew.
        """
        folder = self.model_folder(name) / version
        download = Download.read(folder)
        try:
            registered = self.version(name, version)
        except UnknownModelError:
            raise
        except RegistryError as error:
            if download is None:
                raise
            log.warning("%s; taking version %s of %s from an earlier download", error, version, name)
        else:
            # Numbers come again where a version was deleted, or a whole registry.
            if download is not None and download.created != time_text(registered.created):
                discard(folder)
                download = None
            download = download or self._download(registered, folder)
        return download.checked()

    def _download(self, registered: RegisteredVersion, folder: Path) -> Download:
        label = f"{registered.name} version {registered.version} of {self.label}"
        with self._asking() as client:
            source = client.get_model_version_download_uri(registered.name, registered.version)
            if re.fullmatch(r"models:/+m-\w+", source):
                source = client.get_logged_model(source.rpartition("/")[2]).artifact_location
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as work:
                draft = Path(work) / "version"
                draft.mkdir()
                model = _onnx_file(self._copy(source, draft, label), label)
                digest = model_digest(model)
                if registered.sha256 not in (None, digest):
                    raise DigestError(f"{label}: sha256 is {digest}, the registry says {registered.sha256}")
                record = model.relative_to(draft).as_posix(), digest, time_text(registered.created)
                Download(folder, *record).write(draft)
                # Where another process was first, its download is as good.
                with suppress(OSError):
                    draft.rename(folder)
            download = Download.read(folder)
            if download is None:
                raise RegistryError(f"{folder}: cannot be written; something else is in its place")
            prune(folder.parent)
        except OSError as error:
            raise RegistryError(
                f"{folder}: the model cannot be kept: {error.strerror}; XDG_CACHE_HOME can name another folder"
            ) from error
        return download

    def _copy(self, source: str, folder: Path, label: str) -> Path:
        """Download all that is at `source`; where it lies now. Raises ModelError where there is nothing."""
        from mlflow import artifacts

        uris = {"artifact_uri": source, "tracking_uri": self._tracking_uri}
        try:
            found = Path(artifacts.download_artifacts(**uris, registry_uri=self.uri, dst_path=str(folder)))
        except Exception as error:  # of whichever library serves this kind of store
            if self._is_empty(**uris):
                raise ModelError(f"{label}: its files are gone from {source}") from error
            raise RegistryError(f"{label}: cannot be fetched from {source}: {_reason(error)}") from error
        return found

    def _is_empty(self, **uris: str) -> bool:
        """Whether the store can be asked, and has nothing there."""
        from mlflow import artifacts

        try:
            return not artifacts.list_artifacts(**uris)
        except Exception:  # as in _copy
            return False

    def register(
        self, path: Path, name: str | None = None, *, tags: Mapping[str, str] | None = None
    ) -> RegisteredVersion:
        """Add a model file, byte for byte with the files of its tensors, as a new version of `name`.

        Other users of the registry can load it with `mlflow.onnx.load_model`. Raises ModelError for a file that is not
        fit to serve, ConfigError for a name that MLflow or a source string cannot have.
        """
        name = name or DEFAULT_NAME
        if not re.fullmatch(r"[^/@:]+", name):
            raise ConfigError(f"{name!r}: the name of a registered model is not empty and has no '/', '@' or ':'")
        model = _checked_model(path)
        with tempfile.TemporaryDirectory(prefix="gr-localize-") as work, self._asking(changing=True) as client:
            folder = Path(work) / "model"
            _write_mlflow_model(model, folder)
            with _allowing("RESOURCE_ALREADY_EXISTS"):
                client.create_registered_model(name)
            run = client.create_run(self._experiment(client), run_name=f"register {name}")
            run_id, status = run.info.run_id, "FAILED"
            try:
                client.log_artifacts(run_id, str(folder), "model")
                for key, value in figures(model.contract).items():
                    if isinstance(value, (int, float)):
                        client.log_metric(run_id, key, value)
                version = client.create_model_version(
                    name,
                    f"{run.info.artifact_uri}/model",
                    run_id,
                    tags={
                        **(tags or {}),
                        SHA256_TAG: model.sha256,
                        **{f"{ACCURACY_TAG}{key}": str(value) for key, value in figures(model.contract).items()},
                    },
                )
                self._tag_contract(client, name, version.version, model.contract.model_dump_json())
                status = "FINISHED"
            finally:
                with suppress(Exception):  # the first error is the one to tell
                    client.set_terminated(run_id, status)
        return self.version(name, str(version.version))

    def _tag_contract(self, client: Any, name: str, version: str, text: str) -> None:
        """Tag a version with its contract; where that is too long for the registry, with where to find it."""
        if len(text) <= MAX_TAG_CHARACTERS:
            with _allowing("INVALID_PARAMETER_VALUE", "BAD_REQUEST") as refusals:
                client.set_model_version_tag(name, version, CONTRACT_TAG, text)
            if not refusals:
                return
        note = f"{len(text)} characters, too long for a tag here; it is in the metadata of {MODEL_FILE}"
        client.set_model_version_tag(name, version, OMITTED_TAG, note)

    def _experiment(self, client: Any) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        database = _sqlite_file(self._tracking_uri)
        # Left to itself, MLflow puts them where the command happens to run.
        location = (database.parent / f"{database.stem}-artifacts").as_uri() if database else None
        found = client.get_experiment_by_name(name)
        if found is None:
            with _allowing("RESOURCE_ALREADY_EXISTS"):
                return str(client.create_experiment(name, artifact_location=location))
            found = client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def promote(self, name: str, version: str, alias: str) -> str | None:
        """Let an alias point at a version. Returns the version that it pointed at before; `rollback` goes back there.

        Raises ConfigError for an alias that MLflow does not allow.
        """
        version = self.resolve(RegistryUri(name, version=version))
        with self._asking(changing=True) as client:
            before, history = self._alias(client, name, alias)
            if before == version:
                return before
            if before is not None:
                self._set_history(client, name, alias, [*history, before])
            client.set_registered_model_alias(name, alias, version)
        return before

    def rollback(self, name: str, alias: str) -> str:
        """Let an alias point where it did before its last promotion; repeated, further back. Returns that version.

        Raises UnknownModelError where there is nothing to go back to.
        """
        existing = {each.version for each in self.versions(name)}
        with self._asking(changing=True) as client:
            now, history = self._alias(client, name, alias)
            # An interrupted change leaves the present version at the end.
            while history and (history[-1] == now or history[-1] not in existing):
                history.pop()
            if not history:
                raise UnknownModelError(
                    f"registry {self.label}: no version to go back to: {alias} of {name} "
                    + ("is not set" if now is None else f"has pointed at no other than {now} that still exists")
                )
            version = history.pop()
            client.set_registered_model_alias(name, alias, version)
            self._set_history(client, name, alias, history)
        return version

    def _alias(self, client: Any, name: str, alias: str) -> tuple[str | None, list[str]]:
        """Where an alias points, and where it did before, oldest first."""
        model = client.get_registered_model(name)
        now = model.aliases.get(alias)
        return None if now is None else str(now), (model.tags.get(f"{HISTORY_TAG}{alias}") or "").split()

    def _set_history(self, client: Any, name: str, alias: str, history: list[str]) -> None:
        client.set_registered_model_tag(name, f"{HISTORY_TAG}{alias}", " ".join(history[-MAX_HISTORY:]))

    def _is_absent(self) -> bool:
        """Whether it is a database file that nothing has been written to yet: reading makes none."""
        path = _sqlite_file(self.uri)
        return path is not None and not path.exists()

    @contextmanager
    def _asking(self, *, changing: bool = False) -> Iterator[Any]:
        """MLflow's client; what goes wrong with it becomes an error of ours.

        `changing`: what MLflow finds wrong with arguments is a ConfigError.
        """
        try:
            with self._lock:
                if self._client is None:
                    self._client = self._open()
            yield self._client
        except LocalizeError:
            raise
        except Exception as error:  # MLflow lets those of its databases and stores through
            code = getattr(error, "error_code", None)
            text = f"registry {self.label}: {_reason(error)}"
            if code == "RESOURCE_DOES_NOT_EXIST":
                raise UnknownModelError(text) from error
            if changing and code == "INVALID_PARAMETER_VALUE":
                raise ConfigError(text) from error
            raise RegistryError(text) from error

    def _open(self) -> Any:
        mlflow = _import_mlflow()
        for uri in dict.fromkeys((self.uri, self._tracking_uri)):
            _probe(uri)
        return mlflow.MlflowClient(tracking_uri=self._tracking_uri, registry_uri=self.uri)


def _import_mlflow() -> Any:
    """MLflow, set up for a station. Raises MissingExtraError."""
    if "mlflow" not in sys.modules:
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        import alembic  # noqa: F401
        import mlflow
        import sqlalchemy  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("models:/ sources", "mlflow") from error
    return mlflow


def _probe(uri: str) -> None:
    """Try a database once: MLflow itself would go on trying for minutes."""
    if uri.startswith(("http:", "https:", "file:", "databricks", "uc:")) or "://" not in uri:
        return
    import sqlalchemy

    if path := _sqlite_file(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI, None for any other."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(found[1]) if found and found[1] != ":memory:" else None


@contextmanager
def _allowing(*codes: str) -> Iterator[list[Exception]]:
    """Go on after errors of MLflow with one of these codes; gives the list that they are put in."""
    from mlflow.exceptions import MlflowException

    refusals: list[Exception] = []
    try:
        yield refusals
    except MlflowException as error:
        if error.error_code not in codes:
            raise
        refusals.append(error)


def _reason(error: BaseException) -> str:
    """One line: what the system says of a connection that failed, else the error's own first line."""
    import requests

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (requests.Timeout, requests.ConnectionError)):
            return f"cannot be reached: {_innermost(cause)}"
        cause = cause.__cause__ or cause.__context__
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("#####")]
    # Of failed downloads the first line says that there were some, the last one why.
    line = lines[-1 if lines[0].startswith("The following failures") else 0] if lines else type(error).__name__
    line = re.sub(r"^[A-Z_]{10,}: ", "", line)  # MLflow's error code
    return line if len(line) <= 300 else f"{line[:300]}…"


def _innermost(error: Exception) -> str:
    """What the operating system says, beneath what libraries make of it."""
    text = str(error)
    if "timed out" in text:
        return "no answer in time"
    found = re.search(r"\[Errno -?\d+\] ([^')\"]+)", text)
    return found[1] if found else text.splitlines()[0][:200]


def _pages(search: Any) -> list[Any]:
    """All results of a search of MLflow's."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _registered_model(model: Any) -> RegisteredModel:
    numbers = [int(each.version) for each in model.latest_versions]
    return RegisteredModel(
        model.name,
        latest=str(max(numbers)) if numbers else None,
        aliases={alias: str(version) for alias, version in model.aliases.items()},
        changed=_time(model.last_updated_timestamp or model.creation_timestamp),
    )


def _registered_version(version: Any, aliases: Mapping[str, str]) -> RegisteredVersion:
    number = str(version.version)
    return RegisteredVersion(
        version.name,
        number,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        created=_time(version.creation_timestamp),
        sha256=version.tags.get(SHA256_TAG),
        accuracy={
            key.removeprefix(ACCURACY_TAG): value
            for key, value in sorted(version.tags.items())
            if key.startswith(ACCURACY_TAG)
        },
        stage=None if version.current_stage in (None, "None") else version.current_stage,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000.0, timezone.utc)


def time_text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _checked_model(path: Path) -> OnnxModel:
    """A model that may serve. Raises ModelError where it may not."""
    model = OnnxModel(path)
    golden = model.contract.golden
    time_steps = model.contract.time_steps or (golden.time_steps if golden else None)
    if time_steps is None:
        check_golden(model)
    else:
        admit(model, time_steps=time_steps)
    return model


def _write_mlflow_model(model: OnnxModel, folder: Path) -> None:
    """Make a folder that MLflow knows as an ONNX model of its own, with the model's files byte for byte."""
    import onnx
    from mlflow.models import Model as MlflowModel

    folder.mkdir()
    root = model.path.resolve().parent
    reserved = {MODEL_FILE, "MLmodel", "requirements.txt"}
    for source in model_files(model.path):
        target = folder / MODEL_FILE if source == model.path else folder / source.relative_to(root)
        if target.exists() or (source != model.path and target.name in reserved):
            raise ModelError(f"{model.path}: its tensors lie in {source.name}, a name that a registered model needs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    if (digest := model_digest(folder / MODEL_FILE)) != model.sha256:
        raise ModelError(f"{model.path}: has changed while it was copied: sha256 was {model.sha256}, is {digest}")
    about = MlflowModel()
    about.add_flavor(
        "python_function", loader_module="mlflow.onnx", python_version=platform.python_version(), data=MODEL_FILE
    )
    about.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=MODEL_FILE,
        providers=["CPUExecutionProvider"],
        code=None,
        onnx_session_options=None,
    )
    about.save(str(folder / "MLmodel"))
    (folder / "requirements.txt").write_text("mlflow\nonnx\nonnxruntime\n")


def figures(contract: Contract) -> dict[str, Any]:
    """The single figures among what was measured of a model; those in tables within have keys with dots."""

    def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            elif isinstance(value, (str, int, float)):
                yield re.sub(r"[^\w .:/-]", "_", f"{prefix}{key}")[:200], value

    return dict(flat(contract.accuracy or {}))


def _onnx_file(folder: Path, label: str) -> Path:
    """The ONNX file of a downloaded version. Raises ModelError where there is not exactly one."""
    import yaml

    if folder.is_file():
        return folder
    about = folder / "MLmodel"
    if about.is_file():
        try:
            flavors = yaml.safe_load(about.read_text())["flavors"]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ModelError(f"{label}: its MLmodel cannot be read: {error}") from error
        if "onnx" not in flavors:
            raise ModelError(f"{label}: is no ONNX model but of the kinds {', '.join(flavors)}")
        path = folder / str(flavors["onnx"].get("data"))
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{label}: its MLmodel names a file outside it: {flavors['onnx'].get('data')}")
        if path.is_file():
            return path
        raise ModelError(f"{label}: the file {path.name} that its MLmodel names is missing")
    found = sorted(folder.rglob("*.onnx"))
    if len(found) != 1:
        named = ", ".join(path.name for path in found) or "none"
        raise ModelError(f"{label}: one ONNX file is expected in it, found {named}")
    return found[0]
