"""A station's sanity out of IQ: scenes with clocks and coordinates that are wrong, through features and engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_core.engine.frames import FeatureFrames
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import WindowAssembler
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.metrics.metrics import Metrics
from localize_core.sanity.arrivals import ArrivalReader
from localize_core.serving.engine import Engine
from localize_core.serving.settings import ServingSettings
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station
from localize_core.station.engine import station_engine

WINDOW_S = 0.5
BATCH_S = 0.125
"""Of IQ in each window: what is in between would tell the same."""
PLACES = {"north": (45.05, 7.0), "east": (45.0, 7.07), "south": (44.95, 7.01), "west": (45.01, 6.93)}


def make_station(**receivers: tuple[float, float]) -> Station:
    """Four receivers round an emitter that stands, of 200 kHz in 250 kHz; other places are entered as told."""
    said = PLACES | receivers
    return Station.model_validate(
        {
            "station": {"name": "square", "sample_rate_hz": 250e3, "frequency_hz": 433e6},
            "receiver": [
                {"name": name, "latitude": lat, "longitude": lon, "timing_sigma_ns": 30.0, "source": {"kind": "scene"}}
                for name, (lat, lon) in said.items()
            ],
            "area": {"south": 44.94, "west": 6.92, "north": 45.06, "east": 7.08},
            "features": {"window_s": BATCH_S, "channels": ["cross_correlation"]},
            "propagation": {"timing_sigma_ns": 20.0},
            "model": {"min_confidence": 0.0},
            "scene": {"bandwidth_hz": 200e3, "level_dbfs_at_1km": -20.0, "track": [[45.012, 6.99]], "seed": 3},
        }
    )


class Listener:
    """An engine and a scene that it listens to, a window every WINDOW_S seconds. The true receivers are PLACES."""

    def __init__(self, station: Station, **said: Any) -> None:
        self.engine, steps, _ = station_engine(station, cache=None)
        self.engine.prepare(steps)
        self.statuses: list[dict[str, Any]] = []
        self.engine.start(on_status=self.statuses.append, live=False)
        contract = self.engine.contract
        self._rate = contract.sample_rate_hz
        true = [
            receiver.model_copy(update=dict(zip(("latitude", "longitude"), PLACES[receiver.name], strict=True)))
            for receiver in station.receiver
        ]
        assert station.played_scene is not None
        scene = station.played_scene.model_copy(update=said)
        self._scene = Scene(scene, true, sample_rate_hz=self._rate, frequency_hz=433e6)
        self._steps = steps
        self.count = 0

    def listen(self, windows: int, *, late_ns: float = 0.0, receiver: int = 0) -> None:
        contract, steps = self.engine.contract, self._steps
        needed = (steps - 1) * contract.hop + contract.n_fft
        for _ in range(windows):
            iq = self._scene.samples(round(self.count * WINDOW_S * self._rate), needed)
            if late_ns:
                turn = np.exp(-2j * np.pi * np.fft.fftfreq(needed, 1.0 / self._rate) * late_ns * 1e-9)
                iq[receiver] = np.fft.ifft(np.fft.fft(iq[receiver]) * turn)
            frames = FeatureFrames(contract)
            features, level_db, flags = frames.push(iq)
            assembler = WindowAssembler(features.shape[1], features.shape[2], 4, time_steps=steps, window_hop=steps)
            skipped = len(features) - steps
            (window,) = assembler.push(features[skipped:], level_db[skipped:], flags[skipped:])
            moment_s = 1_700_000_000.0 + self.count * WINDOW_S
            start = (int(moment_s), moment_s % 1.0)
            context = WindowContext("square", "s", self.count, start, "rx_time", 433e6, None, time.monotonic(), 0)
            self.engine.locate(window, context)
            self.count += 1

    @property
    def reasons(self) -> dict[str, str]:
        self.engine.stop()  # what waits is looked at first
        return {each.name: each.detail for each in self.engine.health.conditions}


@pytest.fixture
def listen(model_cache: Path) -> Iterator[Callable[..., Listener]]:
    """A maker of listeners to scenes."""
    made: list[Listener] = []

    def make(station: Station | None = None, **scene: Any) -> Listener:
        made.append(Listener(station or make_station(), **scene))
        return made[-1]

    yield make
    for each in made:
        each.engine.stop()
        each.engine.close()


def test_a_sound_station(listen) -> None:
    listener = listen()
    listener.listen(40)
    assert listener.reasons == {}
    told = listener.engine.status()["sanity"]
    assert told["windows"] == 40
    assert told["geometry"] == {"hdop": pytest.approx(1.05, abs=0.1), "limit": 10.0, "poor": False, "redundancy": 1}
    assert [pair["receivers"] for pair in told["pairs"]][:2] == [["north", "east"], ["north", "south"]]
    assert len(told["pairs"]) == 6
    for pair in told["pairs"]:
        assert pair["n"] == 40
        assert abs(pair["residual_ns"]) < 25.0
        assert pair["deviation_ns"] < 1.5 * pair["noise_ns"] + 5.0
    for receiver in told["receivers"]:
        assert abs(receiver["bias_ns"]) < 3.0 * receiver["sigma_ns"] + 10.0
    metrics = Metrics("square")
    metrics.watch(listener.engine)
    scraped = metrics.render()[0].decode()
    first = told["pairs"][0]["residual_ns"] * 1e-9
    assert f'localize_pair_residual_seconds{{first="north",second="east",station="square"}} {first}' in scraped
    bias = told["receivers"][3]["bias_ns"] * 1e-9
    assert f'localize_receiver_bias_seconds{{receiver="west",station="square"}} {bias}' in scraped
    assert f'localize_fix_hdop_ratio{{station="square"}} {told["geometry"]["hdop"]}' in scraped


def test_a_clock_that_jumps_is_named(listen) -> None:
    listener = listen()
    listener.listen(48)
    listener.listen(48, late_ns=1000.0, receiver=2)
    (only,) = listener.reasons.items()
    assert only[0] == "clock_jump"
    assert only[1].startswith("south: its times jumped by +")
    size = float(only[1].split("by +")[1].split(" ")[0])
    assert size == pytest.approx(1000.0, abs=60.0)
    assert "2023-11-14 22:13:4" in only[1]  # 24 s after 22:13:20
    assert listener.statuses[-1]["reasons"][0]["reason"] == "clock_jump"


def test_a_clock_that_is_off_from_the_start_is_one_of_four(listen) -> None:
    listener = listen()
    listener.listen(64, late_ns=1000.0, receiver=1)
    (only,) = listener.reasons.items()
    assert only[0] == "clock_offset"
    assert only[1].startswith("one of ")
    assert "east" in only[1]
    assert "cannot be told" in only[1]


def test_wrong_coordinates_are_not_taken_for_sound(listen) -> None:
    latitude, longitude = PLACES["west"]
    listener = listen(make_station(west=(latitude + 0.0045, longitude + 0.0045)))
    listener.listen(64)
    (only,) = listener.reasons.items()
    assert only[0] == "clock_offset"  # an emitter that stands shows no direction
    assert "west" in only[1]


def test_an_emitter_far_outside(listen) -> None:
    outside = {"south": 45.28, "west": 6.92, "north": 45.4, "east": 7.08}
    station = make_station()
    station = Station.model_validate(station.model_dump(mode="json", exclude_unset=True) | {"area": outside})
    listener = listen(station, track=((45.33, 7.0),), level_dbfs_at_1km=10.0)
    listener.listen(16)
    assert "HDOP" in listener.reasons["geometry_poor"]
    assert listener.engine.status()["sanity"]["geometry"]["poor"]


def test_noise_says_nothing(listen) -> None:
    listener = listen(waveform="none")
    listener.listen(16)
    assert listener.reasons == {}
    assert listener.engine.sanity.get("windows", 0) == 0


def test_lags_and_their_noise() -> None:
    config = CorrelationConfig(1e6, 3, n_fft=1024, n_lags=64, lag_step=0.5)
    incidence = np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    rng, late = np.random.default_rng(5), (4, 0, 9)
    correlate, reader = CrossCorrelation(config), ArrivalReader(config, incidence)
    found = []
    for _ in range(60):
        emitted = complex_noise(rng, (1, 20 * 1024 + 9))
        iq = np.concatenate([emitted[:, 9 - k : 9 - k + 20 * 1024] for k in late]) + complex_noise(rng, (3, 20 * 1024))
        arrivals = reader.read(np.stack(correlate(iq)).transpose(0, 2, 1), np.ones(3, bool))
        assert arrivals is not None
        found.append((arrivals.lag_m, arrivals.lag_sigma_m, incidence @ arrivals.arrival_m))
    sample_m = SPEED_OF_LIGHT_MPS / 1e6
    lag, sigma, combined = (np.array(each) / sample_m for each in zip(*found, strict=True))
    assert lag.mean(axis=0) == pytest.approx([4.0, -5.0, -9.0], abs=0.01)
    assert combined.mean(axis=0) == pytest.approx([4.0, -5.0, -9.0], abs=0.01)
    assert 0.3 < (lag.std(axis=0) / sigma.mean(axis=0)).mean() < 1.2  # what interpolation may be off is in it


def complex_noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def test_an_engine_without_correlations_has_no_sanity(make_contract, make_model) -> None:
    engine = Engine(ServingSettings(uri=str(make_model(make_contract(2, correlation=False)))))
    assert engine.sanity == {}
    assert "sanity" not in engine.status()
    engine.close()
