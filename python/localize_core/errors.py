"""The project's errors. Errors of other libraries are turned into one of these at the edge where they arise."""

import shlex
import sys


class LocalizeError(Exception):
    """Base of every error raised on purpose by this project."""


class ConfigError(LocalizeError):
    """A parameter, a station file or a combination of blocks cannot work. The message names the mending."""


class ModelError(LocalizeError):
    """A model file is unreadable, breaks its contract or fails its golden vector."""


class DigestError(ModelError):
    """A model is not the one that was meant: its digest is another. Fetched again, it may be."""


class SourceError(LocalizeError):
    """A recording or a receiver cannot be read."""


class RadioError(SourceError):
    """A radio cannot be opened or has failed; another try may help."""


class EngineError(LocalizeError):
    """Inference failed while running."""


class UnavailableError(EngineError):
    """A remote model does not answer in time, or nothing answers there."""


class RegistryError(LocalizeError):
    """A model registry cannot be reached, or does not have what was asked for."""


class UnknownModelError(RegistryError):
    """The registry answers, but has no such model, version or alias."""


class PublishError(LocalizeError):
    """A sink cannot be opened or has failed."""


class SubscribeError(LocalizeError):
    """Fixes cannot be had from an address, and another try would not help."""


class NoFixError(SubscribeError):
    """No fix came for as long as its reader was willing to wait."""


class MissingDriver(ConfigError):
    """The driver of a radio is not installed; the message holds the command that installs it."""


class MissingExtraError(ConfigError):
    """An optional dependency is not installed; the message holds the command that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        pip = f"{shlex.quote(sys.executable)} -m pip"  # of this environment, which need not be the shell's
        super().__init__(f"{feature} needs an optional package: {pip} install 'gr-localize[{extra}]'")
