"""One shape for every error that the service answers with."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from localize_core.service.service import RequestMetrics

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
MAX_SHOWN = 100

CODES = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    421: "misdirected",
    422: "invalid",
    429: "overloaded",
    500: "internal",
    503: "unavailable",
}
"""The word in an error's `code`, unless a more exact one is given."""


class ClientGone(Exception):
    """Whoever asked has hung up: nobody waits for the answer."""


class ApiError(Exception):
    """A request that is answered with an error. `field`: where in the request, `received`: what was there."""

    def __init__(
        self, status: int, message: str, *, code: str = "", field: str | None = None, received: Any = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code or CODES[status], message
        self.field, self.received = field, received

    def inside(self, place: str) -> ApiError:
        """The same for a part of a larger request."""
        field = place if self.field is None else f"{place}.{self.field}"
        return ApiError(self.status, f"{place}: {self.message}", code=self.code, field=field, received=self.received)

    def as_dict(self) -> dict[str, Any]:
        field = None if self.field is None else _sendable(self.field)
        return {
            "code": self.code,
            "message": _sendable(self.message),
            "field": field,
            "received": _shown(self.received),
        }

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) and headers is None else headers
        return JSONResponse({"error": self.as_dict()}, self.status, headers)


def _shown(value: Any) -> str | int | float | bool | None:
    """What was received, short enough to be sent back and as JSON can carry it."""
    if value is None or isinstance(value, bool):
        return value
    if (isinstance(value, int) and abs(value) < 2**53) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = _sendable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _sendable(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def add_handlers(app: FastAPI) -> None:
    """Have every error of routes and framework come in the one shape."""

    @app.exception_handler(ApiError)
    async def expected(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(ClientGone)
    async def gone(_: Request, __: ClientGone) -> Response:
        return Response(status_code=499)  # as nginx notes it; nobody reads it

    @app.exception_handler(HTTPException)
    async def framework(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail), code=CODES.get(error.status_code, "error")).response(
            error.headers or {}
        )

    @app.exception_handler(RequestValidationError)
    async def parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])  # after "query" or "path"
        message = first["msg"].removeprefix("Value error, ")
        return ApiError(422, f"{field}: {message}", field=field, received=first.get("input")).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return ApiError(500, "the service failed; its log says why").response()


def counted_route(metrics: RequestMetrics) -> type[APIRoute]:
    """Routes that tell `metrics` of every request, by their path as it is written here."""

    class CountedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def counted(request: Request) -> Response:
                began_s, failure = time.monotonic(), None
                metrics.request_started(self.path)
                try:
                    response = await handle(request)
                    if response.status_code >= 400:
                        failure = CODES.get(response.status_code, "error")
                    return response
                except ApiError as error:
                    failure = error.code
                    raise
                except (HTTPException, RequestValidationError) as error:
                    failure = CODES.get(getattr(error, "status_code", 422), "error")
                    raise
                except ClientGone:
                    failure = "client_gone"
                    raise
                except BaseException:
                    failure = CODES[500]
                    raise
                finally:
                    metrics.request_finished(self.path, failure, time.monotonic() - began_s)

            return counted

    return CountedRoute
