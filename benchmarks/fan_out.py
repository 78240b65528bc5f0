"""Fixes from one station to many subscribers over ZeroMQ and Redis at once, one of each kind stopped in the middle.

A thousand fixes a second, a hundred where there are a hundred subscribers: these are in one process of their own, which
counts what they get, and they are not what is measured. A stopped subscriber keeps its connection and reads nothing: it
must not cost the others a fix.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from localize_benchmarks import redis_server
from localize_benchmarks.figures import Figure, Found, Missing, Settings
from localize_benchmarks.process import start_python
from localize_core.sinks.base import FixSink
from localize_core.sinks.redis_sink import RedisFixSink
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.types.fix import Fix, ModelIdentity, Position, ReceiverReport, Uncertainty

FIXES_PER_S = {1: 1000.0, 10: 1000.0, 100: 100.0}
"""By the number of subscribers."""
LAST_S = 10.0
"""How long subscribers may take for what is still on its way."""
STATION = "fan-out"


def make_fix(sequence: int) -> Fix:
    """A fix of an ordinary station with four receivers."""
    return Fix(
        station=STATION,
        stream="bench",
        sequence=sequence,
        timestamp=datetime.now(timezone.utc),
        time_source="rx_time",
        status="ok",
        reason=None,
        position=Position(47.37 + sequence % 100 * 1e-5, 8.54),
        uncertainty=Uncertainty(45.0, 38.0, 25.0),
        confidence=0.92,
        frequency_hz=433.92e6,
        receivers=tuple(ReceiverReport(name, -71.2, True) for name in ("north", "east", "south", "west")),
        model=ModelIdentity("localization_model", "3", "0" * 64),
        window_samples=16384,
        window_duration_s=0.008,
    )


class Subscribers:
    """A process that holds `count` subscribers of each address; see fan_out_clients."""

    def __init__(self, count: int, zmq_endpoint: str, redis_url: str | None) -> None:
        told = json.dumps({"count": count, "zmq": zmq_endpoint, "redis": redis_url, "station": STATION})
        self._process = start_python("fan_out_clients", told, stdin=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the subscribers did not start")

    def stop(self) -> None:
        """It keeps its connections, and reads nothing any more."""
        self._process.send_signal(signal.SIGSTOP)

    def finish(self) -> list[dict[str, Any]]:
        """What each subscriber got."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        text = self._process.stdout.read()
        self._process.wait()
        self._process.stdout.close()
        found: list[dict[str, Any]] = json.loads(text)
        return found

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def publish(sinks: list[FixSink], per_s: float, seconds: float, stopping: Subscribers) -> tuple[int, float]:
    """Publish `per_s` fixes a second; `stopping` stops after a fifth of the time. How many, and how long it took."""
    offered, began_s = 0, time.monotonic()
    stopped = False
    while offered < round(seconds * per_s):
        due_s = began_s + offered / per_s
        if (wait_s := due_s - time.monotonic()) > 0.0:
            time.sleep(wait_s)
        if not stopped and offered > seconds * per_s / 5.0:
            stopping.stop()
            stopped = True
        fix = replace(make_fix(offered), timestamp=datetime.now(timezone.utc))
        for sink in sinks:
            sink.publish(fix)
        offered += 1
    return offered, time.monotonic() - began_s


def measure(settings: Settings) -> Iterator[Found]:
    if redis_server.missing() is not None:
        yield Missing("fan_out", "redis-server", "apt-get install redis-server")
        return
    for count, per_s in FIXES_PER_S.items():
        yield from _measure(count, per_s, settings)


def _measure(count: int, per_s: float, settings: Settings) -> Iterator[Found]:
    with tempfile.TemporaryDirectory() as folder:
        server = redis_server.RedisServer(Path(folder))
        server.start()
        zmq_sink = ZmqFixSink("tcp://127.0.0.1:*")
        redis_sink = RedisFixSink(server.url)
        sinks: dict[str, FixSink] = {"zmq": zmq_sink, "redis": redis_sink}
        for sink in sinks.values():
            sink.open()
        assert zmq_sink.bound_endpoint is not None
        try:
            subscribers = Subscribers(count, zmq_sink.bound_endpoint, server.url)
            stopping = Subscribers(1, zmq_sink.bound_endpoint, server.url)
            try:
                offered, took_s = publish([*sinks.values()], per_s, settings.seconds, stopping)
                until_s = time.monotonic() + LAST_S
                while redis_sink.backlog and time.monotonic() < until_s:
                    time.sleep(0.01)
                came = subscribers.finish()
            finally:
                stopping.kill()
        finally:
            for sink in sinks.values():
                sink.close()
            server.stop()
    for kind, sink in sinks.items():
        each = [entry for entry in came if entry["kind"] == kind]
        lost = [offered - entry["distinct"] for entry in each]
        twice = sum(entry["received"] - entry["distinct"] for entry in each)
        p50, p95, p99 = (max(entry["percentiles_ms"][place] for entry in each) for place in range(3))
        who = f"{kind}, {count} subscriber{'s' * (count > 1)} and one that is stopped"
        note = (
            f"{offered} fixes at {offered / took_s:.0f} per s; twice {twice}, out of order "
            f"{sum(entry['disorder'] for entry in each)}; the sink counts {sink.sent} sent, {sink.dropped} dropped"
        )
        yield Figure("fan_out", f"{who}: lost", sum(lost), "fixes", goal="= 0", note=note, details={"lost": lost})
        note = f"P50 {p50:.1f}, P99 {p99:.1f} ms, of the slowest subscriber"
        yield Figure("fan_out", f"{who}: publication to arrival, P95", p95, "ms", note=note)
