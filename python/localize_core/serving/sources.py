"""From a model source string and the settings beside it to where that model comes from."""

from __future__ import annotations

from pathlib import Path

from localize_core.errors import ConfigError
from localize_core.model.base import ModelSource
from localize_core.model.contract import Contract
from localize_core.model.source import CompiledUri, FileSource, FileUri, RegistryUri, parse_model_uri
from localize_core.serving.settings import ServingSettings


def open_source(
    uri: str, settings: ServingSettings, *, contract: Contract | None = None, compiled: Path | None = None
) -> ModelSource:
    """The source that `uri` names. `compiled`: the station's compiled model, where there is a station. `contract`: of a
    model that carries none.

    Nothing is asked or loaded yet. Raises ConfigError for a string that names nothing, a contract file that cannot be
    read, or an optional package that is missing.
    """
    named = parse_model_uri(uri)
    if isinstance(named, CompiledUri):
        if compiled is None:
            raise ConfigError(
                "model 'compiled': needs a station's geometry; use localizer with a station file, or the file that "
                "`gr-localize compile` writes"
            )
        return FileSource(compiled, session=settings.session)
    if isinstance(named, FileUri):
        return FileSource(named.path, contract=contract, session=settings.session)
    if isinstance(named, RegistryUri):
        from localize_core.model.registry_source import RegistrySource

        return RegistrySource(named, registry=settings.registry, contract=contract, session=settings.session)
    from localize_core.model.remote import RemoteSource

    return RemoteSource(
        named, deadline_s=settings.deadline_ms / 1e3, max_in_flight=settings.max_in_flight, contract=contract
    )


def open_champion(settings: ServingSettings, *, compiled: Path | None = None) -> ModelSource:
    """The source of the champion, which alone the settings' contract is for. Raises as `open_source` does."""
    contract = None if settings.contract is None else read_contract(settings.contract)
    return open_source(settings.uri, settings, contract=contract, compiled=compiled)


def read_contract(path: str) -> Contract:
    """A contract in a JSON file. Raises ConfigError where it cannot be read, ModelError where it is no good."""
    try:
        return Contract.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"contract={path}: cannot be read: {error}") from error
