"""A web server in a thread of its own, between start() and stop()."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

from localize_core.errors import MissingExtraError, PublishError
from localize_core.service.service import Service
from localize_core.service.settings import HttpSettings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

GRACE_S = 2
"""What requests in progress get when the server stops."""
STOP_S = 5.0
KEEP_ALIVE_S = 75
BACKLOG = 1024


class HttpServer:
    """Serves `service` as `settings` say.

    Raises ConfigError where others could reach it without a token, MissingExtraError without the packages of the extra
    `serve`.
    """

    def __init__(self, service: Service, settings: HttpSettings | None = None) -> None:
        self.service, self.settings = service, settings or HttpSettings()
        self.settings.check()
        try:
            import fastapi  # noqa: F401
            import msgspec  # noqa: F401
            import simdjson  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("serving over HTTP", "serve") from error
        self.port = self.settings.port
        self._app: FastAPI | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the map is, with the port that was free."""
        host = self.settings.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/"

    def start(self) -> None:
        """Listen and answer from now on. Raises PublishError naming the address that cannot be had."""
        import uvicorn

        from localize_core.service.app import create_app

        listening = self._listen()
        self.port = listening.getsockname()[1]
        self._app = create_app(self.service, self.settings)
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="localize-http", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise PublishError(f"the web server at {self.url} did not start; the log says why")
            time.sleep(0.005)

    def stop(self) -> None:
        """End all streams, let requests in progress finish for a moment, and close. Stopping twice is harmless."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.should_exit = True
        if self._app is not None and self._app.state.live is not None:
            self._app.state.live.bell.close()
        thread.join(STOP_S)
        if thread.is_alive():
            server.force_exit = True
            thread.join(STOP_S)

    def _listen(self) -> socket.socket:
        host, port = self.settings.host, self.settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise PublishError(f"cannot listen at {host} port {port}: {error.strerror or error}") from error
