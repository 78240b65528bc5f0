"""What a connection to a publisher looks like to the subscriber that reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import SplitResult, urlsplit

from localize_core.addresses import without_credentials
from localize_core.errors import ConfigError, LocalizeError

POLL_S = 0.25
"""A session that waits lets its reader look up so often."""
CONNECT_S = 5.0
"""How long a connection may take to come about."""


class LinkError(LocalizeError):
    """A connection is lost, or did not come about; another may."""


class RefusedError(LinkError):
    """The other side is there and says no: a wrong password, nothing at this path."""


@dataclass(frozen=True)
class Message:
    """What may be a fix. `cursor`: from where another session would go on after it."""

    payload: bytes | str
    cursor: str | None = None


@dataclass(frozen=True)
class Status:
    """Whether fixes can come, and if not, why."""

    connected: bool
    reason: str = ""


Session = Generator[Message | Status | None, None, None]


class Link(ABC):
    """A way to get fixes. The constructor validates and holds no resource: those live during a session.

    `name`: the address, without credentials.
    """

    OPTIONS: ClassVar[frozenset[str]]
    """The options of `subscribe` that it takes."""
    CAN_WAIT: ClassVar[bool] = True
    """Whether the other side keeps what is not read for a while; else the reader must go on reading."""

    def __init__(self, url: str, **_options: Any) -> None:
        self.name = without_credentials(url)

    @abstractmethod
    def session(self) -> Session:
        """Connect, and yield what comes, with None after POLL_S without anything. The next session goes on where this
        one ended, as far as the other side remembers.

        Raises LinkError when the connection is lost, RefusedError where the other side says no.
        """

    def interrupt(self) -> None:  # noqa: B027  most have nothing to do here
        """From another thread: have a session end soon that waits for longer than POLL_S."""


def split_url(url: str, wanted: str) -> SplitResult:
    """The parts of an address. Raises ConfigError naming what is `wanted` if it has no host or an impossible port."""
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(f"url={without_credentials(url)!r}: wanted {wanted}")
    return parts
