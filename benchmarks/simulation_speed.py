#!/usr/bin/env python3
"""Measure how fast scenes are simulated, in CPU time of all threads: one core's worth, however many there are.

Streams: samples of a scene per second, and those of all its receivers together. Windows: milliseconds for a new scene
and its first samples, as training draws them. The best of several rounds counts: others may share the machine.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
from localize_core.simulation.channels import ChannelSet
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.types.place import Place
from rich.console import Console
from rich.table import Table

FREQUENCY_HZ = 433.92e6
STREAM_SAMPLES = 1 << 20
READ = 1 << 16
WINDOW_SAMPLES = 25_000
WINDOWS = 40
ROUNDS = 5
RECEIVERS = [
    Place("west", 47.05, 8.20, 800.0),
    Place("north", 47.11, 8.33, 650.0),
    Place("east", 47.04, 8.42, 900.0),
    Place("south", 46.99, 8.30, 1200.0),
    Place("hill", 47.08, 8.25, 1500.0),
    Place("town", 47.02, 8.36, 500.0),
]
TRACK = ((47.05, 8.31), (47.06, 8.32), (47.045, 8.335))
FLAWS = {
    "gain_error_db": 1.0,
    "carrier_offset_hz": 50.0,
    "random_carrier_phase": True,
    "clock_offset_ns": 50.0,
    "clock_drift_ppb": 500.0,
    "timing_jitter_ns": 20.0,
}


def town(receivers: int, paths: int) -> ChannelSet:
    """Places with as many paths, over 3 µs, as a ray tracer finds in a town."""
    rng = np.random.default_rng(1)
    shape = (32, receivers, paths)
    gain = rng.standard_normal((*shape, 2)) @ [1.0, 1j] * 1e-6
    return ChannelSet(
        receivers_enu_m=rng.uniform(-400.0, 400.0, (receivers, 3)),
        transmitters_enu_m=rng.uniform(-300.0, 300.0, (len(gain), 3)),
        tap_gain=gain.astype(np.complex64),
        tap_delay_ns=rng.uniform(500.0, 3500.0, shape).astype(np.float32),
        noise_gain=2e-7,
        frequency_hz=FREQUENCY_HZ,
        origin_wgs84=(48.1, 11.6, 520.0),
        receiver_names=tuple(f"r{index}" for index in range(receivers)),
    )


def best_s(work: Callable[[int], object]) -> float:
    """CPU time of `work`, which gets the number of the round."""
    taken_s = []
    for number in range(ROUNDS):
        started_s = time.process_time()
        work(number)
        taken_s.append(time.process_time() - started_s)
    return min(taken_s)


def streams() -> Iterator[dict[str, Any]]:
    ways: dict[str, dict[str, Any]] = {
        "still": {"track": TRACK[:1]},
        "moving": {"track": TRACK, "speed_mps": 30.0, "shadowing_db": 4.0},
        "moving, with errors": {"track": TRACK, "speed_mps": 30.0, "shadowing_db": 4.0, **FLAWS},
    }
    for (way, fields), rate_hz, waveform in itertools.product(ways.items(), (1e6, 10e6), ("noise", "qpsk")):
        config = SceneConfig(**fields, waveform=waveform, bandwidth_hz=0.5 * rate_hz)
        scene = Scene(config, RECEIVERS[:4], sample_rate_hz=rate_hz, frequency_hz=FREQUENCY_HZ)

        def read(number: int, scene: Scene = scene) -> None:
            for first in range(number * STREAM_SAMPLES, (number + 1) * STREAM_SAMPLES, READ):
                scene.samples(first, READ)

        rate = STREAM_SAMPLES / best_s(read) / 1e6
        case = {"emitter": way, "waveform": waveform, "sample_rate_hz": rate_hz, "receivers": 4}
        yield {"figure": "stream", **case, "scene_msps": rate, "receivers_msps": 4 * rate}


def windows() -> Iterator[dict[str, Any]]:
    for receivers, waveform, (way, flaws), set_too in itertools.product(
        (4, 6), ("noise", "qpsk"), (("", {}), (", with errors", FLAWS)), (False, True)
    ):
        channels = town(receivers, 12) if set_too else None

        def draw(
            number: int,
            receivers: int = receivers,
            waveform: str = waveform,
            flaws: dict[str, Any] = flaws,
            channels: ChannelSet | None = channels,
        ) -> None:
            for index in range(WINDOWS):
                place = {"channel_rows": (index % 32,)} if channels else {"track": TRACK[:1], "shadowing_db": 6.0}
                config = SceneConfig(
                    seed=number * WINDOWS + index, waveform=waveform, bandwidth_hz=2.5e6, **place, **flaws
                )
                scene = Scene(
                    config,
                    channels.receivers if channels else RECEIVERS[:receivers],
                    sample_rate_hz=5e6,
                    frequency_hz=FREQUENCY_HZ,
                    channels=channels,
                )
                if number:  # the first round makes the scenes alone
                    scene.samples(0, WINDOW_SAMPLES)

        draw(0)
        started_s = time.process_time()
        draw(0)
        made_s = (time.process_time() - started_s) / WINDOWS
        taken_s = best_s(lambda number, draw=draw: draw(number + 1)) / WINDOWS  # type: ignore[misc]
        emitter = ("12 paths" if set_too else "still") + way
        case = {"emitter": emitter, "waveform": waveform, "receivers": receivers, "samples": WINDOW_SAMPLES}
        yield {"figure": "window", **case, "scene_ms": 1e3 * made_s, "window_ms": 1e3 * taken_s}


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per figure.")
def main(as_json: bool) -> None:
    tables: dict[str, Table] = {}
    for figure in itertools.chain(streams(), windows()):
        if as_json:
            print(json.dumps(figure))
            continue
        name = figure.pop("figure")
        table = tables.setdefault(name, Table(*figure, title=name))
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in figure.values()))
    for table in tables.values():
        Console().print(table)


if __name__ == "__main__":
    main()
