"""Routes that show fixes and stations: pages, files for maps, and a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from localize_core.errors import EngineError
from localize_core.service.errors import ApiError
from localize_core.service.history import Entry, FixHistory
from localize_core.service.schemas import Fix, FixPage, Likelihood, Stations, errors
from localize_core.service.service import Service
from localize_core.serving.likelihood import Likelihood as EngineLikelihood
from localize_core.wire.fix_json import format_timestamp

HEARTBEAT_S = 15.0
"""After so long without an event a stream carries a comment, so that nobody in between takes it for dead."""
CHECK_S = 1.0
"""How often stations are looked at for changes."""
LIKELIHOOD_S = 1.0
"""So long a likelihood is shown before the model is asked for another: it has fixes to make meanwhile."""
CHUNK = 100
"""Fixes that a stream takes from the history at a time."""
MAX_STREAMS = 1000

Limit = Annotated[int, Query(ge=1, le=1000, description="most fixes")]
StationName = Annotated[str | None, Query(description="only of this station")]
Cursor = Annotated[int | None, Query(ge=0, le=2**53)]


class Bell:
    """Wakes all readers of an event loop at once. `ring` may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._rung = False
        self.closed = False

    def ring(self) -> None:
        if not self._rung:  # the loop is told once, however many fixes come before it listens
            self._rung = True
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: there is nobody to wake
                self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Have all readers end."""
        self.closed = True
        self.ring()

    @property
    def next(self) -> asyncio.Event:
        """The event that the next ring sets: to be taken before looking for what there is."""
        return self._event

    def _wake(self) -> None:
        self._rung = False  # before the readers look: what comes now rings again
        event, self._event = self._event, asyncio.Event()
        event.set()


@dataclass
class Live:
    """What the streams of a running application share. `stations`: the data of the event, as they are now."""

    bell: Bell
    stations: str = ""
    streams: int = 0

    async def follow(self, service: Service) -> None:
        """Ring where a station has changed, until cancelled."""
        while True:
            listed = json.dumps({"stations": service.stations()}, separators=(",", ":"))
            if listed != self.stations:
                self.stations = listed
                self.bell.ring()
            await asyncio.sleep(CHECK_S)


def fix_routes(service: Service, route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """The routes. The state of the running application holds its `Live`, whose bell rings after each fix."""
    router = APIRouter(tags=["fixes"], route_class=route_class)
    history, likelihoods = service.history, _Likelihoods(service)

    def chosen(entries: Iterator[Entry], station: str | None, status: str | None) -> Iterator[Entry]:
        return (
            entry
            for entry in entries
            if (station is None or entry.station == station) and (status is None or entry.status == status)
        )

    @router.get("/fixes", response_model=FixPage, responses=errors(422))
    def fixes(
        limit: Limit = 100,
        before: Cursor = None,
        after: Cursor = None,
        station: StationName = None,
        status: Literal["ok", "no_fix"] | None = None,
    ) -> Response:
        """The last fixes, newest first; with `after`, those that follow, oldest first.

        `older` is the cursor to go on with as `before`, null at the end; `newest` the one to ask with as `after` for
        what comes next, null before the first fix.
        """
        if before is not None and after is not None:
            raise ApiError(422, "before and after: at most one of both", field="after", received=after)
        if after is not None:
            entries = list(islice(chosen(history.onwards(after), station, status), limit))
            newest: int | None = entries[-1].cursor if entries else after
            older = None
        else:
            found = list(islice(chosen(history.backwards(before), station, status), limit + 1))
            entries, more = found[:limit], found[limit:]
            newest = entries[0].cursor if entries else None
            older = entries[-1].cursor if more else None
        listed = ",".join(f'{{"cursor":{entry.cursor},"fix":{entry.json}}}' for entry in entries)
        body = f'{{"fixes":[{listed}],"older":{json.dumps(older)},"newest":{json.dumps(newest)}}}'
        return Response(body, media_type="application/json")

    @router.get("/fixes/latest", response_model=Fix, responses=errors(404))
    def latest(station: StationName = None) -> Response:
        """The last fix, whether it has a position or not."""
        entry = next(chosen(history.backwards(), station, None), None)
        if entry is None:
            raise ApiError(404, "there was no fix yet", code="no_fix_yet", field="station", received=station)
        return Response(entry.json, media_type="application/json")

    @router.get(
        "/fixes.geojson", response_class=Response, responses=_file("application/geo+json", "object") | errors(422)
    )
    def geojson(limit: Limit = 100, station: StationName = None) -> Response:
        """The last fixes as a GeoJSON FeatureCollection, newest first."""
        from localize_core.wire.geojson import feature_collection

        entries = islice(chosen(history.backwards(), station, None), limit)
        body = json.dumps(feature_collection([entry.fix for entry in entries]), separators=(",", ":"))
        return Response(body, media_type="application/geo+json")

    @router.get(
        "/fixes.kml", response_class=Response, responses=_file("application/vnd.google-earth.kml+xml") | errors(422)
    )
    def kml(limit: Limit = 100, station: StationName = None) -> Response:
        """The last fixes as KML, for Google Earth and others."""
        from localize_core.wire.kml import fixes_to_kml

        entries = islice(chosen(history.backwards(), station, None), limit)
        body = fixes_to_kml([entry.fix for entry in entries])
        return Response(body, media_type="application/vnd.google-earth.kml+xml")

    @router.get("/fixes/stream", response_class=StreamingResponse, responses=_file("text/event-stream") | errors(422))
    async def stream(
        request: Request,
        station: StationName = None,
        history: Annotated[int, Query(ge=0, le=1_000_000, description="fixes before now to begin with")] = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Server-sent events: `fix` (a fix, its cursor as id), `stations` (as `GET /stations`, at the start and at each
        change), `skipped` (`count` of fixes that were gone before this reader came to them).

        `Last-Event-ID` goes on after that cursor. A comment comes when there was nothing else for 15 seconds.
        """
        cursor = _resumed(service.history, last_event_id, history)
        live: Live = request.app.state.live
        if live.streams >= MAX_STREAMS:
            raise ApiError(503, f"{MAX_STREAMS} streams are open, which is all there may be", code="too_many_streams")
        return StreamingResponse(
            _events(service, live, cursor, station),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @router.get("/stations", response_model=Stations)
    def stations() -> Response:
        """Stations that fixes come from. Of those that are known from their fixes alone there is only the name."""
        return JSONResponse({"stations": service.stations()})

    @router.get("/stations/{name:path}/likelihood", response_model=Likelihood, responses=errors(404))
    async def likelihood(name: str) -> Response:
        """How probable each part of the area was in the station's last window; rows from north to south, columns from
        west to east, summing to one."""
        return await run_in_threadpool(likelihoods.answer, name)

    return router


def _file(media_type: str, kind: str = "string") -> dict[int | str, dict[str, object]]:
    """How the description names an answer of another media type than JSON."""
    return {200: {"content": {media_type: {"schema": {"type": kind}}}}}


def _resumed(history: FixHistory, last_event_id: str | None, wanted: int) -> int:
    """The cursor that a stream begins after."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 20:
        return int(last_event_id)
    return history.newest - min(wanted, history.received)


async def _events(service: Service, live: Live, cursor: int, station: str | None) -> AsyncIterator[str]:
    """The events of one stream. There is no queue: a reader that is slow finds what the history still has."""
    live.streams += 1
    told = ""
    try:
        while not live.bell.closed:
            rung = live.bell.next
            if live.stations != told:
                told = live.stations
                yield f"event: stations\nid: {cursor}\ndata: {told}\n\n"
            missing, entries = service.history.after(cursor, CHUNK)
            if missing:
                yield f'event: skipped\ndata: {{"count":{missing}}}\n\n'
            wanted = [entry for entry in entries if station is None or entry.station == station]
            if wanted:
                yield "".join(f"event: fix\nid: {entry.cursor}\ndata: {entry.json}\n\n" for entry in wanted)
            if entries:
                cursor = entries[-1].cursor
                continue
            try:
                await asyncio.wait_for(rung.wait(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                yield ": nothing new\n\n"
    finally:
        live.streams -= 1


class _Likelihoods:
    """The engine's likelihood, as it is shown. However many look, the model runs once in LIKELIHOOD_S for all."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._body, self._until_s = b"", 0.0

    def answer(self, name: str) -> Response:
        engine = self._service.engine
        if engine is None or engine.station != name:
            known = [station["name"] for station in self._service.stations()]
            message = "its likelihood is not known here" if name in known else f"there is none; there are {known}"
            raise ApiError(404, f"station {name!r}: {message}", code="no_likelihood", field="name", received=name)
        with self._lock:
            if time.monotonic() >= self._until_s:
                try:
                    self._body = _likelihood_json(engine.likelihood())
                except EngineError as error:
                    raise ApiError(404, str(error), code="no_likelihood") from error
                self._until_s = time.monotonic() + LIKELIHOOD_S
            return Response(self._body, media_type="application/json")


def _likelihood_json(found: EngineLikelihood) -> bytes:
    grid = found.grid
    shown = {
        "station": found.station,
        "stream": found.stream,
        "sequence": found.sequence,
        "timestamp": format_timestamp(found.timestamp),
        "bounds": {"south": grid.south, "west": grid.west, "north": grid.north, "east": grid.east},
        "rows": grid.rows,
        "columns": grid.columns,
        "probability": found.probability[::-1].ravel().tolist(),
    }
    return json.dumps(shown, separators=(",", ":"), allow_nan=False).encode()
