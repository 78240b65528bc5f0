from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.simulation.place import Place
from localize_core.simulation.propagation import Shadowing
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.simulation.waveforms import waveform
from pyproj import Transformer

LIGHT_MPS = 299_792_458.0
TO_ECEF = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
RECEIVERS = [
    Place("west", 47.05, 8.20, 800.0),
    Place("north", 47.11, 8.33, 650.0),
    Place("east", 47.04, 8.42, 900.0),
    Place("south", 46.99, 8.30, 1200.0),
]
STILL = [(47.05, 8.31)]
LOOP = [(47.05, 8.31), (47.06, 8.32), (47.045, 8.335)]
SILENT = -300.0
FREQUENCY_HZ = 433.92e6


def scene(rate_hz=1e6, receivers=RECEIVERS, frequency_hz=FREQUENCY_HZ, **fields):
    fields = {"track": STILL, "bandwidth_hz": 0.5 * rate_hz, "noise_dbfs": SILENT, "altitude_m": 450.0} | fields
    return Scene(SceneConfig.of(**fields), receivers, sample_rate_hz=rate_hz, frequency_hz=frequency_hz)


def straight_m(place, point, altitude_m):
    return np.linalg.norm(
        np.subtract(
            TO_ECEF.transform(point[1], point[0], altitude_m),
            TO_ECEF.transform(place.longitude, place.latitude, place.altitude_m),
        )
    )


def measured_delay(later, earlier, band):
    """Delay in samples from the slope of the cross spectrum's phase: independent of any interpolation."""
    cross = np.fft.fft(later * np.hanning(len(later))) * np.conj(np.fft.fft(earlier * np.hanning(len(earlier))))
    frequency = np.fft.fftfreq(len(later))
    peak = np.argmax(np.abs(np.fft.ifft(cross)))
    coarse = peak if peak < len(later) / 2 else peak - len(later)
    rotated = (cross * np.exp(2j * np.pi * frequency * coarse))[np.abs(frequency) < band / 2]
    order = np.argsort(frequency[np.abs(frequency) < band / 2])
    aligned = rotated[order] * np.exp(-1j * np.angle(rotated.sum()))
    grid = np.sort(frequency[np.abs(frequency) < band / 2])
    slope = np.sum(np.abs(aligned) * np.angle(aligned) * grid) / np.sum(np.abs(aligned) * grid**2)
    return coarse - slope / (2 * np.pi)


@pytest.mark.parametrize("name", ["noise", "qpsk", "fsk"])
def test_delay_between_receivers_is_the_difference_of_paths(name):
    samples = scene(waveform=name).samples(5000, 65536)
    paths_m = [straight_m(place, STILL[0], 450.0) for place in RECEIVERS]
    for later in range(4):
        for earlier in range(later):
            expected = (paths_m[later] - paths_m[earlier]) / LIGHT_MPS * 1e6
            assert measured_delay(samples[later], samples[earlier], 0.3) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("speed_mps", [0.0, 250.0])
def test_every_sample_against_direct_interpolation(speed_mps):
    """Delay, level and carrier phase of single samples against a sum over the emitted waveform in double."""
    built = scene(track=LOOP, speed_mps=speed_mps, waveform="noise", level_dbfs_at_1km=-20.0, path_loss_exponent=3.0)
    emitted = waveform("noise", bandwidth_hz=0.5e6, sample_rate_hz=1e6, seed=1)
    for index in (0, 8191, 8192, 700_001, 700_002):
        received = built.samples(index, 1)[:, 0]
        heard_from = built.truth(*built.time(index))
        delays_s = built.delay_s(np.array([index / 1e6]))[:, 0]
        for place, value, delay_s in zip(RECEIVERS, received, delays_s, strict=True):
            path_m = straight_m(place, heard_from, 450.0)
            assert delay_s == pytest.approx(path_m / LIGHT_MPS, abs=0.1 / LIGHT_MPS)
            position = index - path_m / LIGHT_MPS * 1e6
            taps = np.arange(int(position) - 300, int(position) + 301)
            weights = np.sinc(position - taps) * np.kaiser(601, 6.0)
            amplitude = 10 ** ((-20.0 - 30.0 * np.log10(path_m / 1e3)) / 20)
            expected = amplitude * np.dot(emitted(int(taps[0]), 601), weights)
            carrier = np.exp(-2j * np.pi * FREQUENCY_HZ * delay_s)
            assert abs(value - expected * carrier) < 2e-3 * amplitude


def test_moving_emitter_is_shifted_by_doppler():
    towards = [(47.05, 8.31), (47.05, 8.30)]  # due west, straight at the first receiver from 8 km
    rate_hz, speed_mps = 50e3, 200.0
    receivers = [Place("ahead", 47.05, 8.20, 450.0), Place("behind", 47.05, 8.42, 450.0)]
    moving = scene(rate_hz, receivers, track=towards, speed_mps=speed_mps, waveform="fsk")
    standing = scene(rate_hz, receivers, track=towards, waveform="fsk")
    for receiver, sign in ((0, 1.0), (1, -1.0)):
        turn = moving.samples(0, 8000)[receiver] * np.conj(standing.samples(0, 8000)[receiver])
        phase = np.unwrap(np.angle(turn))
        slope_hz = np.polyfit(np.arange(8000) / rate_hz, phase, 1)[0] / (2 * np.pi)
        assert slope_hz == pytest.approx(sign * FREQUENCY_HZ * speed_mps / LIGHT_MPS, rel=1e-2)


@pytest.mark.parametrize("exponent", [2.0, 3.5])
def test_level_falls_with_distance(exponent):
    built = scene(waveform="fsk", level_dbfs_at_1km=-12.0, path_loss_exponent=exponent)
    level_db = 10 * np.log10(np.mean(np.abs(built.samples(0, 50_000)) ** 2, axis=1))
    paths_km = np.array([straight_m(place, STILL[0], 450.0) for place in RECEIVERS]) / 1e3
    np.testing.assert_allclose(level_db, -12.0 - 10 * exponent * np.log10(paths_km), atol=0.1)


def test_noise_has_its_level_and_is_each_receivers_own():
    samples = scene(waveform="none", noise_dbfs=-40.0).samples(0, 200_000)
    np.testing.assert_allclose(10 * np.log10(np.mean(np.abs(samples) ** 2, axis=1)), -40.0, atol=0.1)
    correlation = np.abs(np.corrcoef(samples))
    assert correlation[~np.eye(4, dtype=bool)].max() < 0.01


@settings(max_examples=20, deadline=None)
@given(
    first=st.integers(0, 40_000),
    cuts=st.lists(st.integers(0, 12_000), min_size=1, max_size=5),
    rate_hz=st.sampled_from([12_000.0, 250e3, 1e6]),
    name=st.sampled_from(["noise", "nbfm", "fsk", "qpsk", "am", "none"]),
)
def test_bit_identical_however_it_is_cut(first, cuts, rate_hz, name):
    fields = {"track": LOOP, "speed_mps": 30.0, "waveform": name, "noise_dbfs": -50.0, "shadowing_db": 4.0}
    whole = scene(rate_hz, **fields).samples(first, sum(cuts))
    reader = scene(rate_hz, **fields)
    starts = first + np.cumsum([0, *cuts[:-1]])
    pieces = {
        start: reader.samples(int(start), cut) for start, cut in reversed(list(zip(starts, cuts, strict=True))) if cut
    }
    np.testing.assert_array_equal(np.concatenate([pieces[key] for key in sorted(pieces)] or [whole], axis=1), whole)


def test_another_process_gets_the_same_samples():
    code = (
        "from localize_core.simulation.place import Place\n"
        "from localize_core.simulation.scene import Scene, SceneConfig\n"
        f"s = Scene(SceneConfig(track={LOOP}, speed_mps=30.0, shadowing_db=3.0, clock_offset_ns=50.0),"
        f" [Place('a', 47.05, 8.2), Place('b', 47.1, 8.3)], sample_rate_hz=1e5, frequency_hz=4e8)\n"
        "print(s.samples(70000, 5000).tobytes().hex())"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(outputs) == 1


def test_seeds_differ():
    first, second = (scene(seed=seed, noise_dbfs=-30.0).samples(0, 20_000) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert abs(np.vdot(one, other)) / np.linalg.norm(one) / np.linalg.norm(other) < 0.05


def test_clock_offsets_shift_the_waveform_and_not_the_carrier():
    exact, off = scene(), scene(clock_offset_ns=2000.0)
    shifts = [
        measured_delay(shifted, straight, 0.3)
        for shifted, straight in zip(off.samples(0, 65536), exact.samples(0, 65536), strict=True)
    ]
    assert 0.3 < np.std(shifts) < 6.0
    assert len(np.unique(np.round(shifts, 2))) == 4


def shadowing(seed, receivers, correlation=0.0):
    config = SceneConfig(
        seed=seed, track=((47.0, 8.0),), shadowing_db=6.0, shadowing_correlation=correlation, shadowing_distance_m=100.0
    )
    return Shadowing(config, receivers)


def test_shadowing_has_its_spread_and_its_distance():
    east_m = np.array([0.0, 50.0, 100.0, 1000.0])
    longitude = 8.0 + east_m / (111_320.0 * np.cos(np.radians(47.0)))
    draws = np.array([shadowing(seed, receivers=1)(np.full(4, 47.0), longitude)[0] for seed in range(2000)])
    np.testing.assert_allclose(draws.std(axis=0), 6.0, rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(draws.T)[0], np.exp(-((east_m / 100.0) ** 2)), atol=0.06)


def test_shadowing_reaches_the_samples():
    plain, shadowed = scene(waveform="fsk"), scene(waveform="fsk", shadowing_db=6.0)
    excess_db = 20 * np.log10(np.abs(shadowed.samples(0, 10)[:, 5]) / np.abs(plain.samples(0, 10)[:, 5]))
    expected_db = (shadowed.level_dbfs(np.zeros(1)) - plain.level_dbfs(np.zeros(1)))[:, 0]
    np.testing.assert_allclose(excess_db, expected_db, atol=0.01)
    assert np.std(expected_db) > 1.0


def test_adc_steps_and_clips():
    samples = scene(waveform="noise", level_dbfs_at_1km=30.0, adc_bits=8).samples(0, 5000)
    parts = samples.view(np.float32)
    assert (parts.min(), parts.max()) == (-1.0, 127 / 128)
    np.testing.assert_array_equal(parts * 128, np.round(parts * 128))
    quiet = scene(waveform="noise", level_dbfs_at_1km=-10.0, adc_bits=8)
    exact = scene(waveform="noise", level_dbfs_at_1km=-10.0)
    error = (quiet.samples(0, 5000) - exact.samples(0, 5000)).view(np.float32)
    assert np.abs(error).max() <= 0.5 / 128 + 1e-6


def test_time_and_truth_agree_with_the_track():
    built = scene(12_001.03, track=LOOP, speed_mps=15.0, start_time="2026-03-04T05:06:07.25Z")
    assert built.time(0) == (1772600767, 0.25)
    whole, fraction = built.time(10**12)
    assert 0.0 <= fraction < 1.0
    assert (whole - 1772600767) + (fraction - 0.25) == pytest.approx(10**12 / 12_001.03, rel=1e-15)
    assert built.truth(1772600767, 0.25) == pytest.approx(LOOP[0])
    assert built.truth(1772600777.25) == pytest.approx(built.truth(1772600777, 0.25), abs=1e-9)
    assert built.truth(1772600777.25) != pytest.approx(LOOP[0], abs=1e-4)


def test_a_lap_leads_round_the_track():
    lap = scene(track=LOOP).lap(5)
    assert lap[0] == lap[-1] == pytest.approx(LOOP[0])
    np.testing.assert_allclose(scene(track=LOOP, loop=False).lap(2), [LOOP[0], LOOP[-1]])


def test_samples_are_the_callers():
    built = scene()
    built.samples(0, 10)[:] = 0
    assert built.samples(0, 10).any()
    assert built.samples(3, 0).shape == (4, 0)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bandwidth_hz": 1e6}, "bandwidth_hz=1e.06.*sample_rate_hz"),
        ({"track": []}, "scene.track"),
        ({"track": [(91.0, 0.0)]}, "scene.track.0.0=91.0.*90"),
        ({"waveform": "lora"}, "scene.waveform='lora'.*noise"),
        ({"adc_bits": 0}, "scene.adc_bits=0"),
        ({"start_time": "2026-01-01T00:00:00"}, "scene.start_time.*timezone"),
        ({"speeed": 3}, "scene.speeed=3"),
        ({"rate_hz": 0.0, "bandwidth_hz": 1.0}, "sample_rate_hz=0.0"),
        ({"frequency_hz": float("inf")}, "frequency_hz=inf"),
        ({"receivers": []}, "receivers"),
    ],
)
def test_refused(fields, match):
    with pytest.raises(ConfigError, match=match):
        scene(**fields)


def test_negative_ranges_are_refused():
    with pytest.raises(ConfigError, match="first=-1"):
        scene().samples(-1, 5)


def test_every_field_is_described():
    assert all(field.description for field in SceneConfig.model_fields.values())
