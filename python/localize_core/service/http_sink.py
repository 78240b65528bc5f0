"""Fixes on a map and over HTTP, from the process that makes them."""

from __future__ import annotations

from localize_core.service.history import FixHistory
from localize_core.service.server import HttpServer
from localize_core.service.service import Service
from localize_core.service.settings import HttpSettings, http_settings
from localize_core.types.fix import Fix


class HttpFixSink:
    """Serves the last fixes, a stream of them and the live map. Parameters are those of HttpSettings.

    Raises ConfigError for a value that cannot work, such as an address beyond this machine without a token, and
    MissingExtraError without the packages of the extra `serve`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str = "",
        history: int = 10_000,
        tiles: str = "",
        attribution: str = "",
    ) -> None:
        self.settings: HttpSettings = http_settings(
            host=host, port=port, token=token, history=history, tiles=tiles, attribution=attribution
        )
        self._service = Service(history=FixHistory(self.settings.history))
        self._server = HttpServer(self._service, self.settings)
        self._is_open = False
        self.sent = 0
        self.dropped = 0

    @property
    def url(self) -> str:
        """Where the map is, once it is open."""
        return self._server.url

    @property
    def backlog(self) -> int:
        """Nothing waits here: readers come for what they want."""
        return 0

    def open(self) -> None:
        """Listen. Raises PublishError naming an address that cannot be had."""
        self._server.start()
        self._is_open = True

    def publish(self, fix: Fix) -> bool:
        """Show the fix; False where the server is not open."""
        if not self._is_open:
            self.dropped += 1
            return False
        self._service.publish(fix)
        self.sent += 1
        return True

    def close(self) -> None:
        """End all streams and the server. Closing twice is harmless."""
        self._server.stop()
        self._is_open = False
