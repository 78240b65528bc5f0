from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from localize_apps import doctor
from localize_apps.doctor import EXTRAS, REQUIRED, Facts, Finding, check_station, diagnose, gather_facts
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]

GOOD = Facts(
    python=(3, 11, 2),
    executable="/venv/bin/python",
    packages={
        **REQUIRED,
        "numpy": "1.26.4",
        "matplotlib": "3.8",
        "sigmf": "1.14.0",
        "jinja2": "3.1",
        "onnxscript": "0.7",
        "torch": "2.13.0",
        **{name: lowest for wanted in EXTRAS.values() for name, lowest in wanted.items()},
    },
    gnuradio="3.10.5.1",
    gnuradio_error=None,
    blocks=("mel_spectrogram", "onnx_inference"),
    blocks_error=None,
    blocks_places=("/clone/python/localize",),
    own_blocks="/clone/python/localize",
    definitions={
        "mel_spectrogram": ("/clone/grc/localize_mel_spectrogram.block.yml",),
        "onnx_inference": ("/clone/grc/localize_onnx_inference.block.yml",),
    },
    own_definitions="/clone/grc",
    user_folder="/home/me/.gnuradio",
    user_folder_writable=True,
)


def problems(**changes: object) -> list[Finding]:
    return [found for found in diagnose(dataclasses.replace(GOOD, **changes)) if found.level != "ok"]


def test_nothing_to_say_of_a_good_machine() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "level", "message", "fix"),
    [
        ({"python": (3, 9, 2)}, "error", "3.9.2 is too old", "setup"),
        (
            {"packages": {**GOOD.packages, "numpy": "2.1.0"}, "gnuradio": None, "gnuradio_error": "init failed"},
            "error",
            "beside numpy 2.1.0",
            "/venv/bin/python -m pip install 'numpy<2'",
        ),
        ({"gnuradio": None, "gnuradio_error": "No module"}, "error", "No module", "apt-get install gnuradio"),
        ({"gnuradio": "3.8.5.0"}, "error", "3.8.5.0 is too old", "conda install"),
        (
            {"packages": {**GOOD.packages, "onnxruntime": None, "onnx": "1.2"}},
            "error",
            "missing or too old: onnx>=1.16, onnxruntime>=1.17",
            "/venv/bin/python -m pip install 'onnx>=1.16' 'onnxruntime>=1.17' 'numpy<2'",
        ),
        ({"blocks_error": "No module named 'spox'"}, "error", "No module named 'spox'", "PYTHONPATH"),
        (
            {"blocks_places": ("/usr/local/gnuradio/localize", GOOD.own_blocks)},
            "error",
            "takes /usr/local/gnuradio/localize instead of",
            "rm -r /usr/local/gnuradio/localize",
        ),
        (
            {"blocks_places": (GOOD.own_blocks, "/usr/local/a copy")},
            "warning",
            "installed again in /usr/local/a copy",
            "rm -r '/usr/local/a copy'",
        ),
        ({"definitions": {}}, "error", "mel_spectrogram, onnx_inference", "export GRC_BLOCKS_PATH=/clone/grc"),
        (
            {"definitions": {**GOOD.definitions, "retired": ("/old/localize_retired.block.yml",)}},
            "warning",
            "/old/localize_retired.block.yml",
            "rm /old/localize_retired.block.yml",
        ),
        (
            {"definitions": {**GOOD.definitions, "mel_spectrogram": ("/clone/grc/m.yml", "/usr/share/m.yml")}},
            "warning",
            "more than once, also in: /usr/share/m.yml",
            "rm /usr/share/m.yml",
        ),
        ({"user_folder_writable": False}, "warning", "/home/me/.gnuradio", "mkdir -p /home/me/.gnuradio"),
    ],
)
def test_a_bad_fact_is_found_with_its_mending(changes: dict[str, object], level: str, message: str, fix: str) -> None:
    (found,) = problems(**changes)
    assert found.level == level
    assert message in found.message
    assert found.fix is not None
    assert fix in found.fix


def test_numpy_2_is_fine_where_gnuradio_loads_beside_it() -> None:
    assert problems(packages={**GOOD.packages, "numpy": "2.2.4"}, python=(3, 13, 1)) == []


def test_a_missing_extra_is_no_problem_but_says_how_to_get_it() -> None:
    facts = dataclasses.replace(GOOD, packages={**GOOD.packages, "matplotlib": None})
    (extra,) = (found for found in diagnose(facts) if found.check == "extra plot")
    assert extra.level == "ok"
    assert extra.fix is not None
    assert "'matplotlib>=" in extra.fix


def test_the_lowest_versions_are_those_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def lowest(requirements: list[str]) -> dict[str, str]:
        parsed = [Requirement(line) for line in requirements]
        return {one.name: next(iter(one.specifier)).version for one in parsed if one.marker is None}

    assert lowest(project["dependencies"]) == REQUIRED
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("all", "dev")}
    assert {name: lowest(lines) for name, lines in extras.items()} == EXTRAS
    assert project["optional-dependencies"]["all"] == [f"gr-localize[{','.join(sorted(extras))}]"]


@pytest.fixture
def definitions_of_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRC_BLOCKS_PATH", str(ROOT / "grc"))


@pytest.mark.usefixtures("definitions_of_this_tree")
def test_this_machine_is_fine() -> None:
    assert [found for found in diagnose(gather_facts()) if found.level == "error"] == []


@pytest.mark.usefixtures("definitions_of_this_tree")
def test_a_gnuradio_that_crashes_python_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", "import os; os.abort()")
    assert any(found.check == "gnuradio" and "status -6" in found.message for found in diagnose(gather_facts()))


STATION = """
[station]
name = "site"
sample_rate_hz = 48e3
frequency_hz = 433.92e6
[[receiver]]
name = "north"
latitude = 50.0
longitude = 8.0
source = { kind = "kiwi-wav", path = "north.wav" }
[area]
south = 49.0
west = 7.0
north = 51.0
east = 9.0
"""


def test_station_is_checked(tmp_path: Path) -> None:
    station = tmp_path / "station.toml"
    station.write_text(STATION)
    (missing,) = check_station(station)
    assert missing.level == "error"
    assert "north.wav" in missing.message

    (tmp_path / "north.wav").touch()
    (fine,) = check_station(station)
    assert fine.level == "ok"
    assert "north" in fine.message

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (missing,) = check_station(station, elsewhere)
    assert str(elsewhere / "north.wav") in missing.message

    station.write_text(STATION.replace("latitude = 50.0", "latitude = 500.0"))
    (wrong,) = check_station(station)
    assert wrong.level == "error"
    assert "latitude" in wrong.message
    assert "500" in wrong.message

    simulated = STATION.replace('kind = "kiwi-wav", path = "north.wav"', 'kind = "scene"')
    station.write_text(f'{simulated}\n[scene]\nchannels = "town.npz"\n')
    (missing,) = check_station(station)
    assert f"names {tmp_path / 'town.npz'}, which is not there" in missing.message


@pytest.mark.usefixtures("definitions_of_this_tree")
def test_output_and_exit_code(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(doctor.command, ["--json", str(tmp_path / "no.toml")], standalone_mode=False)
    assert done.return_value == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line.keys() == {"check", "level", "message", "fix"} for line in lines)
    assert (lines[-1]["check"], lines[-1]["level"]) == ("station", "error")

    done = runner.invoke(doctor.command, [], standalone_mode=False)
    assert done.return_value == 0
    assert done.stdout.startswith("ok")


def test_user_folder_below_a_file_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert any(found.check == "user folder" and found.level == "warning" for found in diagnose(gather_facts()))
