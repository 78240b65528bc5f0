"""The HTTP service under a hundred clients at once: percentiles by kind of request, errors, health meanwhile, memory.

The service runs in a process of its own, the clients in another, on the same cores: what clients take is part of it.
Each client keeps its connection. In a closed loop it asks again as soon as it was answered, which is as much as the
machine can take and latency is the queue's; in the paced scenes it asks once in PACE_S, as users do.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from localize_benchmarks.figures import Figure, Found, Settings
from localize_benchmarks.machine import MemoryWatch
from localize_benchmarks.process import start_app, start_python
from localize_core.resources import shared_file

MODEL = "models/access_road.onnx"
SAMPLES = 16_384
CLIENTS = 100
BATCH = 100
PACE_S = 1.0
START_S = 60.0


@dataclass(frozen=True)
class Load:
    """What the clients do. `kind`: of bodies, `json` or `binary`. `pace_s`: from one request of a client to its next, 0
    for a closed loop. `batch_share`: of requests with `batch` windows. `cached_share`: of requests that ask for one of
    a few windows again and again with the cache on; the others ask without it."""

    name: str
    kind: str
    seconds: float
    clients: int = CLIENTS
    pace_s: float = 0.0
    batch_share: float = 0.0
    batch: int = BATCH
    cached_share: float = 0.0
    samples: int = SAMPLES


def scenes(seconds: float) -> list[Load]:
    closed = [Load("closed loop", kind, seconds) for kind in ("json", "binary")]
    paced = [replace(load, name=f"each once in {PACE_S:g} s", pace_s=PACE_S) for load in closed]
    mixed = Load("half cached, 2 % batches of 10", "binary", seconds, batch_share=0.02, batch=10, cached_share=0.5)
    return [*paced, *closed, mixed]


class Service:
    """`gr-localize serve` with a shipped model on a free port."""

    def __enter__(self) -> Service:
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("w+")
        arguments = ["serve", "--model", shared_file(MODEL), "--port", "0"]
        self._process = start_app(*arguments, stdin=subprocess.DEVNULL, stderr=self._log)
        until_s = time.monotonic() + START_S
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", Path(self._log.name).read_text())) is None:
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.__exit__()
                raise RuntimeError(f"the service did not start: {self.said}")
            time.sleep(0.05)
        self.port = int(found[1])
        return self

    @property
    def said(self) -> str:
        return Path(self._log.name).read_text()[-2000:]

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()


def run(load: Load) -> dict[str, Any]:
    """What the clients saw, and the service's memory; see load_clients."""
    with Service() as service, MemoryWatch(0.5, pid=service.pid) as memory:
        clients = start_python("load_clients", str(service.port), json.dumps(asdict(load)), stdin=subprocess.DEVNULL)
        with clients:
            assert clients.stdout is not None
            text = clients.stdout.read()
        if clients.returncode:
            raise RuntimeError(f"the clients ended with status {clients.returncode}; the service says {service.said}")
    found: dict[str, Any] = json.loads(text)
    return found | {"early_mib": memory.early_mib, "late_mib": memory.late_mib, "memory_mib": memory.thinned_mib()}


def measure(settings: Settings) -> Iterator[Found]:
    for load in scenes(settings.seconds):
        found = run(load)
        goal_ms = {"json": 500, "binary": 100}[load.kind]
        who = f"{load.clients} clients, {load.kind}, {load.name}"
        for what, entry in found["requests"].items():
            p50, p95, p99 = entry["percentiles_ms"]
            note = f"P50 {p50:.0f}, P99 {p99:.0f} ms; {entry['count']} answers, {entry['per_s']:.0f} per s"
            note += "" if not entry["errors"] else f"; errors {entry['errors']}"
            goal = f"≤ {goal_ms}" if what == "single" else None
            yield Figure("http", f"{who}: {what}, P95", p95, "ms", goal=goal, note=note, details=entry)
        yield Figure("http", f"{who}: errors", sum(found["errors"].values()), "", goal="= 0", details=found["errors"])
        health = found["health"]
        note = f"P95 {health['percentiles_ms'][1]:.1f} ms of {health['count']}"
        yield Figure("http", f"{who}: slowest health", health["worst_ms"], "ms", goal="≤ 50", note=note)
        yield Figure(
            "http",
            f"{who}: memory of the service at the end",
            found["late_mib"],
            "MiB",
            peer="soon after the start",
            peer_value=found["early_mib"],
            ratio=found["late_mib"] / found["early_mib"],
            goal="≤ 1.05",
            details={"memory_mib": found["memory_mib"]},
        )
    for kind in ("json", "binary"):
        load = Load("batches one after another", kind, settings.seconds, clients=1, batch_share=1.0)
        (entry,) = run(load)["requests"].values()
        per_window_ms = np.array(entry["percentiles_ms"]) / load.batch
        note = f"P95 {per_window_ms[1]:.1f} ms; {entry['count']} batches; errors {entry['errors'] or 'none'}"
        what = f"a window in batches of {load.batch}, {kind}"
        yield Figure("http", what, entry["mean_ms"] / load.batch, "ms", goal="≤ 50", note=note)
