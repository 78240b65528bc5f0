#!/usr/bin/env python3
"""Measure what the cache in front of a model brings and costs, and what a Redis that fails does to a stream.

`speed`: of each shipped model, milliseconds from a window to its fix without a cache, with one that has no answer, with
one that has it in this process, and with one that has it in Redis on this machine, which take turns within a run; the
look-up alone, as fixes tell it; and the cache's own account, over a pass of nothing but new windows and one of nothing
but known ones. `ratios`: hits of a
simulated station that is replayed, second pass, and of requests of which one in ten is new. `failures`: P95 from a
window to its fix of a stream of new windows at 200 a second, beside a stream without Redis in the same turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import redis
from localize_apps.runner import run_station
from localize_core.cache.settings import CacheSettings
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import Window
from localize_core.features.quality import SampleFlag
from localize_core.model.golden import golden_features
from localize_core.serving.engine import Engine
from localize_core.serving.requests import Request
from localize_core.serving.settings import ServingSettings
from localize_core.station.config import load_station
from localize_core.types.fix import Fix
from redis_server import RedisServer, missing
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
STEPS = 24
PERIOD_S = 0.005
BATCH = 50
WAYS = {
    "without": "no cache",
    "miss": "miss",
    "hit": "hit",
    "hit_lookup": "  its look-up alone",
    "redis_hit": "hit in Redis",
    "redis_hit_lookup": "  its look-up alone",
}
WAIT_S = 10.0


def engine_of(path: Path, cache: CacheSettings | None) -> Engine:
    """A started engine, whose Redis answers where it has one."""
    engine = Engine(ServingSettings(uri=str(path), poll_s=0.0), cache=cache)
    engine.prepare(engine.contract.time_steps or max(STEPS, engine.contract.min_time_steps))
    engine.start()
    until_s = time.monotonic() + WAIT_S
    while cache is not None and engine.status()["cache"]["state"] != "ready":
        if time.monotonic() > until_s:
            raise RuntimeError(engine.status()["cache"]["state"])
        time.sleep(0.01)
    return engine


def windows_of(engine: Engine) -> Iterator[Window]:
    """Windows that differ, without end."""
    first = golden_features(engine.contract, seed=1, time_steps=engine.time_steps)[0]
    receivers = len(engine.contract.receivers)
    flags, usable = (SampleFlag(0),) * receivers, np.zeros(receivers, bool)
    generator = np.random.default_rng()
    while True:
        features = first + generator.normal(scale=1e-3, size=first.shape).astype(np.float32)
        window = Window(0, features, np.full(receivers, -20.0), flags, usable)
        _ = window.is_finite  # as the assembler leaves it
        yield window


def context_of(sequence: int) -> WindowContext:
    return WindowContext("s", "t", sequence, (0, 0.0), "rx_time", 1e6, None, time.monotonic(), 0)


def located(engine: Engine, window: Window) -> tuple[float, Fix]:
    """A window's fix, and the milliseconds that it took."""
    context = context_of(0)
    began_s = time.perf_counter()
    fix = engine.locate(window, context)
    return (time.perf_counter() - began_s) * 1e3, fix


def percentiles(spent_ms: list[float]) -> dict[str, float]:
    """`quiet_p95_ms`: of the batch of 50 that others on the machine have disturbed least."""
    batches = [spent_ms[k : k + BATCH] for k in range(0, len(spent_ms) - BATCH + 1, BATCH)] or [spent_ms]
    return {
        "p50_ms": float(np.percentile(spent_ms, 50)),
        "p95_ms": float(np.percentile(spent_ms, 95)),
        "quiet_p95_ms": min(float(np.percentile(batch, 95)) for batch in batches),
    }


def speed(path: Path, url: str, rounds: int) -> dict[str, Any]:
    """One model, in turns: the machine's own pace changes within seconds."""
    prefix = f"speed:{time.time()}:"
    with (
        closed(engine_of(path, None)) as plain,
        closed(engine_of(path, CacheSettings())) as memory,
        closed(engine_of(path, CacheSettings(redis=url, prefix=prefix))) as writer,
        closed(engine_of(path, CacheSettings(redis=url, prefix=prefix, max_items=1))) as reader,
    ):
        source = windows_of(plain)
        known = [next(source) for _ in range(rounds)]
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        for window in known:
            writer.locate(window, context_of(0))
            time.sleep(0.0005)
        store = writer._cache._stores[1]  # type: ignore[union-attr]
        if not store.flush(WAIT_S):  # type: ignore[attr-defined]
            raise RuntimeError("Redis has not taken the answers")
        for window in known:
            spent_ms, _ = located(plain, window)
            found["without"].append(spent_ms)
            for name, engine, hits in (("miss", memory, False), ("hit", memory, True), ("redis_hit", reader, True)):
                spent_ms, fix = located(engine, window)
                if fix.cache_hit == hits:
                    found[name].append(spent_ms)
                    if hits:
                        found[f"{name}_lookup"].append(fix.inference_time_ms)
        redis_hits = len(found["redis_hit"])
        first, account = _account(path, known), {}
        for key, figures in first.items():
            account[key] = {name: figures[name] / rounds for name in ("saved_ms", "spent_ms", "net_benefit_ms")}
        return {
            "window_kib": known[0].features.nbytes / 1024,
            **{name: percentiles(values) for name, values in found.items()},
            "redis_hit_ratio": redis_hits / rounds,
            "net_per_window": account,
        }


def _account(path: Path, windows: list[Window]) -> dict[str, dict[str, float]]:
    """What the cache says of itself after a pass over new windows, and after one over known ones."""
    with closed(engine_of(path, CacheSettings())) as engine:
        for window in windows:
            engine.locate(window, context_of(0))
        first = engine.info()["cache"]
        for window in windows:
            engine.locate(window, context_of(0))
        both = engine.info()["cache"]
    names = ("saved_ms", "spent_ms", "net_benefit_ms")
    return {"new": first, "known": {name: both[name] - first[name] for name in names}}


@contextlib.contextmanager
def closed(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.stop()
        engine.close()


def ratios(url: str, seconds: float, requests: int) -> dict[str, float]:
    station = load_station(ROOT / "examples" / "four_receivers.toml")
    # What a busy machine answers late is no answer, but tells nothing of what comes again.
    patient = {"redis": url, "prefix": f"replay:{time.time()}:", "timeout_ms": 100.0}
    cache = station.cache.model_copy(update=patient)
    station = station.model_copy(update={"cache": cache, "control": None, "publish": type(station.publish)()})
    passes: list[list[Fix]] = [[], []]
    for fixes in passes:  # each with an engine of its own: the second has nothing but Redis to know anything from
        run_station(station, on_fix=fixes.append, duration_s=seconds, live=False)
    with closed(engine_of(ROOT / "models" / "demo.onnx", CacheSettings())) as engine:
        source = windows_of(engine)
        pool = [next(source).features for _ in range(50)]
        engine.predict([Request("known", features) for features in pool])
        generator = np.random.default_rng(1)
        hits = 0
        for k in range(requests):
            new = generator.random() < 0.1
            features = next(source).features if new else pool[generator.integers(len(pool))]
            hits += engine.predict([Request(str(k), features)])[0].cache_hit
    second = passes[1]
    return {
        "replay_windows": float(len(second)),
        "replay_second_pass": sum(fix.cache_hit for fix in second) / len(second),
        "same_fixes": sum(a.position == b.position for a, b in zip(*passes, strict=True)) / len(second),
        "requests_tenth_new": hits / requests,
    }


@contextlib.contextmanager
def babbling(port: int) -> Iterator[None]:
    """Something else on Redis' port, which answers each connection with noise."""
    ended = threading.Event()
    noise = np.random.default_rng(1).bytes(512) + b"\r\n"
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(0.05)

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(noise)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        listener.close()


def spoil(server: RedisServer) -> None:
    """Nonsense under all keys."""
    with redis.Redis(port=server.port) as client:
        for number, key in enumerate(client.keys("*")):
            client.set(key, f"garbage {number}")


def failures(path: Path, folder: Path, count: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for kind in ("none", "stopped", "hung", "full", "restarted", "garbage_protocol", "garbage_values"):
        server = RedisServer(folder)
        server.start()
        try:
            found[kind] = _failure(path, server, kind, count)
        finally:
            server.stop()
    return found


def _failure(path: Path, server: RedisServer, kind: str, count: int) -> dict[str, float]:
    """From the moment on at which Redis fails: what waits for it is part of the figure."""
    with (
        closed(engine_of(path, None)) as plain,
        closed(engine_of(path, CacheSettings(redis=server.url, max_items=1))) as engine,
        contextlib.ExitStack() as stack,
    ):
        source = windows_of(plain)
        known = [next(source) for _ in range(count)]
        if kind == "garbage_values":
            for window in known:
                engine.locate(window, context_of(0))
            engine._cache._stores[1].flush(WAIT_S)  # type: ignore[union-attr, attr-defined]
        fail(server, kind, stack)
        usual, met, wrong = [], [], 0
        for window in known:
            due_s = time.monotonic() + PERIOD_S
            spent_ms, expected = located(plain, window)
            usual.append(spent_ms)
            spent_ms, fix = located(engine, window)
            met.append(spent_ms)
            wrong += said(fix) != said(expected)
            time.sleep(max(due_s - time.monotonic(), 0.0))
        cache = engine.info()["cache"]
    figures = {"without_p95_ms": float(np.percentile(usual, 95)), "p95_ms": float(np.percentile(met, 95))}
    return {
        **figures,
        "grows_by_ms": figures["p95_ms"] - figures["without_p95_ms"],
        "slowest_ms": max(met),
        "wrong": float(wrong),
        "errors": float(cache["errors"]),
    }


def fail(server: RedisServer, kind: str, stack: contextlib.ExitStack) -> None:
    if kind in ("stopped", "restarted", "garbage_protocol"):
        server.stop()
    if kind == "restarted":
        server.start()
    elif kind == "hung":
        server.hang()
    elif kind == "full":
        with redis.Redis(port=server.port) as client:
            client.config_set("maxmemory", 1)
    elif kind == "garbage_protocol":
        stack.enter_context(babbling(server.port))
    elif kind == "garbage_values":
        spoil(server)


def said(fix: Fix) -> Fix:
    """What a fix says, without how it came about."""
    return replace(fix, inference_time_ms=0.0, latency_ms=0.0, cache_hit=False)


@click.command()
@click.option("--rounds", default=1000, show_default=True, help="Windows of each model.")
@click.option("--seconds", default=20.0, show_default=True, help="Of the simulated station that is replayed.")
@click.option("--requests", default=2000, show_default=True, help="In the mix.")
@click.option("--windows", default=1000, show_default=True, help="In the stream beside each failure.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(rounds: int, seconds: float, requests: int, windows: int, as_json: bool) -> None:
    if (why := missing()) is not None:
        raise click.ClickException(why)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder)
        server.start()
        try:
            models = {p.stem: speed(p, server.url, rounds) for p in sorted((ROOT / "models").glob("*.onnx"))}
            shares = ratios(server.url, seconds, requests)
        finally:
            server.stop()
        failed = failures(ROOT / "models" / "demo.onnx", folder, windows)
    if as_json:
        print(json.dumps({"load": os.getloadavg()[0], "speed": models, "ratios": shares, "failures": failed}))
        return
    console = Console()
    table = Table("model", "window, KiB", "", "P50, ms", "P95, ms", "P95 of the quietest 50, ms")
    for model, row in models.items():
        for name, label in WAYS.items():
            first = name == "without"
            table.add_row(
                model if first else "",
                f"{row['window_kib']:.0f}" if first else "",
                label,
                *(f"{value:.3f}" for value in row[name].values()),
            )
    console.print(table)
    table = Table("model", "windows", "saved, ms", "spent, ms", "net benefit, ms a window")
    for model, row in models.items():
        for kind, figures in row["net_per_window"].items():
            table.add_row(model, kind, *(f"{value:.3f}" for value in figures.values()))
    console.print(table)
    for key, value in shares.items():
        console.print(f"{key}: {value:.4g}", highlight=False)
    table = Table("Redis", "P95 without, ms", "P95, ms", "grows by, ms", "slowest, ms", "wrong", "errors")
    for kind, figures in failed.items():
        table.add_row(kind, *(f"{value:.3g}" for value in figures.values()))
    console.print(table)


if __name__ == "__main__":
    command()
