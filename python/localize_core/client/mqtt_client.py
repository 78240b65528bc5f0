"""Fixes from an MQTT 5 broker, topics `gr-localize/STATION/fix`: with QoS 1 it keeps for a while what was missed."""

from __future__ import annotations

import os
import uuid
from collections import deque
from typing import Any, ClassVar

from localize_core.client.link import (
    CONNECT_S,
    POLL_S,
    Link,
    LinkError,
    Message,
    RefusedError,
    Session,
    Status,
)
from localize_core.errors import ConfigError, MissingExtraError
from localize_core.sinks.mqtt_sink import mqtt_address, topic_level
from localize_core.tls import tls_context

KEEPALIVE_S = 15
SESSION_S = 300
"""The broker keeps what comes for a subscriber that is away for so long."""
MAX_MESSAGE_BYTES = 1 << 20
_TRY_AGAIN = {"Server unavailable", "Server busy", "Quota exceeded", "Connection rate exceeded"}


class MqttLink(Link):
    """Subscribes to `TOPIC/STATION/fix`, or those of all stations, with QoS 1.

    `history` 1: the fix that the broker retains for each station comes first; 0: it does not come.
    A broker cannot be made to wait: messages are taken in as they come.
    """

    OPTIONS: ClassVar = frozenset({"station", "history", "topic", "ca_file"})
    CAN_WAIT: ClassVar = False

    def __init__(
        self,
        url: str,
        *,
        station: str | None = None,
        history: int = 0,
        topic: str = "gr-localize",
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if history not in (0, 1):
            raise ConfigError(f"history={history}: wanted 0 or 1, MQTT retains one fix for each station")
        address = mqtt_address(url)
        if ca_file is not None and not address.tls:
            raise ConfigError("ca_file: wanted an mqtts:// address")
        super().__init__(url)
        self._paho = _library()
        self._address = address
        self._tls = tls_context(ca_file) if address.tls else None
        self._topic = f"{topic}/{'+' if station is None else topic_level(station)}/fix"
        self._history = history
        self._id = f"gr-localize-{uuid.uuid4().hex[:12]}"
        self._has_session = False
        """Whether the broker may remember us."""

    def session(self) -> Session:
        news: deque[Message | Status | LinkError] = deque()
        client = self._client(news)
        expiry = self._properties("CONNECT", SessionExpiryInterval=SESSION_S, MaximumPacketSize=MAX_MESSAGE_BYTES)
        try:
            client.connect(
                self._address.host,
                self._address.port,
                KEEPALIVE_S,
                clean_start=not self._has_session,
                properties=expiry,
            )
            while True:
                code = client.loop(POLL_S)  # reads one packet at the most; a thread of paho's would need a queue more
                while news:
                    item = news.popleft()
                    if isinstance(item, LinkError):
                        raise item
                    yield item
                if code != self._paho.MQTT_ERR_SUCCESS:
                    raise LinkError(self._paho.error_string(code))
                yield None
        except (OSError, ValueError) as error:  # ValueError: what it makes of garbage
            raise LinkError(str(error)) from error
        finally:
            client.disconnect(properties=self._properties("DISCONNECT", SessionExpiryInterval=0))

    def _client(self, news: deque[Message | Status | LinkError]) -> Any:
        paho = self._paho
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=self._id, protocol=paho.MQTTv5)
        client.connect_timeout = CONNECT_S
        if self._address.username is not None or self._address.password is not None:
            client.username_pw_set(self._address.username, self._address.password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        kinds = paho.SubscribeOptions
        retained = kinds.RETAIN_SEND_IF_NEW_SUB if self._history else kinds.RETAIN_DO_NOT_SEND
        options = kinds(qos=1, retainHandling=retained)

        def on_connect(_client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
            if code.is_failure:
                news.append((LinkError if str(code) in _TRY_AGAIN else RefusedError)(str(code)))
                return
            self._has_session = True
            client.subscribe(self._topic, options=options)

        def on_subscribe(_client: Any, _data: Any, _id: Any, codes: Any, _properties: Any) -> None:
            refused = [str(code) for code in codes if code.is_failure]
            news.append(RefusedError(f"{self._topic}: {refused[0]}") if refused else Status(True))

        def on_message(_client: Any, _data: Any, message: Any) -> None:
            news.append(Message(message.payload))

        def on_disconnect(_client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
            news.append(LinkError(str(code)))

        client.on_connect, client.on_subscribe = on_connect, on_subscribe
        client.on_message, client.on_disconnect = on_message, on_disconnect
        return client

    def _properties(self, packet: str, **values: int) -> Any:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(getattr(PacketTypes, packet))
        for name, value in values.items():
            setattr(properties, name, value)
        return properties


def _library() -> Any:
    try:
        import paho.mqtt.client
    except ImportError as error:
        raise MissingExtraError("subscribing to mqtt://", "client") from error
    return paho.mqtt.client
