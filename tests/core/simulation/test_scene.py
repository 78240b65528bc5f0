from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError, SourceError
from localize_core.simulation.channels import ChannelSet, load_channels
from localize_core.simulation.impairments import ReceiverErrors
from localize_core.simulation.propagation import Shadowing
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.simulation.waveforms import waveform
from localize_core.types.place import Place
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


def channel_set():
    """Four places, three receivers, up to five paths over 3 µs; the second receiver hears nothing at place 2."""
    rng = np.random.default_rng(5)
    gain = (rng.normal(size=(4, 3, 5, 2)) @ [1.0, 1j]).astype(np.complex64) * 1e-6
    gain[rng.uniform(size=gain.shape) < 0.3] = 0.0
    gain[:, :, 0] = 1e-6
    gain[2, 1] = 0.0
    delay_ns = rng.uniform(1000.0, 4000.0, gain.shape).astype(np.float32)
    return ChannelSet(
        receivers_enu_m=np.array([[0.0, 0.0, 20.0], [600.0, 0.0, 25.0], [0.0, 700.0, 15.0]]),
        transmitters_enu_m=np.array([[50.0, 50.0, 1.5], [150.0, 50.0, 1.5], [50.0, 250.0, 1.5], [300.0, 300.0, 1.5]]),
        tap_gain=gain,
        tap_delay_ns=np.where(gain != 0, delay_ns, 0.0).astype(np.float32),
        noise_gain=2e-7,
        frequency_hz=FREQUENCY_HZ,
        origin_wgs84=(48.1, 11.5, 520.0),
        receiver_names=("a", "b", "c"),
    )


CHANNELS = channel_set()


def visiting(rate_hz=1e6, channels=CHANNELS, receivers=CHANNELS.receivers, channels_file="", **fields):
    """A scene that hears a channel data set, 200 dB above the noise where the fields do not say more."""
    fields = {"channel_rows": (0,), "bandwidth_hz": 0.5 * rate_hz, "noise_dbfs": SILENT} | fields
    fields = {"emitter_gain_db": 190.0, "channels": channels_file} | fields
    return Scene(
        SceneConfig.of(**fields), receivers, sample_rate_hz=rate_hz, frequency_hz=FREQUENCY_HZ, channels=channels
    )


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


FLAWS = {
    "gain_error_db": 2.0,
    "carrier_offset_hz": 120.0,
    "carrier_drift_hz_per_s": 3.0,
    "random_carrier_phase": True,
    "clock_offset_ns": 400.0,
    "clock_drift_ppb": 3000.0,
    "timing_jitter_ns": 200.0,
    "timing_jitter_s": 0.1,
}
MOVING = {"track": LOOP, "speed_mps": 30.0, "shadowing_db": 4.0, "shadowing_correlation": 0.5}
STANDING = {"track": STILL, "shadowing_db": 4.0}
VISITING = {"channel_rows": (1, 0, 3), "dwell_s": 0.003}


@settings(max_examples=40, deadline=None)
@given(
    first=st.integers(0, 40_000),
    cuts=st.lists(st.integers(0, 12_000), min_size=1, max_size=5),
    rate_hz=st.sampled_from([12_000.0, 250e3, 1e6]),
    name=st.sampled_from(["noise", "nbfm", "fsk", "qpsk", "am", "ofdm", "chirp", "pulse", "none"]),
    way=st.sampled_from([MOVING, STANDING, VISITING]),
    flaws=st.sampled_from([{}, FLAWS, {"carrier_offset_hz": 50.0}, {"clock_drift_ppb": 50e3, "adc_bits": 8}]),
)
def test_bit_identical_however_it_is_cut(first, cuts, rate_hz, name, way, flaws):
    def fresh():
        fields = {"waveform": name, "noise_dbfs": -50.0} | way | flaws
        return visiting(rate_hz, **fields) if way is VISITING else scene(rate_hz, **fields)

    whole = fresh().samples(first, sum(cuts))
    reader = fresh()
    starts = first + np.cumsum([0, *cuts[:-1]])
    pieces = {
        start: reader.samples(int(start), cut) for start, cut in reversed(list(zip(starts, cuts, strict=True))) if cut
    }
    np.testing.assert_array_equal(np.concatenate([pieces[key] for key in sorted(pieces)] or [whole], axis=1), whole)


def test_another_process_gets_the_same_samples():
    code = (
        "from localize_core.types.place import Place\n"
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


def delays(late, straight, band=0.3):
    """Of each receiver's samples against those without errors, in samples."""
    return np.array([measured_delay(one, other, band) for one, other in zip(late, straight, strict=True)])


def test_clock_offsets_shift_the_waveform_and_not_the_carrier():
    exact, off = scene(), scene(clock_offset_ns=2000.0)
    measured = delays(off.samples(0, 65536), exact.samples(0, 65536))
    np.testing.assert_allclose(measured, -1e6 * off.errors.clock_offset_s, atol=0.01)
    assert len(np.unique(np.round(measured, 1))) == 4
    shifted = scene(clock_offset_ns=2.0)  # the waveform hardly moves: what turns is the carrier
    carrier = np.einsum("rn,rn->r", shifted.samples(0, 65536), exact.samples(0, 65536).conj())
    np.testing.assert_allclose(np.angle(carrier), 0.0, atol=0.01)


@pytest.mark.parametrize("speed_mps", [0.0, 30.0])
def test_clock_drift_is_the_slope_of_delays(speed_mps):
    """50 ppm: after a tenth of a second a clock is a few samples off, and nothing is lost on the way."""
    fields = {"track": LOOP, "speed_mps": speed_mps}
    exact, off = scene(**fields), scene(clock_drift_ppb=50e3, **fields)
    starts = np.arange(0, 100_000, 12_500)
    measured = [delays(off.samples(int(n), 8192), exact.samples(int(n), 8192)) for n in starts]
    slope, start = np.polyfit(starts + 4096, measured, 1)
    np.testing.assert_allclose(slope, -off.errors.clock_drift, atol=2e-8)
    np.testing.assert_allclose(start, 0.0, atol=2e-3)
    assert np.abs(off.errors.clock_drift).max() > 20e-6


@pytest.mark.parametrize("drift_ppb", [200.0, 50e3])
def test_drifting_samples_against_direct_interpolation(drift_ppb):
    """However fast the clock is off, single samples are those of the emitted waveform at the right instants."""
    built = scene(waveform="noise", level_dbfs_at_1km=0.0, path_loss_exponent=0.0, clock_drift_ppb=drift_ppb)
    emitted = waveform("noise", bandwidth_hz=0.5e6, sample_rate_hz=1e6, seed=1)
    delays_s = built.delay_s(np.zeros(1))[:, 0]
    for index in (0, 1, 5000, 8191, 700_001):
        for place in range(4):
            position = index + (built.errors.clock_drift[place] * index / 1e6 - delays_s[place]) * 1e6
            taps = np.arange(int(position) - 300, int(position) + 301)
            expected = np.dot(emitted(int(taps[0]), 601), np.sinc(position - taps) * np.kaiser(601, 6.0))
            expected *= np.exp(-2j * np.pi * FREQUENCY_HZ * delays_s[place])
            assert abs(built.samples(index, 1)[place, 0] - expected) < 4e-3


def test_timing_jitter_is_a_slow_wander():
    """Delays measured every 20 ms follow the clock that the scene says; over many seeds its rms and memory hold."""
    exact, off = scene(), scene(timing_jitter_ns=500.0, timing_jitter_s=0.1)
    starts = np.arange(0, 300_000, 20_000)
    measured = np.array([delays(off.samples(int(n), 4096), exact.samples(int(n), 4096)) for n in starts])
    np.testing.assert_allclose(measured, -1e6 * off.errors.clock_s((starts + 2048) / 1e6).T, atol=0.01)
    assert np.ptp(measured, axis=0).min() > 0.3
    lags_s = np.array([0.0, 0.05, 0.1, 0.3])
    drawn = np.array(
        [
            ReceiverErrors(
                SceneConfig(track=((0, 0),), seed=seed, timing_jitter_ns=500.0, timing_jitter_s=0.1), 4
            ).clock_s(lags_s)
            for seed in range(1000)
        ]
    ).reshape(-1, 4)
    np.testing.assert_allclose(drawn.std(axis=0), 500e-9, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(drawn.T)[0], np.exp(-((lags_s / 0.1) ** 2)), atol=0.06)


def test_carrier_offset_drift_and_phase_are_the_turning_of_the_carrier():
    exact = scene(50e3, waveform="fsk")
    off = scene(50e3, waveform="fsk", carrier_offset_hz=200.0, carrier_drift_hz_per_s=20.0, random_carrier_phase=True)
    turn = off.samples(0, 100_000) * exact.samples(0, 100_000).conj()
    time_s = np.arange(100_000) / 50e3
    for index, phase in enumerate(np.unwrap(np.angle(turn))):
        half_drift, offset, start = np.polyfit(time_s, phase / (2 * np.pi), 2)
        assert 2 * half_drift == pytest.approx(off.errors.carrier_drift_hz_per_s[index], abs=0.01)
        assert offset == pytest.approx(off.errors.carrier_offset_hz[index], abs=0.01)
        apart = start - off.errors.carrier_phase[index]
        assert abs(apart - round(apart)) < 0.002
    np.testing.assert_allclose(np.abs(turn), np.abs(exact.samples(0, 100_000)) ** 2, rtol=1e-4)


def test_carriers_turn_in_channel_data_sets_too():
    exact, off = visiting(), visiting(carrier_offset_hz=300.0, random_carrier_phase=True)
    turn = off.samples(0, 50_000) / exact.samples(0, 50_000)
    slope = np.unwrap(np.angle(turn[:, ::50]))[:, [0, -1]]
    measured_hz = np.diff(slope, axis=1)[:, 0] / (2 * np.pi * 49_950e-6)
    np.testing.assert_allclose(measured_hz, off.errors.carrier_offset_hz, atol=0.1)


def test_gain_errors_weigh_signal_and_noise_alike():
    exact, off = scene(waveform="fsk"), scene(waveform="fsk", gain_error_db=3.0)
    ratio = off.samples(0, 1000) / exact.samples(0, 1000)
    np.testing.assert_allclose(np.abs(ratio), np.repeat(off.errors.gain[:, None], 1000, axis=1), rtol=1e-4)
    noise = scene(waveform="none", noise_dbfs=-40.0, gain_error_db=3.0).samples(0, 100_000)
    np.testing.assert_allclose(np.sqrt(np.mean(np.abs(noise) ** 2, axis=1)) / 1e-2, off.errors.gain, rtol=0.02)
    assert np.std(20 * np.log10(off.errors.gain)) > 1.0


def test_errors_have_their_spread_and_nothing_in_common():
    fields = {name: value for name, value in FLAWS.items() if not name.startswith("timing_jitter")}
    drawn = [ReceiverErrors(SceneConfig(track=((0, 0),), seed=seed, **fields), 4) for seed in range(1500)]
    values = {
        "gain_error_db": np.concatenate([20 * np.log10(one.gain) for one in drawn]),
        "carrier_offset_hz": np.concatenate([one.carrier_offset_hz for one in drawn]),
        "carrier_drift_hz_per_s": np.concatenate([one.carrier_drift_hz_per_s for one in drawn]),
        "clock_offset_ns": 1e9 * np.concatenate([one.clock_offset_s for one in drawn]),
        "clock_drift_ppb": 1e9 * np.concatenate([one.clock_drift for one in drawn]),
    }
    for name, value in values.items():
        assert value.std() == pytest.approx(FLAWS[name], rel=0.04)
        assert value.mean() == pytest.approx(0.0, abs=0.06 * FLAWS[name])
    phase = np.concatenate([one.carrier_phase for one in drawn])
    assert np.abs(np.mean(np.exp(2j * np.pi * phase))) < 0.05
    correlation = np.corrcoef([*values.values(), phase])
    assert np.abs(correlation[~np.eye(6, dtype=bool)]).max() < 0.06


def heard_directly(row, receiver, emitted, indices, rate_hz, amplitude):
    """Samples as the sum over the set's paths, each a long sinc over the emitted waveform in double."""
    result = np.zeros(len(indices), complex)
    for gain, delay_ns in zip(CHANNELS.tap_gain[row, receiver], CHANNELS.tap_delay_ns[row, receiver], strict=True):
        position = np.asarray(indices) - delay_ns * 1e-9 * rate_hz
        for k, place in enumerate(position):
            taps = np.arange(math.floor(place) - 300, math.floor(place) + 301)
            weights = np.sinc(place - taps) * np.kaiser(601, 6.0)
            result[k] += gain * amplitude * np.dot(emitted(int(taps[0]), 601), weights)
    return result


@pytest.mark.parametrize("rate_hz", [1e6, 10e6])
def test_samples_of_a_channel_data_set_against_the_sum_of_its_paths(rate_hz):
    """Row after row; the absolute level by which `noise_dbfs` stands for the set's noise."""
    rows, dwell = (1, 2, 0), 10_000
    built = visiting(rate_hz, channel_rows=rows, dwell_s=dwell / rate_hz, noise_dbfs=-200.0, emitter_gain_db=170.0)
    emitted = waveform("noise", bandwidth_hz=0.5 * rate_hz, sample_rate_hz=rate_hz, seed=1)
    amplitude = 10 ** ((-200.0 + 170.0) / 20) / CHANNELS.noise_gain
    for index in (0, 5, 9_999, 10_000, 12_345, 20_000, 30_000, 30_001):
        row = rows[index // dwell % 3]
        received = built.samples(index, 1)[:, 0]
        for receiver in range(3):
            expected = heard_directly(row, receiver, emitted, [index], rate_hz, amplitude)[0]
            assert abs(received[receiver] - expected) < 3e-3 * 1e-6 * amplitude


def test_a_ray_traced_place_sounds_as_its_paths_say(data_dir):
    """Transfer function over the band, by averaged cross spectra, against the sum of the paths."""
    channels = load_channels(data_dir / "munich-raytrace" / "train.npz")
    row, rate_hz = 100, 20e6
    fields = {"channel_rows": (row,), "bandwidth_hz": 14e6, "noise_dbfs": -200.0, "emitter_gain_db": 80.0}
    rates = {"sample_rate_hz": rate_hz, "frequency_hz": 2.4e9}
    built = Scene(SceneConfig(**fields), channels.receivers, **rates, channels=channels)
    received = built.samples(0, 400_000)
    emitted = waveform("noise", bandwidth_hz=14e6, sample_rate_hz=rate_hz, seed=1)(0, 400_000)
    segments = {"fs": rate_hz, "nperseg": 4096, "return_onesided": False, "detrend": False}
    frequency_hz, cross = scipy.signal.csd(emitted, received, **segments)
    _, power = scipy.signal.welch(emitted, **segments)
    band = np.abs(frequency_hz) < 6e6
    measured = (cross / power)[:, band]
    turns = np.exp(-2e-9j * np.pi * frequency_hz[band][:, None, None] * channels.tap_delay_ns[row])
    expected = 10 ** (-120 / 20) / channels.noise_gain * np.sum(channels.tap_gain[row] * turns, axis=-1).T
    heard = np.isfinite(channels.level_db[row])
    assert heard.sum() >= 4
    for one, other in zip(measured[heard], expected[heard], strict=True):
        assert np.sqrt(np.mean(np.abs(one - other) ** 2) / np.mean(np.abs(other) ** 2)) < 0.03
    assert np.abs(received[~heard]).max(initial=0.0) < 1e-8


def test_levels_of_a_channel_data_set_over_its_noise():
    """Power with and without emitter: the SNR is the set's level, at whatever noise and with the emitter's gain."""
    levels_db = []
    for row in range(4):
        fields = {"channel_rows": (row,), "noise_dbfs": -40.0, "bandwidth_hz": 8e5}
        noise = visiting(**fields, waveform="none").samples(0, 200_000)
        np.testing.assert_allclose(10 * np.log10(np.mean(np.abs(noise) ** 2, axis=1)), -40.0, atol=0.1)
        loud = visiting(**(fields | {"emitter_gain_db": 10.0}))
        signal = loud.samples(0, 200_000) - noise
        heard = np.isfinite(CHANNELS.level_db[row])
        told_db = loud.level_dbfs(np.zeros(1))[:, 0]
        np.testing.assert_allclose(told_db[heard] + 40.0, CHANNELS.level_db[row][heard] + 10.0, atol=1e-3)
        np.testing.assert_array_equal(told_db[~heard], -np.inf)
        levels_db.append(10 * np.log10(np.mean(np.abs(signal[heard]) ** 2, axis=1)) - told_db[heard])
    # Paths closer than the band resolves add up with their phases: the mean over places and receivers holds.
    assert abs(np.mean(np.concatenate(levels_db))) < 1.0


def test_the_truth_is_the_visited_place():
    built = visiting(channel_rows=(3, 0), dwell_s=0.25)
    latitude, longitude, _ = CHANNELS.transmitters_wgs84
    start_s = built.time(0)[0]
    for elapsed_s, row in ((0.0, 3), (0.2499, 3), (0.25, 0), (0.5, 3), (1.3, 0)):
        assert built.truth(start_s, elapsed_s) == pytest.approx((latitude[row], longitude[row]), abs=1e-12)
        delay_ns = 1e9 * built.delay_s(np.array([elapsed_s]))[:, 0]
        first = [d[g != 0].min() for g, d in zip(CHANNELS.tap_gain[row], CHANNELS.tap_delay_ns[row], strict=True)]
        np.testing.assert_allclose(delay_ns, first, rtol=1e-6)
    assert built.lap(2) == [(latitude[row], longitude[row]) for row in (3, 0)]
    stopping = visiting(channel_rows=(3, 0), dwell_s=0.25, loop=False)
    assert stopping.truth(start_s + 100) == pytest.approx((latitude[0], longitude[0]))
    np.testing.assert_array_equal(stopping.samples(600_000, 100) != 0, True)
    everywhere = visiting(channel_rows=(), channels_file="set.npz")
    assert len(set(everywhere.lap(4))) == 4


def test_no_path_is_silence():
    built = visiting(channel_rows=(2,), noise_dbfs=-100.0)
    quiet = visiting(channel_rows=(2,), noise_dbfs=-100.0, waveform="none")
    np.testing.assert_array_equal(built.samples(0, 1000)[1], quiet.samples(0, 1000)[1])
    assert np.isnan(built.delay_s(np.zeros(1))[1, 0])
    assert built.level_dbfs(np.zeros(1))[1, 0] == -np.inf


def test_a_station_takes_the_receivers_it_has_from_the_set():
    some = [CHANNELS.receivers[2], CHANNELS.receivers[0]]
    np.testing.assert_array_equal(
        np.abs(visiting(receivers=some).samples(0, 5000)), np.abs(visiting().samples(0, 5000))[[2, 0]]
    )


def test_a_channel_data_set_from_its_file(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **{field.name: getattr(CHANNELS, field.name) for field in dataclasses.fields(CHANNELS)})
    read = visiting(channels=None, channels_file=str(path), channel_rows=(1,))
    np.testing.assert_array_equal(read.samples(0, 5000), visiting(channel_rows=(1,)).samples(0, 5000))
    with pytest.raises(SourceError, match=r"missing\.npz: no such file"):
        visiting(channels=None, channels_file=str(tmp_path / "missing.npz"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"channel_rows": (0, 4)}, r"scene\.channel_rows=4: the channel data set has rows 0 to 3"),
        ({"channel_rows": (-1,)}, r"scene\.channel_rows\.0=-1"),
        ({"receivers": [Place("d", 48.1, 11.5)]}, "receiver d: not in the channel data set.*a, b, c"),
        ({"receivers": [Place("a", 48.11, 11.5, 540.0)]}, "receiver a at 48.11000, 11.5.*1112 m away"),
        ({"track": STILL}, r"scene: track=.*means nothing with a channel data set"),
        ({"speed_mps": 3.0}, r"scene: speed_mps=3\.0: means nothing with a channel data set"),
        ({"shadowing_db": 3.0}, r"scene: shadowing_db=3\.0: means nothing"),
        ({"channels": None}, r"scene\.channel_rows=\[0\]: `channels` must name"),
        ({"channels": dataclasses.replace(CHANNELS, frequency_hz=2.4e9)}, "frequency_hz=4.3392e.08.*holds for 2.4e.09"),
    ],
)
def test_what_a_channel_data_set_cannot_do_is_refused(fields, match):
    with pytest.raises(ConfigError, match=match):
        visiting(**fields)


def test_fields_that_would_do_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"scene: dwell_s=2\.0: means nothing without `channels`"):
        scene(dwell_s=2.0)
    with pytest.raises(ConfigError, match=r"scene\.track: says nothing where a channel data set is handed over"):
        Scene(
            SceneConfig(track=STILL),
            CHANNELS.receivers,
            sample_rate_hz=1e6,
            frequency_hz=FREQUENCY_HZ,
            channels=CHANNELS,
        )


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


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_shadowing_of_receivers_is_correlated_as_told(correlation):
    draws = np.array([shadowing(seed, 3, correlation)(np.array([47.0]), np.array([8.0]))[:, 0] for seed in range(2000)])
    np.testing.assert_allclose(draws.std(axis=0), 6.0, rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(draws.T)[~np.eye(3, dtype=bool)], correlation, atol=0.06)


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


def test_a_further_emitter_is_heard_at_its_offset_from_its_own_place():
    """Alone it is the scene of its own, turned to its place in the band; beside another both add up."""
    other = {"track": [(47.08, 8.25)], "frequency_offset_hz": 200e3, "bandwidth_hz": 50e3, "waveform": "qpsk"}
    flaws = {"clock_drift_ppb": 20e3, "shared_oscillator": True, "clock_offset_ns": 2000.0}
    alone = scene(waveform="none", also=[other], **flaws)
    heard = alone.samples(0, 65536)
    frequency_hz = np.fft.fftfreq(65536, 1e-6)
    power = np.abs(np.fft.fft(heard, axis=1)) ** 2
    inside = np.abs(frequency_hz - 200e3) < 25e3 + 5 * 20e-6 * FREQUENCY_HZ
    assert (power[:, inside].sum(axis=1) > 0.97 * power.sum(axis=1)).all()
    main = scene(bandwidth_hz=100e3, **flaws).samples(0, 65536)
    both = scene(bandwidth_hz=100e3, also=[other], **flaws).samples(0, 65536)
    np.testing.assert_allclose(both, main + heard, atol=1e-6)
    np.testing.assert_allclose(alone.truth(alone.config.start_time.timestamp(), emitter=1), (47.08, 8.25))


def test_two_further_emitters_send_different_things():
    other = {"track": STILL, "bandwidth_hz": 100e3}
    built = [scene(waveform="none", also=[other] * count).samples(0, 65536) for count in (1, 2)]
    first, second = built[0][0], built[1][0] - built[0][0]
    assert abs(np.vdot(first, second)) < 0.05 * np.linalg.norm(first) * np.linalg.norm(second)


def test_a_further_emitter_is_silent_in_its_pauses():
    other = {"track": STILL, "pauses_s": [(0.02, 0.04)]}
    heard = scene(waveform="none", also=[other]).samples(0, 60_000)
    assert np.abs(heard[:, 20_200:39_900]).max() < 1e-9 < np.abs(heard[:, :19_000]).mean()
    assert np.abs(heard[:, 41_000:]).mean() > 1e-9


@pytest.mark.parametrize("jitter_ns", [0.0, 500.0])
def test_one_crystal_turns_the_carrier_as_far_as_its_clock_is_late(jitter_ns):
    """An emitter in the middle of the band, an unmodulated carrier: its phase is the clock's error times frequency."""
    fields = {"waveform": "am", "bandwidth_hz": 30.0, "clock_drift_ppb": 20e3, "timing_jitter_ns": jitter_ns}
    fields |= {"level_dbfs_at_1km": 0.0, "path_loss_exponent": 0.0}
    tied = scene(100e3, shared_oscillator=True, **fields)
    loose = scene(100e3, **fields)
    turned = np.angle(tied.samples(0, 50_000)[:, ::2] * loose.samples(0, 50_000)[:, ::2].conj())
    cycles = np.unwrap(turned, axis=1) / (2 * np.pi)
    late_s = tied.errors.clock_s(np.arange(0, 50_000, 2) / 100e3)
    wanted = FREQUENCY_HZ * (late_s - late_s[:, :1])
    np.testing.assert_allclose(cycles - cycles[:, :1], wanted, atol=0.02)
    assert np.abs(wanted).max() > 1000.0


def test_further_emitters_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="frequency_offset_hz=390000"):
        scene(also=[{"track": STILL, "frequency_offset_hz": 390e3, "bandwidth_hz": 50e3}])
    with pytest.raises(ConfigError, match=r"scene\.also\.0\.track"):
        scene(also=[{}])
    with pytest.raises(ConfigError, match="a span ends after it begins"):
        scene(also=[{"track": STILL, "pauses_s": [(2.0, 1.0)]}])
