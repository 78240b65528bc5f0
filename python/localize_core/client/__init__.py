"""Fixes for programs that have no GNU Radio: over ZeroMQ, Redis, MQTT or HTTP, whichever a station publishes with.

with subscribe("tcp://127.0.0.1:5555") as fixes:
    for fix in fixes:
        print(fix.position)
"""

from localize_core.client.base import FixSubscriber, State, StreamCount, Subscription
from localize_core.client.subscribe import SCHEMES, subscribe
from localize_core.errors import ConfigError, LocalizeError, MissingExtraError, NoFixError, SubscribeError
from localize_core.types.fix import Fix

__all__ = [
    "SCHEMES",
    "ConfigError",
    "Fix",
    "FixSubscriber",
    "LocalizeError",
    "MissingExtraError",
    "NoFixError",
    "State",
    "StreamCount",
    "SubscribeError",
    "Subscription",
    "subscribe",
]
