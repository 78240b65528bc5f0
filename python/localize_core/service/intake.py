"""What is taken on at a time: bytes on their way in, and requests that wait for the model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fastapi import Request

from localize_core.service.errors import ApiError, ClientGone

BODIES = 2
"""So many bodies of the largest size may be on their way or waiting at a time, or more smaller ones."""
STALLED_S = 30.0
"""A body that does not go on for so long is given up."""

T = TypeVar("T")


class Intake:
    """Reads bodies in pieces, and lets none grow beyond `max_body_bytes`, nor all of them beyond BODIES times that."""

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self.held_bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, which counts until it is let go. Raises ApiError, or ClientGone."""
        self._check_size(int(request.headers.get("content-length", 0)))
        found = bytearray()
        try:
            more = True
            while more:
                try:
                    message = await asyncio.wait_for(request.receive(), STALLED_S)
                except asyncio.TimeoutError:
                    raise ApiError(408, f"the body did not go on for {STALLED_S:g} s", field="body") from None
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece, more = message.get("body", b""), message.get("more_body", False)
                self._check_size(len(found) + len(piece))
                if self.held_bytes + len(piece) > BODIES * self.max_body_bytes:
                    raise ApiError(429, "too many bytes are on their way", field="body", received=len(found))
                self.held_bytes += len(piece)
                found += piece
            yield found
        finally:
            self.held_bytes -= len(found)

    def _check_size(self, size: int) -> None:
        if size > self.max_body_bytes:
            message = f"the body is larger than {self.max_body_bytes} bytes, which is max_body_bytes"
            raise ApiError(413, message, field="body", received=size)


class WorkQueue:
    """Works on `at_once` requests, and reads `threads` of them at a time, while at most `waiting` more wait.

    Belongs to one event loop.
    """

    def __init__(self, *, at_once: int, threads: int, waiting: int) -> None:
        self.most_waiting = waiting
        self.waiting = self.working = 0
        self._slots = asyncio.Semaphore(at_once)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="localize-request")

    def check(self) -> None:
        """Raise ApiError where nothing more can wait."""
        if self.waiting >= self.most_waiting and self._slots.locked():
            message = f"{self.waiting} requests wait, at most {self.most_waiting} may, which is queue_requests"
            raise ApiError(429, message, received=self.waiting)

    async def run(self, request: Request, read: Callable[[], T], answer: Callable[[T], Future[bytes]]) -> bytes:
        """Read the request when its turn comes, and have it answered.

        Raises ApiError where too many wait, ClientGone, and what reading and answering raise.
        """
        self.check()
        self.waiting += 1
        try:
            await self._turn(request)
        finally:
            self.waiting -= 1
        self.working += 1
        done = asyncio.ensure_future(self._work(read, answer))
        # It is worked on until it is done, whatever becomes of the client.
        done.add_done_callback(lambda _: self._free())
        return await asyncio.shield(done)

    async def _work(self, read: Callable[[], T], answer: Callable[[T], Future[bytes]]) -> bytes:
        found = await asyncio.get_running_loop().run_in_executor(self._pool, read)
        return await asyncio.wrap_future(answer(found))

    async def _turn(self, request: Request) -> None:
        """Wait for a place, unless the client hangs up before."""
        if not self._slots.locked():
            await self._slots.acquire()
            return
        turn = asyncio.ensure_future(self._slots.acquire())
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise ClientGone
        except BaseException:
            if not turn.cancel() and turn.done() and not turn.cancelled():
                self._slots.release()
            raise
        finally:
            gone.cancel()

    def _free(self) -> None:
        self.working -= 1
        self._slots.release()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _hung_up(request: Request) -> None:
    """Wait until the client has gone. Its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
