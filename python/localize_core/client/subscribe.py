"""An address chooses how its fixes come."""

from __future__ import annotations

import os

from localize_core.addresses import without_credentials
from localize_core.client.base import HIGH_WATER_MARK, FixSubscriber, OnState
from localize_core.client.link import Link
from localize_core.errors import ConfigError

SCHEMES = {
    "tcp": "tcp://HOST:PORT",
    "ipc": "ipc://PATH",
    "redis": "redis://HOST:PORT/DATABASE",
    "rediss": "rediss://HOST:PORT/DATABASE",
    "mqtt": "mqtt://HOST:PORT",
    "mqtts": "mqtts://HOST:PORT",
    "http": "http://HOST:PORT",
    "https": "https://HOST:PORT",
}
"""What an address may begin with, and what it looks like."""
OPTIONS_OF_ALL = {"station", "high_water_mark"}
"""These mean something also where the connection has no use for them."""


def subscribe(
    url: str,
    *,
    station: str | None = None,
    timeout_s: float | None = None,
    history: int = 0,
    since: str | None = None,
    topic: str | None = None,
    prefix: str | None = None,
    token: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    curve_server_key_file: str | os.PathLike[str] | None = None,
    curve_secret_key_file: str | os.PathLike[str] | None = None,
    high_water_mark: int = HIGH_WATER_MARK,
    on_state: OnState | None = None,
) -> FixSubscriber:
    """A subscriber to the fixes at `url`; nothing happens before its `with` block or its `start`.

    `station`: only fixes of the station of that name. `timeout_s`: how long to wait for a fix before NoFixError; by
    default for ever. `high_water_mark`: how many messages may wait here. `on_state`: called from the reading thread
    with the new state and the reason, at each change of `FixSubscriber.state`.

    The others belong to some addresses only:

    `history` (redis, http; mqtt: 0 or 1): how many fixes from before, of each station with redis, come first.
    `since` (redis with a station, http): go on after this `FixSubscriber.cursor`.
    `topic`: of ZeroMQ, by default `fix`, also the beginning of one; of MQTT the first level, by default `gr-localize`.
    `prefix` (redis): first word of the keys, by default `gr-localize`.
    `token` (http): sent as `Authorization: Bearer`.
    `ca_file` (rediss, mqtts, https): certificates to trust instead of the system's.
    `curve_server_key_file`, `curve_secret_key_file` (tcp, ipc): CURVE keys, NAME.key of the publisher and one's own
    NAME.key_secret; both or neither.

    Raises ConfigError for an address or option that cannot work, MissingExtraError if a package is missing for it.
    """
    scheme, mark, _ = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ConfigError(f"url={without_credentials(url)!r}: wanted {', '.join(SCHEMES.values())}")
    kind = _link_class(scheme)
    options = {
        "station": station,
        "high_water_mark": high_water_mark,
        "history": history or None,
        "since": since,
        "topic": topic,
        "prefix": prefix,
        "token": token,
        "ca_file": ca_file,
        "curve_server_key_file": curve_server_key_file,
        "curve_secret_key_file": curve_secret_key_file,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - kind.OPTIONS - OPTIONS_OF_ALL):
        raise ConfigError(f"{', '.join(unknown)}: cannot be had with {scheme}://")
    link = kind(url, **{name: value for name, value in given.items() if name in kind.OPTIONS})
    return FixSubscriber(link, station=station, timeout_s=timeout_s, high_water_mark=high_water_mark, on_state=on_state)


def _link_class(scheme: str) -> type[Link]:
    """Imported when it is asked for: each needs another package."""
    if scheme in ("tcp", "ipc"):
        from localize_core.client.zmq_client import ZmqLink

        return ZmqLink
    if scheme in ("redis", "rediss"):
        from localize_core.client.redis_client import RedisLink

        return RedisLink
    if scheme in ("mqtt", "mqtts"):
        from localize_core.client.mqtt_client import MqttLink

        return MqttLink
    from localize_core.client.http_client import HttpLink

    return HttpLink
