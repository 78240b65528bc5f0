"""Show fixes on a live map and serve them over HTTP."""

from __future__ import annotations

from localize_core.service.http_sink import HttpFixSink

from .fix_sink_base import fix_sink_base


class http_fix_sink(fix_sink_base):
    """A web server with a map, the last fixes and a stream of them. Parameters as of HttpFixSink."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str = "",
        history: int = 10_000,
        tiles: str = "",
        attribution: str = "",
    ) -> None:
        fix_sink_base.__init__(self, "http_fix_sink", HttpFixSink(host, port, token, history, tiles, attribution))

    @property
    def url(self) -> str:
        """Where the map is, with the port that was free."""
        return self._sink.url
