"""Where the service listens, who may use it, and what it takes."""

from __future__ import annotations

import ipaddress
import re
import stat
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from localize_core.errors import ConfigError
from localize_core.service.history import DEFAULT_CAPACITY

MIN_TOKEN = 16
"""Characters of a token: short ones can be guessed."""


def _checked_host(host: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", host):
        raise ValueError("wanted a host name or an address, without brackets and port")
    return host


def _checked_token(token: str) -> str:
    if token and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN},}}", token):
        raise ValueError(f"wanted {MIN_TOKEN} or more printable ASCII characters without spaces")
    return token


def _checked_tiles(tiles: str) -> str:
    parts = urlsplit(tiles)
    wanted = "wanted https://HOST/PATH with {z}, {x} and {y}, or a path on this server"
    if tiles and (parts.scheme not in ("http", "https", "") or bool(parts.scheme) != bool(parts.netloc)):
        raise ValueError(wanted)
    # It becomes part of a header.
    if tiles and (not re.fullmatch(r"[!-~]+", tiles) or re.search(r"[;,'\"]", parts.netloc)):
        raise ValueError(wanted)
    if tiles and not (all(part in tiles for part in ("{z}", "{x}", "{y}")) and (parts.netloc or tiles[0] == "/")):
        raise ValueError(wanted)
    return tiles


def _checked_origin(origin: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]_-]+", origin):
        raise ValueError("wanted http://HOST or https://HOST, with :PORT where it is not the usual one, and no path")
    return origin


class HttpOptions(BaseModel):
    """How fixes, map and model are served over HTTP, but for the secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: Annotated[str, AfterValidator(_checked_host)] = Field(
        "127.0.0.1", description="address to listen at; one beyond this machine needs a token"
    )
    port: int = Field(8080, ge=0, le=65_535, description="0 takes any that is free")
    history: int = Field(DEFAULT_CAPACITY, ge=1, le=1_000_000, description="fixes that are kept")
    tiles: Annotated[str, AfterValidator(_checked_tiles)] = Field(
        "", description="URL of map tiles with {z}, {x}, {y}; a map without a background where left out"
    )
    attribution: str = Field("", max_length=500, description="whom the tiles are from, as their terms demand")
    max_body_bytes: int = Field(128 << 20, ge=1024, le=4 << 30, description="of one request")
    queue_requests: int = Field(256, ge=0, le=10_000, description="requests that may wait for the model")
    cors_origins: list[Annotated[str, AfterValidator(_checked_origin)]] = Field(
        [], description="other sites whose pages may ask, such as https://map.example.org"
    )


class HttpSettings(HttpOptions):
    """The same with the token that every request must carry; none where it is empty."""

    token: Annotated[str, AfterValidator(_checked_token)] = Field("", repr=False)

    def check(self) -> None:
        """Raise ConfigError where others could reach the service and no token is asked for."""
        if not self.token and not is_loopback(self.host):
            raise ConfigError(
                f"http.host={self.host!r}: others can reach it, so a token is needed; write one with `openssl rand "
                "-hex 16`, and name it by token_file in [http], --token-file or GR_LOCALIZE_TOKEN"
            )


def is_loopback(host: str) -> bool:
    """Whether an address leads to this machine only. A name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def http_settings(**values: Any) -> HttpSettings:
    """Settings from plain values. Raises ConfigError naming the first that is no good."""
    try:
        return HttpSettings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        given = "" if key == "token" else f"={first['input']!r}"  # a secret is not repeated
        raise ConfigError(f"http.{key}{given}: {first['msg'].removeprefix('Value error, ')}") from error


def read_token(path: Path) -> str:
    """The token in a file's first line. Raises ConfigError where there is none, or others may read it."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file={path}: cannot be read: {error}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"token_file={path}: anybody can read it; chmod o-rw takes that away")
    if not lines or not lines[0].strip():
        raise ConfigError(f"token_file={path}: its first line is empty")
    return lines[0].strip()
