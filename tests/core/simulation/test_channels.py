from __future__ import annotations

import re

import numpy as np
import pytest
from localize_core.errors import SourceError
from localize_core.simulation.channels import load_channels
from pyproj import Geod, Transformer

TO_ECEF = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
LIGHT_M_PER_NS = 0.299792458


def fields(**changes):
    """A set of three places, two receivers and two paths; None leaves a field out."""
    gain = np.array([[[3, 4j], [0, 1]], [[1, 0], [0, 0]], [[0.5j, 0], [2, 0]]], np.complex64)
    content = {
        "receivers_enu_m": np.array([[0.0, 0.0, 20.0], [1000.0, 0.0, 30.0]]),
        "transmitters_enu_m": np.array([[100.0, 0.0, 1.5], [200.0, 50.0, 1.5], [300.0, 0.0, 1.5]]),
        "tap_gain": gain,
        "tap_delay_ns": np.where(gain != 0, 500.0, -1e9).astype(np.float32),
        "noise_gain": np.float32(0.5),
        "frequency_hz": np.float64(2.4e9),
        "origin_wgs84": np.array([48.0, 11.0, 500.0]),
        "receiver_names": np.array(["a", "b"]),
    } | changes
    return {name: value for name, value in content.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    def make(**changes):
        np.savez(tmp_path / "set.npz", **fields(**changes))
        return tmp_path / "set.npz"

    return make


def changed(name, index, value):
    array = fields()[name].copy()
    array[index] = value
    return {name: array}


def test_fields_and_what_follows_from_them(write):
    channels = load_channels(write())
    assert len(channels) == 3
    types = [getattr(channels, name).dtype.name for name in fields() if isinstance(getattr(channels, name), np.ndarray)]
    assert types == ["float64", "float64", "complex64", "float32"]
    assert (channels.noise_gain, channels.frequency_hz, channels.receiver_names) == (0.5, 2.4e9, ("a", "b"))
    np.testing.assert_allclose(channels.level_db, [[20.0, 6.0206], [6.0206, -np.inf], [0.0, 12.0412]], atol=1e-4)
    assert channels.has_delays
    assert channels.tap_delay_ns.min() == 0.0, "what stands where no path is does not matter"


def test_places_on_wgs84_are_where_the_file_says(write):
    """Distances between places by Earth-centred coordinates, and heights by the ellipsoid."""
    channels = load_channels(write())
    latitude, longitude, altitude_m = channels.transmitters_wgs84
    here = np.array([TO_ECEF.transform(r.longitude, r.latitude, r.altitude_m) for r in channels.receivers])
    there = np.stack(TO_ECEF.transform(longitude, latitude, altitude_m), axis=-1)
    expected_m = np.linalg.norm(channels.transmitters_enu_m[:, None] - channels.receivers_enu_m, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(there[:, None] - here, axis=-1), expected_m, atol=1e-6)
    assert [place.name for place in channels.receivers] == ["a", "b"]
    assert channels.receivers[0].altitude_m == pytest.approx(520.0, abs=1e-6)
    azimuth, _, distance_m = Geod(ellps="WGS84").inv(11.0, 48.0, longitude[2], latitude[2])
    assert (azimuth, distance_m) == (pytest.approx(90.0, abs=0.01), pytest.approx(300.0, abs=0.1))


def test_names_are_optional(write):
    assert load_channels(write(receiver_names=None)).receiver_names == ("r0", "r1")


def test_delays_of_zero_mean_levels_only(write):
    assert not load_channels(write(tap_delay_ns=np.zeros((3, 2, 2), np.float32))).has_delays


@pytest.mark.parametrize("rows", [[2, 0], np.array([True, False, True])])
def test_selected_rows(write, rows):
    channels = load_channels(write())
    some = channels.select(rows)
    order = np.arange(3)[np.asarray(rows)]
    np.testing.assert_array_equal(some.tap_gain, channels.tap_gain[order])
    np.testing.assert_array_equal(some.tap_delay_ns, channels.tap_delay_ns[order])
    np.testing.assert_array_equal(some.level_db, channels.level_db[order])
    np.testing.assert_array_equal(some.transmitters_wgs84[0], channels.transmitters_wgs84[0][order])


def test_ray_traced_city(data_dir):
    """No path is shorter than the straight line, and some paths are the straight line."""
    channels = load_channels(data_dir / "munich-raytrace" / "train.npz")
    assert (channels.tap_gain.shape, channels.has_delays) == ((1584, 6, 12), True)
    straight_m = np.linalg.norm(channels.transmitters_enu_m[:, None] - channels.receivers_enu_m, axis=-1)
    first_ns = np.where(channels.tap_gain != 0, channels.tap_delay_ns, np.inf).min(axis=-1)
    excess_m = first_ns * LIGHT_M_PER_NS - straight_m
    assert excess_m.min() > -0.01
    assert np.mean(excess_m < 0.1) > 0.05
    assert np.all(np.isfinite(channels.level_db).sum(axis=1) >= 4)


def test_measured_levels(data_dir):
    channels = load_channels(data_dir / "powder-rss" / "train.npz")
    assert (channels.tap_gain.shape, channels.has_delays) == ((4180, 22, 1), False)
    assert "cnode-mario-dd-b210" in channels.receiver_names
    heard = np.isfinite(channels.level_db)
    assert 0.0 < heard.mean() < 1.0
    np.testing.assert_array_equal(heard, channels.tap_gain[..., 0] != 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: None}, f"{name}: missing.*expected") for name in fields() if name != "receiver_names"),
        ({"receivers_enu_m": np.zeros((2, 2))}, r"receivers_enu_m: shape \(2, 2\); expected \(R, 3\)"),
        ({"receivers_enu_m": np.zeros((0, 3))}, r"receivers_enu_m: shape \(0, 3\); expected at least one"),
        ({"receivers_enu_m": np.array([["a"] * 3] * 2)}, "receivers_enu_m: dtype <U1; expected real"),
        (changed("receivers_enu_m", (1, 2), np.inf), r"receivers_enu_m: inf at \(1, 2\), 1 of 6 not finite; expected"),
        ({"transmitters_enu_m": np.zeros(3)}, r"transmitters_enu_m: shape \(3,\); expected \(N, 3\)"),
        ({"transmitters_enu_m": np.zeros((1, 3))}, r"transmitters_enu_m: shape \(1, 3\); expected at least two pos"),
        (changed("transmitters_enu_m", (0, 0), np.nan), r"transmitters_enu_m: nan at \(0, 0\)"),
        ({"tap_gain": np.ones((3, 2), np.complex64)}, r"tap_gain: shape \(3, 2\); .*\(3, 2, 1 or more\)"),
        ({"tap_gain": np.ones((3, 4, 2), np.complex64)}, r"tap_gain: shape \(3, 4, 2\); .*\(3, 2, 1 or more\)"),
        ({"tap_gain": np.ones((3, 2, 0), np.complex64)}, r"tap_gain: shape \(3, 2, 0\)"),
        ({"tap_gain": np.ones((3, 2, 2), np.float32)}, "tap_gain: dtype float32; expected complex64"),
        (changed("tap_gain", (1, 0, 1), np.nan), r"tap_gain: .nan.* at \(1, 0, 1\), 1 of 12 not finite"),
        ({"tap_gain": np.zeros((3, 2, 2), np.complex64)}, "tap_gain: no path: all 12 gains are 0; expected at least"),
        ({"tap_delay_ns": np.zeros((3, 2, 1), np.float32)}, r"tap_delay_ns: shape \(3, 2, 1\); expected \(3, 2, 2\)"),
        ({"tap_delay_ns": np.zeros((3, 2, 2), complex)}, "tap_delay_ns: dtype complex128; expected real"),
        (changed("tap_delay_ns", (2, 1, 0), np.inf), r"tap_delay_ns: inf at \(2, 1, 0\)"),
        (changed("tap_delay_ns", (2, 1, 0), -3.0), r"tap_delay_ns: -3 ns at \(2, 1, 0\); expected 0 or more"),
        ({"noise_gain": 0.0}, "noise_gain: 0; expected a finite number above 0"),
        ({"noise_gain": np.ones(2)}, r"noise_gain: shape \(2,\); expected one number"),
        ({"noise_gain": "loud"}, "noise_gain: dtype <U4"),
        ({"frequency_hz": -1.0}, "frequency_hz: -1; expected"),
        ({"frequency_hz": np.nan}, "frequency_hz: nan; expected"),
        ({"origin_wgs84": np.zeros(2)}, r"origin_wgs84: shape \(2,\); expected \(3,\)"),
        ({"origin_wgs84": np.array([91.0, 0.0, 0.0])}, "origin_wgs84: 91, 0, 0; expected latitude"),
        ({"origin_wgs84": np.array([0.0, 0.0, np.nan])}, "origin_wgs84: 0, 0, nan; expected"),
        ({"receiver_names": np.array(["a"])}, r"receiver_names: shape \(1,\); expected \(2,\)"),
        ({"receiver_names": np.array(["a", "a"])}, "receiver_names: 'a' 2 times; expected names that differ"),
        ({"receiver_names": np.array(["a", ""])}, "receiver_names: an empty name at 1"),
        ({"receiver_names": np.arange(2)}, "receiver_names: dtype int64; expected text"),
        ({"receiver_names": np.array(["a", "b"], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_malformed_set_is_one_error(write, changes, message):
    path = write(**changes)
    with pytest.raises(SourceError, match=message) as caught:
        load_channels(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "cannot be read"),
        (b"not a set", "cannot be read"),
        (b"PK\x03\x04 cut off", "cannot be read"),
    ],
)
def test_an_unreadable_file_is_one_error(tmp_path, content, message):
    path = tmp_path / "set.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=f"^{re.escape(str(path))}: {message}"):
        load_channels(path)


def test_damaged_and_single_arrays(tmp_path, write):
    path = write()
    whole = bytearray(path.read_bytes())
    start = whole.index(b"\x93NUMPY", len(whole) // 3)
    whole[start : start + 40] = bytes(40)
    path.write_bytes(whole)
    with pytest.raises(SourceError, match=r"set\.npz: cannot be read"):
        load_channels(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(SourceError, match=r"one\.npy: a single array; expected"):
        load_channels(tmp_path / "one.npy")
    with pytest.raises(SourceError, match="cannot be read"):
        load_channels(tmp_path)
