"""`gr-localize models`: what a model registry holds, what serves, and models of any source looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from localize_core.errors import ConfigError, ModelError, UnknownModelError
from localize_core.model.base import Model
from localize_core.model.contract import Contract
from localize_core.model.golden import check_golden
from localize_core.model.registry import (
    DEFAULT_NAME,
    ModelRegistry,
    RegisteredVersion,
    figures,
)
from localize_core.model.source import (
    CompiledUri,
    FileUri,
    RegistryUri,
    RemoteUri,
    parse_model_uri,
)
from localize_core.serving.settings import ServingSettings
from localize_core.serving.sources import open_source
from rich import box
from rich.console import Console
from rich.table import Table

FILE_WIDTH = 132
"""Of tables that go to a file or a pipe."""
SHORT_DIGEST = 12
COMPILED_HINT = "gr-localize compile STATION -o MODEL.onnx writes a station's compiled model to a file"


@contextmanager
def _named() -> Iterator[None]:
    """What the command line names is no good, or unknown: wrong usage."""
    try:
        yield
    except (ModelError, UnknownModelError) as error:
        raise ConfigError(str(error)) from error


def _print(*parts: str | Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for part in parts:
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    return table


def _date(text: str) -> str:
    """To the minute, UTC."""
    return text[:16].replace("T", " ")


def _number(text: str) -> str:
    """A figure as people read it; other words as they are."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _pointing(aliases: dict[str, str]) -> str:
    return ", ".join(f"{alias} → {version}" for alias, version in sorted(aliases.items()))


_registry_option = click.option(
    "--registry",
    metavar="URI",
    help="MLflow registry, such as http://host:5000 or sqlite:///mlflow.db. Default: MLFLOW_REGISTRY_URI, else "
    "MLFLOW_TRACKING_URI, else ~/.local/share/gr-localize/mlflow.db.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
_alias_option = click.option("--alias", default="champion", show_default=True, help="Such as champion or challenger.")


@click.group("models")
def command() -> None:
    """Register, promote, roll back and look at models.

    Model registries are MLflow's and need the extra mlflow: pip install 'gr-localize[mlflow]'.
    """


@command.command("list")
@click.argument("name", required=False)
@_registry_option
@_json_option
def list_models(name: str | None, registry: str | None, as_json: bool) -> None:
    """List registered models, or the versions of NAME."""
    found = ModelRegistry(registry)
    if name is not None:
        with _named():
            versions = found.versions(name)
        if as_json:
            listed = [version.as_dict() for version in versions]
            click.echo(json.dumps({"registry": found.label, "name": name, "versions": listed}))
        else:
            _print(f"{name} in {found.label}", _versions_table(versions))
        return
    models = found.models()
    if as_json:
        click.echo(json.dumps({"registry": found.label, "models": [model.as_dict() for model in models]}))
    elif not models:
        _print(f"no models in {found.label}; gr-localize models register MODEL.onnx adds one")
    else:
        table = _table("model", "newest", "aliases", "changed, UTC")
        for model in models:
            changed = _date(model.as_dict()["changed"])
            table.add_row(model.name, model.latest or "none", _pointing(dict(model.aliases)), changed)
        _print(f"models in {found.label}", table)


def _versions_table(versions: list[RegisteredVersion]) -> Table:
    staged = any(version.stage for version in versions)
    table = _table(
        "version", "aliases", *(["stage"] if staged else []), "registered, UTC", "sha256", "median error", "P90"
    )
    for version in versions:
        errors = [version.accuracy.get(key) for key in ("median_m", "p90_m")]
        table.add_row(
            version.version,
            ", ".join(version.aliases),
            *([version.stage or ""] if staged else []),
            _date(version.as_dict()["created"]),
            (version.sha256 or "")[:SHORT_DIGEST],
            *(f"{_number(error)} m" if error else "" for error in errors),
        )
    return table


@command.command("show")
@click.argument("source")
@_registry_option
@_json_option
def show(source: str, registry: str | None, as_json: bool) -> int:
    """Show what a model says of itself.

    And whether it answers as when it was made: exit code 1 where it does not.

    SOURCE is what a station file's uri may be: an ONNX file, models:/NAME@ALIAS, models:/NAME/VERSION, or
    grpc://HOST:PORT/NAME.
    """
    uri = parse_model_uri(source)
    with _named():
        model = _open(source, registry)
        versions = ModelRegistry(registry).versions(uri.name) if isinstance(uri, RegistryUri) else []
    try:
        try:
            check_golden(model)
            golden = "none" if model.contract.golden is None else "ok"
        except ModelError as error:
            golden = str(error)
    finally:
        model.close()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "source": source,
                    "model": {
                        "name": model.identity.name,
                        "version": model.identity.version,
                        "sha256": model.identity.sha256,
                    },
                    "golden": golden,
                    "versions": [version.as_dict() for version in versions],
                    "contract": model.contract.model_dump(mode="json"),
                }
            )
        )
    else:
        _print(_about(model, golden), *([_versions_table(versions)] if versions else []))
        if measured := figures(model.contract):
            table = _table("measured", "")
            for key, value in measured.items():
                table.add_row(key, _number(str(value)))
            _print(table)
    return 0 if golden in ("none", "ok") else 1


def _open(source: str, registry: str | None) -> Model:
    if isinstance(parse_model_uri(source), CompiledUri):
        raise ConfigError(f"compiled: is made for a station; {COMPILED_HINT}, which can be shown")
    return open_source(source, ServingSettings(uri=source, registry=registry)).latest().open()


def _about(model: Model, golden: str) -> Table:
    contract = model.contract
    table = Table(box=None, show_header=False)
    for label, text in (
        ("model", f"{model.identity.name}, version {model.identity.version}"),
        ("sha256", model.identity.sha256),
        ("sample rate", f"{contract.sample_rate_hz:.10g} Hz"),
        ("frequency", f"{contract.frequency_hz:.10g} Hz" if contract.frequency_hz else "any"),
        ("receivers", _receivers(contract)),
        ("channels", _channels(contract)),
        ("window", _window(contract)),
        ("normalisation", contract.normalisation.kind),
        ("position", _frame(contract)),
        ("provenance", ", ".join(f"{key} {value}" for key, value in contract.provenance.items() if _is_plain(value))),
        ("golden vector", {"ok": "answers as when it was made", "none": "none to check"}.get(golden, golden)),
    ):
        table.add_row(label, text)
    return table


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _receivers(contract: Contract) -> str:
    places = (f"{each.name} {each.latitude:.5f} {each.longitude:.5f}" for each in contract.receivers)
    return f"{', '.join(places)}; {contract.min_receivers} or more must be heard"


def _channels(contract: Contract) -> str:
    kinds = [channel.feature for channel in contract.channels]
    counted = " and ".join(f"{kinds.count(kind)} of {kind}" for kind in dict.fromkeys(kinds))
    return f"{counted}, {contract.rows} rows, a frame each {contract.hop} samples"


def _window(contract: Contract) -> str:
    if contract.time_steps is not None:
        return f"{contract.time_steps} frames"
    return f"{contract.min_time_steps} frames or more"


def _frame(contract: Contract) -> str:
    if contract.frame.kind == "wgs84_deg":
        return "latitude and longitude"
    return f"metres east and north of {contract.frame.latitude:.5f} {contract.frame.longitude:.5f}"


@command.command("register")
@click.argument("model_file", metavar="MODEL", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Of the registered model.")
@click.option("--alias", help="Promote the new version at once, such as to champion.")
@_registry_option
@_json_option
def register(model_file: Path, name: str, alias: str | None, registry: str | None, as_json: bool) -> None:
    """Add the ONNX file MODEL as a new version.

    First it must pass what it has to pass before it serves.
    """
    found = ModelRegistry(registry)
    with _named():
        version = found.register(model_file, name)
        if alias is not None:
            found.promote(name, version.version, alias)
            version = found.version(name, version.version)
    if as_json:
        click.echo(json.dumps({"registry": found.label} | version.as_dict()))
        return
    source = f"models:/{name}@{alias}" if alias is not None else f"models:/{name}/{version.version}"
    _print(f"{name} version {version.version} in {found.label}: {source}")


@command.command("promote")
@click.argument("name")
@click.argument("version")
@_alias_option
@_registry_option
@_json_option
def promote(name: str, version: str, alias: str, registry: str | None, as_json: bool) -> None:
    """Let an alias point at another version.

    VERSION of NAME is a number, or latest. Stations that follow the alias change over.
    """
    uri = parse_model_uri(f"models:/{name}/{version}")
    assert isinstance(uri, RegistryUri)
    found = ModelRegistry(registry)
    with _named():
        number = found.resolve(uri)
        before = found.promote(name, number, alias)
    _moved(name, alias, before, number, as_json)


@command.command("rollback")
@click.argument("name")
@_alias_option
@_registry_option
@_json_option
def rollback(name: str, alias: str, registry: str | None, as_json: bool) -> None:
    """Let an alias point where it did before.

    That is before its last promotion; repeated, further back.
    """
    found = ModelRegistry(registry)
    with _named():
        before = found.model(name).aliases.get(alias)
        number = found.rollback(name, alias)
    _moved(name, alias, before, number, as_json)


def _moved(name: str, alias: str, before: str | None, now: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"name": name, "alias": alias, "version": now, "previous": before}))
    else:
        _print(f"{alias} of {name} is version {now}, was {before or 'not set'}")


@command.command("export")
@click.argument("source", metavar="MODEL")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of models that Triton is started with.",
)
@click.option("--name", help="Of the model there; by default the one that the model has.")
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "python"]),
    default="onnxruntime",
    show_default=True,
    help="What runs it in Triton.",
)
@click.option(
    "--model-version",
    type=click.IntRange(min=1),
    help="Its version there; by default the registry's, 1 for a file.",
)
@click.option(
    "--site-packages",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the backend python finds ONNX Runtime.",
)
@_registry_option
@_json_option
def export(
    source: str,
    output: Path,
    name: str | None,
    backend: str,
    model_version: int | None,
    site_packages: Path | None,
    registry: str | None,
    as_json: bool,
) -> None:
    """Write MODEL for Triton to serve.

    MODEL is an ONNX file or models:/…; it goes into a model repository of NVIDIA's Triton Inference Server.
    """
    from localize_core.model.triton_repository import export_model_repository

    uri = parse_model_uri(source)
    with _named():
        path, version = _file(uri, registry)
        folder = export_model_repository(
            path,
            output,
            name=name or (uri.name if isinstance(uri, RegistryUri) else None),
            backend=backend,
            version=str(model_version or version),
            site_packages=site_packages,
        )
    if as_json:
        click.echo(json.dumps({"folder": str(folder)}))
    else:
        _print(str(folder))


def _file(uri: CompiledUri | FileUri | RegistryUri | RemoteUri, registry: str | None) -> tuple[Path, str]:
    """The ONNX file that a source names, and its version."""
    if isinstance(uri, FileUri):
        return uri.path, "1"
    if isinstance(uri, RegistryUri):
        found = ModelRegistry(registry)
        version = found.resolve(uri)
        return found.fetch(uri.name, version), version
    if isinstance(uri, CompiledUri):
        raise ConfigError(f"compiled: is made for a station; {COMPILED_HINT}, which can be exported")
    raise ConfigError(f"grpc://{uri.address}/{uri.name}: is served already, its file is not here")
