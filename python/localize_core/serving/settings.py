"""How models serve: what is watched, what is tried beside it, and what a challenger must show to be trusted."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from localize_core.errors import ConfigError
from localize_core.model.session import SessionSettings
from localize_core.model.source import CompiledUri, RemoteUri, parse_model_uri

Mode = Literal["split", "shadow", "canary"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _known_uri(value: str) -> str:
    try:
        parse_model_uri(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return value


def _known_challenger(value: str) -> str:
    if isinstance(parse_model_uri(_known_uri(value)), CompiledUri):
        raise ValueError("compiled stands for the geometry that a champion is held against; it is no challenger")
    return value


def _known_fallback(value: str) -> str:
    if isinstance(parse_model_uri(_known_uri(value)), RemoteUri):
        raise ValueError("a fallback answers while no server does: it has to be on this machine")
    return value


Uri = Annotated[str, Field(min_length=1), AfterValidator(_known_uri)]


class GateSettings(_Settings):
    """What a canary must show at each step before its share grows. One that is missed rolls it back."""

    min_windows: int = Field(200, ge=1, description="windows of this step to which one of the arms gives a position")
    max_error_share: float = Field(
        0.01, ge=0.0, le=1.0, description="windows that the challenger fails on, beyond those the champion does"
    )
    max_latency_ratio: float = Field(2.0, gt=0.0, description="P95 of the challenger's inference to the champion's")
    latency_floor_ms: float = Field(5.0, ge=0.0, description="a P95 below it is never too slow")
    max_distance_sigma: float = Field(
        1.0, gt=0.0, description="median distance of the arms' fixes, in standard deviations of their difference"
    )
    max_ellipse_ratio: float = Field(
        2.0, gt=1.0, description="median ratio of the ellipses' mean axes, either way; smaller is not better by itself"
    )
    max_disagreement_share: float = Field(
        0.05, ge=0.0, le=1.0, description="windows to which one arm gives a position and the other none"
    )


class ChallengerSettings(_Settings):
    """A second model beside the champion."""

    uri: Annotated[str, AfterValidator(_known_challenger)] = Field(description="as of the champion, except compiled")
    mode: Mode = Field(
        "shadow",
        description="shadow: sees every window, its fixes go nowhere else; split: serves its share of the streams; "
        "canary: its share grows step by step while it keeps up with the champion",
    )
    share_percent: float = Field(10.0, ge=0.0, le=100.0, description="of streams, for split")
    experiment: str = Field("", description="changes which streams are chosen; the challenger's uri when left out")
    steps_percent: tuple[float, ...] = Field((1.0, 10.0, 50.0, 100.0), min_length=1, description="for canary")
    gates: GateSettings = GateSettings()

    @model_validator(mode="after")
    def _means_something(self) -> ChallengerSettings:
        for key, mode in (("share_percent", "split"), ("steps_percent", "canary"), ("gates", "canary")):
            if key in self.model_fields_set and self.mode != mode:
                raise ValueError(f"{key} means nothing with mode {self.mode}, only with {mode}")
        return self

    @field_validator("steps_percent")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)) or not 0.0 < value[0] <= value[-1] <= 100.0:
            raise ValueError(f"steps must rise from above 0 to at most 100, found {list(value)}")
        return value


class QueueSettings(_Settings):
    """What happens to windows that come faster than the model answers."""

    windows: int = Field(8, ge=1, le=10_000, description="windows that may wait")
    drop: Literal["oldest", "newest"] = Field(
        "oldest",
        description="which window of a live stream goes when too many wait; streams that are not live are held back",
    )
    max_batch: int = Field(
        8, ge=1, le=100, description="windows of a live stream answered together while more than one waits"
    )
    max_delay_ms: float = Field(
        0.0, ge=0.0, le=10_000.0, description="that a window of a live stream is kept for others to join it"
    )

    @model_validator(mode="after")
    def _means_something(self) -> QueueSettings:
        if self.max_delay_ms and self.max_batch == 1:
            raise ValueError("max_delay_ms means nothing with max_batch 1: no window can join another")
        return self


class ServingSettings(_Settings):
    """Where the champion comes from, how it runs, and what is tried beside it."""

    uri: Uri = Field("compiled", description="model source string")
    registry: str | None = Field(
        None,
        description="MLflow tracking URI; MLFLOW_REGISTRY_URI, MLFLOW_TRACKING_URI, or a SQLite file of the user",
    )
    poll_s: float = Field(60.0, ge=0.0, le=86_400.0, description="how often the source is asked; 0 for never")
    contract: str | None = Field(None, description="path of a contract in JSON, for a model that carries none")
    fallback: Annotated[str, AfterValidator(_known_fallback)] | None = Field(
        None, description="model on this machine, for the time that an inference server does not answer"
    )
    deadline_ms: float = Field(200.0, gt=0.0, le=60_000.0, description="for a window at an inference server")
    max_in_flight: int = Field(
        8, ge=1, le=256, description="requests at an inference server at a time, each of one or more windows"
    )
    peaks: int = Field(1, ge=1, le=8, description="places that are looked for in one window")
    queue: QueueSettings = QueueSettings()
    session: SessionSettings = SessionSettings()
    challenger: ChallengerSettings | None = None


S = TypeVar("S", bound=ServingSettings)


def make_settings(kind: type[S], **values: Any) -> S:
    """Settings from plain values. Raises ConfigError naming the first that is out of range."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{key}={first.get('input')!r}: {message}") from error
