"""An address where Prometheus may scrape a station that has no other service."""

from __future__ import annotations

import threading
from typing import Any

from localize_core.errors import PublishError
from localize_core.metrics.metrics import Metrics


class MetricsServer:
    """Answers `GET /metrics` with `metrics` in threads of its own, between `start` and `stop`.

    `host`: by default only this machine may ask. `port`: 0 for one that is free; `port` then tells which.
    """

    def __init__(self, metrics: Metrics, host: str = "127.0.0.1", port: int = 0) -> None:
        self._metrics, self.host, self.port = metrics, host, port
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def start(self) -> None:
        """Raises PublishError where the address is in use, or none of this machine's."""
        from prometheus_client import start_http_server

        try:
            self._server, self._thread = start_http_server(self.port, self.host, self._metrics.registry)
        except OSError as error:
            raise PublishError(f"metrics at {self.host}:{self.port}: {error.strerror or error}") from error
        self.port = self._server.server_port

    def stop(self) -> None:
        """Let go of the address. Stopping twice is harmless."""
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server is None or thread is None:
            return
        server.shutdown()
        server.server_close()
        thread.join()
