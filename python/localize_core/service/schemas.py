"""What the API says of its answers in its OpenAPI description."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from localize_core.wire.fix_json import fix_schema


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Error(_Model):
    """What was wrong."""

    code: str = Field(description="a word for programs")
    message: str = Field(description="a sentence for people")
    field: str | None = Field(description="where in the request")
    received: str | float | bool | None = Field(description="what was there")


class ErrorAnswer(_Model):
    """The one shape of all errors."""

    error: Error


MEANINGS = {
    400: "The body cannot be read: not JSON, not UTF-8, empty, or not whole samples.",
    401: "A token is needed.",
    403: "The request comes from another site's page.",
    404: "There is none.",
    408: "The body did not come in time.",
    409: "It was refused, and all is as before.",
    413: "The body is larger than is taken.",
    415: "The body's Content-Type is not one that is taken.",
    422: "A value is of the wrong kind or out of its range.",
    429: "Too many requests wait, or too many bytes are on their way; try again after Retry-After seconds.",
    503: "No model can answer now; try again after Retry-After seconds.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error answers of a route, for its description."""
    return {status: {"model": ErrorAnswer, "description": MEANINGS[status]} for status in statuses}


class Fix(BaseModel):
    """Stands for the schema of a fix, see `fix_components`."""


class Numbered(_Model):
    """A fix and its place in the history."""

    cursor: int
    fix: Fix


class FixPage(_Model):
    """Part of the history."""

    fixes: list[Numbered]
    older: int | None = Field(description="to go on with as `before`; null at the end")
    newest: int | None = Field(description="to ask with as `after` for what comes next")


class ReceiverPlace(_Model):
    """A receiver of a station."""

    name: str
    latitude: float
    longitude: float
    altitude_m: float


class Box(_Model):
    """Degrees; `east` is above 180 where the box crosses the antimeridian."""

    south: float
    west: float
    north: float
    east: float


class StationModel(_Model):
    """A station, as far as it is known."""

    name: str
    frequency_hz: float | None
    receivers: list[ReceiverPlace]
    area: Box | None
    state: Literal["starting", "ready", "degraded", "failed", "stopped", "unknown"] = Field(
        description="of its engine; unknown where its engine is elsewhere"
    )
    likelihood: bool = Field(description="whether `/stations/{name}/likelihood` may have an answer")


class Stations(_Model):
    """All stations that fixes come from."""

    stations: list[StationModel]


class Likelihood(_Model):
    """How probable each part of an area was in one window."""

    station: str
    stream: str
    sequence: int
    timestamp: str
    bounds: Box
    rows: int
    columns: int
    probability: list[float] = Field(description="row by row, from north to south, from west to east; the sum is 1")


class MapSettings(_Model):
    """What the map page needs to know."""

    tiles: str | None = Field(description="URL with {z}, {x} and {y}")
    attribution: str


def fix_components() -> dict[str, Any]:
    """The schema of a fix in `wire`, as components of an OpenAPI description: Fix, and one for each of its parts."""
    text = json.dumps(fix_schema()).replace("#/$defs/", "#/components/schemas/Fix.")
    schema = json.loads(text)
    parts = schema.pop("$defs")
    del schema["$schema"], schema["$id"]
    return {"Fix": schema} | {f"Fix.{name}": part for name, part in parts.items()}
