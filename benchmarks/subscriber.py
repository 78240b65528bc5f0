"""A subscriber in a process of its own, which notes when fixes arrive."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import zmq

LAST_MS = 200
"""How long to wait for fixes that are still on their way once it is over."""


def main() -> None:
    """Receive from the endpoint in `sys.argv[2]` until stdin ends.

    Prints a line when it listens, and at the end a JSON list: moment of arrival on the clock that all processes share,
    sequence, and what else of the fix benchmarks look at.
    """
    came: list[tuple[float, bytes]] = []
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 10)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.subscribe(b"")
        socket.connect(sys.argv[2])
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        ending = False
        print("ready", flush=True)
        while events := dict(poller.poll(LAST_MS if ending else None)):
            if socket in events:
                body = socket.recv_multipart()[-1]
                came.append((time.monotonic(), body))
            elif not ending:
                ending = True
                poller.unregister(sys.stdin.fileno())
    print(json.dumps([_entry(moment_s, json.loads(body)) for moment_s, body in came]))


def _entry(moment_s: float, fix: dict[str, Any]) -> dict[str, Any]:
    kept = ("sequence", "latency_ms", "inference_time_ms", "dropped_windows")
    return {"arrived_s": moment_s, **{key: fix[key] for key in kept}}
