"""Which answers are kept, where, and for how long."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from localize_core.addresses import checked_redis_url, without_password
from localize_core.cache.lru import ENTRY_BYTES
from localize_core.errors import ConfigError

MODES = ("off", "auto", "on")


class SimilaritySettings(BaseModel):
    """Answers for windows that are like a recent one: how close is close enough, and for how long.

    `false_alarm` bounds the windows of a steady emitter that are inferred anew for nothing, by chance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_age_s: float = Field(10.0, gt=0.0, description="seconds after which an answer is not given out any more")
    max_windows: int = Field(64, ge=1, le=4096, description="windows after which it is not either")
    false_alarm: float = Field(0.05, gt=0.0, le=0.5, description="share of a steady emitter's windows inferred in vain")
    jump_sigma: float = Field(
        3.0, gt=0.0, description="displacement to be noticed, in standard deviations of the answer, in three windows"
    )
    power: float = Field(0.995, gt=0.5, lt=1.0, description="probability of noticing it")
    reference_windows: int = Field(8, ge=1, le=256, description="most windows whose mean is the reference")
    min_confidence: float = Field(
        0.5, ge=0.0, le=1.0, description="an answer of less is no position, and what moves is of no concern"
    )


class CacheSettings(BaseModel):
    """The cache in front of the model. By default for what may repeat exactly: recordings and requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    live: bool = Field(False, description="for streams of radios, whose noise never repeats: it costs, and never hits")
    replay: bool = Field(True, description="for streams that wait: recordings and simulations as fast as they go")
    requests: bool = Field(True, description="for requests beside the streams")
    similar: SimilaritySettings | None = Field(
        None, description="answers of live streams for windows that are like a recent one; its keys have defaults"
    )
    ttl_s: int = Field(3600, ge=1, le=30 * 86_400, description="how long an answer is kept")
    max_items: int = Field(50_000, ge=1, le=100_000_000, description="answers in this process")
    max_bytes: int = Field(64 << 20, ge=4 * ENTRY_BYTES, le=1 << 40, description="memory for answers in this process")
    redis: str | None = Field(
        None, description="a Redis that processes share: redis://USER:PASSWORD@HOST:6379/0, rediss:// with TLS"
    )
    timeout_ms: float = Field(
        5.0, gt=0.0, le=100.0, description="for an answer of Redis; without one the model is asked"
    )
    prefix: str = Field("gr-localize:", max_length=200, description="of the keys in Redis")

    @field_validator("redis")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else checked_redis_url(value)

    @model_validator(mode="after")
    def _means_something(self) -> CacheSettings:
        if self.redis is not None and not self.is_used:
            raise ValueError("redis means nothing with live, replay and requests all false")
        if self.live and self.similar is not None:
            raise ValueError("live and similar: a live stream has one cache, by likeness or by the last bit")
        return self

    @property
    def is_used(self) -> bool:
        """Whether it serves anything."""
        return self.live or self.replay or self.requests


def cache_settings(mode: str, redis: str = "", *, similar: bool = False) -> CacheSettings | None:
    """Settings from a block's parameters: `mode` off, auto (requests, and streams that wait) or on (live ones too).
    `similar`: whether windows of live streams get the answer of a recent one that they are like.

    Raises ConfigError for another mode, or an address that is none.
    """
    if mode not in MODES:
        raise ConfigError(f"cache={mode!r}: must be one of {', '.join(MODES)}")
    likeness = SimilaritySettings() if similar else None
    if mode == "off":
        if redis:
            raise ConfigError(f"cache_redis={without_password(redis)!r}: means nothing with cache off")
        return CacheSettings(replay=False, requests=False, similar=likeness) if similar else None
    try:
        address = checked_redis_url(redis) if redis else None
    except ValueError as error:
        raise ConfigError(f"cache_redis={without_password(redis)!r}: {error}") from error
    if mode == "on" and similar:
        raise ConfigError("cache='on', cache_similar=True: a live stream has one cache, by likeness or by the last bit")
    return CacheSettings(live=mode == "on", redis=address, similar=likeness)
