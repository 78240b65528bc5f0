"""The web application: routes, errors, and who may ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

import localize_core
from localize_core.service.errors import ApiError, add_handlers
from localize_core.service.fixes import Bell, Live, fix_routes
from localize_core.service.schemas import MapSettings, fix_components
from localize_core.service.service import Service
from localize_core.service.settings import HttpSettings

DESCRIPTION = """Fixes, stations and inference of a gr-localize station.

Every error is `{"error": {"code", "message", "field", "received"}}`."""
STATIC = Path(str(resources.files("localize_core.service").joinpath("static")))


def create_app(service: Service, settings: HttpSettings | None = None) -> FastAPI:
    """The application that shows `service`. A server runs its lifespan, in one event loop."""
    settings = settings or HttpSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        live = app.state.live = Live(Bell())
        service.history.watch(live.bell.ring)
        following = asyncio.create_task(live.follow(service))
        try:
            yield
        finally:
            following.cancel()
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
    app.include_router(fix_routes(service))
    _pages(app, settings)
    return app


def _pages(app: FastAPI, settings: HttpSettings) -> None:
    """The map, and what it needs."""

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        if not (STATIC / "index.html").is_file():
            raise ApiError(404, "this installation has no map page")
        return FileResponse(STATIC / "index.html")

    @app.get("/map/settings", response_model=MapSettings, tags=["fixes"])
    def map_settings() -> Response:
        """Background and attribution of the map."""
        return JSONResponse({"tiles": settings.tiles or None, "attribution": settings.attribution})

    @app.get("/openapi.json", include_in_schema=False)
    def description() -> Response:
        return JSONResponse(_openapi(app))

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"] |= fix_components()
        app.openapi_schema = schema
    return app.openapi_schema
