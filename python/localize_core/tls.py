"""TLS for whoever connects to a server."""

from __future__ import annotations

import os
import ssl

from localize_core.errors import ConfigError


def tls_context(
    ca_file: str | os.PathLike[str] | None,
    cert_file: str | os.PathLike[str] | None = None,
    key_file: str | os.PathLike[str] | None = None,
) -> ssl.SSLContext:
    """What a client of a server with TLS trusts, and shows of itself.

    `ca_file`: certificates to trust, the system's where it is None. `cert_file`, `key_file`: our own and its key, both
    or neither, without a password. All in PEM. Raises ConfigError for files that hold no such thing.
    """
    if (cert_file is None) != (key_file is None):
        raise ConfigError("cert_file and key_file: wanted both, or neither")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"ca_file={os.fspath(ca_file or '')!r}: cannot be read as certificates: {error}") from error
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password="")  # a key with a password is refused, not asked for
        except (OSError, ValueError) as error:
            names = f"cert_file={os.fspath(cert_file)!r}, key_file={os.fspath(key_file or '')!r}"
            raise ConfigError(f"{names}: {error}") from error
    return context
