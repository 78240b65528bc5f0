"""Clients of the HTTP service, a thread and a connection each, in one process beside it."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

ROOT = "/api/v1/inference"
BODIES = 8
HEALTH_S = 0.1
TIMEOUT_S = 120.0
DECIMALS = 6
"""Of IQ in JSON: finer than 16 bits."""
RAMP = 0.1
"""Share of the time at the start that is left out: connections, first pages of memory, the first compilation."""

Asked = tuple[str, str, dict[str, str], bytes]
"""What kind of request, path, headers, body."""


def bodies(load: dict[str, Any], batch: int, cached: bool) -> list[Asked]:
    """Requests that clients send by turns: windows of an emitter in noise, each another one."""
    made: list[Asked] = []
    count = load["samples"]
    for seed in range(BODIES if batch == 1 else 1):
        rng = np.random.default_rng(seed)
        noise = rng.normal(0.0, 1e-3, (batch, count, 2)) @ np.array([1.0, 1j])
        tone = 0.05 * np.exp(2j * np.pi * (0.1 + 0.01 * seed) * np.arange(count))
        samples = (noise + tone).astype(np.complex64)
        kind = "cached" if cached else "single" if batch == 1 else f"batch of {batch}"
        path = f"{ROOT}/predict" + ("" if batch == 1 else "/batch")
        if load["kind"] == "binary":
            path += f"?cache_enabled={str(cached).lower()}" + ("" if batch == 1 else f"&count={batch}")
            made.append((kind, path, {"Content-Type": "application/octet-stream"}, samples.tobytes()))
        else:
            pairs = np.round(samples.view(np.float32).astype(float), DECIMALS).reshape(batch, count, 2).tolist()
            items = [{"iq_data": each, "cache_enabled": cached} for each in pairs]
            body = items[0] if batch == 1 else {"items": items}
            text = json.dumps(body, separators=(",", ":")).encode()
            made.append((kind, path, {"Content-Type": "application/json"}, text))
    return made


class Client(threading.Thread):
    """Asks until its time is over, and notes how long each answer took."""

    def __init__(
        self, port: int, load: dict[str, Any], choose: Callable[[], Asked], began_s: float, place: int
    ) -> None:
        super().__init__(daemon=True)
        self._port, self._choose = port, choose
        self._pace_s = load["pace_s"]
        self._first_s = began_s + place / load["clients"] * self._pace_s  # paced clients do not ask all at once
        self._judged_s, self._ends_s = began_s + RAMP * load["seconds"], began_s + load["seconds"]
        self.took_ms: list[tuple[str, float]] = []
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        next_s = self._first_s
        while (now_s := time.monotonic()) < self._ends_s:
            if now_s < next_s:
                time.sleep(min(next_s, self._ends_s) - now_s)
                continue
            next_s = max(next_s + self._pace_s, now_s)
            kind, path, headers, body = self._choose()
            began_s = time.monotonic()
            wrong = self._ask(connection, path, headers, body)
            if began_s < self._judged_s:
                continue
            self.took_ms.append((kind, 1e3 * (time.monotonic() - began_s)))
            if wrong:
                self.errors[f"{kind}: {wrong}"] += 1

    def _ask(self, connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: bytes) -> str:
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        if answer.status != 200:
            return f"{answer.status} {text[:200].decode(errors='replace')}"
        found = json.loads(text)
        failed = [each for each in found.get("results", []) if not each["ok"]]
        return f"item {failed[0]}"[:200] if failed else ""


class Health(threading.Thread):
    """Asks how the service is, again and again."""

    def __init__(self, port: int, began_s: float, seconds: float) -> None:
        super().__init__(daemon=True)
        self._port, self._judged_s, self._ends_s = port, began_s + RAMP * seconds, began_s + seconds
        self.took_ms: list[float] = []
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        while (began_s := time.monotonic()) < self._ends_s:
            try:
                connection.request("GET", f"{ROOT}/health")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.errors[f"health: {answer.status}"] += 1
            except (OSError, http.client.HTTPException) as error:
                self.errors[f"health: {type(error).__name__}"] += 1
                connection.close()
            if began_s >= self._judged_s:
                self.took_ms.append(1e3 * (time.monotonic() - began_s))
            time.sleep(HEALTH_S)


def main() -> None:
    """Ask the service at the port in `sys.argv[2]` as `sys.argv[3]` says, JSON of a Load; prints what came of it."""
    port, load = int(sys.argv[2]), json.loads(sys.argv[3])
    plain, cached = cycle(bodies(load, 1, False)), cycle(bodies(load, 1, True)[:2])
    batches = cycle(bodies(load, load["batch"], False)) if load["batch_share"] else plain
    rng, choosing = np.random.default_rng(7), threading.Lock()

    def choose() -> Asked:
        with choosing:
            if rng.random() < load["batch_share"]:
                return next(batches)
            return next(cached if rng.random() < load["cached_share"] else plain)

    began_s = time.monotonic() + 0.5
    clients = [Client(port, load, choose, began_s, place) for place in range(load["clients"])]
    health = Health(port, began_s, load["seconds"])
    for thread in (*clients, health):
        thread.start()
    for thread in (*clients, health):
        thread.join()
    took = [entry for client in clients for entry in client.took_ms]
    errors = sum((client.errors for client in clients), health.errors)
    judged_s = load["seconds"] * (1.0 - RAMP)
    requests = {}
    for kind in sorted({kind for kind, _ in took}, reverse=True):
        values = [value for each, value in took if each == kind]
        requests[kind] = {
            "count": len(values),
            "per_s": len(values) / judged_s,
            "mean_ms": float(np.mean(values)),
            "percentiles_ms": np.percentile(values, [50, 95, 99]).tolist(),
            "worst_ms": max(values),
            "errors": {what: count for what, count in errors.items() if what.startswith(f"{kind}:")},
        }
    checked = {
        "count": len(health.took_ms),
        "percentiles_ms": np.percentile(health.took_ms, [50, 95, 99]).tolist(),
        "worst_ms": max(health.took_ms),
    }
    print(json.dumps({"requests": requests, "health": checked, "errors": dict(errors)}))
