"""Fixes from the HTTP service as server-sent events (WHATWG HTML, 9.2), resumed with Last-Event-ID."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import Any, ClassVar

from localize_core.addresses import without_credentials
from localize_core.client.link import (
    CONNECT_S,
    Link,
    LinkError,
    Message,
    RefusedError,
    Session,
    Status,
    split_url,
)
from localize_core.errors import ConfigError, MissingExtraError
from localize_core.tls import tls_context

log = logging.getLogger(__name__)

PATH = "/fixes/stream"
SILENCE_S = 45.0
"""A service says something every 15 s; one that has been silent for so long is gone."""
_TRY_AGAIN = {408, 425, 429}


class HttpLink(Link):
    """Follows `/fixes/stream` below the address."""

    OPTIONS: ClassVar = frozenset({"station", "history", "since", "token", "ca_file"})

    def __init__(
        self,
        url: str,
        *,
        station: str | None = None,
        history: int = 0,
        since: str | None = None,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if history < 0:
            raise ConfigError(f"history={history}: wanted 0 fixes or more")
        if since is not None and not (since.isascii() and since.isdecimal()):
            raise ConfigError(f"since={since!r}: wanted a number, the cursor of a fix")
        if since is not None and history:
            raise ConfigError("history, since: wanted one of them")
        if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
            raise ConfigError("token: wanted visible ASCII characters")
        parts = split_url(url, "http://HOST:PORT or https://HOST:PORT")
        if parts.query or parts.fragment:
            raise ConfigError(f"url={without_credentials(url)!r}: wanted no query, options say what it would")
        if ca_file is not None and parts.scheme != "https":
            raise ConfigError("ca_file: wanted an https:// address")
        self._httpx, self._sse = _libraries()
        super().__init__(url)
        self._url = url.rstrip("/").removesuffix(PATH) + PATH
        self._parameters = {} if station is None else {"station": station}
        self._headers = {"Accept-Encoding": "identity"}  # compression would hold back what is small
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls = tls_context(ca_file)  # without TLS as well: a proxy may have it
        self._history, self._cursor = history, since
        self._socket: socket.socket | None = None

    def session(self) -> Session:
        httpx = self._httpx
        parameters: dict[str, Any] = dict(self._parameters)
        headers = dict(self._headers)
        if self._cursor is not None:
            headers["Last-Event-ID"] = self._cursor
        elif self._history:
            parameters["history"] = self._history
        try:
            with (
                httpx.Client(verify=self._tls, timeout=httpx.Timeout(CONNECT_S, read=SILENCE_S)) as client,
                self._sse.connect_sse(client, "GET", self._url, params=parameters, headers=headers) as events,
            ):
                self._check(events.response)
                self._socket = events.response.extensions["network_stream"].get_extra_info("socket")
                yield Status(True)
                for event in events.iter_sse():
                    yield self._read(event)
            raise LinkError("the service ended the stream")
        except httpx.ReadTimeout as error:
            raise LinkError(f"silent for {SILENCE_S:g} s") from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise LinkError(str(error) or type(error).__name__) from error
        finally:
            self._socket = None

    def interrupt(self) -> None:
        current = self._socket
        if current is not None:
            with contextlib.suppress(OSError):
                current.shutdown(socket.SHUT_RDWR)  # a read that waits then ends

    @staticmethod
    def _check(response: Any) -> None:
        code = response.status_code
        kind = response.headers.get("content-type", "nothing")
        if code == 200 and kind.partition(";")[0].strip() == "text/event-stream":
            return
        if code == 200:
            raise RefusedError(f"no stream of events at {PATH}, but {kind}")
        said = f"the service answered {code} {response.reason_phrase}"
        if code in (401, 403):
            raise RefusedError(f"{said}: look at the token")
        if response.is_redirect:
            raise RefusedError(f"{said}: the address is {response.headers.get('location')}")
        raise (LinkError if code >= 500 or code in _TRY_AGAIN else RefusedError)(said)

    def _read(self, event: Any) -> Message | None:
        self._cursor = event.id or self._cursor
        if event.event == "fix":
            return Message(event.data, self._cursor)
        if event.event == "skipped":
            log.warning("%s: skipped, older than its history: %s", self.name, event.data)
        return None


def _libraries() -> tuple[Any, Any]:
    try:
        import httpx
        import httpx_sse
    except ImportError as error:
        raise MissingExtraError("subscribing to http://", "client") from error
    return httpx, httpx_sse
