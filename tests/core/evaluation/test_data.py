from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from localize_core.dataset.splits import split_rows
from localize_core.dataset.windows import Windows
from localize_core.errors import ConfigError, SourceError
from localize_core.evaluation.data import Part, open_channels, open_recordings, open_scene, scene_spec, station_for
from localize_core.features.correlation import CorrelationConfig
from localize_core.geodesy import SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.compile import contract_of
from localize_core.model.contract import Contract
from localize_core.simulation.scene import SceneConfig
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Position

STATION = """
[station]
name = "three"
sample_rate_hz = 100e3
frequency_hz = 433.92e6
[[receiver]]
name = "a"
latitude = 45.0
longitude = 7.6
source = { kind = "scene" }
[[receiver]]
name = "b"
latitude = 45.1
longitude = 7.7
source = { kind = "scene" }
[[receiver]]
name = "c"
latitude = 45.1
longitude = 7.6
source = { kind = "scene" }
[area]
south = 45.0
west = 7.6
north = 45.1
east = 7.7
[features]
rows = 64
n_fft = 256
window_s = 0.03
[scene]
bandwidth_hz = 50e3
shadowing_db = 4.0
path_loss_exponent = 3.0
clock_offset_ns = 30.0
track = [[45.05, 7.65]]
"""


@pytest.fixture
def station_file(tmp_path) -> Path:
    path = tmp_path / "three.toml"
    path.write_text(STATION)
    return path


@pytest.fixture
def contract(station_file) -> Contract:
    return contract_of(plan_station(load_station(station_file)).spec)


def everything(source, size=7):
    return Windows.concatenate(list(source.batches(size)))


def test_a_part_holds_what_the_mask_says(make_source):
    source = make_source(23)
    which = np.isin(np.arange(23), [0, 1, 2, 9, 17, 22])
    part = Part(source, which)
    sizes = [len(windows) for windows in part.batches(4)]
    assert (len(part), sizes) == (6, [4, 2])
    assert everything(part, 4).source.tolist() == [0, 1, 2, 9, 17, 22]
    assert part.contract == source.contract
    assert part.time_steps == 8


def test_windows_come_as_the_model_wants_them(station_file, contract):
    """A model of other frames than the station's own: the station follows."""
    config = dataclasses.replace(contract.correlation_config, n_fft=512, hop=300, lag_step=2.0)
    channels = tuple(c.model_copy(update={"parameters": config.as_dict()}) for c in contract.channels)
    wanted = contract.model_copy(update={"channels": channels, "time_steps": 11})
    station = station_for(load_station(station_file), wanted)
    plan = plan_station(station)
    assert contract_of(plan.spec).parameters == wanted.parameters
    assert plan.time_steps == 11
    source = open_scene(station_file, wanted, windows=2).source
    assert everything(source).features.shape == (2, 3, 64, 11)


def test_a_station_of_another_rate(station_file, contract):
    other = contract.model_copy(update={"sample_rate_hz": 50e3})
    with pytest.raises(ConfigError, match=r"station\.sample_rate_hz=100000: the model compiled-three wants 50000"):
        station_for(load_station(station_file), other)


def test_a_model_with_two_frame_lengths(station_file, make_contract):
    contract = make_contract().model_copy(update={"sample_rate_hz": 100e3})
    with pytest.raises(ConfigError, match="n_fft=128 in log_mel and 64 in cross_correlation"):
        station_for(load_station(station_file), contract)


def test_parts_of_a_scene_share_no_window(station_file, contract):
    found = {part: open_scene(station_file, contract, part=part, windows=3) for part in ("train", "test", "validation")}
    drawn = {part: everything(data.source).features for part, data in found.items()}
    again = everything(open_scene(station_file, contract, part="test", windows=3).source).features
    assert np.array_equal(drawn["test"], again)
    assert not np.array_equal(drawn["test"], drawn["train"])
    assert not np.array_equal(drawn["test"], drawn["validation"])
    other = everything(open_scene(station_file, contract, part="test", windows=3, seed=2).source).features
    assert not np.array_equal(drawn["test"], other)
    assert found["train"].training is None
    test = found["test"]
    assert len(test.training) == 1000
    assert test.no_bound is None
    assert (test.description, test.split.split(":")[0]) == ("the scene of three.toml, SNR -10 to 35 dB", "test")


def test_snr_of_a_scene_is_as_asked(station_file, contract):
    source = open_scene(station_file, contract, windows=30, snr_db=(11.0, 13.0)).source
    windows = everything(source)
    heard = np.median(windows.snr_db, axis=1)[np.isfinite(windows.snr_db).all(axis=1)]
    assert len(heard) > 20
    assert heard.min() >= 11.0
    assert heard.max() <= 13.0


def test_the_bound_is_of_what_is_so(make_spec):
    scene = SceneConfig.of(
        track=[(50.0, 8.0)],
        clock_offset_ns=30.0,
        timing_jitter_ns=40.0,
        clock_drift_ppb=1000.0,
        gain_error_db=0.5,
        shadowing_db=8.0,
        shadowing_correlation=0.75,
        path_loss_exponent=3.5,
    )
    spec = scene_spec(make_spec(level=True, clock_m=99.0, level_dbfs_at_1km=-30.0), scene, duration_s=0.24)
    # 1 ppm over half of 240 ms are 120 ns; 30, 40 and 120 make 130
    assert spec.timing.receiver_sigma_m == pytest.approx((130e-9 * SPEED_OF_LIGHT_MPS,) * 4)
    assert spec.timing.path.floor_sigma_m == 0.0
    assert (spec.level.gain_sigma_db, spec.level.exponent) == ((0.5,) * 4, 3.5)
    assert spec.level.shadowing_db == pytest.approx(4.0)
    assert spec.level.level_dbfs_at_1km is None


def test_a_scene_tells_its_clocks_to_the_bound(station_file, contract):
    scene = open_scene(station_file, contract, windows=1).scene
    assert scene.timing.receiver_sigma_m == pytest.approx((30e-9 * SPEED_OF_LIGHT_MPS,) * 3)


@pytest.fixture
def channel_file(tmp_path) -> Path:
    """A hundred places on a square kilometre, three receivers, one straight path each."""
    rng = np.random.default_rng(1)
    receivers = np.array([[0.0, 0.0, 20.0], [1000.0, 0.0, 20.0], [400.0, 1000.0, 20.0]])
    places = np.column_stack([rng.uniform(0.0, 1000.0, (100, 2)), np.full(100, 1.5)])
    distance = np.linalg.norm(places[:, None] - receivers, axis=2)
    path = tmp_path / "site.npz"
    np.savez(
        path,
        receivers_enu_m=receivers,
        transmitters_enu_m=places,
        tap_gain=(1e-2 / distance)[:, :, None].astype(np.complex64),
        tap_delay_ns=(distance / 0.299792458)[:, :, None].astype(np.float32),
        noise_gain=1e-6,
        frequency_hz=2.4e9,
        origin_wgs84=np.array([48.0, 11.0, 500.0]),
    )
    return path


@pytest.fixture
def site_contract(channel_file) -> Contract:
    from localize_core.dataset.drawn import channel_station
    from localize_core.simulation.channels import load_channels

    return contract_of(plan_station(channel_station(load_channels(channel_file), name="site")).spec)


def test_a_channel_set_is_split_by_place(channel_file, site_contract):
    data = open_channels(channel_file, site_contract)
    rows = set(everything(data.source).source.tolist())
    trained = set(everything(data.training).source.tolist())
    assert len(rows) == len(data.source)
    assert rows
    assert not rows & trained
    assert data.split.startswith("test, by place: ")
    assert data.split.endswith("; not the model's own, it states none of this kind")
    assert (data.scene, data.no_bound) == (None, "measured or ray-traced channels have no closed form")
    assert data.source.contract.parameters == site_contract.parameters


def test_the_split_is_the_models_own(channel_file, site_contract):
    places = np.load(channel_file)["transmitters_enu_m"][:, :2]
    told = {"kind": "time", "seed": 9, "blocks": 10}
    model = site_contract.model_copy(update={"provenance": {"split": told}})
    data = open_channels(channel_file, model)
    expected = split_rows(places, "time", seed=9, blocks=10)
    assert set(everything(data.source).source.tolist()) == set(expected.rows("test").tolist())
    assert data.split == f"test, {expected.description}"
    other = open_channels(channel_file, model, by="row", seed=3)
    assert set(everything(other.source).source.tolist()) == set(split_rows(places, "row", seed=3).rows("test").tolist())
    assert "flatters" in other.split


@pytest.mark.parametrize(("windows", "count"), [(5, 5), (30, 30)])
def test_as_many_windows_as_asked(channel_file, site_contract, windows, count):
    data = open_channels(channel_file, site_contract, windows=windows)
    assert len(data.source) == pytest.approx(count, abs=8)
    assert len(open_channels(channel_file, site_contract, part="all").source) == 100
    assert open_channels(channel_file, site_contract, part="all").training is None


KIWI_RATE_HZ = 12_000.0


@pytest.fixture
def recorded(tmp_path, kiwi_wav) -> Path:
    """A folder with the station file of two receivers and a recording of 8 s each."""
    rng = np.random.default_rng(4)
    samples = 0.1 * (rng.standard_normal(96_256) + 1j * rng.standard_normal(96_256))
    blocks = len(samples) // 512
    stamps = []
    for block in range(blocks):
        ns = round(block * 512 / KIWI_RATE_HZ * 1e9)
        stamps.append((1, 1000 + ns // 10**9, ns % 10**9))
    for name in ("a", "b"):
        (tmp_path / f"20200813T065220Z_77500_{name}_iq.wav").write_bytes(kiwi_wav(samples, stamps))
    receivers = "".join(
        f"""
[[receiver]]
name = "{name}"
latitude = {latitude}
longitude = 8.0
source = {{ kind = "kiwi-wav", path = "20200813T065220Z_77500_{name}_iq.wav" }}
"""
        for name, latitude in (("a", 49.0), ("b", 51.0))
    )
    (tmp_path / "station.toml").write_text(
        f"""
[station]
name = "recorded"
sample_rate_hz = 12e3
frequency_hz = 77.5e3
{receivers}
[area]
south = 48.0
west = 6.0
north = 52.0
east = 10.0
[features]
n_fft = 256
window_s = 0.2
"""
    )
    return tmp_path


def test_recordings_in_blocks_of_time(recorded):
    contract = contract_of(plan_station(load_station(recorded / "station.toml")).spec)
    trained = contract.model_copy(update={"provenance": {"kind": "trained"}})
    truth = [Position(50.0, 8.0)]
    data = open_recordings(recorded, truth, trained)
    whole = open_recordings(recorded / "station.toml", truth, contract)
    assert whole.split == "all recordings"
    assert whole.training is None
    everywhere = everything(whole.source)
    assert len(everywhere) == len(whole.source) > 20
    here, there = everything(data.source), everything(data.training)
    assert not set(here.group.tolist()) & set(there.group.tolist())
    assert len(here) == len(data.source)
    assert data.split.startswith("test, by time: ")
    assert np.isnan(here.snr_db).all()
    assert data.no_bound == "the SNR of recordings is not known"
    few = open_recordings(recorded, truth, contract, windows=5)
    assert len(everything(few.source)) == 5
    # corners of the area in the contract's plane
    corner = contract.frame.local.to_enu_m(48.0, 6.0, 0.0)
    assert whole.box_m[0] == pytest.approx(corner[:2], rel=0.05)


def test_a_folder_without_a_station(tmp_path, contract):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no station file \(\*\.toml\) in this folder"):
        open_recordings(tmp_path / "empty", [Position(1.0, 2.0)], contract)


def test_a_damaged_set(tmp_path, site_contract):
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(SourceError, match=r"bad\.npz"):
        open_channels(tmp_path / "bad.npz", site_contract)


def test_numbers_of_a_correlation_are_taken_over(station_file, contract):
    config = CorrelationConfig(
        100e3, 3, n_fft=256, hop=200, n_lags=64, lag_step=1.5, weighting="phat", signal="envelope"
    )
    channels = tuple(c.model_copy(update={"parameters": config.as_dict()}) for c in contract.channels)
    features = station_for(load_station(station_file), contract.model_copy(update={"channels": channels})).features
    assert (features.lag_step, features.weighting, features.signal) == (1.5, "phat", "envelope")
    assert math.isclose(features.window_s, 0.03)
