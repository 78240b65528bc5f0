"""Send fixes to TAK clients and servers, as Cursor on Target events."""

from __future__ import annotations

import os

from localize_core.sinks.cot_sink import CotFixSink
from localize_core.sinks.outbox import CAPACITY

from .fix_sink_base import fix_sink_base


class cot_fix_sink(fix_sink_base):
    """An event for each fix with a position, over UDP, TCP or TLS. Parameters as of CotFixSink; empty for no file."""

    def __init__(
        self,
        url: str = "udp://239.2.3.1:6969",
        cot_type: str = "a-u-G",
        stale_s: float = 60.0,
        multicast_ttl: int = 1,
        interface: str = "",
        ca_file: str | os.PathLike[str] = "",
        cert_file: str | os.PathLike[str] = "",
        key_file: str | os.PathLike[str] = "",
        server_name: str = "",
        capacity: int = CAPACITY,
        linger_ms: int = 500,
    ) -> None:
        sink = CotFixSink(
            url,
            cot_type,
            stale_s,
            multicast_ttl,
            interface,
            ca_file or None,
            cert_file or None,
            key_file or None,
            server_name,
            capacity,
            linger_ms,
        )
        fix_sink_base.__init__(self, "cot_fix_sink", sink)

    @property
    def skipped(self) -> int:
        """Fixes without a position, which have no event; they count in `sent` too."""
        return self._sink.skipped
