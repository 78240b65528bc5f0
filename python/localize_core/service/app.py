"""The web application: routes, errors, and who may ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

import localize_core
from localize_core.service.errors import ApiError, add_handlers, counted_route
from localize_core.service.fixes import Bell, Live, fix_routes
from localize_core.service.guard import Guard
from localize_core.service.inference import Counter, inference_routes
from localize_core.service.intake import Intake, WorkQueue
from localize_core.service.model_queue import TOGETHER, ModelQueue
from localize_core.service.schemas import MapSettings, components
from localize_core.service.service import Service
from localize_core.service.settings import HttpSettings

THREADS = 2
"""In which requests are read."""
AT_ONCE = 2 * TOGETHER
"""Requests that are worked on: some are read while the model answers others."""
DESCRIPTION = """Fixes, stations and inference of a gr-localize station.

Every error is `{"error": {"code", "message", "field", "received"}}`."""
STATIC = Path(str(resources.files("localize_core.service").joinpath("static")))


def create_app(service: Service, settings: HttpSettings | None = None) -> FastAPI:
    """The application that shows `service`. A server runs its lifespan, in one event loop."""
    settings = settings or HttpSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        live = app.state.live = Live(Bell())
        queue = WorkQueue(at_once=AT_ONCE, threads=THREADS, waiting=settings.queue_requests)
        model = None if service.engine is None else ModelQueue(service.engine)
        app.state.counter = Counter(Intake(settings.max_body_bytes), queue, model)
        service.history.watch(live.bell.ring)
        following = asyncio.create_task(live.follow(service))
        try:
            yield
        finally:
            following.cancel()
            queue.close()
            if model is not None:
                model.close()
            service.history.unwatch(live.bell.ring)

    app = FastAPI(
        title="gr-localize",
        version=localize_core.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its pages load from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.live = None
    add_handlers(app)
    route_class = APIRoute if service.metrics is None else counted_route(service.metrics)
    app.include_router(inference_routes(service, route_class))
    app.include_router(fix_routes(service, route_class))
    _pages(app, service, settings)
    app.add_middleware(Guard, settings=settings)
    if settings.cors_origins:  # before the guard: a browser asks without a token whether it may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
            expose_headers=["Retry-After"],
        )
    return app


def _pages(app: FastAPI, service: Service, settings: HttpSettings) -> None:
    """The map, the description of the API, and metrics."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def index() -> Response:
        if not (STATIC / "index.html").is_file():
            raise ApiError(404, "this installation has no map page")
        return FileResponse(STATIC / "index.html")

    @app.get("/map/settings", response_model=MapSettings, tags=["fixes"])
    def map_settings() -> Response:
        """Background and attribution of the map."""
        return JSONResponse({"tiles": settings.tiles or None, "attribution": settings.attribution})

    if service.metrics is not None:
        metrics = service.metrics

        @app.get("/metrics", include_in_schema=False)
        def scrape(accept: Annotated[str | None, Header()] = None) -> Response:
            body, content_type = metrics.render(accept)
            return Response(body, headers={"Content-Type": content_type})

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    def docs() -> Response:
        return FileResponse(STATIC / "docs.html")

    @app.get("/openapi.json", include_in_schema=False)
    def description() -> Response:
        return JSONResponse(_openapi(app))

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"] |= components()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        # A server without a token takes requests without one.
        schema["security"] = [{"token": []}, {}]
        app.openapi_schema = schema
    return app.openapi_schema
