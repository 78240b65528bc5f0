"""The live map under many fixes: frames, delay, memory of the page, and how soon it shows the first fix.

Chromium without a screen and the server share this machine, so with few cores each slows the other; without a graphics
processor the pictures are painted by the processor too. By hand:

    python benchmarks/map_load.py --seconds 600 --rate 100
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import click
import numpy as np
from localize_benchmarks.figures import Figure, Found, Missing, Settings, machine_line, notes, tables, to_json
from localize_benchmarks.machine import describe
from localize_core.model.contract import Receiver
from localize_core.service.server import HttpServer
from localize_core.service.service import Service, StationInfo
from localize_core.service.settings import HttpSettings
from localize_core.types.fix import Fix, ModelIdentity, Position, ReceiverReport, Uncertainty
from rich.console import Console

RATE_HZ = 100.0
SAMPLES = 20
"""How often memory is looked at."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
RECEIVERS = tuple(
    Receiver(name=name, latitude=latitude, longitude=longitude)
    for name, latitude, longitude in (("north", 47.42, 8.54), ("east", 47.38, 8.61), ("south", 47.34, 8.53))
)
FREQUENCIES_HZ = (433.92e6, 868.3e6)
LAP_S = 60.0

WATCH = """
window.watched = { frames: 0, longest_ms: 0, delays_ms: [], first_ms: null };
let before = null;
let shown = null;
function look(now) {
  watched.frames += 1;
  if (before !== null) watched.longest_ms = Math.max(watched.longest_ms, now - before);
  before = now;
  const emitter = window.localizeMap?.view().emitters[0];
  if (emitter) watched.first_ms ??= performance.now();
  if (emitter && emitter.fix.sequence !== shown) {
    shown = emitter.fix.sequence;
    watched.delays_ms.push(Date.now() - Date.parse(emitter.fix.timestamp));
  }
  requestAnimationFrame(look);
}
requestAnimationFrame(look);
"""
"""What the page does beside its own work. The map draws at most once a frame, so a look a frame misses nothing."""


def fix_of(number: int, rate_hz: float) -> Fix:
    """Two emitters in turns, one that goes round and one that stays, both with the scatter of their ellipses."""
    angle, second = 2.0 * math.pi * number / rate_hz / LAP_S, number % 2
    east, north = np.random.default_rng(number).normal(0.0, 1.0, 2)
    place = (47.36 + 1e-3 * north, 8.51 + 1e-3 * east)
    if not second:
        place = (47.38 + 0.03 * math.sin(angle) + 1e-3 * north, 8.56 + 0.04 * math.cos(angle) + 1e-3 * east)
    return Fix(
        station="bench",
        stream="map",
        sequence=number,
        timestamp=datetime.now(timezone.utc),
        time_source="rx_time",
        status="ok",
        reason=None,
        position=Position(*place),
        uncertainty=Uncertainty(110.0, 75.0, 25.0),
        confidence=0.9,
        frequency_hz=FREQUENCIES_HZ[second],
        receivers=tuple(ReceiverReport(receiver.name, -60.0 - north, True) for receiver in RECEIVERS),
        model=ModelIdentity("bench", "1", "0" * 64),
        window_samples=16384,
        window_duration_s=0.008,
    )


def publish(service: Service, rate_hz: float, stopped: threading.Event) -> None:
    """Fixes at an even rate until stopped."""
    began_s = time.monotonic()
    number = 0
    while not stopped.wait(max(0.0, began_s + number / rate_hz - time.monotonic())):
        service.publish(fix_of(number, rate_hz))
        number += 1


def watch(page: Any, seconds: float) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Frames and delays of the time, and memory at SAMPLES times after garbage was collected."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.evaluate("() => Object.assign(watched, { frames: 0, longest_ms: 0, delays_ms: [] })")
    began_s = time.monotonic()
    memory = []
    for number in range(1, SAMPLES + 1):
        page.wait_for_timeout(1000.0 * max(0.0, began_s + number * seconds / SAMPLES - time.monotonic()))
        session.send("HeapProfiler.collectGarbage")
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        heap_mib = metrics["JSHeapUsedSize"] / 2**20
        memory.append({"second": time.monotonic() - began_s, "heap_mib": heap_mib, "nodes": metrics["Nodes"]})
    found: dict[str, Any] = page.evaluate("() => watched")
    return found | {"seconds": time.monotonic() - began_s}, memory


def measure(settings: Settings, rate_hz: float = RATE_HZ) -> Iterator[Found]:
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield Missing("map", "Playwright", "pip install playwright")
        return
    if executable is None:
        yield Missing("map", "Chromium", "apt-get install chromium")
        return
    service = Service(stations=(StationInfo("bench", FREQUENCIES_HZ[0], RECEIVERS),))
    server, stopped = HttpServer(service, HttpSettings(port=0)), threading.Event()
    server.start()
    source = threading.Thread(target=publish, args=(service, rate_hz, stopped))
    source.start()
    try:
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"]) as browser,
        ):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.add_init_script(WATCH)
            page.goto(server.url)  # the first time the browser itself is still about to start
            first_ms = []
            for _ in range(3):
                page.reload()
                page.wait_for_function("() => watched.first_ms !== null")
                first_ms.append(page.evaluate("() => watched.first_ms"))
            page.wait_for_timeout(3000.0)
            found, memory = watch(page, settings.seconds)
            kept = page.evaluate("() => localizeMap.view().kept")
    finally:
        stopped.set()
        source.join()
        server.stop()
    yield from figures(found, memory, first_ms, kept, rate_hz)


def figures(
    found: dict[str, Any], memory: list[dict[str, float]], first_ms: list[float], kept: int, rate_hz: float
) -> Iterator[Figure]:
    what = f"{rate_hz:g} fixes/s for {found['seconds']:.0f} s"
    note = f"{found['frames']} frames, the longest {found['longest_ms']:.0f} ms"
    yield Figure("map", f"{what}: frames", found["frames"] / found["seconds"], "per s", goal="≥ 30", note=note)
    delays_ms = np.percentile(found["delays_ms"], [50.0, 95.0, 100.0])
    note = f"P50 {delays_ms[0]:.0f} ms, longest {delays_ms[2]:.0f} ms of {len(found['delays_ms'])} pictures"
    yield Figure("map", f"{what}: from a fix to its picture, P95", delays_ms[1], "ms", note=note)
    early, late = memory[SAMPLES // 10 - 1 :][0], memory[-1]
    note = f"after garbage was collected; {late['nodes']:.0f} nodes before {early['nodes']:.0f}; {kept} fixes kept"
    yield Figure(
        "map",
        f"{what}: heap of the page at the end",
        late["heap_mib"],
        "MiB",
        peer=f"after {early['second']:.0f} s",
        peer_value=early["heap_mib"],
        ratio=late["heap_mib"] / early["heap_mib"],
        note=note,
        details={"memory": memory},
    )
    note = (
        f"the slowest of {len(first_ms)} loads while fixes come: {', '.join(f'{value:.0f}' for value in first_ms)} ms"
    )
    yield Figure("map", "from the start of navigation to the first fix", max(first_ms), "ms", goal="≤ 1000", note=note)


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long the page is watched.")
@click.option("--rate", "rate_hz", default=RATE_HZ, show_default=True, help="Fixes a second.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
def main(seconds: float, rate_hz: float, as_json: bool) -> None:
    """Watch the live map in Chromium while fixes come."""
    found = list(measure(Settings(seconds=seconds), rate_hz))
    if as_json:
        for line in [describe(), *(each.as_dict() for each in found)]:
            click.echo(to_json(line))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(machine_line(describe()), *tables(found), *notes(found), sep="\n")


if __name__ == "__main__":
    main()
