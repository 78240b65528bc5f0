"""What the API says of its answers in its OpenAPI description."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from localize_core.wire.fix_json import fix_schema

SAMPLES = "application/octet-stream"


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
    """Stands for the schema of a fix, see `components`."""


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


class Answer(BaseModel):
    """Stands for the schema of a fix that answers a question, see `components`."""


class Answered(_Model):
    """A question that was answered."""

    ok: Literal[True]
    fix: Answer


class Failed(_Model):
    """One that was not."""

    ok: Literal[False]
    error: Error


class BatchAnswer(_Model):
    """One result for each question, in their order."""

    results: list[Answered | Failed]
    total_time_ms: float = Field(description="of reading and answering all of them, once their turn had come")
    samples_per_second: float = Field(description="questions answered in a second; one is an element of iq_samples")


class Reason(_Model):
    """Something that is not as it should be."""

    reason: str
    detail: str
    since: str


class ServiceFacts(_Model):
    """What the service has to do."""

    version: str
    uptime_s: float
    fixes: int = Field(description="since the start")
    streams: int = Field(description="that are open")
    requests_working: int
    requests_waiting: int
    body_bytes: int = Field(description="of requests that are being read or wait")


class Health(_Model):
    """State of the model and of the service. `failure` is there where it has failed."""

    state: Literal["starting", "ready", "degraded", "failed", "stopped", "no_model"]
    live: bool
    ready: bool
    reasons: list[Reason]
    failure: str | None = None
    service: ServiceFacts


class Alive(_Model):
    """Whether it does anything."""

    live: bool


class Ready(_Model):
    """Whether it answers questions."""

    ready: bool


class _Open(BaseModel):
    """More may be there."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Latency(_Open):
    """Milliseconds, of the last inferences; null before the first."""

    p50: float | None
    p95: float | None
    p99: float | None


class Performance(_Open):
    """What a version has done."""

    name: str
    version: str
    windows: int
    errors: int
    inference_time_ms: Latency
    accuracy: dict[str, Any] | None = Field(description="what its evaluation found")


class Version(Performance):
    """A version that is loaded."""

    sha256: str
    backend: str
    loaded_since: str
    contract: dict[str, Any]


class ArmModel(_Open):
    """Where versions of one source serve."""

    uri: str
    source_version: str | None
    held: bool = Field(description="whether an operator chose another version than the source's")
    serving: Version | None
    previous: Version | None


class ModelVersions(_Open):
    """What is loaded."""

    arms: dict[str, ArmModel]
    fallback: Version | None


class ModelInfo(ModelVersions):
    """What serves, and what a question needs to know of it."""

    state: str
    model: str
    version: str
    sha256: str
    experiment: dict[str, Any] | None
    cache: dict[str, Any] | None
    station: str
    sample_rate_hz: float
    frequency_hz: float | None
    receivers: list[str] = Field(description="in the order of their samples")
    samples: int = Field(description="of each receiver that a question needs at least")
    time_steps: int = Field(
        description="frames that are looked at, more are left alone; 0 for all that a question brings"
    )
    rows: int
    channels: int


class ModelPerformance(_Open):
    """How fast and how good."""

    arms: dict[str, Performance]
    cache: dict[str, Any] | None
    experiment: dict[str, Any] | None


Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
Samples = Annotated[list[Pair], Field(min_length=1)]
IqData = Samples | Annotated[list[Samples], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[list[Name], Field(min_length=1, max_length=64)]


class QuestionModel(_Model):
    """Either `iq_data` or `features`, and what is known of them."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["iq_data"]}, {"required": ["features"]}]},
    )

    iq_data: IqData = Field([], description="[[I, Q], …], or one such list for each receiver, all of the same length")
    features: list[float] = Field(
        [], min_length=1, description="instead of samples: channel after channel, row by row, as the model takes them"
    )
    receivers: Names | None = Field(None, description="whose samples they are; the model's own where left out")
    session_id: Name | None = Field(None, description="comes back, and keeps a session with one arm of an experiment")
    cache_enabled: bool | None = Field(None, description="whether a known answer will do; true where left out")
    id: Name | None = Field(None, description="comes back; made up where left out")
    timestamp: datetime | None = Field(None, description="of the first sample, with a time zone; now where left out")
    frequency_hz: float | None = Field(None, gt=0.0, le=1e12, description="the model's own where left out")


class BatchModel(_Model):
    """Either `items` or `iq_samples`; the rest is for questions that do not say it themselves."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["items"]}, {"required": ["iq_samples"]}]},
    )

    items: list[Any] = Field(
        [],
        min_length=1,
        max_length=100,
        description="questions as of `/predict`; what is none fails alone",
    )
    iq_samples: list[Any] = Field([], min_length=1, max_length=100, description="an `iq_data` for each question")
    receivers: Names | None = None
    session_id: Name | None = None
    cache_enabled: bool | None = None


def question_body() -> dict[str, Any]:
    """Body and query of `/predict` for the description."""
    return _body("QuestionModel", "complex64, little-endian, receiver after receiver", QuestionModel)


def batch_body() -> dict[str, Any]:
    """Body and query of `/predict/batch` for the description."""
    found = _body("BatchModel", "`count` questions of equal length, one after the other", QuestionModel)
    count = {"type": "integer", "minimum": 1, "maximum": 100}
    found["parameters"] = [
        {"name": "count", "in": "query", "schema": count, "description": "of questions, with samples as they are"},
        *(each for each in found["parameters"] if each["name"] != "id"),
    ]
    return found


def _body(model: str, samples: str, options: type[BaseModel]) -> dict[str, Any]:
    in_query = ("receivers", "session_id", "cache_enabled", "id", "timestamp", "frequency_hz")
    properties = options.model_json_schema()["properties"]
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": {"type": "string"} if name == "receivers" else properties[name]["anyOf"][0],
            "description": f"with {SAMPLES}: {'comma-separated; ' * (name == 'receivers')}as in JSON",
        }
        for name in in_query
    ]
    content = {
        "application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}},
        SAMPLES: {"schema": {"type": "string", "format": "binary", "description": samples}},
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def components() -> dict[str, Any]:
    """Schemas that no route's signature names: of bodies, and of a fix as `wire` has it, part by part."""
    reference = "#/components/schemas/{model}"
    _, bodies = models_json_schema([(QuestionModel, "validation"), (BatchModel, "validation")], ref_template=reference)
    schema = json.loads(json.dumps(fix_schema()).replace("#/$defs/", "#/components/schemas/Fix."))
    parts = {f"Fix.{name}": part for name, part in schema.pop("$defs").items()}
    del schema["$schema"], schema["$id"]
    answer = json.loads(json.dumps(schema))
    answer["description"] = "A fix, and the two fields that answers have beside it."
    answer["properties"] |= {
        "model_version": {"type": "string"},
        "session_id": {"type": ["string", "null"], "description": "of the question"},
    }
    answer["required"] += ["id", "model_version", "session_id"]
    return {**bodies["$defs"], **parts, "Fix": schema, "Answer": answer}
