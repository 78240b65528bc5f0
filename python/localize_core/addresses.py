"""Addresses of servers: what one may be, and how it is shown without giving away what is secret in it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit


def checked_redis_url(url: str) -> str:
    """The address of a Redis. Raises ValueError saying what is allowed, without repeating a password."""
    wanted = "wanted redis://HOST:PORT/DATABASE, rediss:// with TLS, with USER:PASSWORD@ before the host where needed"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message has what stands for the port, which may be a part of the password
        raise ValueError(f"{wanted}; / ? # in a password are %2F %3F %23") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or port == 0:
        raise ValueError(wanted)
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(f"{wanted}; / ? # in a password are %2F %3F %23")
    if not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError(f"the database is a number, found {parts.path!r}; {wanted}")
    # The client's other options, such as its own time limits and retries, would undo what keeps streams from waiting.
    options = parse_qs(parts.query, keep_blank_values=True)
    if parts.fragment or any(not name.startswith("ssl_") for name in options):
        raise ValueError(
            f"only options of TLS that begin with ssl_ may follow, found {', '.join(options) or '#'}; {wanted}"
        )
    return url


def without_password(text: str) -> str:
    """Text as it may be shown: the password of an address in it left out, up to the last @ as whoever reads it does."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:…@", text)


def without_credentials(url: str) -> str:
    """The address as it may be shown: without user, password and query."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2].partition('?')[0]}"  # a password may hold what begins a query
