"""One shape for every error that the service answers with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1

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


class ApiError(Exception):
    """A request that is answered with an error. `field`: where in the request, `received`: what was there."""

    def __init__(
        self, status: int, message: str, *, code: str = "", field: str | None = None, received: Any = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code or CODES[status], message
        self.field, self.received = field, received

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "field": self.field, "received": _shown(self.received)}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.status in (429, 503) and headers is None else headers
        return JSONResponse({"error": self.as_dict()}, self.status, headers)


def _shown(value: Any) -> str | int | float | bool | None:
    """What was received, short enough to be sent back."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else "a whole number of more than 53 bits"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def add_handlers(app: FastAPI) -> None:
    """Have every error of routes and framework come in the one shape."""

    @app.exception_handler(ApiError)
    async def expected(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

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
