"""From a station file to features, window and specification."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError, SourceError
from localize_core.geodesy import GEOD, SPEED_OF_LIGHT_MPS
from localize_core.model.compiled.compile import compile_model, contract_of
from localize_core.model.compiled.spec import MIN_TIME_STEPS
from localize_core.model.contract import Contract, Receiver
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import Station, parse_station
from localize_core.station.plan import CLOCK_SIGMA_NS, Plan, fit_station, plan_station

TRIANGLE = ((47.3496, 8.4914), (47.3987, 8.5175), (47.3845, 8.5713))


def station_of(
    receivers: tuple[tuple[float, float], ...] = TRIANGLE,
    *,
    area: tuple[float, float, float, float] = (47.33, 8.48, 47.41, 8.59),
    station: dict[str, Any] | None = None,
    features: dict[str, Any] | None = None,
    folder: Path = Path(),
    source: str = 'kind = "scene"',
    more: str = "",
) -> Station:
    """A station as text and back, so that what is tested is what a file can say."""
    tables = {
        "station": {"name": "test", "sample_rate_hz": 100e3, "frequency_hz": 169.4e6} | (station or {}),
        "area": dict(zip(("south", "west", "north", "east"), area, strict=True)),
        "features": features or {},
    }
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}" for key, v in table.items()]
    for k, (latitude, longitude) in enumerate(receivers):
        lines.append(f'[[receiver]]\nname = "r{k}"\nlatitude = {latitude!r}\nlongitude = {longitude!r}')
        lines.append(f"source = {{ {source.format(k)} }}")
    lines.append(f"[scene]\ntrack = [[{area[0]!r}, 0.0]]")
    return parse_station("\n".join([*lines, more]), folder=folder)


def delays_s(station: Station, points: int = 9) -> np.ndarray:
    """Differences of arrival time between all receivers for emitters all over the area, by geodesics."""
    area = station.area
    found = []
    for latitude in np.linspace(area.south, area.north, points):
        for longitude in np.linspace(area.west, area.east, points):
            path_m = np.array([GEOD.inv(longitude, latitude, r.longitude, r.latitude)[2] for r in station.receiver])
            found.append(path_m[:, None] - path_m[None])
    return np.array(found) / SPEED_OF_LIGHT_MPS


@pytest.mark.parametrize(
    "station",
    [
        station_of(),
        station_of(station={"sample_rate_hz": 2e6, "frequency_hz": 1.09e9}),
        station_of(
            ((46.499, 8.799), (51.466, 11.977), (51.5, 3.6)),
            area=(45.0, -2.0, 55.0, 14.0),
            station={"sample_rate_hz": 12e3, "frequency_hz": 77.5e3},
        ),
        station_of(features={"rows": 256, "lag_step": 0.5}),
        station_of(features={"lag_step": 0.25}),
        station_of(features={"rows": 64}),
    ],
)
def test_lags_and_frames_cover_every_delay(station):
    plan = plan_station(station)
    config = plan.spec.timing.config
    largest_s = np.abs(delays_s(station)).max()
    assert min(-config.lags_s.min(), config.lags_s.max()) > largest_s
    assert config.n_fft / config.sample_rate_hz > 2.0 * largest_s
    assert plan.time_steps >= MIN_TIME_STEPS
    told = station.features
    assert told.rows in (None, config.n_lags)
    assert told.lag_step in (None, config.lag_step)


@pytest.mark.parametrize("rows", [8, 12, 17])
def test_rows_that_leave_no_room_for_a_peak(rows):
    with pytest.raises(ConfigError, match=rf"features\.rows={rows}: cross_correlation needs at least 24 lags"):
        plan_station(station_of(features={"rows": rows}))


def test_a_scene_that_nobody_plays_tells_nothing_of_noise():
    station = station_of(features={"channels": ["log_mel"]})
    plan = plan_station(station)
    assert plan.spec.level.noise_dbfs[0] == station.scene.noise_dbfs
    live = station.model_copy(update={"receiver": [r.model_copy(update={"source": None}) for r in station.receiver]})
    assert plan_station(live).spec.level.noise_dbfs == (None,) * len(live.receiver)


def test_lags_that_are_told_but_too_few():
    with pytest.raises(ConfigError, match=r"64 rows 0\.05 samples apart cover ±1\.6 samples of delay.*need ±"):
        plan_station(station_of(features={"rows": 64, "lag_step": 0.05}))
    with pytest.raises(ConfigError, match=r"features\.lag_step=0\.001: needs \d+ rows, at most 4096"):
        plan_station(station_of(features={"lag_step": 0.001}))


def test_a_frame_that_is_told_but_too_short():
    with pytest.raises(ConfigError, match=r"lags reach .* n_fft=16"):
        plan_station(station_of(features={"n_fft": 16}))


def test_frames_are_short_enough_for_doppler():
    fast = "[propagation]\nmax_speed_mps = 300.0"
    slow_fft, fast_fft = (
        plan_station(station_of(station={"sample_rate_hz": 1e6}, more=more)).spec.timing.config.n_fft
        for more in ("", fast)
    )
    assert fast_fft < slow_fft
    shift_hz = 2.0 * 169.4e6 * 300.0 / SPEED_OF_LIGHT_MPS
    assert fast_fft / 1e6 * shift_hz <= 0.5


@pytest.mark.parametrize("window_s", [0.0101, 0.25, 1.7])
@pytest.mark.parametrize("hop", [256, 64, 500])
def test_a_window_holds_what_fits_into_it(window_s, hop):
    features = {"window_s": window_s, "window_hop_s": 0.1, "n_fft": 256, "hop": hop}
    rate = 100e3
    fitting = (window_s * rate - 256) // hop + 1
    if fitting < MIN_TIME_STEPS:
        with pytest.raises(ConfigError, match=rf"features\.window_s={window_s:g}: holds {fitting:.0f} frames of 256"):
            plan_station(station_of(features=features))
        return
    plan = plan_station(station_of(features=features))
    assert plan.time_steps == fitting
    assert plan.window_hop == round(0.1 * rate / hop)


def test_windows_lie_side_by_side_unless_told():
    plan = plan_station(station_of(features={"window_s": 0.256, "n_fft": 256, "hop": 256}))
    assert (plan.time_steps, plan.window_hop) == (100, 100)


def test_a_slow_station_gets_windows_that_hold_enough_frames():
    plan = plan_station(station_of(station={"sample_rate_hz": 4e3}))
    assert plan.time_steps >= 32


def test_a_window_beyond_all_memory():
    with pytest.raises(ConfigError, match=r"values in a window, at most 6\.7e\+07"):
        plan_station(station_of(features={"window_s": 1000.0, "hop": 4}))


def test_levels_alone_without_a_common_clock():
    station = station_of(station={"common_clock": False})
    plan = plan_station(station)
    assert plan.spec.timing is None
    assert [channel.feature for channel in contract_of(plan.spec).channels] == ["log_mel"] * 3
    with pytest.raises(ConfigError, match=r"station\.common_clock = true"):
        plan_station(station_of(station={"common_clock": False}, features={"channels": ["cross_correlation"]}))


def test_both_features_share_rows_and_hop():
    plan = plan_station(station_of(features={"channels": ["log_mel", "cross_correlation"]}))
    assert plan.spec.level.config.rows == plan.spec.timing.config.rows
    assert plan.spec.level.config.hop == plan.spec.timing.config.hop


def test_one_receiver_has_its_level():
    assert plan_station(station_of(TRIANGLE[:1])).spec.timing is None
    with pytest.raises(ConfigError, match="n_receivers=1: must be a whole number of at least 2"):
        plan_station(station_of(TRIANGLE[:1], features={"channels": ["cross_correlation"]}))


def test_streams_that_a_flowgraph_brings():
    station = station_of()
    bare = [receiver.model_copy(update={"source": None}) for receiver in station.receiver]
    unknown = station.model_copy(update={"receiver": bare, "scene": None})
    assert plan_station(unknown).spec.timing is None  # nothing is known of their clocks
    table = station.station.model_copy(update={"common_clock": True})
    plan = plan_station(unknown.model_copy(update={"station": table}))
    sigma_ns = np.array(plan.spec.timing.receiver_sigma_m) / SPEED_OF_LIGHT_MPS * 1e9
    assert sigma_ns == pytest.approx(100.0, rel=0.1)


def test_an_area_across_the_antimeridian(tmp_path):
    """The same station 171 degrees of longitude apart differs in nothing but longitudes, golden answer included."""
    receivers = ((-17.0, 178.5), (-16.0, -179.0), (-18.2, 179.9))
    here = station_of(receivers, area=(-18.5, 178.0, -15.5, 181.5), station={"frequency_hz": 10e6})
    shifted = tuple((latitude, (longitude - 171.0 + 180.0) % 360.0 - 180.0) for latitude, longitude in receivers)
    there = station_of(shifted, area=(-18.5, 7.0, -15.5, 10.5), station={"frequency_hz": 10e6})
    plans = [plan_station(station) for station in (here, there)]
    contracts = [compile_model(plan.spec, tmp_path / f"{k}.onnx") for k, plan in enumerate(plans)]
    assert contracts[0].frame.longitude == pytest.approx(179.75)
    assert contracts[1].frame.longitude == pytest.approx(8.75)
    ours, theirs = contracts[0].golden, contracts[1].golden
    assert ours.position == pytest.approx(theirs.position, rel=1e-3, abs=1.0)
    assert ours.uncertainty == pytest.approx(theirs.uncertainty, rel=1e-2)
    assert plans[0].spec.timing.config.lag_step == pytest.approx(plans[1].spec.timing.config.lag_step)


# recordings


@pytest.fixture
def recording(tmp_path, kiwi_wav):
    """Writes recording r{k}.wav; `lost`: (block, blocks missing before it)."""

    def write(
        k: int, *, start_s: float = 0.0, blocks: int = 240, lost: tuple[int, int] = (0, 0), timed: bool = True
    ) -> None:
        rng = np.random.default_rng(k)
        samples = 0.1 * (rng.standard_normal(512 * blocks) + 1j * rng.standard_normal(512 * blocks))
        number = np.arange(blocks) + np.where(np.arange(blocks) >= lost[0], lost[1], 0)
        ns = np.round((1000.0 + start_s + number * 512 / 12000.0) * 1e9).astype(np.int64)
        stamps = [(1 if timed else 255, int(t) // 10**9, int(t) % 10**9) for t in ns]
        path = tmp_path / f"20200813T065220Z_77500_r{k}_iq.wav"
        path.write_bytes(kiwi_wav(samples, stamps, header_rate_hz=12000))

    return write


def recorded(folder: Path, receivers=TRIANGLE, **changes: Any) -> Station:
    path = "20200813T065220Z_77500_r{}_iq.wav"
    table = {"sample_rate_hz": 12e3, "frequency_hz": 77.5e3} | changes.pop("station", {})
    source = f'kind = "kiwi-wav", path = "{path}"'
    return station_of(receivers, folder=folder, source=source, station=table, **changes)


def span_s(plan: Plan) -> float:
    config = plan.spec.timing.config
    return ((plan.time_steps - 1) * config.hop + config.n_fft) / 12e3


def test_the_window_is_what_recordings_share(tmp_path, recording):
    recording(0, start_s=0.0)
    recording(1, start_s=1.5)
    recording(2, start_s=0.5, blocks=230)
    plan = plan_station(recorded(tmp_path))
    shared_s = 240 * 512 / 12e3 - 1.5
    hop_s = plan.spec.timing.config.hop / 12e3
    assert shared_s - 3.0 * hop_s < span_s(plan) < shared_s


def test_what_is_skipped_is_not_counted(tmp_path, recording):
    for k in range(3):
        recording(k, lost=(100, 24) if k == 1 else (0, 0))
    long_gap = plan_station(recorded(tmp_path))
    recording(1, lost=(100, 3))  # an eighth of a second: filled with zeros
    short_gap = plan_station(recorded(tmp_path))
    skipped_s = 24 * 512 / 12e3
    assert span_s(short_gap) - span_s(long_gap) == pytest.approx(skipped_s, abs=0.2)


def test_recordings_that_do_not_overlap_or_hardly(tmp_path, recording):
    recording(0)
    recording(1)
    recording(2, start_s=11.0)
    with pytest.raises(ConfigError, match=r"r2_iq\.wav starts after .*r0_iq\.wav has ended"):
        plan_station(recorded(tmp_path))
    recording(2, start_s=10.2)
    with pytest.raises(ConfigError, match=r"features\.window_s=0\.04: holds 0 frames"):
        plan_station(recorded(tmp_path))


def test_a_window_longer_than_the_recordings(tmp_path, recording):
    for k in range(3):
        recording(k)
    with pytest.raises(ConfigError, match=r"features\.window_s=20: the recordings share only 10\.24 s"):
        plan_station(recorded(tmp_path, features={"window_s": 20.0}))
    assert span_s(plan_station(recorded(tmp_path, features={"window_s": 5.0}))) <= 5.0


def test_a_recording_at_another_rate(tmp_path, recording):
    for k in range(3):
        recording(k)
    with pytest.raises(ConfigError, match=r"station\.sample_rate_hz=20250: .*r0_iq\.wav has 12000"):
        plan_station(recorded(tmp_path, station={"sample_rate_hz": 20.25e3}))


def test_a_missing_recording(tmp_path, recording):
    recording(0)
    recording(1)
    with pytest.raises(SourceError, match=r"r2_iq\.wav: cannot be read: No such file"):
        plan_station(recorded(tmp_path))


def test_recordings_without_valid_stamps(tmp_path, recording):
    recording(0)
    recording(1)
    recording(2, timed=False, blocks=200)
    assert span_s(plan_station(recorded(tmp_path))) <= 200 * 512 / 12e3
    recording(1, timed=False)
    with pytest.raises(ConfigError, match="fewer than two have them"):
        plan_station(recorded(tmp_path))
    levels = plan_station(recorded(tmp_path, station={"common_clock": False}))
    assert levels.time_steps >= MIN_TIME_STEPS


@pytest.fixture
def sigmf_of(tmp_path, write_sigmf):
    """Writes recording r{k}.sigmf-meta of 10 s that begins `start` after the minute; None for no time."""

    def write(k: int, start: str | None = "00.000000", **options: Any) -> None:
        rng = np.random.default_rng(k)
        samples = 0.1 * (rng.standard_normal(120_000) + 1j * rng.standard_normal(120_000))
        time = None if start is None else f"2026-01-02T03:04:{start}Z"
        write_sigmf(tmp_path / f"r{k}", samples, **{"rate_hz": 12e3, "captures": [(0, time, 77.5e3)]} | options)

    return write


def sigmf_recorded(folder: Path, **changes: Any) -> Station:
    table = {"sample_rate_hz": 12e3, "frequency_hz": 77.5e3} | changes.pop("station", {})
    source = 'kind = "sigmf", path = "r{}.sigmf-meta"'
    return station_of(folder=folder, source=source, station=table, **changes)


def test_sigmf_recordings_are_planned_as_others_are(tmp_path, sigmf_of):
    for k, start in enumerate(("00.000000", "01.500000", "00.500000")):
        sigmf_of(k, start)
    plan = plan_station(sigmf_recorded(tmp_path))
    hop_s = plan.spec.timing.config.hop / 12e3
    assert 8.5 - 3.0 * hop_s < span_s(plan) < 8.5
    with pytest.raises(ConfigError, match=r"features\.window_s=9: the recordings share only 8\.5 s"):
        plan_station(sigmf_recorded(tmp_path, features={"window_s": 9.0}))


@pytest.mark.parametrize(("digits", "error_ns"), [(9, 0.29), (7, 28.9), (6, 288.7)])
def test_a_clock_is_as_exact_as_its_times_are_written(tmp_path, sigmf_of, digits, error_ns):
    for k in range(3):
        sigmf_of(k, "00." + "0" * digits)
    sigma_ns = np.array(plan_station(sigmf_recorded(tmp_path)).spec.timing.receiver_sigma_m) / SPEED_OF_LIGHT_MPS * 1e9
    clock_ns = math.hypot(100.0, error_ns)
    assert sigma_ns == pytest.approx(math.hypot(clock_ns, 0.003 / 12e3 * 1e9), rel=0.02)


def test_sigmf_recordings_without_time(tmp_path, sigmf_of):
    for k in range(3):
        sigmf_of(k, None)
    with pytest.raises(ConfigError, match="recordings with valid time stamps, fewer than two have them"):
        plan_station(sigmf_recorded(tmp_path))
    assert plan_station(sigmf_recorded(tmp_path, station={"common_clock": False})).time_steps >= MIN_TIME_STEPS


@pytest.mark.parametrize("time", ["2026-01-02T03:04:05.000Z", None])
def test_channels_of_one_recording_share_their_clock(tmp_path, write_sigmf, time):
    """However coarsely its time is written, or where it has none."""
    noise = np.random.default_rng(1).standard_normal((2, 120_000, 3))
    write_sigmf(tmp_path / "all", noise[0] + 1j * noise[1], rate_hz=12e3, captures=[(0, time, 77.5e3)])
    table = {"sample_rate_hz": 12e3, "frequency_hz": 77.5e3}
    source = 'kind = "sigmf", path = "all.sigmf-meta", channel = {}'
    plan = plan_station(station_of(folder=tmp_path, source=source, station=table))
    sigma_ns = np.array(plan.spec.timing.receiver_sigma_m) / SPEED_OF_LIGHT_MPS * 1e9
    assert sigma_ns == pytest.approx(math.hypot(10.0, 0.003 / 12e3 * 1e9))


def test_sigmf_recordings_at_another_rate_or_time(tmp_path, sigmf_of):
    for k in range(3):
        sigmf_of(k)
    sigmf_of(1, rate_hz=48e3)
    with pytest.raises(ConfigError, match=r"station\.sample_rate_hz=12000: .*r1\.sigmf-meta has 48000"):
        plan_station(sigmf_recorded(tmp_path))
    sigmf_of(1, "30.000000")
    with pytest.raises(ConfigError, match=r"r1\.sigmf-meta starts after .*r0\.sigmf-meta has ended"):
        plan_station(sigmf_recorded(tmp_path))


# models from elsewhere


@pytest.fixture
def model_contract(make_contract) -> Contract:
    """The contract of a model made for TRIANGLE."""
    places = [Receiver(name=f"r{k}", latitude=place[0], longitude=place[1]) for k, place in enumerate(TRIANGLE)]
    return make_contract(3, receivers=tuple(places))


def test_a_model_of_this_station(model_contract):
    contract = model_contract
    station = station_of(station={"sample_rate_hz": 8e3}, features={"window_s": 1.0, "window_hop_s": 0.5})
    # n_fft 128, hop 64: (8000 - 128) / 64 + 1
    assert fit_station(station, contract) == (124, 62)
    fixed = contract.model_copy(update={"time_steps": 16})
    assert fit_station(station_of(station={"sample_rate_hz": 8e3}), fixed) == (16, 16)
    with pytest.raises(ConfigError, match=r"features\.window_s=1: holds 124 frames, the model tiny wants 16"):
        fit_station(station, fixed)
    with pytest.raises(ConfigError, match=r"features\.window_s=0\.01: holds 0 frames of 128 samples, .* 1 or more"):
        fit_station(station_of(station={"sample_rate_hz": 8e3}, features={"window_s": 0.01}), contract)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"station\.sample_rate_hz=100000: the model tiny wants 8000"),
        (
            {"station": {"sample_rate_hz": 8e3}, "features": {"rows": 64}},
            r"features\.rows=64: the model tiny was made for",
        ),
        (
            {"station": {"sample_rate_hz": 8e3}, "receivers": TRIANGLE[:2]},
            "receivers r0, r1: the model tiny wants r0, r1, r2",
        ),
        (
            {"station": {"sample_rate_hz": 8e3}, "receivers": (TRIANGLE[1], *TRIANGLE[1:])},
            r"receiver r0 at 47\.3987, 8\.5175: the model tiny was made for 47\.3496, 8\.4914, \d+ m away",
        ),
    ],
)
def test_a_model_of_another_station(model_contract, changes, message):
    with pytest.raises(ConfigError, match=message):
        fit_station(station_of(**changes), model_contract)


# any station


@st.composite
def stations(draw) -> Station:
    latitude, longitude = draw(st.floats(-75.0, 75.0)), draw(st.floats(-179.0, 179.0))
    half_deg = 10.0 ** draw(st.floats(-3.0, 1.0))
    place = st.tuples(
        st.floats(-1.5, 1.5).map(lambda x: latitude + x * half_deg),
        st.floats(-1.5, 1.5).map(lambda x: (longitude + x * half_deg + 180.0) % 360.0 - 180.0),
    )
    receivers = tuple(draw(st.lists(place, min_size=1, max_size=5)))
    optional = {
        "rows": st.sampled_from([16, 64, 128, 512]),
        "n_fft": st.sampled_from([64, 256, 1000, 4096]),
        "hop": st.sampled_from([1, 32, 256, 5000]),
        "lag_step": st.floats(0.01, 8.0),
        "window_s": st.floats(1e-3, 60.0),
        "window_hop_s": st.floats(1e-3, 60.0),
        "signal": st.sampled_from(["iq", "envelope", "phase"]),
        "weighting": st.sampled_from(["plain", "phat"]),
        "channels": st.sampled_from([["log_mel"], ["cross_correlation"], ["log_mel", "cross_correlation"]]),
    }
    features = draw(st.fixed_dictionaries({}, optional=optional))
    west, east = longitude - half_deg, longitude + half_deg
    if west < -180.0:
        west, east = west + 360.0, east + 360.0
    return station_of(
        receivers,
        area=(latitude - half_deg, west, latitude + half_deg, east),
        station={
            "sample_rate_hz": 10.0 ** draw(st.floats(3.0, 7.0)),
            "frequency_hz": 10.0 ** draw(st.floats(4.0, 10.0)),
        },
        features=features,
    )


def plan_or_none(station: Station) -> Plan | None:
    try:
        return plan_station(station)
    except ConfigError:
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(station=stations())
def test_any_station_is_planned_or_refused(station):
    plan = plan_or_none(station)
    if plan is None:
        return
    contract = contract_of(plan.spec)
    contract.check()
    assert plan.time_steps >= MIN_TIME_STEPS
    assert plan.window_hop >= 1
    if plan.spec.timing is not None:
        # Farther than 100 km the path's own delay and curvature count; they only add.
        largest_s = np.abs(delays_s(station, points=5)).max()
        assert plan.spec.timing.config.lags_s.max() > 0.99 * largest_s


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(station=stations())
def test_a_station_that_says_nothing_of_features_is_always_planned(station):
    untold = station.model_copy(update={"features": type(station.features)()})
    plan = plan_or_none(untold)
    if plan is None:  # only what no frame can hold: delays of many hundreds of samples
        assert np.abs(delays_s(untold, points=5)).max() * untold.station.sample_rate_hz > 500
    else:
        assert plan.time_steps >= MIN_TIME_STEPS


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_planned_compiles(seed, tmp_path):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    centre, half_deg = rng.uniform(-60.0, 60.0, 2), 10.0 ** rng.uniform(-2.0, 0.0)
    receivers = tuple(map(tuple, (centre + rng.uniform(-1.5, 1.5, (count, 2)) * half_deg).tolist()))
    area = (*(centre - half_deg).tolist(), *(centre + half_deg).tolist())
    features = {"channels": ["log_mel", "cross_correlation"]} if seed == 2 else {}
    rate = {"sample_rate_hz": float(10.0 ** rng.uniform(4.0, 6.0)), "frequency_hz": float(10.0 ** rng.uniform(5, 9.5))}
    plan = plan_station(station_of(receivers, area=area, station=rate, features=features))
    compile_model(plan.spec, tmp_path / "m.onnx")
    model = OnnxModel(tmp_path / "m.onnx")
    check_golden(model)
    assert math.isfinite(model.contract.golden.position[0])


def test_clocks_of_a_scene_are_as_uncertain_as_it_says():
    exact, off = (
        np.array(plan_station(station_of(more=more)).spec.timing.receiver_sigma_m) / SPEED_OF_LIGHT_MPS * 1e9
        for more in ("", "clock_offset_ns = 30.0\ntiming_jitter_ns = 40.0")
    )
    assert exact == pytest.approx(CLOCK_SIGMA_NS["scene"])  # nothing resamples its streams
    assert np.sqrt(off**2 - exact**2) == pytest.approx(50.0)


def test_paths_of_a_channel_data_set_are_not_straight():
    straight = station_of()
    assert straight.scene is not None
    scene = straight.scene.model_copy(update={"channels": "set.npz", "track": ()})
    bent = straight.model_copy(update={"scene": scene})
    floors_m = [plan_station(station).spec.timing.path.floor_sigma_m for station in (straight, bent)]
    assert floors_m == [0.0, 15.0]
