"""Features of labelled windows are those of the flowgraph: one recording both ways, compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize.pmt_codec import fix_from_pmt
from localize_core.dataset.recordings import recording_windows
from localize_core.dataset.windows import Windows
from localize_core.model.onnx_model import OnnxModel
from localize_core.station.config import Station, load_station, parse_station
from localize_core.types.fix import Fix, Position

RATE = 12e3
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "dcf77.toml"
STATION = """
[station]
name = "parity"
sample_rate_hz = 12e3
frequency_hz = 77.5e3
[area]
south = 46.0
west = 7.0
north = 49.0
east = 10.0
[propagation]
timing_sigma_ns = 1000.0
[features]
channels = {channels}
window_s = 1.5
window_hop_s = 0.7
{more}
"""
RECEIVER = """
[[receiver]]
name = "r{k}"
latitude = {latitude}
longitude = 8.{k}
timing_sigma_ns = 1000.0
source = {{ kind = "sigmf", path = "r{k}.sigmf-meta" }}
"""
PLACE = Position(47.5, 8.5)


def station_in(folder: Path, receivers: int, *channels: str, more: str = "") -> Station:
    text = STATION.format(channels=list(channels), more=more)
    text += "".join(RECEIVER.format(k=k, latitude=46.5 + k) for k in range(receivers))
    return parse_station(text, folder=folder)


@pytest.fixture
def played(model_cache, monkeypatch) -> Callable[[Station], tuple[np.ndarray, list[Fix]]]:
    """Runs a station's flowgraph; gives what its model was fed, (n, channels, rows, time_steps), and the fixes."""

    def play(station: Station) -> tuple[np.ndarray, list[Fix]]:
        graph, fixes = gr.top_block(), blocks.message_debug()
        locate = localize.localizer(station, n_receivers=len(station.receiver))
        paths = [receiver.source.path for receiver in station.receiver]
        sources = [
            localize.kiwi_wav_source(path) if path.suffix == ".wav" else localize.sigmf_source(path) for path in paths
        ]
        for port, source in enumerate(sources):
            graph.connect(source, (locate, port))
        graph.msg_connect(locate, "fix", fixes, "store")
        fed: list[np.ndarray] = []
        run = OnnxModel.run

        def recorded(model: OnnxModel, features: np.ndarray):
            fed.append(features.copy())
            return run(model, features)

        with monkeypatch.context() as patch:
            patch.setattr(OnnxModel, "run", recorded)
            graph.run()
        assert locate.failure is None
        return np.concatenate(fed), [fix_from_pmt(fixes.get_message(k)) for k in range(fixes.num_messages())]

    return play


def all_of(station: Station, truth: Position | Path = PLACE) -> Windows:
    # One block of time: of several, the first windows would be left out that share frames with the block before.
    source = recording_windows(station, truth, block_windows=10**9)
    windows = Windows.concatenate(list(source.batches(3)))
    assert len(windows) == len(source)
    return windows


def recorded(k: int, seconds: float, *, offset: int = 0) -> np.ndarray:
    """One signal that every receiver hears in its own noise, from sample `offset` of the signal on."""
    count = round(seconds * RATE)
    rng = np.random.default_rng(99)
    signal = 0.2 * (rng.standard_normal(200_000) + 1j * rng.standard_normal(200_000))
    own = np.random.default_rng(k)
    noise = 0.05 * (own.standard_normal(count) + 1j * own.standard_normal(count))
    return (signal[offset : offset + count] + noise).astype(np.complex64)


def start(k: int) -> str:
    """When recording k began: neither together nor on one grid."""
    return ("2026-01-02T03:04:05.1000000Z", "2026-01-02T03:04:05.4876543Z", "2026-01-02T03:04:04.9999917Z")[k]


@pytest.fixture
def three(tmp_path, write_sigmf) -> Path:
    """Three receivers of different types, rates (a little) and starts; the second lost 0.2 s."""
    for k, (datatype, ppm) in enumerate((("cf32_le", 0.0), ("ci16_le", 9.0), ("cu8", -7.0))):
        samples = recorded(k, 9.0, offset=100 * k)
        captures = [(0, start(k), 77.5e3)]
        if k == 1:
            captures.append((40_000, "2026-01-02T03:04:09.0209576Z", 77.5e3))
        write_sigmf(tmp_path / f"r{k}", samples, rate_hz=RATE * (1 + ppm * 1e-6), datatype=datatype, captures=captures)
    return tmp_path


@pytest.mark.parametrize(
    ("channels", "more"),
    [
        (("cross_correlation",), ""),
        (("log_mel",), "n_fft = 512\nhop = 100"),
        (("log_mel",), "n_fft = 256\nhop = 400\nrows = 32"),
        (("log_mel", "cross_correlation"), ""),
        (("cross_correlation",), 'signal = "envelope"\nweighting = "phat"\nhop = 1500'),
    ],
)
def test_three_recordings(three, played, channels, more):
    station = station_in(three, 3, *channels, more=more)
    fed, fixes = played(station)
    windows = all_of(station)
    assert len(fed) >= 8
    assert windows.features.dtype == fed.dtype == np.float32
    assert np.array_equal(windows.features, fed)
    assert windows.usable.all()
    levels = [[report.level_db for report in fix.receivers] for fix in fixes]
    assert np.array_equal(windows.level_db, levels)


def test_a_loss_that_all_skip(three, played, write_sigmf):
    """The second receiver lost 2 s: windows reach across, and their times with them."""
    captures = [(0, start(1), None), (40_000, "2026-01-02T03:04:10.8209876Z", None)]
    write_sigmf(three / "r1", recorded(1, 9.0, offset=100), captures=captures, rate_hz=RATE)
    truth = three / "truth.csv"
    truth.write_text("timestamp,latitude,longitude\n2026-01-02T03:04:00Z,47.0,8.5\n2026-01-02T03:04:30Z,47.3,8.5")
    station = station_in(three, 3, "cross_correlation")
    fed, fixes = played(station)
    windows = all_of(station, truth)
    assert fixes[-1].alignment.gaps_skipped == 1
    assert np.array_equal(windows.features, fed)
    latitude, _ = recording_windows(station, truth).contract.frame.local.to_wgs84(windows.truth_m)
    seconds = np.array([fix.timestamp.second + fix.timestamp.microsecond * 1e-6 for fix in fixes])
    assert np.diff(seconds).max() > 2.0
    assert latitude == pytest.approx(47.0 + 0.01 * seconds, abs=1e-8)


def test_a_recording_without_time_and_a_silent_one(three, played, write_sigmf):
    """The one is in no correlation, the other nowhere: both ways."""
    write_sigmf(three / "r0", recorded(0, 9.0))
    silent = recorded(2, 9.0)
    silent[50_000:] = 0.0
    write_sigmf(three / "r2", silent, rate_hz=RATE, captures=[(0, start(2), None)])
    write_sigmf(three / "r0", recorded(0, 9.0), rate_hz=RATE)
    station = station_in(three, 3, "log_mel", "cross_correlation")
    fed, fixes = played(station)
    windows = all_of(station)
    used = np.array([[report.used for report in fix.receivers] for fix in fixes])
    assert np.array_equal(windows.usable, used)
    assert not used[-1, 2]
    refused = np.array([fix.reason == "too_few_receivers" for fix in fixes])
    assert refused[-1]
    assert not refused[0]
    assert np.array_equal(windows.features[~refused], fed)
    assert (windows.features[0, 3:5] == 0.0).all()
    assert windows.features[0, 5].any()


def test_one_receiver(three, played):
    station = station_in(three, 1, "log_mel")
    fed, _ = played(station)
    assert np.array_equal(all_of(station).features, fed)


def test_truth_is_that_of_the_time_that_a_fix_carries(three, played):
    """The emitter drives north by 0.01 degrees a second."""
    truth = three / "truth.csv"
    rows = ["timestamp,latitude,longitude", "2026-01-02T03:04:00Z,47.0,8.5", "2026-01-02T03:04:30Z,47.3,8.5"]
    truth.write_text("\n".join(rows))
    station = station_in(three, 3, "cross_correlation")
    _, fixes = played(station)
    windows = all_of(station, truth)
    source = recording_windows(station, truth)
    latitude, _ = source.contract.frame.local.to_wgs84(windows.truth_m)
    seconds = [fix.timestamp.second + fix.timestamp.microsecond * 1e-6 for fix in fixes]
    assert latitude == pytest.approx(47.0 + 0.01 * np.array(seconds), abs=1e-8)


def test_the_real_recordings(data_dir, played):
    station = load_station(EXAMPLE, folder=data_dir / "kiwi-dcf77")
    station = station.model_copy(
        update={"features": station.features.model_copy(update={"window_s": 6.0, "window_hop_s": 3.0})}
    )
    fed, _ = played(station)
    windows = all_of(station, Position(50.0152, 9.0112))
    assert len(fed) >= 7
    assert np.array_equal(windows.features, fed)
