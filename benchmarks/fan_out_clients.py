"""Many subscribers in one process, which count fixes and how late they came. Without the project's own client: what is
measured is publishing, and decoding every fix a hundred times would be most of the work."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from array import array
from datetime import datetime, timezone
from typing import Any

import numpy as np
import redis
import zmq

WANTED = re.compile(rb'"sequence":(\d+).*?"timestamp":"([^"]+)Z"')
QUIET_S = 3.0
"""Nothing for so long after the end means that nothing more comes."""
PACE = 16
"""Of one in so many fixes the time is taken."""


class Count:
    """What one subscriber got."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.sequences, self.late_ms = array("q"), array("d")

    def add(self, body: bytes) -> None:
        found = WANTED.search(body)
        assert found is not None
        sequence = int(found[1])
        self.sequences.append(sequence)
        if sequence % PACE == 0:
            sent = datetime.fromisoformat(found[2].decode()).replace(tzinfo=timezone.utc)
            self.late_ms.append(1e3 * (time.time() - sent.timestamp()))

    def as_dict(self) -> dict[str, Any]:
        sequences = np.array(self.sequences)
        late_ms = np.array(self.late_ms) if self.late_ms else np.array([np.nan])
        return {
            "kind": self.kind,
            "received": len(sequences),
            "distinct": len(np.unique(sequences)),
            "disorder": int(np.sum(np.diff(sequences) < 0)),
            "percentiles_ms": np.percentile(late_ms, [50, 95, 99]).tolist(),
        }


def main() -> None:
    """Hold the subscribers that `sys.argv[2]` names, JSON, until stdin ends; prints `ready`, and at the end counts."""
    told = json.loads(sys.argv[2])
    ended = threading.Event()
    counts: list[Count] = []
    poller = zmq.Poller()
    context = zmq.Context(io_threads=1)
    sockets: dict[Any, Count] = {}
    for _ in range(told["count"]):
        socket = context.socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(told["zmq"])
        sockets[socket] = Count("zmq")
        poller.register(socket, zmq.POLLIN)
    client = redis.Redis.from_url(told["redis"], protocol=2)
    connections: dict[int, tuple[Any, Count]] = {}
    for _ in range(told["count"]):
        listening = client.pubsub(ignore_subscribe_messages=True)
        listening.subscribe(f"gr-localize:fixes:{told['station']}")
        assert listening.connection is not None
        number = listening.connection._sock.fileno()  # there is no public way to wait for many at once
        connections[number] = listening, Count("redis")
        poller.register(number, zmq.POLLIN)
    counts += [*sockets.values(), *(count for _, count in connections.values())]
    time.sleep(0.5)  # subscriptions take their time to reach a publisher, which tells nobody
    print("ready", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while (events := poller.poll(int(1e3 * QUIET_S))) or not ended.is_set():
        for ready, _ in events:
            if ready in sockets:
                while True:
                    try:
                        sockets[ready].add(ready.recv_multipart(zmq.DONTWAIT)[-1])
                    except zmq.Again:
                        break
            else:
                listening, count = connections[ready]
                with contextlib.suppress(redis.TimeoutError):  # half a message is there, and is kept
                    while (message := listening.get_message(timeout=0.0)) is not None:
                        count.add(message["data"])
    print(json.dumps([count.as_dict() for count in counts]))
    context.destroy(linger=0)
