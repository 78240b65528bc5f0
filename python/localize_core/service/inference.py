"""Routes of inference: questions, the model that answers them, and how it is."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

import localize_core
from localize_core.errors import ConfigError, LocalizeError
from localize_core.service import decode, schemas
from localize_core.service.errors import ApiError
from localize_core.service.fixes import Live
from localize_core.service.intake import Intake, WorkQueue
from localize_core.service.model_queue import ModelQueue
from localize_core.service.schemas import SAMPLES, errors
from localize_core.service.service import Service
from localize_core.serving.engine import Engine
from localize_core.serving.requests import MAX_REQUESTS
from localize_core.serving.requests import Request as Question
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_dict

PREFIX = "/api/v1/inference"
OPEN_PATH = f"{PREFIX}/live"
"""The one route that asks for no token: it says only that somebody is there."""

Shown = dict[str, Any] | ApiError
Form = Callable[[Sequence[Shown], float], dict[str, Any]]
"""Makes the answer to a request of those to its questions, and of the time that they took."""


class Desk:
    """Takes the questions of one request, has them answered and shows the fixes."""

    def __init__(self, service: Service, engine: Engine, model: ModelQueue, form: Form) -> None:
        self._service, self._engine, self._model, self._form = service, engine, model, form
        self._began_s = time.monotonic()

    def ask(self, questions: Sequence[Question | ApiError]) -> Future[bytes]:
        """Answers in the order of the questions, or why there is none: each fails alone."""
        asked = [self._checked(question) for question in questions]

        def finish(fixes: list[Fix]) -> bytes:
            left = iter(fixes)
            shown = [each if isinstance(each, ApiError) else self._shown(each, next(left)) for each in asked]
            found = self._form(shown, time.monotonic() - self._began_s)
            return json.dumps(found, separators=(",", ":"), allow_nan=False).encode()

        return self._model.ask([each for each in asked if isinstance(each, Question)], finish)

    def _checked(self, question: Question | ApiError) -> Question | ApiError:
        if isinstance(question, ApiError):
            return question
        try:
            self._engine.reader.fit(question)
        except ConfigError as error:
            message = str(error)
            field = "receivers" if message.startswith("receivers") else "iq_data"
            if message.startswith("features"):
                field = "features"
            return ApiError(422, message, field=field)
        return question

    def _shown(self, question: Question, fix: Fix) -> dict[str, Any] | ApiError:
        if fix.reason == "model_unavailable":
            return ApiError(503, "the inference server does not answer, and no fallback is named", code=fix.reason)
        self._service.publish(fix)
        if self._service.metrics is not None:
            self._service.metrics.fix(fix)
        session = None if question.stream == decode.NO_SESSION else question.stream
        return {**fix_to_dict(fix), "model_version": fix.model.version, "session_id": session}


def one_answer(shown: Sequence[Shown], spent_s: float) -> dict[str, Any]:
    """Raises ApiError where the question could not be answered."""
    (answer,) = shown
    if isinstance(answer, ApiError):
        raise answer
    return answer


def many_answers(shown: Sequence[Shown], spent_s: float) -> dict[str, Any]:
    return {
        "results": [
            {"ok": False, "error": each.as_dict()} if isinstance(each, ApiError) else {"ok": True, "fix": each}
            for each in shown
        ],
        "total_time_ms": spent_s * 1e3,
        "samples_per_second": len(shown) / max(spent_s, 1e-6),
    }


@dataclass
class Counter:
    """What is taken on by a running application. `model`: None without an engine."""

    intake: Intake
    queue: WorkQueue
    model: ModelQueue | None


def inference_routes(service: Service, route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """The routes. The state of the running application holds its `Counter` and its `Live`."""
    router = APIRouter(prefix=PREFIX, tags=["inference"], route_class=route_class)

    def engine() -> Engine:
        if service.engine is None:
            raise ApiError(503, "this service has no model, it only shows fixes", code="no_model")
        return service.engine

    def ready_engine() -> Engine:
        health = engine().health
        if not health.ready:
            reasons = "".join(f"; {each.name}: {each.detail}" for each in health.conditions)
            raise ApiError(503, f"the model is {health.state}{reasons}", code="not_ready", received=health.state)
        return engine()

    async def answered(
        request: Request,
        from_json: Callable[[bytearray], Sequence[Question | ApiError]],
        from_samples: Callable[[bytearray, dict[str, str]], Sequence[Question | ApiError]],
        form: Form,
    ) -> Response:
        asked, counter = ready_engine(), cast("Counter", request.app.state.counter)
        model = counter.model
        assert model is not None  # there is one where there is an engine
        counter.queue.check()
        query = {key: value for key, value in request.query_params.items() if key != "token"}
        is_json = _is_json(request)
        if is_json and query:
            key, value = next(iter(query.items()))
            raise ApiError(422, f"{key}: with JSON it stands in the body", field=key, received=value)
        async with counter.intake.body(request) as body:

            def read() -> tuple[Desk, Sequence[Question | ApiError]]:
                desk = Desk(service, asked, model, form)
                return desk, from_json(body) if is_json else from_samples(body, query)

            answer = await counter.queue.run(request, read, lambda found: found[0].ask(found[1]))
            return Response(answer, media_type="application/json")

    @router.post(
        "/predict",
        response_model=schemas.Answer,
        responses=errors(400, 408, 413, 415, 422, 429, 503),
        openapi_extra=schemas.question_body(),
    )
    async def predict(request: Request) -> Response:
        """Samples in, a fix out. An answer without a position is an answer as well: its `status` is `no_fix`.

        As `application/octet-stream`: complex64, little-endian, receiver after receiver; what JSON has beside the
        samples stands in the query then.
        """
        return await answered(
            request,
            lambda body: [decode.decode_question(body)],
            lambda body, query: [decode.binary_question(body, query)],
            one_answer,
        )

    @router.post(
        "/predict/batch",
        response_model=schemas.BatchAnswer,
        responses=errors(400, 408, 413, 415, 422, 429, 503),
        openapi_extra=schemas.batch_body(),
    )
    async def predict_batch(request: Request) -> Response:
        """1 to 100 questions at a time. Each is answered or fails alone; results come in their order.

        As `application/octet-stream`: `count` questions of equal length, one after the other.
        """
        return await answered(request, decode.decode_batch, _binary_batch, many_answers)

    @router.get("/health", response_model=schemas.Health, responses={503: {"model": schemas.Health}})
    async def health(request: Request) -> Response:
        """State of the model and of this service: 200 while it answers, be it degraded, and else 503."""
        counter, live = cast("Counter", request.app.state.counter), cast("Live", request.app.state.live)
        if service.engine is None:
            found: dict[str, Any] = {"state": "no_model", "live": True, "ready": False, "reasons": []}
        else:
            found = service.engine.health.as_dict()
        found["service"] = {
            "version": localize_core.__version__,
            "uptime_s": time.monotonic() - service.started_s,
            "fixes": service.history.received,
            "streams": live.streams,
            "requests_working": counter.queue.working,
            "requests_waiting": counter.queue.waiting,
            "body_bytes": counter.intake.held_bytes,
        }
        return JSONResponse(found, 200 if found["ready"] else 503)

    @router.get("/live", response_model=schemas.Alive, responses={503: {"model": schemas.Alive}})
    async def live() -> Response:
        """Whether a restart would do no good. Needs no token."""
        alive = service.engine is None or service.engine.health.live
        return JSONResponse({"live": alive}, 200 if alive else 503)

    @router.get("/ready", response_model=schemas.Ready, responses={503: {"model": schemas.Ready}})
    async def ready() -> Response:
        """Whether questions are answered by a model."""
        answers = service.engine is not None and service.engine.health.ready
        return JSONResponse({"ready": answers}, 200 if answers else 503)

    @router.get("/model/info", response_model=schemas.ModelInfo, responses=errors(503))
    def info() -> Response:
        """Everything about the model that serves, and about those beside it."""
        return JSONResponse({**engine().info(), **_contract(engine())})

    @router.get("/model/versions", response_model=schemas.ModelVersions, responses=errors(503))
    def versions() -> Response:
        """What is loaded: for each arm the version that serves and the one before it, and the fallback."""
        found = engine().info()
        return JSONResponse({"arms": found["arms"], "fallback": found["fallback"]})

    @router.get("/model/performance", response_model=schemas.ModelPerformance, responses=errors(503))
    def performance() -> Response:
        """How fast and how good: of the versions that serve, of the cache and of an experiment."""
        found = engine().info()
        serving = {name: arm["serving"] for name, arm in found["arms"].items() if arm["serving"] is not None}
        keys = ("name", "version", "windows", "errors", "inference_time_ms", "accuracy")
        arms = {name: {key: version[key] for key in keys} for name, version in serving.items()}
        return JSONResponse({"arms": arms, "cache": found["cache"], "experiment": found["experiment"]})

    @router.post("/model/reload", response_model=schemas.ModelInfo, responses=errors(409, 422, 503))
    async def reload(arm: Literal["champion", "challenger"] = "champion") -> Response:
        """Ask the model's source now, and serve what it names. Refused, the model that serves goes on."""
        if reloading.locked():
            raise ApiError(409, "a reload is under way", code="reloading")
        async with reloading:
            try:
                found = await asyncio.wrap_future(engine().submit("reload", arm=arm))
            except LocalizeError as error:
                raise ApiError(409, str(error), code="refused") from error
        return JSONResponse({**found, **_contract(engine())})

    reloading = asyncio.Lock()
    return router


def _is_json(request: Request) -> bool:
    """Whether the body is JSON, and not samples. Raises ApiError for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ApiError(415, "compressed bodies are not taken", field="Content-Encoding", received=coding)
    if kind not in ("application/json", SAMPLES):
        message = f"Content-Type: wanted application/json or {SAMPLES}"
        raise ApiError(415, message, field="Content-Type", received=kind)
    return kind == "application/json"


def _binary_batch(body: bytearray, query: dict[str, str]) -> list[Question | ApiError]:
    count = query.pop("count", "")
    if not re.fullmatch(r"[0-9]{1,3}", count) or not 1 <= int(count) <= MAX_REQUESTS:
        raise ApiError(422, f"count: wanted 1 to {MAX_REQUESTS}", field="count", received=count or None)
    return [*decode.binary_batch(body, query, count=int(count))]


def _contract(engine: Engine) -> dict[str, Any]:
    """What a question needs to know of the model."""
    contract, steps = engine.contract, engine.time_steps
    return {
        "station": engine.station,
        "sample_rate_hz": contract.sample_rate_hz,
        "frequency_hz": contract.frequency_hz,
        "receivers": [receiver.name for receiver in contract.receivers],
        "samples": engine.reader.samples_needed,
        "time_steps": steps,
        "rows": contract.rows,
        "channels": len(contract.channels),
    }
