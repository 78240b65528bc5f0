"""Publish fixes over MQTT 5 as JSON, a topic for each station."""

from __future__ import annotations

import os

from localize_core.sinks.mqtt_sink import MqttFixSink
from localize_core.sinks.outbox import CAPACITY

from .fix_sink_base import fix_sink_base


class mqtt_fix_sink(fix_sink_base):
    """Fixes wait while the broker is away. Parameters as of MqttFixSink; empty for no file."""

    def __init__(
        self,
        url: str = "mqtt://127.0.0.1:1883",
        topic: str = "gr-localize",
        station: str = "",
        qos: int = 1,
        retain: bool = False,
        capacity: int = CAPACITY,
        linger_ms: int = 500,
        ca_file: str | os.PathLike[str] = "",
        cert_file: str | os.PathLike[str] = "",
        key_file: str | os.PathLike[str] = "",
        client_id: str = "",
    ) -> None:
        files = (ca_file or None, cert_file or None, key_file or None)
        sink = MqttFixSink(url, topic, station, qos, retain, capacity, linger_ms, *files, client_id)
        fix_sink_base.__init__(self, "mqtt_fix_sink", sink)

    @property
    def state(self) -> str:
        """`connected`, or why not."""
        return self._sink.state
