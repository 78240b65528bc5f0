"""Windows out of the simulator: numbered, labelled, and what the labels say against what the samples hold."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from localize_core.dataset.drawn import (
    FRAMES,
    INSIDE_ONLY,
    NEAR_OUTSIDE,
    NOISE_DBFS,
    ChannelWindows,
    DrawnWindows,
    Draws,
    SceneWindows,
    channel_station,
    usual_draws,
)
from localize_core.dataset.windows import Label, Windows
from localize_core.errors import ConfigError
from localize_core.features.correlation import peak_lag
from localize_core.features.mel import mel_filterbank
from localize_core.simulation.channels import ChannelSet
from localize_core.simulation.waveforms import MAX_BANDWIDTH
from localize_core.station.config import Station, parse_station
from localize_core.station.plan import plan_station
from pyproj import Geod
from scipy.optimize import least_squares
from scipy.stats import binom, kstest

WGS84 = Geod(ellps="WGS84")
LIGHT_M_PER_NS = 0.299792458
STRAIGHT = "shadowing_db = 0.0\npath_loss_exponent_sigma = 0.0"
"""Levels follow from distances alone."""


def station(
    receivers: int = 3,
    *,
    area: tuple[float, float, float, float] = (47.0, 47.1, 8.0, 8.15),
    channels: str = '"log_mel"',
    features: str = "rows = 32\nn_fft = 256\nwindow_s = 0.015",
    propagation: str = "",
    scene: str = "",
) -> Station:
    """Receivers in and around `area`: south, north, west, east."""
    south, north, west, east = area
    text = '[station]\nname = "three"\nsample_rate_hz = 100e3\nfrequency_hz = 433e6\ncommon_clock = true\n'
    for k in range(receivers):
        latitude, longitude = south + (north - south) * (k % 2), west + (east - west) * k / receivers
        longitude = (longitude + 180.0) % 360.0 - 180.0
        text += f'[[receiver]]\nname = "r{k}"\nlatitude = {latitude}\nlongitude = {longitude}\nnoise_dbfs = -60.0\n'
        text += "gain_sigma_db = 0.0\n"
    text += f"[area]\nsouth = {south}\nnorth = {north}\nwest = {west}\neast = {east}\n"
    text += f"[features]\nchannels = [{channels}]\n{features}\n[propagation]\n{propagation}\n"
    return parse_station(text + (f"[scene]\n{scene}" if scene else ""), folder=Path())


SCENE = "bandwidth_hz = 50e3\ntrack = [[47.05, 8.05]]\n"


def channels(
    places_m: np.ndarray | None = None,
    *,
    delays: bool = True,
    snr_at_1m_db: float = 80.0,
    gain: np.ndarray | None = None,
    receivers_m: np.ndarray | None = None,
) -> ChannelSet:
    """Places in a box of 400 m by 300 m and four receivers round it, one straight path each with a phase of its own.

    `gain` (N, R, P) replaces the straight paths' amplitudes; the delay of a receiver is the same for all its paths.
    """
    rng = np.random.default_rng(5)
    if places_m is None:
        places_m = rng.uniform([0.0, 0.0], [400.0, 300.0], (40, 2))
    if receivers_m is None:
        receivers_m = np.array([[-50.0, -40.0], [450.0, -30.0], [430.0, 340.0], [-20.0, 330.0]])
    places = np.column_stack([places_m, np.full(len(places_m), 1.5)])
    receivers = np.column_stack([receivers_m, np.full(len(receivers_m), 20.0)])
    distance_m = np.linalg.norm(places[:, None] - receivers, axis=2)
    if gain is None:
        gain = (1e-4 * 10.0 ** (snr_at_1m_db / 20.0) / distance_m)[:, :, None]
    gain = gain * np.exp(2j * np.pi * rng.uniform(size=gain.shape))
    delay_ns = np.where(gain != 0, distance_m[:, :, None] / LIGHT_M_PER_NS, 0.0)
    return ChannelSet(
        receivers_enu_m=receivers,
        transmitters_enu_m=places,
        tap_gain=gain.astype(np.complex64),
        tap_delay_ns=(delay_ns if delays else np.zeros_like(delay_ns)).astype(np.float32),
        noise_gain=1e-4,
        frequency_hz=2.4e9,
        origin_wgs84=(48.0, 11.0, 500.0),
        receiver_names=tuple(f"r{k}" for k in range(len(receivers))),
    )


def channel_windows(
    made: ChannelSet, draws: Draws = INSIDE_ONLY, *, rows: np.ndarray | None = None, repeats: int = 1, seed: int = 1
) -> ChannelWindows:
    rows = np.arange(len(made)) if rows is None else rows
    at = channel_station(made, name="site")
    group = np.arange(len(made)) // 5
    return ChannelWindows(made, at, rows, group=group, repeats=repeats, seed=seed, draws=draws)


def all_of(source: DrawnWindows, size: int = 64) -> Windows:
    return Windows.concatenate(list(source.batches(size)))


def assert_same(one: Windows, other: Windows) -> None:
    for field in fields(Windows):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def powers_db(source: DrawnWindows, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """What the log-mel channels hold over all rows, and what it is by SNR and bandwidth on the labels; (n, R) each.

    A spectrum of flat noise and a flat signal, through a Hann window and the bank.
    """
    config = source.contract.mel_config
    assert config is not None
    receivers = len(source.contract.receivers)
    held = np.exp(windows.features[:, :receivers].astype(float)).mean(axis=3).sum(axis=2)
    weight = mel_filterbank(config).sum(axis=0)
    frequency_hz = np.abs(np.fft.fftfreq(config.n_fft, 1.0 / config.sample_rate_hz))
    window_energy = 3.0 / 8.0 * config.n_fft
    noise = 10.0 ** (NOISE_DBFS / 10.0)
    in_band = frequency_hz <= windows.bandwidth_hz[:, None] / 2.0
    share = (in_band @ weight) * (config.sample_rate_hz / windows.bandwidth_hz)
    expected = noise * window_energy * (weight.sum() + 10.0 ** (windows.snr_db / 10.0) * share[:, None])
    return 10.0 * np.log10(held), 10.0 * np.log10(expected)


def open_field(count: int, seed: int = 1, draws: Draws | None = None) -> SceneWindows:
    both = station(channels='"log_mel", "cross_correlation"', features="n_fft = 512\nwindow_s = 0.05")
    return SceneWindows(both, count=count, seed=seed, draws=draws or Draws(missing=0.3))


def site(count: int, seed: int = 1, draws: Draws | None = None) -> ChannelWindows:
    rows = np.arange(count)
    return channel_windows(channels(), draws or Draws(missing=0.3, fading=True), rows=rows, seed=seed)


@pytest.mark.parametrize("make", [open_field, site])
def test_a_window_is_a_function_of_its_number(make):
    source = make(8)
    assert len(source) == 8
    assert [len(batch) for batch in source.batches(3)] == [3, 3, 2]
    whole = all_of(source, 100)
    assert whole.features.shape[1:] == (len(source.contract.channels), source.contract.rows, source.time_steps)
    assert whole.features.dtype == np.float32
    assert_same(whole, all_of(source, 3))
    backwards = [source.window(index) for index in reversed(range(8))]
    assert_same(whole, Windows.concatenate(backwards[::-1]))
    assert_same(whole, all_of(make(8), 1))


@pytest.mark.parametrize("make", [open_field, site])
def test_the_seed_decides(make):
    one, other = all_of(make(6)), all_of(make(6, seed=2))
    assert (one.features != other.features).any(axis=(1, 2, 3)).all()
    assert (one.bandwidth_hz != other.bandwidth_hz).all()


def test_windows_do_not_depend_on_how_many_there_are():
    longer = all_of(open_field(9))
    assert_same(all_of(open_field(4)), longer.select(np.arange(4)))


def assert_share(hits: np.ndarray, share: float) -> None:
    """As many as a coin of that weight gives but once in ten thousand times."""
    low, high = binom.interval(1.0 - 1e-4, len(hits), share)
    assert low <= np.count_nonzero(hits) <= high


@pytest.mark.parametrize("of", ["scene", "set"])
def test_shares_of_labels(of):
    draws = Draws(none=0.3, outside=0.2)
    source = (
        SceneWindows(station(), count=600, seed=3, draws=draws)
        if of == "scene"
        else channel_windows(channels(delays=False), draws, repeats=15)
    )
    label = np.array([source.draw(index).label for index in range(len(source))])
    assert_share(label == Label.NONE, 0.3)
    assert_share(label == Label.OUTSIDE, 0.2)


def test_missing_receivers_leave_their_channels_empty():
    """Of five receivers one or two: three are what the model asks for."""
    five = station(5, channels='"log_mel", "cross_correlation"', features="n_fft = 512\nwindow_s = 0.05")
    source = SceneWindows(five, count=80, seed=2, draws=Draws(missing=0.5, none=0.5, outside=0.0))
    windows = all_of(source)
    usable = windows.usable
    for label in (Label.NONE, Label.INSIDE):
        assert_share((~usable).any(axis=1)[windows.label == label], 0.5)
    assert set((~usable).sum(axis=1).tolist()) == {0, 1, 2}
    assert (~usable).any(axis=0).all()
    floor = np.float32(math.log(source.contract.mel_config.log_offset))
    names = [receiver.name for receiver in source.contract.receivers]
    for number, channel in enumerate(source.contract.channels):
        there = usable[:, [names.index(name) for name in channel.receivers]].all(axis=1)
        empty = floor if channel.feature == "log_mel" else 0.0
        assert (windows.features[~there, number] == empty).all()
        assert (windows.features[there, number] != empty).any(axis=(1, 2)).all()


@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_nobody_is_missing_where_all_are_needed(missing):
    draws = Draws(missing=missing)
    assert all_of(SceneWindows(station(3), count=10, seed=1, draws=draws)).usable.all()
    four = all_of(SceneWindows(station(4), count=10, seed=1, draws=draws))
    assert four.usable.sum(axis=1).tolist() == [4 if missing == 0.0 else 3] * 10


@pytest.mark.parametrize(
    ("area", "scene"),
    [
        ((47.0, 47.1, 8.0, 8.15), ""),
        ((47.0, 47.01, 8.0, 8.015), SCENE + "speed_mps = 3000.0"),
        ((-1.0, 1.0, 179.0, 181.0), ""),
        ((84.0, 89.5, 0.0, 60.0), ""),
    ],
    ids=["standing", "fast", "antimeridian", "pole"],
)
def test_places_are_where_the_label_says(area, scene):
    """Uniform over the area, or beyond it by a margin and within its own size again; the emitter may move meanwhile."""
    features = "rows = 32\nn_fft = 256\nwindow_s = 0.1"
    source = SceneWindows(
        station(area=area, features=features, scene=scene), count=300, seed=4, draws=Draws(none=0.2, outside=0.4)
    )
    drawn = [source.draw(index) for index in range(300)]
    label = np.array([one.label for one in drawn])
    truth_m = np.array([one.truth_m for one in drawn])
    assert (np.isnan(truth_m).all(axis=1) == (label == Label.NONE)).all()
    assert [one.group for one in drawn] == [one.source for one in drawn] == list(range(300))
    latitude, longitude = source.contract.frame.local.to_wgs84(truth_m[label != Label.NONE])
    south, north, west, east = area
    up = (2.0 * latitude - south - north) / (north - south)
    right = (2.0 * ((longitude - west + 180.0) % 360.0 + west - 180.0) - west - east) / (east - west)
    away, outside = np.maximum(np.abs(up), np.abs(right)), label[label != Label.NONE] == Label.OUTSIDE
    slack = 1e-3
    assert away[~outside].max() <= 1.0 + slack
    assert away[outside].min() >= 1.0 + NEAR_OUTSIDE - slack
    assert away[outside].max() <= 2.0 + slack
    for steps in (up, right):
        assert kstest(steps[~outside], "uniform", (-1.0, 2.0)).pvalue > 1e-3


def test_an_emitter_is_labelled_where_it_is_heard():
    """Levels that follow from distances alone tell the distances' ratios; at 3 km/s a kilometre goes by meanwhile."""
    scene = SCENE + "speed_mps = 3000.0\npath_loss_exponent = 3.0"
    quiet = station(features="rows = 32\nn_fft = 256\nwindow_s = 0.4", propagation=STRAIGHT, scene=scene)
    source = SceneWindows(quiet, count=50, seed=4, draws=INSIDE_ONLY)
    frame = source.contract.frame.local
    for index in range(50):
        drawn = source.draw(index)
        latitude, longitude = frame.to_wgs84(np.array(drawn.truth_m))
        distance_m = np.array([WGS84.inv(longitude, latitude, r.longitude, r.latitude)[2] for r in quiet.receiver])
        at_1m = drawn.snr_db + 30.0 * np.log10(distance_m)
        assert np.ptp(at_1m) < 0.01


@pytest.mark.parametrize("scene", ["", SCENE + "noise_dbfs = -60.0\nspeed_mps = 10.0"])
def test_the_snr_is_what_the_samples_hold(scene):
    """In the samples' power and in the log-mel channels, with nobody's gain in error; of a window as it is labelled."""
    features = "rows = 32\nn_fft = 256\nwindow_s = 0.2"
    source = SceneWindows(
        station(features=features, scene=scene), count=40, seed=5, draws=Draws(snr_db=(0.0, 20.0), none=0.2)
    )
    windows = all_of(source)
    silent = windows.label == Label.NONE
    assert np.isneginf(windows.snr_db[silent]).all()
    median_db = np.median(windows.snr_db[~silent], axis=1)
    assert kstest(median_db, "uniform", (0.0, 20.0)).pvalue > 1e-3
    assert (np.abs(median_db - 10.0) <= 10.0).all()
    expected = NOISE_DBFS + 10.0 * np.log10(1.0 + 10.0 ** (windows.snr_db / 10.0))
    np.testing.assert_allclose(windows.level_db, expected, atol=0.25)
    np.testing.assert_allclose(*powers_db(source, windows), atol=0.4)


def test_a_missing_receiver_keeps_its_label():
    source = SceneWindows(station(4), count=10, seed=1, draws=Draws(none=0.0, missing=1.0))
    whole = SceneWindows(station(4), count=10, seed=1, draws=Draws(none=0.0, missing=0.0))
    np.testing.assert_array_equal(all_of(source).snr_db, all_of(whole).snr_db)


def test_bandwidths():
    draws = Draws(bandwidth=(0.2, 0.5), none=0.0)
    scenes = [
        (station(scene=SCENE), 50e3),
        (station(), 100e3 * MAX_BANDWIDTH),
    ]
    sources = [(SceneWindows(each, count=100, seed=6, draws=draws), hz) for each, hz in scenes]
    made = channels(delays=False)
    sources.append((channel_windows(made, draws, repeats=3), 200e3 * MAX_BANDWIDTH))
    for source, widest_hz in sources:
        share = np.array([source.draw(index).bandwidth_hz for index in range(100)]) / widest_hz
        assert kstest(share, "uniform", (0.2, 0.3)).pvalue > 1e-3


def test_waveforms():
    source = SceneWindows(station(), count=60, seed=7, draws=Draws(waveforms=("chirp", "fsk"), none=0.3))
    drawn = [source.draw(index) for index in range(60)]
    assert {one.scene.config.waveform for one in drawn if one.label != Label.NONE} == {"chirp", "fsk"}
    assert {one.scene.config.waveform for one in drawn if one.label == Label.NONE} == {"none"}
    own = SceneWindows(station(scene=SCENE + 'waveform = "qpsk"'), count=5, seed=7, draws=INSIDE_ONLY)
    assert {own.draw(index).scene.config.waveform for index in range(5)} == {"qpsk"}


@pytest.mark.parametrize(
    ("propagation", "scene", "mean_dbfs", "sigma_db"),
    [
        ("level_dbfs_at_1km = -50.0\nlevel_sigma_db = 4.0", "", -50.0, 4.0),
        ("level_dbfs_at_1km = -50.0\nlevel_sigma_db = 4.0", SCENE + "path_loss_exponent = 2.7", -50.0, 4.0),
        ("", SCENE + "level_dbfs_at_1km = -33.0\npath_loss_exponent = 2.7", -33.0, 0.0),
    ],
    ids=["station", "station before scene", "scene"],
)
def test_emitters_as_strong_as_the_station_knows_them(propagation, scene, mean_dbfs, sigma_db):
    known = station(propagation=f"{STRAIGHT}\npath_loss_exponent = 2.7\n{propagation}", scene=scene)
    source = SceneWindows(known, count=200, seed=8, draws=replace(INSIDE_ONLY, snr_db=None))
    at_1km_db = []
    for index in range(200):
        drawn = source.draw(index)
        distance_m = np.linalg.norm(source.spec.receivers_enu_m[:, :2] - drawn.truth_m, axis=1)
        at_1km_db.append(np.mean(drawn.snr_db + NOISE_DBFS + 27.0 * np.log10(distance_m / 1000.0)))
    assert np.mean(at_1km_db) == pytest.approx(mean_dbfs, abs=4.0 * sigma_db / math.sqrt(200) + 0.01)
    assert np.std(at_1km_db) == pytest.approx(sigma_db, rel=0.2, abs=0.01)


def test_usual_draws():
    known = station(propagation="level_dbfs_at_1km = -50.0")
    assert usual_draws(station()).snr_db == (-10.0, 35.0)
    assert usual_draws(station(scene=SCENE)).snr_db == (-10.0, 35.0)
    assert usual_draws(known).snr_db is None
    assert usual_draws(known, (3.0, 9.0)) == Draws(snr_db=(3.0, 9.0))


def test_windows_of_a_set_go_round_its_rows():
    rows = np.array([21, 3, 8])
    source = channel_windows(channels(delays=False), Draws(none=0.3), rows=rows, repeats=4)
    windows = all_of(source)
    assert len(source) == 12
    assert windows.source.tolist() == [21, 3, 8] * 4
    assert windows.group.tolist() == [4, 0, 1] * 4
    assert len(np.unique(windows.features, axis=0)) == 12


def test_truths_of_a_set():
    made = channels()
    source = channel_windows(made, Draws(none=0.2, outside=0.2))
    drawn = [source.draw(index) for index in range(len(source))]
    label, truth_m = np.array([one.label for one in drawn]), np.array([one.truth_m for one in drawn])
    assert (np.isfinite(truth_m).all(axis=1) == (label == Label.INSIDE)).all()
    assert np.isneginf([one.snr_db for one in drawn if one.label == Label.NONE]).all()
    latitude, longitude, _ = made.transmitters_wgs84
    frame = source.contract.frame
    for row in np.flatnonzero(label == Label.INSIDE):
        azimuth, _, away_m = WGS84.inv(frame.longitude, frame.latitude, longitude[row], latitude[row])
        expected = away_m * np.array([np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))])
        # the plane lies 500 m above the ellipsoid
        assert truth_m[row] == pytest.approx(expected, abs=0.05)


def test_levels_of_a_set():
    """The set's own, for all receivers by the emitter's power more or less; silent paths stay silent."""
    gain = 1e-4 * 10.0 ** (np.random.default_rng(6).uniform(0.0, 25.0, (40, 4, 1)) / 20.0)
    gain[::7, 2] = 0.0
    made = channels(gain=gain, delays=False)
    source = channel_windows(made, replace(INSIDE_ONLY, emitter_sigma_db=3.0), repeats=3)
    windows = all_of(source)
    with np.errstate(invalid="ignore"):
        above_db = windows.snr_db - made.level_db[windows.source]
    assert (np.isnan(above_db) == np.isneginf(made.level_db[windows.source])).all()
    gain_db = np.nanmean(above_db, axis=1)
    np.testing.assert_allclose(above_db, np.where(np.isnan(above_db), np.nan, gain_db[:, None]), atol=1e-4)
    assert kstest(gain_db, "norm", (0.0, 3.0)).pvalue > 1e-3
    held, expected = powers_db(source, windows)
    np.testing.assert_allclose(held, expected, atol=0.8)
    assert np.abs(np.mean(held - expected)) < 0.05
    assert np.isneginf(windows.snr_db).any()
    steady = channel_windows(made, replace(INSIDE_ONLY, emitter_sigma_db=0.0))
    np.testing.assert_allclose(steady.draw(3).snr_db, made.level_db[3])


def test_delays_of_a_set():
    made = channels()
    source = channel_windows(made, replace(INSIDE_ONLY, bandwidth=(0.9, 1.0), fading=True), rows=np.arange(10))
    windows = all_of(source)
    config = source.contract.correlation_config
    pairs = windows.features[:, -len(config.pairs) :].mean(axis=3)
    lag, height = peak_lag(pairs, config.lag_step)
    delay = made.tap_delay_ns[:10, :, 0] * 1e-9 * config.sample_rate_hz
    expected = np.stack([delay[:, i] - delay[:, j] for i, j in config.pairs], axis=1)
    assert np.abs(expected).max() > 10.0
    assert height.min() > 0.5
    np.testing.assert_allclose(lag, expected, atol=0.05)


def phases(source: DrawnWindows, index: int) -> np.ndarray:
    """Of the receivers against the first, as they are in the samples."""
    samples = source.draw(index).scene.samples(0, 4096)
    return np.angle((samples * samples[0].conj()).sum(axis=1))


def test_fading_turns_phases():
    made = channels(delays=False)
    still = channel_windows(made, rows=np.array([4]), repeats=40)
    own = np.angle(made.tap_gain[4, :, 0] / made.tap_gain[4, 0, 0])
    for index in range(3):
        np.testing.assert_allclose(np.angle(np.exp(1j * (phases(still, index) - own))), 0.0, atol=0.05)
    fading = channel_windows(made, replace(INSIDE_ONLY, fading=True), rows=np.array([4]), repeats=40)
    turned = np.array([phases(fading, index) for index in range(40)])
    assert kstest(turned[:, 1:].ravel(), "uniform", (-np.pi, 2.0 * np.pi)).pvalue > 1e-3


def test_fading_keeps_the_mean_power():
    """Two paths as strong as each other, no delay between them: their sum fades, to four times the power of one."""
    gain = np.full((2, 3, 2), 1e-4 * 10.0 ** (20.0 / 20.0))
    made = channels(np.array([[0.0, 0.0], [100.0, 50.0]]), gain=gain, delays=False, receivers_m=np.eye(3, 2) * 500.0)
    draws = replace(INSIDE_ONLY, emitter_sigma_db=0.0, fading=True)
    windows = all_of(channel_windows(made, draws, repeats=60))
    np.testing.assert_allclose(windows.snr_db, 20.0 + 10.0 * math.log10(2.0), atol=1e-3)
    heard = 10.0 ** ((windows.level_db - NOISE_DBFS - windows.snr_db) / 10.0)
    # twice the squared cosine of half an even angle: mean 1, standard deviation 1 / sqrt(2)
    assert heard.mean() == pytest.approx(1.0, abs=4.0 * math.sqrt(0.5 / heard.size))
    assert heard.std() == pytest.approx(math.sqrt(0.5), rel=0.15)


def outside_of(made: ChannelSet, rows: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray, ChannelWindows]:
    """First delays in ns and levels over the noise in dB of emitters outside, (count, R) each."""
    draws = replace(INSIDE_ONLY, outside=1.0, emitter_sigma_db=0.0)
    source = channel_windows(made, draws, rows=rows, repeats=-(-count // len(rows)), seed=9)
    drawn = [source.draw(index) for index in range(count)]
    assert {one.label for one in drawn} == {Label.OUTSIDE}
    return (
        np.array([one.scene.delay_s(np.zeros(1))[:, 0] for one in drawn]) * 1e9,
        np.array([one.snr_db for one in drawn]),
        source,
    )


@pytest.mark.parametrize("size_m", [(400.0, 300.0), (400.0, 5.0)], ids=["box", "road"])
def test_emitters_outside_a_set(size_m):
    made = channels(np.random.default_rng(8).uniform(0.0, size_m, (40, 2)))
    delay_ns, level_db, source = outside_of(made, np.arange(0, 40, 2))
    area = source.spec.area
    up_m = made.transmitters_enu_m[0, 2]

    def misfit_m(place: np.ndarray, length_m: np.ndarray) -> np.ndarray:
        return np.linalg.norm(made.receivers_enu_m - [*place, up_m], axis=1) - length_m

    for length_m, levels in zip(delay_ns * LIGHT_M_PER_NS, level_db, strict=True):
        found = least_squares(misfit_m, np.array([200.0, 150.0]), args=(length_m,))
        assert np.abs(found.fun).max() < 0.05
        latitude, longitude, _ = made.frame.to_geodetic(np.array([*found.x, up_m]))
        up = abs(2.0 * latitude - area.south - area.north) / (area.north - area.south)
        right = abs(2.0 * longitude - area.west - area.east) / (area.east - area.west)
        assert 1.0 + NEAR_OUTSIDE - 0.02 < max(up, right) < 2.02
        # the set's levels fall with the square of the distance, from 80 dB at 1 m
        np.testing.assert_allclose(levels, 80.0 - 20.0 * np.log10(length_m), atol=0.05)


def test_emitters_outside_a_set_without_delays():
    rng = np.random.default_rng(8)
    clean = channels(delays=False).level_db
    made = channels(gain=1e-4 * 10.0 ** ((clean + rng.normal(0.0, 5.0, clean.shape)) / 20.0)[:, :, None], delays=False)
    delay_ns, level_db, _ = outside_of(made, np.arange(40), count=100)
    assert (delay_ns == 0.0).all()
    assert np.median(level_db) < np.median(made.level_db)


def test_the_station_of_a_set_with_delays():
    made = channels()
    found = channel_station(made, name="site")
    assert found.features.channels == ["log_mel", "cross_correlation"]
    assert found.has_common_clock
    assert [receiver.name for receiver in found.receiver] == ["r0", "r1", "r2", "r3"]
    assert (found.station.sample_rate_hz, found.station.frequency_hz) == (10e6, 2.4e9)
    for receiver, place in zip(found.receiver, made.receivers, strict=True):
        assert (receiver.latitude, receiver.longitude, receiver.altitude_m) == place[1:]
    latitude, longitude, altitude_m = made.transmitters_wgs84
    area = found.area
    assert (area.south < latitude).all()
    assert (latitude < area.north).all()
    assert (area.west < longitude).all()
    assert (longitude < area.east).all()
    assert area.altitude_m == pytest.approx(np.median(altitude_m))
    assert plan_station(found).time_steps >= FRAMES


def test_the_station_of_a_set_without_delays():
    found = channel_station(channels(delays=False), name="site", rows=32)
    assert found.features.channels == ["log_mel"]
    assert not found.has_common_clock
    assert found.station.sample_rate_hz == 200e3
    plan = plan_station(found)
    assert plan.spec.timing is None
    assert plan.spec.rows == 32
    assert plan.time_steps >= FRAMES


def test_one_receiver_has_nothing_to_correlate_with():
    made = channels(receivers_m=np.array([[-50.0, -40.0]]))
    assert channel_station(made, name="site").features.channels == ["log_mel"]
    assert channel_station(made, name="site", sample_rate_hz=1e6).station.sample_rate_hz == 1e6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"snr_db": (3.0, 2.0)}, r"snr_db=\(3.0, 2.0\): the lower end comes first"),
        ({"snr_db": (0.0, math.inf)}, "snr_db=.*finite"),
        ({"snr_db": (math.nan, 3.0)}, "snr_db=.*finite"),
        ({"emitter_sigma_db": -1.0}, "emitter_sigma_db=-1.0: must be a finite number"),
        ({"emitter_sigma_db": math.nan}, "emitter_sigma_db=nan"),
        ({"waveforms": ("noise", "music")}, "waveforms=.*'music' is none of noise, nbfm"),
        ({"waveforms": ("none",)}, "waveforms=.*'none' is none of"),
        ({"bandwidth": (0.0, 1.0)}, r"bandwidth=\(0.0, 1.0\): must be two rising parts"),
        ({"bandwidth": (0.5, 0.4)}, "bandwidth="),
        ({"bandwidth": (0.5, 1.1)}, "bandwidth="),
        ({"bandwidth": (math.nan, 1.0)}, "bandwidth="),
        ({"none": -0.1}, "none=-0.1: must be a share between 0 and 1"),
        ({"outside": 1.1}, "outside=1.1: must be a share"),
        ({"missing": math.nan}, "missing=nan: must be a share"),
        ({"none": 0.6, "outside": 0.5}, "none=0.6, outside=0.5: together they are more than all windows"),
    ],
)
def test_draws_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        Draws(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SceneWindows(station(), count=0, seed=1), "windows=0: must be at least 1"),
        (lambda: SceneWindows(station(), count=1, seed=-1), "seed=-1: must not be negative"),
        (lambda: next(open_field(1).batches(0)), "size=0: must be at least 1"),
        (lambda: SceneWindows(station(scene='channels = "a.npz"'), count=1, seed=1), r"scene\.channels: windows of a"),
        (lambda: SceneWindows(station(scene=SCENE + 'waveform = "none"'), count=1, seed=1), r"scene\.waveform='none'"),
        (
            lambda: SceneWindows(station(), count=1, seed=1, draws=Draws(snr_db=None)),
            r"propagation\.level_dbfs_at_1km: says how strong",
        ),
        (lambda: channel_windows(channels(), rows=np.array([], int)), r"rows=\(\): a split of the data set is empty"),
        (lambda: channel_windows(channels(), repeats=0), "windows=0"),
        (
            lambda: channel_station(channels(), name="site", sample_rate_hz=0.0),
            "sample_rate_hz=0: must be 1000 or more",
        ),
        (lambda: channel_station(channels(), name="site", sample_rate_hz=1e11), r"^site: station\.sample_rate_hz: "),
        (lambda: channel_station(channels(), name="site", rows=4), r"^site: features\.rows: "),
        (
            lambda: channel_station(channels(receivers_m=np.arange(66.0).reshape(33, 2)), name="site"),
            "^site: receiver: .*at most 32",
        ),
    ],
)
def test_windows_that_cannot_be_drawn(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
