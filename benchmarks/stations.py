"""Small stations, as texts of station files, and what their receivers hear: for what runs them, the tests too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.scene import Scene
from localize_core.station.config import parse_station

EMITTER = (45.0781, 7.6703)
PLACES = [("north", 45.10, 7.69), ("east", 45.07, 7.75), ("south", 45.03, 7.69), ("west", 45.07, 7.63)]
SIMULATED = 'kind = "scene"'
SCENE = """
[scene]
bandwidth_hz = 5e3
track = [[45.0781, 7.6703]]
"""
"""The emitter for stations at 20 kHz whose sources are simulated."""
TEXT = """
[station]
name = "{name}"
sample_rate_hz = {rate_hz:g}
frequency_hz = 433.92e6
{receivers}
[area]
south = 45.0
west = 7.6
north = 45.14
east = 7.79
[features]
rows = 32
channels = ["log_mel"]
window_s = {window_s:g}
[propagation]
level_dbfs_at_1km = -30.0
"""


def station_text(sources: Sequence[str], *, name: str, rate_hz: float = 20e3, window_s: float = 0.1) -> str:
    """A station file that locates by levels: a receiver of PLACES for each source, told by what is in its table."""
    receivers = "".join(
        f'[[receiver]]\nname = "{place}"\nlatitude = {latitude}\nlongitude = {longitude}\nsource = {{ {source} }}\n'
        for (place, latitude, longitude), source in zip(PLACES, sources, strict=False)
    )
    return TEXT.format(name=name, rate_hz=rate_hz, window_s=window_s, receivers=receivers)


def rtl_tcp(addresses: Sequence[str]) -> list[str]:
    """Sources that are rtl_tcp servers."""
    return [f'kind = "rtl-tcp", address = "{address}", gain_db = 30.0' for address in addresses]


def heard(*, rate_hz: float, bandwidth_hz: float, duration_s: float, seed: int) -> np.ndarray:
    """What each of PLACES hears of the emitter: complex, (place, sample)."""
    text = station_text([SIMULATED] * len(PLACES), name="heard", rate_hz=rate_hz) + SCENE
    station = parse_station(text, folder=Path())
    config = SceneConfig(bandwidth_hz=bandwidth_hz, track=[list(EMITTER)], seed=seed)
    scene = Scene(config, station.receiver, sample_rate_hz=rate_hz, frequency_hz=433.92e6)
    return np.stack(scene.samples(0, round(duration_s * rate_hz)))
