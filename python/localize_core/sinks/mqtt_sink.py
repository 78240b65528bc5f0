"""Fixes over MQTT 5: a topic of JSON per station, and one that says whether the station is there."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from localize_core.addresses import without_password
from localize_core.errors import ConfigError, MissingExtraError, PublishError
from localize_core.sinks.outbox import BATCH, CAPACITY, OutboxFixSink, SendError
from localize_core.tls import tls_context
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json

CONNECT_S = 2.0
"""For a connection, and for the broker's word that it is one."""
ANSWER_S = 5.0
"""Without an acknowledgement for so long the connection counts as lost."""
GOODBYE_S = 1.0
"""So long the broker has to acknowledge that the station leaves."""
KEEPALIVE_S = 10
SESSION_S = 3600
"""So long the broker knows, of a publisher that is gone, what it has received of it."""
HEADER_BYTES = 200
"""More than a message has around its topic and payload."""
LONGEST_TOPIC = 65_535
"""Bytes. MQTT 5, section 1.5.4."""

ONLINE, OFFLINE = b"online", b"offline"


class MqttAddress(NamedTuple):
    """Where a broker is. `username`, `password`: None without."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: bool


def mqtt_address(url: str) -> MqttAddress:
    """What `mqtt://USER:PASSWORD@HOST:PORT` says; `mqtts://` with TLS. Ports are 1883 and 8883 when left out.

    Raises ConfigError for anything else, without repeating a password.
    """
    wanted = "wanted mqtt://HOST:PORT, mqtts:// with TLS, with USER:PASSWORD@ before the host where needed"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its message has what stands for the port, which may be a part of the password
        raise ConfigError(f"url={without_password(url)!r}: {wanted}; / ? # in a password are %2F %3F %23") from None
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0 or extra:
        raise ConfigError(f"url={without_password(url)!r}: {wanted}")
    tls = parts.scheme == "mqtts"
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    if password is not None and not user:
        raise ConfigError(f"url={without_password(url)!r}: a password belongs to a user; {wanted}")
    return MqttAddress(parts.hostname, port or (8883 if tls else 1883), user or None, password, tls)


def topic_level(name: str) -> str:
    """A station's name as a level of a topic: `%`, `+`, `#`, `/` and control characters percent-encoded."""
    return re.sub(r"[%+#/\x00-\x1f\x7f-\x9f]", lambda found: quote(found[0], safe=""), name)


class MqttFixSink(OutboxFixSink):
    """Publishes each fix as JSON at `{topic}/{station}/fix`, the station's name as `topic_level` writes it.

    With `station`, the retained message at `{topic}/{station}/state` says `online`, and `offline` after close() or, by
    the broker, when this process or the network dies. `retain`: the broker keeps the latest fix for who comes later.
    `qos`: 0 at most once; 1 at least once, a fix whose acknowledgement got lost may come twice; 2 once, as long as the
    broker keeps its sessions. While the broker is away, `capacity` fixes wait, then the oldest are dropped and counted.
    `close()` waits at most `linger_ms` for fixes to leave.

    `url`: as `mqtt_address` reads it. `ca_file`, `cert_file`, `key_file`: as of `tls_context`, for mqtts://.
    `client_id`: empty for one of its own; two with the same throw each other out.

    Raises ConfigError for a parameter that cannot work, MissingExtraError without the extra `mqtt`.
    """

    def __init__(
        self,
        url: str = "mqtt://127.0.0.1:1883",
        topic: str = "gr-localize",
        station: str = "",
        qos: int = 1,
        retain: bool = False,
        capacity: int = CAPACITY,
        linger_ms: int = 500,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        client_id: str = "",
    ) -> None:
        address = mqtt_address(url)
        if not topic or any(level == "" or re.search(r"[+#\x00-\x1f\x7f-\x9f]", level) for level in topic.split("/")):
            raise ConfigError(f"topic={topic!r}: wanted words with / between them, without + and #")
        if topic.startswith("$"):
            raise ConfigError(f"topic={topic!r}: what begins with $ is the broker's own")
        if qos not in (0, 1, 2):
            raise ConfigError(f"qos={qos}: must be 0, 1 or 2")
        files = (ca_file, cert_file, key_file)
        if any(files) and not address.tls:
            raise ConfigError("ca_file, cert_file and key_file are for mqtts://HOST:PORT")
        context = tls_context(*files) if address.tls else None
        _library()
        self._topic = topic
        state_topic = f"{topic}/{topic_level(station)}/state" if station else None
        super().__init__(
            url,
            lambda: _MqttTransport(address, context, state_topic, qos=qos, retain=retain, client_id=client_id),
            self._encoded,
            capacity=capacity,
            linger_ms=linger_ms,
        )

    def _encoded(self, fix: Fix) -> tuple[str, bytes]:
        topic = f"{self._topic}/{topic_level(fix.station)}/fix"
        if len(topic.encode()) > LONGEST_TOPIC:
            raise ConfigError(f"station={fix.station[:20]!r}…: too long for a topic")
        return topic, fix_to_json(fix).encode()


@dataclass
class _Flight:
    """A message on its way. `mid`: MQTT's number of it; None when it is to be published, or is acknowledged."""

    mid: int | None = None
    acknowledged: bool = False


class _MqttTransport:
    """One client and its session. What a lost connection left unacknowledged is sent again by the client, which is the
    only way to have QoS 2 over several connections; `send` then only waits for it.
    """

    def __init__(
        self,
        address: MqttAddress,
        context: ssl.SSLContext | None,
        state_topic: str | None,
        *,
        qos: int,
        retain: bool,
        client_id: str,
    ) -> None:
        mqtt = self._mqtt = _library()
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self._address, self._state_topic, self._qos, self._retain = address, state_topic, qos, retain
        self._session, self._no_session = Properties(PacketTypes.CONNECT), Properties(PacketTypes.DISCONNECT)
        self._session.SessionExpiryInterval, self._no_session.SessionExpiryInterval = SESSION_S, 0
        self._about = Properties(PacketTypes.PUBLISH)
        self._about.ContentType, self._about.PayloadFormatIndicator = "application/json", 1
        self._flights: list[_Flight] = []
        self._answers: dict[int, str | None] = {}  # by number of message: None, or why the broker refuses it
        self._answered_s = 0.0
        self._telling: int | None = None  # number of what says that the station is there, until it is acknowledged
        self._said: str | None = None  # by the broker, of why it does not want the connection
        self._welcome = self._has_session = self._is_well = self._interrupted = False
        self._receive_maximum, self._packet_maximum = BATCH, math.inf
        self._owner: int | None = None

        client = self._client = _client_class()(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id or f"gr-localize-{uuid.uuid4().hex}",
            protocol=mqtt.MQTTv5,
        )
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(0)  # send() minds the broker's bound, also for what comes again
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish = self._on_publish
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        if context is not None:
            client.tls_set_context(context)
        if state_topic is not None:
            client.will_set(state_topic, OFFLINE, qos=1, retain=True)

    # As the outbox calls it

    def connect(self) -> None:
        self._owner = threading.get_ident()
        self._welcome, self._said = False, None
        self._airborne()
        if self._qos == 0:  # the client sends none of these again
            for flight in self._flights:
                flight.mid = None
        address = self._address
        try:
            self._client.connect(
                address.host, address.port, KEEPALIVE_S, clean_start=not self._has_session, properties=self._session
            )
        except OSError as error:
            raise PublishError(str(error)) from error
        self._wait(lambda: self._welcome, CONNECT_S)
        self._has_session = self._is_well = True
        self._tell(ONLINE, ANSWER_S)

    def send(self, items: Sequence[tuple[str, bytes]]) -> None:
        flights = self._flights
        flights += [_Flight() for _ in items[len(flights) :]]
        self._airborne()
        self._answers.clear()  # what is left belongs to nothing on its way, and its number will come again
        self._said, too_long = None, None
        for number, (topic, payload) in enumerate(items):
            if flights[number].acknowledged or flights[number].mid is not None:
                continue
            if len(topic.encode()) + len(payload) + HEADER_BYTES > self._packet_maximum:
                too_long = number
                break
            self._wait(lambda: self._airborne() < self._receive_maximum, ANSWER_S)
            flights[number].mid = self._publish(topic, payload, self._qos, self._retain, self._about)
        self._wait(lambda: self._airborne() == 0, ANSWER_S)
        acknowledged = next((n for n, flight in enumerate(flights) if not flight.acknowledged), len(flights))
        refused = int(acknowledged == too_long)
        del flights[: acknowledged + refused]
        if acknowledged < len(items):
            why = f"the broker takes at most {self._packet_maximum} bytes" if refused else self._said
            raise SendError(f"{items[acknowledged][0]}: {why}", acknowledged=acknowledged, refused=refused)

    def check(self) -> None:
        self._loop(0.0)

    def close(self) -> None:
        if threading.get_ident() != self._owner:
            self._interrupted = True  # the client is not for two threads at a time
        elif self._is_well and not self._airborne():
            self._interrupted = self._is_well = self._has_session = False
            with contextlib.suppress(PublishError):
                self._tell(OFFLINE, GOODBYE_S)
            self._client.disconnect(properties=self._no_session)
        elif (connection := self._client.socket()) is not None:
            self._is_well = False
            connection.shutdown(socket.SHUT_RDWR)  # without a good-bye: the broker says that the station is gone
            self._client.loop(0.0)

    # As the client calls it

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._welcome = not reason.is_failure
        if self._welcome and not flags.session_present:
            client.publish_anew()
        self._said = f"the broker refuses the connection: {reason}" if reason.is_failure else None
        self._receive_maximum = min(getattr(properties, "ReceiveMaximum", BATCH), BATCH)
        self._packet_maximum = getattr(properties, "MaximumPacketSize", math.inf)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._said = f"the broker ends the connection: {reason}"

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        self._answers[mid] = str(reason) if reason.is_failure else None
        self._answered_s = time.monotonic()

    # The rest

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool, about: Any = None) -> int:
        """Returns the message's number."""
        message = self._client.publish(topic, payload, qos, retain, about)
        if message.rc and (qos == 0 or message.rc == self._mqtt.MQTT_ERR_QUEUE_SIZE):  # any other is sent again
            raise PublishError(self._mqtt.error_string(message.rc))
        return int(message.mid)

    def _airborne(self) -> int:
        """How many messages wait for an answer, after taking note of those that came."""
        for flight in self._flights:
            if flight.mid in self._answers:
                refusal = self._answers.pop(flight.mid)
                flight.mid, flight.acknowledged = None, refusal is None
                self._said = refusal or self._said
        return sum(flight.mid is not None for flight in self._flights)

    def _tell(self, state: bytes, timeout_s: float) -> None:
        """Say whether the station is there."""
        if self._state_topic is None:
            return
        if self._telling is None:  # else the client sends it again by itself, and another beside it would never end
            self._telling = self._publish(self._state_topic, state, qos=1, retain=True)
        mid = self._telling
        self._wait(lambda: mid in self._answers, timeout_s)
        self._telling = None
        if (refusal := self._answers.pop(mid)) is not None:
            raise PublishError(f"{self._state_topic}: {refusal}")

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Send and receive until it is done, or the broker has not answered anything for so long."""
        began_s = time.monotonic()
        while not done():
            if self._interrupted:
                raise PublishError("closed")
            if time.monotonic() > max(began_s, self._answered_s) + timeout_s:
                self._is_well = False
                raise PublishError(f"no answer within {timeout_s:g} s")
            self._loop(0.05)

    def _loop(self, timeout_s: float) -> None:
        status = self._client.loop(timeout_s)
        if status != self._mqtt.MQTT_ERR_SUCCESS:
            self._is_well = False
            raise PublishError(self._said or self._mqtt.error_string(status))


def _client_class() -> Any:
    """Paho's client, which minds QoS 2 less than the standard does, with that mended in what it calls itself."""
    from paho.mqtt import client as mqtt
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.reasoncodes import ReasonCode

    publish, release = mqtt.mqtt_ms_publish, mqtt.mqtt_ms_resend_pubrel

    class Client(mqtt.Client):  # type: ignore[misc]
        def publish_anew(self) -> None:
            """The broker has no session: it would acknowledge the release of what it does not know."""
            for message in self._released():
                message.state = publish

        def _messages_reconnect_reset_out(self) -> None:
            """After two tries to connect, what the broker has and was released would be published a second time."""
            released = self._released()
            super()._messages_reconnect_reset_out()
            for message in released:
                message.state = release

        def _handle_pubrec(self) -> Any:
            """A message that the broker refuses would be taken for one that it has."""
            number, code = self._in_packet["packet"][:2], self._in_packet["packet"][2:3]
            if not code or code[0] < 0x80:
                return super()._handle_pubrec()
            mid = int.from_bytes(number, "big")
            with self._out_message_mutex:
                if mid not in self._out_messages:
                    return mqtt.MQTT_ERR_SUCCESS
                return self._do_on_publish(mid, ReasonCode(PacketTypes.PUBREC, identifier=code[0]), None)

        def _released(self) -> list[Any]:
            return [message for message in self._out_messages.values() if message.state == release]

    return Client


def _library() -> Any:
    try:
        import paho.mqtt.client
    except ImportError as error:
        raise MissingExtraError("mqtt_fix_sink", "mqtt") from error
    return paho.mqtt.client
