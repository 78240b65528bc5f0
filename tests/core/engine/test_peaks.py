"""Further places in one window: other emitters, and mirror images."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.locator import Locator, WindowContext
from localize_core.engine.peaks import LEAST_MASS, PeakEraser, are_one, basins, separation_m
from localize_core.engine.windows import WindowAssembler
from localize_core.features.correlation import CorrelationConfig
from localize_core.geodesy import GEOD, SPEED_OF_LIGHT_MPS, LocalFrame
from localize_core.model.compiled.compile import compile_model
from localize_core.model.contract import Channel, LikelihoodGrid, Receiver
from localize_core.model.onnx_model import OnnxModel
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Position, Uncertainty

GRID = LikelihoodGrid(south=46.0, west=7.0, north=46.1, east=7.15, rows=48, columns=48)
RATE_HZ = 2e6
FRAME = LocalFrame(47.0, 8.0, 0.0)


def spread(*peaks, grid=GRID):
    """A likelihood out of (weight, row, column, sigma rows, sigma columns, turn)."""
    row, column = np.meshgrid(np.arange(grid.rows), np.arange(grid.columns), indexing="ij")
    total = np.zeros((grid.rows, grid.columns))
    for weight, r, c, high, wide, turn in peaks:
        y, x = row - r, column - c
        a, b = math.cos(turn) * x + math.sin(turn) * y, math.cos(turn) * y - math.sin(turn) * x
        one = np.exp(-0.5 * ((a / wide) ** 2 + (b / high) ** 2))
        total += weight * one / one.sum()
    return (total / total.sum()).astype(np.float32)


def test_two_peaks_have_their_own_place_weight_and_ellipse():
    found = basins(spread((0.7, 12, 10, 2, 3, 0.0), (0.3, 36, 34, 1.5, 1.5, 0.0)), GRID)
    assert [basin.mass for basin in found] == pytest.approx([0.7, 0.3], abs=0.01)
    for basin, (r, c), (high, wide) in zip(found, ((12, 10), (36, 34)), ((2, 3), (1.5, 1.5)), strict=True):
        north = GRID.south + (r + 0.5) / 48 * 0.1
        east = GRID.west + (c + 0.5) / 48 * 0.15
        cell_m = np.array([0.15, 0.1]) / 48 * [77_300.0, 111_150.0]
        assert separation_m(basin.position, Position(north, east)) < 0.1 * cell_m.min()
        wanted = (np.array([wide, high]) * cell_m) ** 2 + cell_m**2 / 12.0
        assert np.diag(basin.covariance_m2) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("turn", np.linspace(0.0, 1.5, 7))
def test_the_ridge_of_one_is_one(turn):
    """Narrower than a cell and aslant, it has a top in every other cell."""
    likelihood = spread((1.0, 23.3, 24.1, 0.5, 9.0, turn))
    assert len(basins(likelihood, GRID)) == 1


def test_what_weighs_little_is_left_out():
    found = basins(spread((1.0, 12, 10, 2, 3, 0.0), (0.8 * LEAST_MASS, 36, 34, 1.5, 1.5, 0.0)), GRID)
    assert len(found) == 1
    assert len(basins(np.full((48, 48), 1.0 / 48**2), GRID)) == 1


def test_places_within_their_ellipses_may_be_one():
    here, there = Position(47.0, 8.0), Position(47.0, 8.001)  # 76 m
    assert are_one((here, Uncertainty(20.0, 5.0, 0.0)), (there, Uncertainty(20.0, 5.0, 0.0)))
    assert not are_one((here, Uncertainty(5.0, 20.0, 0.0)), (there, Uncertainty(5.0, 20.0, 0.0)))


def station(receivers: int) -> Station:
    """On a circle of 3 km, and an area round it."""
    angle = 2.0 * np.pi * (np.arange(receivers) + 0.3) / receivers
    latitude, longitude = FRAME.to_wgs84(3000.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
    (south, north), (west, east) = FRAME.to_wgs84(np.array([[-4000.0, -4000.0], [4000.0, 4000.0]]))
    return Station.model_validate(
        {
            "station": {"name": "two", "sample_rate_hz": RATE_HZ, "frequency_hz": 433e6},
            "receiver": [
                {
                    "name": f"r{k}",
                    "latitude": float(lat),
                    "longitude": float(lon),
                    "altitude_m": 30.0,
                    "timing_sigma_ns": 20.0,
                    "source": {"kind": "scene"},
                }
                for k, (lat, lon) in enumerate(zip(latitude, longitude, strict=True))
            ],
            "area": {"south": float(south), "north": float(north), "west": float(west), "east": float(east)},
            "features": {"channels": ["cross_correlation"], "window_s": 0.02},
            "scene": {"waveform": "noise", "bandwidth_hz": 1.5e6, "level_dbfs_at_1km": -30.0, "track": [[47.0, 8.0]]},
        }
    )


def heard(made: Station, places, levels_db) -> np.ndarray:
    total = np.zeros((len(made.receiver), round(0.024 * RATE_HZ)), np.complex64)
    for number, (place_m, level_db) in enumerate(zip(places, levels_db, strict=True)):
        latitude, longitude = FRAME.to_wgs84(np.array(place_m))
        assert made.scene is not None
        config = made.scene.model_copy(
            update={
                "seed": number,
                "track": ((float(latitude), float(longitude)),),
                "level_dbfs_at_1km": -30.0 + level_db,
                "noise_dbfs": -65.0 if number == 0 else -200.0,
            }
        )
        scene = Scene(config, made.receiver, sample_rate_hz=RATE_HZ, frequency_hz=433e6)
        total += scene.samples(0, total.shape[1])
    return total


@pytest.fixture(scope="module")
def locate(tmp_path_factory):
    """A fix of what a station of so many receivers hears of emitters at places, with so many peaks asked for."""
    models: dict[int, tuple[Station, OnnxModel, int]] = {}

    def run(receivers, places, levels_db, peaks):
        if receivers not in models:
            made = station(receivers)
            plan = plan_station(made)
            path = tmp_path_factory.mktemp("model") / "model.onnx"
            compile_model(plan.spec, path)
            models[receivers] = made, OnnxModel(path), plan.time_steps
        made, model, steps = models[receivers]
        contract = model.contract
        features, level_db, flags = FeatureFrames(contract).push(heard(made, places, levels_db))
        skip = warmup_frames(contract)
        windows = WindowAssembler(len(contract.channels), contract.rows, receivers, time_steps=steps, window_hop=steps)
        windows.restart(skip)
        window = windows.push(features[skip:], level_db[skip:], flags[skip:])[0]
        context = WindowContext("two", "s", 0, (1_800_000_000, 0.0), "rx_time", 433e6, None, 0.0, 0)
        return Locator(model, peaks=peaks).locate(window, context)

    return run


@pytest.mark.parametrize("frequency_hz", [77.5e3, 433e6])
def test_peaks_are_looked_for_along_the_ground_where_waves_follow_it(make_contract, frequency_hz):
    """Over 3000 km the ground is 28 km longer than the straight line, which no wave of 433 MHz would come along."""
    rate_hz, place = 1e6, (47.0, 8.0)
    azimuths_deg, ground_m = [10.0, 100.0, 190.0, 280.0], np.array([2800e3, 2870e3, 2930e3, 3000e3])
    longitude, latitude, _ = GEOD.fwd([place[1]] * 4, [place[0]] * 4, azimuths_deg, ground_m)
    config = CorrelationConfig(rate_hz, 4, n_lags=2048)
    names = [f"r{k}" for k in range(4)]
    contract = make_contract(
        4,
        sample_rate_hz=rate_hz,
        rows=config.n_lags,
        frequency_hz=frequency_hz,
        receivers=tuple(
            Receiver(name=name, latitude=latitude[k], longitude=longitude[k]) for k, name in enumerate(names)
        ),
        channels=tuple(
            Channel(feature="cross_correlation", receivers=(names[i], names[j]), parameters=config.as_dict())
            for i, j in config.pairs
        ),
        likelihood=LikelihoodGrid(south=46.995, west=7.995, north=47.005, east=8.005, rows=48, columns=48),
    )
    straight_m = np.linalg.norm(LocalFrame(*place).to_enu_m(np.array(latitude), np.array(longitude), 0.0), axis=-1)
    eraser, lags = PeakEraser(contract), np.arange(config.n_lags) - config.n_lags // 2
    rng = np.random.default_rng(1)
    for length_m, there in ((ground_m, frequency_hz < 30e6), (straight_m, frequency_hz > 30e6)):
        expected = [(length_m[i] - length_m[j]) / SPEED_OF_LIGHT_MPS * rate_hz for i, j in config.pairs]
        features = np.stack([np.exp(-0.5 * ((lags - lag) / 0.7) ** 2) for lag in expected])[:, :, None]
        noisy = features + 0.05 * rng.standard_normal((len(config.pairs), config.n_lags, 8))
        assert (eraser.focus(noisy) is not None) == there
        left = eraser.erase(features, *place, 0.0, sigma_m=100.0).max(axis=(1, 2))
        assert np.all((left < 0.1) == there)


def off_m(position, place_m) -> float:
    latitude, longitude = FRAME.to_wgs84(np.array(place_m, float))
    return separation_m(position, Position(float(latitude), float(longitude)))


PLACES = [(-1500.0, 400.0), (900.0, 1700.0)]


def test_the_weaker_of_two_is_found_too(locate):
    fix = locate(4, PLACES, (0.0, -5.0), 3)
    (peak,) = fix.peaks
    assert off_m(fix.position, PLACES[0]) < 60.0
    assert off_m(peak.position, PLACES[1]) < 60.0
    assert peak.kind == "emitter"
    assert peak.weight > 0.5
    assert peak.uncertainty.semi_major_m < 200.0


@pytest.mark.parametrize("receivers", [4, 6])
def test_one_alone_has_no_companion(locate, receivers):
    rng = np.random.default_rng(1)
    for place_m in rng.uniform(-2500.0, 2500.0, (4, 2)):
        fix = locate(receivers, [place_m], (0.0,), 3)
        assert off_m(fix.position, place_m) < 60.0
        assert fix.peaks == ()


def test_noise_has_no_peaks(locate):
    fix = locate(4, PLACES, (-200.0, -200.0), 3)
    assert fix.reason == "no_emitter"
    assert fix.peaks == ()


@pytest.mark.parametrize(("receivers", "level_db"), [(4, 0.0), (6, -3.0)])
def test_two_that_are_about_as_strong_are_told_apart(locate, receivers, level_db):
    """The highest peaks of different pairs are those of different emitters: on its own, the model sees no emitter."""
    rng = np.random.default_rng(6)
    alone = both = 0
    for _ in range(8):
        places = rng.uniform(-2500.0, 2500.0, (2, 2))
        alone += locate(receivers, places, (0.0, level_db), 1).status == "ok"
        fix = locate(receivers, places, (0.0, level_db), 2)
        found = [*([] if fix.position is None else [fix.position]), *(peak.position for peak in fix.peaks)]
        for position in found:
            assert min(off_m(position, place_m) for place_m in places) < 100.0
        both += len(found) == 2
    assert both > alone / 2
    assert both >= 3


def test_nothing_changes_where_only_one_is_asked_for(locate):
    alone, more = (locate(4, PLACES, (0.0, -5.0), peaks) for peaks in (1, 3))
    same = {"latency_ms": 0.0, "inference_time_ms": 0.0, "peaks": ()}
    assert replace(alone, **same) == replace(more, **same)
    assert alone.peaks == ()
