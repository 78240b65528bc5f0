"""What may be asked of the cache, and what is said against the rest."""

from __future__ import annotations

import pytest
from localize_core.addresses import checked_redis_url, without_password
from localize_core.cache.answers import open_cache
from localize_core.cache.settings import CacheSettings, cache_settings
from localize_core.errors import ConfigError


def test_by_default_live_streams_are_left_alone() -> None:
    settings = CacheSettings()
    assert (settings.live, settings.replay, settings.requests) == (False, True, True)
    assert (settings.ttl_s, settings.redis) == (3600, None)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://127.0.0.1:6380/3",
        "rediss://station:s%40cret@cache.example:6379/0?ssl_ca_certs=/etc/ca.pem",
        "redis://:secret@[::1]:6379",
    ],
)
def test_addresses_of_redis(url: str) -> None:
    assert checked_redis_url(url) == url
    assert CacheSettings(redis=url).redis == url


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost:6379",
        "redis://",
        "redis://localhost:port",
        "redis://localhost:0",
        "redis://localhost:99999",
        "redis://localhost/zero",
        "redis://localhost?socket_timeout=30",
        "redis://localhost#here",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="redis://HOST:PORT"):
        checked_redis_url(url)
    with pytest.raises(ConfigError, match="cache_redis="):
        cache_settings("auto", url)


def test_passwords_are_not_repeated() -> None:
    with pytest.raises(ConfigError) as raised:
        cache_settings("auto", "http://station:hunter2@host:6379")
    assert "hunter2" not in str(raised.value)
    assert "station" in str(raised.value)
    for special in ("hunter2/", "hunter2?", "hunter2#", "1/hunter2", "hunter2@"):
        address = f"redis://station:{special}2@host"
        assert "hunter2" not in without_password(address)
        if "@" not in special:  # the last @ ends it
            with pytest.raises(ValueError, match="in a password are %2F") as refused:
                checked_redis_url(address)
            assert "hunter2" not in str(refused.value)
    assert without_password("redis://:hunter2@host and redis://host:1/0") == "redis://:…@host and redis://host:1/0"


def test_modes_of_blocks() -> None:
    assert cache_settings("off") is None
    assert cache_settings("auto") == CacheSettings()
    assert cache_settings("on", "redis://host") == CacheSettings(live=True, redis="redis://host")
    with pytest.raises(ConfigError, match="must be one of off, auto, on"):
        cache_settings("yes")


def test_no_cache_where_it_serves_nothing() -> None:
    assert open_cache(None) is None
    assert open_cache(CacheSettings(replay=False, requests=False)) is None
    assert open_cache(CacheSettings()) is not None
