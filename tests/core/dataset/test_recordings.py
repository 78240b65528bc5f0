"""Labelled windows of recordings: frames, labels, groups, and recordings and truths that do not go together.

That the features are those of the flowgraph is in tests/blocks/test_feature_parity.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_core.dataset.recordings import Dropped, RecordingWindows, recording_windows
from localize_core.dataset.windows import Label, Windows
from localize_core.errors import ConfigError, SourceError
from localize_core.features.mel import MelSpectrogram
from localize_core.model.contract import Contract, Frame
from localize_core.station.config import Station, parse_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Position
from pyproj import Geod

RATE = 8000.0
START_S = 1_767_323_045
"""2026-01-02T03:04:05Z."""
WGS84 = Geod(ellps="WGS84")
PLACE = Position(47.2, 8.2)
HEAD = "timestamp,latitude,longitude,emitter"


@pytest.fixture
def recorded(tmp_path, write_sigmf) -> Callable[..., Station]:
    """Writes recordings of noise, `seconds` long and `starts_s` after START_S, and gives their station."""

    def make(
        seconds: float = 10.0,
        starts_s: tuple[float, ...] = (0.0, 0.3, 0.1),
        *,
        name: str = "day",
        rates_hz: tuple[float, ...] = (RATE,) * 3,
        features: str = 'channels = ["log_mel"]\nwindow_s = 0.5\nwindow_hop_s = 0.5',
        timed: bool = True,
        east: float = 8.5,
        names: tuple[str, ...] = ("r0", "r1", "r2"),
        shift: float = 0.0,
    ) -> Station:
        lines = [f'[station]\nname = "{name}"\nsample_rate_hz = {RATE}\nfrequency_hz = 100e6\ncommon_clock = true']
        lines.append(f"[area]\nsouth = 47.0\nwest = 8.0\nnorth = 47.5\neast = {east}\n[features]\n{features}")
        for k, (start_s, rate_hz) in enumerate(zip(starts_s, rates_hz, strict=True)):
            rng = np.random.default_rng(k)
            count = round(seconds * rate_hz)
            samples = 0.1 * (rng.standard_normal(count) + 1j * rng.standard_normal(count)).astype(np.complex64)
            minutes, rest = divmod(4 * 60 + 5 + start_s, 60)
            time = f"2026-01-02T03:{minutes:02.0f}:{rest:010.7f}Z" if timed else None
            write_sigmf(tmp_path / f"{name}{k}", samples, rate_hz=rate_hz, captures=[(0, time, 100e6)])
            lines.append(f'[[receiver]]\nname = "{names[k]}"\nlatitude = {47.1 + 0.1 * k + shift}\nlongitude = 8.1')
            lines.append(f'source = {{ kind = "sigmf", path = "{name}{k}.sigmf-meta" }}')
        return parse_station("\n".join(lines), folder=tmp_path)

    return make


@pytest.fixture
def truth_of(tmp_path) -> Callable[..., Path]:
    """Writes rows of seconds after START_S and the rest of a line."""

    def write(*rows: tuple[float, str], name: str = "truth.csv", head: str = HEAD) -> Path:
        path = tmp_path / name
        path.write_text("\n".join([head, *(f"{START_S + seconds},{rest}" for seconds, rest in rows)]))
        return path

    return write


def all_of(source: RecordingWindows, size: int = 7) -> Windows:
    return Windows.concatenate(list(source.batches(size)))


def centres_s(station: Station, source: RecordingWindows, count: int, start_s: float) -> np.ndarray:
    """Centre times after START_S by definition: the middle of the samples that the frames of each window span."""
    contract, plan = source.contract, plan_station(station)
    warmup = -(-contract.n_fft // contract.hop) - 1
    first = warmup + np.arange(count) * plan.window_hop
    last_sample = (first + source.time_steps) * contract.hop
    first_sample = (first + 1) * contract.hop - contract.n_fft
    return start_s + (first_sample + last_sample) / 2.0 / RATE


def test_shapes_and_what_is_known(recorded):
    source = recording_windows(recorded(), PLACE)
    windows = all_of(source)
    count = len(windows)
    assert len(source) == count >= 15
    assert source.dropped == Dropped()
    assert windows.features.shape == (count, 3, source.contract.rows, source.time_steps)
    assert windows.features.dtype == np.float32
    assert windows.level_db == pytest.approx(np.full((count, 3), 10 * np.log10(0.02)), abs=0.3)
    assert np.isnan(windows.snr_db).all()
    assert windows.snr_db.shape == (count, 3)
    assert np.isnan(windows.bandwidth_hz).all()
    assert (windows.usable == np.ones((count, 3), bool)).all()
    assert (windows.label == Label.INSIDE).all()
    assert (windows.source == 0).all()
    frame = source.contract.frame
    azimuth, _, distance_m = WGS84.inv(frame.longitude, frame.latitude, PLACE.longitude, PLACE.latitude)
    east_north = distance_m * np.array([np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))])
    assert windows.truth_m == pytest.approx(np.tile(east_north, (count, 1)), abs=0.1)


def test_the_same_every_time_and_whatever_the_batches(recorded):
    source = recording_windows(recorded(), PLACE)
    sizes = [len(batch) for batch in source.batches(4)]
    assert set(sizes[:-1]) == {4}
    assert sum(sizes) == len(source)
    first, second = all_of(source, 4), all_of(source, 1000)
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.group, second.group)
    with pytest.raises(ConfigError, match="size=0"):
        next(source.batches(0))


def test_frames_of_one_receiver_by_definition(recorded):
    """Frame i covers the n_fft samples that end with sample (i + 1) * hop - 1; windows begin after the warm-up."""
    features = 'channels = ["log_mel"]\nn_fft = 512\nhop = 200\nrows = 64\nwindow_s = 0.5\nwindow_hop_s = 0.4'
    station = recorded(starts_s=(0.0,), rates_hz=(RATE,), features=features)
    source = recording_windows(station, PLACE, block_windows=1000)
    contract = source.contract
    assert contract.mel_config is not None
    samples = np.fromfile(station.receiver[0].source.path.with_suffix(".sigmf-data"), np.complex64)
    spectrogram = MelSpectrogram(contract.mel_config)
    expected = np.concatenate([spectrogram(samples[k : k + 512]) for k in range(88, len(samples) - 511, 200)]).T
    windows = all_of(source)
    assert len(windows) == (len(samples) // 200 - 2 - source.time_steps) // 16 + 1
    for number, features_ in enumerate(windows.features):
        # Frame 2, the first whole one, begins with sample 88.
        assert np.array_equal(features_[0], expected[:, 16 * number : 16 * number + source.time_steps])


def test_truth_at_the_centre_of_each_window(recorded, truth_of):
    """The emitter drives east by a thousandth of a degree a second."""
    station = recorded()
    truth = truth_of((0.0, "47.2,8.2,1"), (20.0, "47.2,8.22,1"))
    source = recording_windows(station, truth)
    windows = all_of(source)
    _, longitude = source.contract.frame.local.to_wgs84(windows.truth_m)
    expected = 8.2 + 1e-3 * centres_s(station, source, len(windows), 0.3)
    assert longitude == pytest.approx(expected, abs=1e-9)


def test_labels(recorded, truth_of):
    """Inside until 3 s, silent until 5 s, then outside the area; no truth more than a step after 7 s."""
    station = recorded()
    truth = truth_of((0.0, "47.2,8.2,1"), (2.9, "47.2,8.2,1"), (3.0, ",,0"), (5.0, "47.6,8.2,1"), (7.0, "47.6,8.2,1"))
    # Between the last place inside and the first outside lies the silence.
    source = recording_windows(station, truth, block_windows=1000)
    windows = all_of(source)
    total = len(recording_windows(station, PLACE, block_windows=1000))
    centre_s = centres_s(station, source, total, 0.3)
    overhang = source.contract.n_fft - source.contract.hop
    half_s = (source.time_steps * source.contract.hop + overhang) / 2.0 / RATE
    switching = (np.abs(centre_s - 3.0) < half_s) | (np.abs(centre_s - 5.0) < half_s)
    outside_truth = centre_s > 9.0
    expected = np.where(centre_s < 3.0, Label.INSIDE, np.where(centre_s < 5.0, Label.NONE, Label.OUTSIDE))
    assert windows.label.tolist() == expected[~switching & ~outside_truth].tolist()
    assert source.dropped == Dropped(outside_truth=int(outside_truth.sum()), switching=int(switching.sum()))
    assert source.dropped.outside_truth >= 1
    assert source.dropped.switching >= 2
    assert np.isnan(windows.truth_m).all(axis=1).tolist() == (windows.label == Label.NONE).tolist()
    latitude, _ = source.contract.frame.local.to_wgs84(windows.truth_m[windows.label == Label.OUTSIDE])
    assert latitude == pytest.approx(47.6)


def test_an_area_across_the_antimeridian(recorded, truth_of):
    station = recorded()
    area = station.area.model_copy(update={"west": 179.9, "east": 180.1})
    receivers = [r.model_copy(update={"longitude": 179.95}) for r in station.receiver]
    station = station.model_copy(update={"area": area, "receiver": receivers})
    for longitude, label in ((-179.95, Label.INSIDE), (179.95, Label.INSIDE), (-179.8, Label.OUTSIDE)):
        windows = all_of(recording_windows(station, Position(47.2, longitude)))
        assert (windows.label == label).all()


@pytest.mark.parametrize(("asked", "size"), [(None, 10), (4, 4), (1, 1)])
def test_groups_are_blocks_of_time(recorded, asked, size):
    windows = all_of(recording_windows(recorded(), PLACE, block_windows=asked))
    assert windows.group.tolist() == [number // size for number in range(len(windows))]


def test_a_tenth_of_a_long_recording_is_a_block(recorded):
    windows = all_of(recording_windows(recorded(61.0), PLACE))
    assert len(windows) > 110
    assert np.bincount(windows.group).tolist() == [12] * (len(windows) // 12) + [len(windows) % 12] * (
        len(windows) % 12 > 0
    )


def test_no_block_shares_frames_with_another(recorded):
    """Windows overlap by three quarters: the first three of a block reach into the one before."""
    features = 'channels = ["log_mel"]\nwindow_s = 0.4\nwindow_hop_s = 0.1\nn_fft = 256\nhop = 64\nrows = 32'
    station = recorded(features=features)
    plan = plan_station(station)
    source = recording_windows(station, PLACE, block_windows=20)
    windows = all_of(source)
    whole = all_of(recording_windows(station, PLACE, block_windows=10_000))
    overlap = -(-plan.time_steps // plan.window_hop)
    kept = [n for n in range(len(whole)) if n < 20 or n % 20 >= overlap - 1]
    assert overlap >= 4
    assert source.dropped.shared == len(whole) - len(kept)
    assert np.array_equal(windows.features, whole.features[kept])
    first, last = (
        [group[edge] for group in np.split(kept, np.flatnonzero(np.diff(windows.group)) + 1)] for edge in (0, -1)
    )
    for begins, ended in zip(first[1:], last[:-1], strict=True):
        assert begins * plan.window_hop >= ended * plan.window_hop + plan.time_steps


def test_several_recordings_of_a_station(recorded, truth_of):
    """Two days, each with its own truth; the second shorter."""
    days = [recorded(10.0, name="one"), recorded(6.0, name="two", starts_s=(20.0, 20.0, 20.0))]
    truths = [
        truth_of((0.0, "47.2,8.2,1"), (10.0, "47.2,8.2,1"), name="one.csv"),
        truth_of((20.0, "47.3,8.2,1"), (30.0, "47.3,8.2,1"), name="two.csv"),
    ]
    source = recording_windows(days, truths, block_windows=5)
    windows = all_of(source)
    parts = [all_of(recording_windows(day, truth, block_windows=5)) for day, truth in zip(days, truths, strict=True)]
    assert np.array_equal(windows.features, np.concatenate([part.features for part in parts]))
    assert np.array_equal(windows.truth_m, np.concatenate([part.truth_m for part in parts]))
    assert windows.source.tolist() == [0] * len(parts[0]) + [1] * len(parts[1])
    assert not {*windows.group[windows.source == 0]} & {*windows.group[windows.source == 1]}
    both = truth_of((0.0, "47.2,8.2,1"), (15.0, "47.2,8.2,1"), (30.0, "47.2,8.2,1"))
    assert len(recording_windows(days, both)) == len(windows)
    with pytest.raises(ConfigError, match="3 truths for 2 recordings of the station"):
        recording_windows(days, [*truths, both])


def test_windows_as_a_given_model_wants_them(recorded, make_contract):
    contract = fitting(make_contract, time_steps=20)
    source = recording_windows(recorded(features=""), PLACE, contract=contract)
    windows = all_of(source)
    assert source.contract == contract
    assert windows.features.shape[1:] == (6, 16, 20)
    # (80,000 - 2400) samples in hops of 64 less the warm-up frame, 20 in a window
    assert len(source) == (77_600 // 64 - 1) // 20


def fitting(make_contract: Callable[..., Contract], **changes: Any) -> Contract:
    """A contract for the receivers that `recorded` makes."""
    receivers = tuple(
        receiver.model_copy(update={"latitude": 47.1 + 0.1 * k, "longitude": 8.1})
        for k, receiver in enumerate(make_contract(3).receivers)
    )
    frame = Frame(kind="enu_m", latitude=47.25, longitude=8.25)
    return make_contract(3, **({"receivers": receivers, "frame": frame} | changes))


def test_lost_samples_and_receivers(recorded, write_sigmf, tmp_path):
    """One receiver is silent half the time: its channel is at the floor there, its own and no other."""
    station = recorded()
    data = station.receiver[1].source.path.with_suffix(".sigmf-data")
    samples = np.fromfile(data, np.complex64)
    samples[40_000:] = 0.0
    data.write_bytes(samples.tobytes())
    source = recording_windows(station, PLACE)
    windows = all_of(source)
    assert windows.usable[:, [0, 2]].all()
    assert windows.usable[0, 1]
    assert not windows.usable[-1, 1]
    assert source.contract.mel_config is not None
    floor = np.float32(np.log(source.contract.mel_config.log_offset))
    assert (windows.features[~windows.usable[:, 1], 1] == floor).all()
    assert (windows.features[:, [0, 2]] > floor).any()
    assert windows.level_db[-1, 1] == -200.0


def test_stations_without_recordings(recorded):
    station = recorded()
    receivers = [r.model_copy(update={"source": None}) for r in station.receiver]
    with pytest.raises(ConfigError, match=r"receiver r0\.source: labelled windows need recordings, .*found 'none'"):
        recording_windows(station.model_copy(update={"receiver": receivers}), PLACE)
    with pytest.raises(ConfigError, match="no station"):
        recording_windows([], PLACE)


def test_rates_that_differ(recorded):
    with pytest.raises(ConfigError, match=r"station\.sample_rate_hz=8000: .*day1\.sigmf-meta has 9600"):
        recording_windows(recorded(rates_hz=(RATE, 9600.0, RATE)), PLACE)


def test_recordings_that_share_no_time(recorded):
    with pytest.raises(ConfigError, match=r"day2\.sigmf-meta starts after .*day0\.sigmf-meta has ended"):
        recording_windows(recorded(starts_s=(0.0, 0.0, 20.0)), PLACE)


def test_recordings_that_do_not_say_when(recorded):
    with pytest.raises(SourceError, match=r"day0\.sigmf-meta: .*does not say when it was made"):
        recording_windows(recorded(timed=False), PLACE)


def test_recordings_that_are_shorter_than_a_window(recorded, make_contract):
    contract = fitting(make_contract, time_steps=2000)
    with pytest.raises(SourceError, match=r"share too little time for a window of 2000 frames, 16\.01 s"):
        recording_windows(recorded(features=""), PLACE, contract=contract)


def test_a_short_recording_beside_a_long_one(recorded):
    days = [recorded(name="one"), recorded(0.6, name="two")]
    message = r"the station of .*two0\.sigmf-meta, .*: features\.window_s=0\.5: the recordings share only 0\.3 s"
    with pytest.raises(ConfigError, match=message):
        recording_windows(days, PLACE)


def test_a_truth_of_another_time(recorded, truth_of):
    truth = truth_of((1000.0, "47.2,8.2,1"), (1010.0, "47.2,8.2,1"))
    message = (
        r"none of the \d+ windows of the recordings has a label: \d+ lie outside the truth's time "
        rf"\(recorded from {START_S}\.\d+ to {START_S + 9}\.\d+, truth: .*truth\.csv, from {START_S + 1000}\.000"
    )
    with pytest.raises(SourceError, match=message):
        recording_windows(recorded(), truth)


def test_a_truth_that_lacks_a_column(recorded, truth_of):
    with pytest.raises(SourceError, match=r"truth\.csv, line 1: no column longitude"):
        recording_windows(recorded(), truth_of((0.0, "47.2"), head="timestamp,latitude"))


def test_receivers_that_are_not_the_stations(recorded, make_contract):
    station = recorded(features="")
    contract = fitting(make_contract, receivers=make_contract(3).receivers)
    with pytest.raises(ConfigError, match=r"receiver r0 at 47\.1, 8\.1: the model tiny was made for 47, 8"):
        recording_windows(station, PLACE, contract=contract)
    first = recorded(name="one")
    with pytest.raises(ConfigError, match="receivers a, b, c: the model compiled-one wants r0, r1, r2"):
        recording_windows([first, recorded(name="two", names=("a", "b", "c"))], PLACE)
    with pytest.raises(ConfigError, match=r"receiver r0 at 47\.11, 8\.1: the model compiled-one was made for 47\.1"):
        recording_windows([first, recorded(name="two", shift=0.01)], PLACE)


def test_a_model_that_answers_in_degrees(recorded, make_contract):
    contract = fitting(make_contract, frame=Frame(kind="wgs84_deg"))
    with pytest.raises(ConfigError, match="tiny answers in wgs84_deg: windows are labelled in metres, enu_m"):
        recording_windows(recorded(features=""), PLACE, contract=contract)


def test_a_block_of_nothing(recorded):
    with pytest.raises(ConfigError, match="block_windows=0: must be at least 1"):
        recording_windows(recorded(), PLACE, block_windows=0)


def test_without_gnu_radio():
    code = "import sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None; import localize_core.dataset.recordings"
    subprocess.run([sys.executable, "-c", code], check=True)
