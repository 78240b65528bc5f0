"""Keys of ZeroMQ's CURVE (RFC 26): who publishes proves who it is, who listens does, and all between is encrypted.

Files are those of `zmq.auth`: NAME.key holds the public key and may be given away, NAME.key_secret both.
"""

from __future__ import annotations

import os
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.utils import z85

from localize_core.errors import ConfigError

OTHERS = 0o077
"""The bits of a file's mode that let its group or anybody else at it."""
_decode: Callable[[bytes], bytes] = z85.decode


def check_curve() -> None:
    """Raises ConfigError if the libzmq in use was built without it."""
    if not zmq.has("curve"):
        raise ConfigError(f"CURVE: libzmq {zmq.zmq_version()} was built without it: install pyzmq from PyPI")


def read_public_key(path: str | os.PathLike[str]) -> bytes:
    """The public key in a file NAME.key, 40 characters of Z85.

    Raises ConfigError for a file that cannot be read or is none, and for one that holds a secret key: that stays where
    it was made.
    """
    public, secret = _certificate(path)
    if secret is not None:
        raise ConfigError(f"{os.fspath(path)}: holds a secret key, wanted the public one: NAME.key")
    return _checked(public, path)


def read_secret_key(path: str | os.PathLike[str]) -> bytes:
    """The secret key in a file NAME.key_secret, 40 characters of Z85; `zmq.curve_public` has the public one of it.

    Raises ConfigError for a file that cannot be read, is none, or can be read by others.
    """
    _, secret = _certificate(path)
    if secret is None:
        raise ConfigError(f"{os.fspath(path)}: holds no secret key, wanted NAME.key_secret")
    if os.stat(path).st_mode & OTHERS:
        raise ConfigError(f"{os.fspath(path)}: others can read this secret key: chmod 600 {shlex.quote(str(path))}")
    return _checked(secret, path)


def read_public_keys(folder: str | os.PathLike[str]) -> dict[bytes, str]:
    """The public keys in all files NAME.key of a folder, each with its name.

    Raises ConfigError if there is none, or one of them is no public key.
    """
    keys = {read_public_key(path): path.stem for path in sorted(Path(folder).glob("*.key"))}
    if not keys:
        raise ConfigError(f"{os.fspath(folder)}: no folder with public keys: wanted a file NAME.key for each client")
    return keys


def be_client(socket: zmq.Socket[Any], *, server_key: bytes, secret_key: bytes) -> None:
    """Have the socket talk to the holder of `server_key` only, and show who it is. To be called before it connects."""
    check_curve()
    socket.curve_serverkey = server_key
    socket.curve_publickey = zmq.curve_public(secret_key)
    socket.curve_secretkey = secret_key


def _certificate(path: str | os.PathLike[str]) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{os.fspath(path)}: cannot be read as a CURVE key: {error}") from error


def _checked(key: bytes, path: str | os.PathLike[str]) -> bytes:
    try:
        decoded = _decode(key)
    except (KeyError, ValueError, struct.error):
        decoded = b""
    if len(decoded) != 32:
        raise ConfigError(f"{os.fspath(path)}: not a CURVE key: wanted 40 characters of Z85")
    return key
