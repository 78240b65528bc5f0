"""Real recordings end to end: DCF77 on 77.5 kHz, heard by three KiwiSDR receivers, as it was and degraded.

The transmitter's place is known. Whatever is done to the recordings, the answer is an ellipse that holds it, or no
position and the reason: never a confident miss.
"""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from localize_apps.graph import RunResult
from localize_apps.runner import run_station
from localize_core.errors import ConfigError
from localize_core.geodesy import GEOD
from localize_core.station.config import load_station
from localize_core.types.fix import Fix

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "dcf77.toml"
TRANSMITTER = (50.0152, 9.0112)
NAMES = ("HB9ODP", "JO51xl", "pa0rdt")
FILE = "20200813T065220Z_77500_{}_iq.wav"
BLOCK = 512
RATE = 12001.0


@dataclass(frozen=True)
class Recording:
    """A recording as its blocks: samples (blocks, 512) complex64, and the stamp of each: age, second of week, ns."""

    samples: np.ndarray
    stamps: list[tuple[int, int, int]] = field(repr=False)

    def blocks(self, *keep: slice) -> Recording:
        """Only these blocks."""
        chosen = [index for part in keep for index in range(*part.indices(len(self.stamps)))]
        return Recording(self.samples[chosen], [self.stamps[index] for index in chosen])


def read(path: Path) -> Recording:
    """A reader of its own: what is written back must not depend on the reader under test."""
    content, offset = path.read_bytes(), 12
    stamps, blocks = [], []
    while offset + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, offset)
        if kind == b"kiwi":
            age, _, second, nanosecond = struct.unpack_from("<BBII", content, offset + 8)
            stamps.append((age, second, nanosecond))
        elif kind == b"data":
            raw = np.frombuffer(content, "<i2", size // 2, offset + 8).astype(np.float32) / 32768.0
            blocks.append(raw.view(np.complex64))
        offset += 8 + size + size % 2
    whole = [index for index, block in enumerate(blocks) if len(block) == BLOCK]
    assert whole == list(range(len(whole)))
    return Recording(np.stack(blocks[: len(whole)]), stamps[: len(whole)])


@pytest.fixture(scope="module")
def originals(data_dir) -> dict[str, Recording]:
    return {name: read(data_dir / "kiwi-dcf77" / FILE.format(name)) for name in NAMES}


Change = Callable[[Recording], Recording]


@pytest.fixture
def run(
    originals, data_dir, tmp_path, kiwi_wav, model_cache, monkeypatch
) -> Callable[..., tuple[list[Fix], RunResult]]:
    """Runs the example with recordings changed as the test says, `{name: change}`; others stay as they are."""
    monkeypatch.chdir(tmp_path)  # where the example publishes to

    def run_(changes: dict[str, Change] | None = None, *, edit: Callable[[str], str] = str, cut: int = 0):
        for name in NAMES:
            target = tmp_path / FILE.format(name)
            if name in (changes or {}):
                changed = changes[name](originals[name])
                content = kiwi_wav(changed.samples.ravel(), changed.stamps)
                target.write_bytes(content[: len(content) - cut])
            else:
                shutil.copyfile(data_dir / "kiwi-dcf77" / FILE.format(name), target)
        station = tmp_path / "dcf77.toml"
        station.write_text(edit(EXAMPLE.read_text(encoding="utf-8")))
        fixes: list[Fix] = []
        result = run_station(load_station(station), on_fix=fixes.append)
        assert result.failure is None
        assert result.fixes == len(fixes)
        return fixes, result

    return run_


def error_m(fix: Fix) -> float:
    return float(GEOD.inv(fix.position.longitude, fix.position.latitude, TRANSMITTER[1], TRANSMITTER[0])[2])


def holds_truth(fix: Fix) -> bool:
    """Whether the transmitter lies inside the fix's ellipse."""
    azimuth, _, distance_m = GEOD.inv(fix.position.longitude, fix.position.latitude, TRANSMITTER[1], TRANSMITTER[0])
    offset = distance_m * np.array([math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))])
    return bool(offset @ np.linalg.solve(fix.uncertainty.covariance_m2, offset) < fix.uncertainty.scale**2)


def assert_honest(fixes: list[Fix]) -> None:
    assert fixes
    for fix in fixes:
        assert fix.status == "no_fix" or holds_truth(fix), (fix.position, fix.uncertainty, error_m(fix))


def test_as_recorded(run):
    (fix,), _ = run()
    assert fix.status == "ok"
    assert error_m(fix) <= 3000.0
    assert holds_truth(fix)
    assert fix.uncertainty.semi_major_m <= 15e3
    assert fix.uncertainty.probability == 0.95
    assert all(report.used and report.flags == () for report in fix.receivers)
    assert fix.alignment.residual_ns < 1000.0
    assert (fix.station, fix.frequency_hz, fix.time_source) == ("dcf77", 77500.0, "rx_time")
    # Half of the 29.5 s that the recordings share, after the latest start at 06:52:20.73.
    assert 33.0 < fix.timestamp.second + fix.timestamp.microsecond * 1e-6 < 37.0


def with_noise(loss_db: float, seed: int) -> Change:
    """White noise that raises the recording's own noise floor, the median of its spectrum, by so many dB."""

    def change(recording: Recording) -> Recording:
        spectrum = np.square(np.abs(np.fft.fft(recording.samples.ravel()[: 1 << 18]))) / (1 << 18)
        floor = float(np.median(spectrum)) / math.log(2.0)
        rng = np.random.default_rng(seed)
        sigma = math.sqrt(0.5 * floor * (10.0 ** (loss_db / 10.0) - 1.0))
        noise = sigma * (
            rng.standard_normal(recording.samples.shape) + 1j * rng.standard_normal(recording.samples.shape)
        )
        return replace(recording, samples=(recording.samples + noise).astype(np.complex64))

    return change


@pytest.mark.parametrize("loss_db", [5.0, 10.0])
def test_more_noise(run, loss_db):
    fixes, _ = run({name: with_noise(loss_db, seed) for seed, name in enumerate(NAMES)})
    assert_honest(fixes)
    assert fixes[0].status == "ok"


def stale(recording: Recording) -> Recording:
    """The first 10 seconds repeat one stamp."""
    count = round(10.0 * RATE / BLOCK)
    return replace(recording, stamps=[recording.stamps[0]] * count + recording.stamps[count:])


def jittered(recording: Recording) -> Recording:
    """A fifth of the stamps is off by milliseconds."""
    rng = np.random.default_rng(5)
    stamps = []
    for age, second, nanosecond in recording.stamps:
        shift_ns = int(rng.normal(0.0, 5e6)) if rng.uniform() < 0.2 else 0
        total = second * 10**9 + nanosecond + shift_ns
        stamps.append((age, total // 10**9, total % 10**9))
    return replace(recording, stamps=stamps)


@pytest.mark.parametrize(
    ("names", "change"),
    [(("HB9ODP",), stale), (("JO51xl",), jittered), (NAMES, jittered)],
    ids=["one stale", "one jittered", "all jittered"],
)
def test_wrong_stamps(run, names, change):
    fixes, _ = run(dict.fromkeys(names, change))
    assert_honest(fixes)
    assert fixes[0].status == "ok"
    assert error_m(fixes[0]) < 5000.0


def gap(start_s: float, length_s: float) -> Change:
    first, count = round(start_s * RATE / BLOCK), round(length_s * RATE / BLOCK)
    return lambda recording: recording.blocks(slice(0, first), slice(first + count, None))


@pytest.mark.parametrize(
    ("changes", "skipped", "filled"),
    [
        ({"JO51xl": gap(12.0, 1.0)}, 1, 0),
        ({"JO51xl": gap(12.0, 0.25)}, 0, 1),
        ({"HB9ODP": gap(8.0, 1.0), "pa0rdt": gap(20.0, 2.0)}, 2, 0),
    ],
    ids=["a second", "a quarter of a second", "two receivers"],
)
def test_missing_blocks(run, changes, skipped, filled):
    fixes, _ = run(changes)
    assert_honest(fixes)
    (fix,) = fixes
    assert fix.status == "ok"
    assert (fix.alignment.gaps_skipped, fix.alignment.gaps_filled) == (skipped, filled)
    assert [report.flags for report in fix.receivers].count(("gap",)) == filled


def without_stamps(recording: Recording) -> Recording:
    return replace(recording, stamps=[(255, 0, 0)] * len(recording.stamps))


def test_a_receiver_without_time(run):
    """Two receivers are left: too few for a position."""
    fixes, _ = run({"HB9ODP": without_stamps})
    assert [fix.reason for fix in fixes] == ["too_few_receivers"]
    assert [report.flags for report in fixes[0].receivers] == [("unaligned",), (), ()]


def test_no_time_at_all(run):
    with pytest.raises(ConfigError, match="valid time stamps, fewer than two have them"):
        run({"HB9ODP": without_stamps, "pa0rdt": without_stamps})


def test_unequal_length(run):
    fixes, _ = run(
        {
            "HB9ODP": lambda recording: recording.blocks(slice(0, 420)),
            "pa0rdt": lambda recording: recording.blocks(slice(120, None)),
        }
    )
    assert_honest(fixes)
    assert fixes[0].status == "ok"
    assert fixes[0].window_duration_s < 13.0


def test_a_silent_receiver(run):
    fixes, _ = run({"JO51xl": lambda recording: replace(recording, samples=0.0 * recording.samples)})
    assert [fix.reason for fix in fixes] == ["too_few_receivers"]
    assert fixes[0].receivers[1].flags == ("silent",)


def test_a_receiver_of_another_time(run):
    """Right stamps on the wrong samples: nothing that it hears is common with the others."""
    fixes, _ = run({"pa0rdt": lambda recording: replace(recording, samples=recording.samples[::-1].copy())})
    assert_honest(fixes)


def test_a_file_that_is_cut_short(run):
    fixes, _ = run({"HB9ODP": lambda recording: recording}, cut=300_001)
    assert_honest(fixes)
    assert fixes[0].status == "ok"


def test_several_windows(run):
    fixes, _ = run(edit=lambda text: text + "\n[features]\nwindow_s = 10.0\nwindow_hop_s = 5.0\n")
    assert len(fixes) >= 4
    assert [fix.sequence for fix in fixes] == list(range(len(fixes)))
    assert_honest(fixes)
    steps_s = np.diff([fix.timestamp.timestamp() for fix in fixes])
    assert steps_s == pytest.approx(5.0, abs=0.5)


def test_levels_alone(run):
    """What level says of a transmitter 400 km away is not much, and the ellipse knows it."""
    fixes, _ = run(edit=lambda text: text.replace("[[receiver]]", "common_clock = false\n[[receiver]]", 1))
    assert_honest(fixes)
