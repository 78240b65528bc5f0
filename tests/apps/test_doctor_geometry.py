"""What doctor says of a station's geometry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from localize_apps import doctor
from localize_apps.doctor import Facts, check_geometry, gather_facts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def altered(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = (EXAMPLES / "four_receivers.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "station.toml"
    path.write_text(text)
    return path


def test_a_sound_station() -> None:
    (only,) = check_geometry(EXAMPLES / "four_receivers.toml")
    assert (only.check, only.level, only.fix) == ("geometry", "ok", None)
    assert only.message.startswith("HDOP 1.")


def test_a_height_that_was_forgotten(tmp_path: Path) -> None:
    first, *_ = check_geometry(altered(tmp_path, ("altitude_m = 450.0", "altitude_m = 0.0")))
    assert (first.level, first.message) == ("warning", "Rivoli has altitude_m = 0, the others 290 m or more")
    assert first.fix == "set altitude_m of Rivoli, in metres above the WGS84 ellipsoid"


def test_levels_alone_have_no_hdop(tmp_path: Path) -> None:
    path = altered(tmp_path, ("[features]", '[features]\nchannels = ["log_mel"]'))
    assert list(check_geometry(path)) == []


def test_a_file_that_cannot_be_read_is_somebody_elses_finding(tmp_path: Path) -> None:
    assert list(check_geometry(tmp_path / "no.toml")) == []


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> Facts:
    """Facts that are gathered once: the probe takes seconds."""
    found = gather_facts()
    monkeypatch.setattr(doctor, "gather_facts", lambda: found)
    return found


@pytest.mark.usefixtures("facts")
def test_the_command_says_it_with_what_to_do() -> None:
    done = CliRunner().invoke(doctor.command, ["--json", str(EXAMPLES / "four_receivers.toml")], standalone_mode=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["check"] for each in found][-2:] == ["station", "geometry"]
