from __future__ import annotations

import json

import pytest
from localize_apps.main import main
from localize_core.types.fix import Position
from localize_core.wire.fix_json import fix_to_json


@pytest.fixture
def fixes(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    path.write_text(
        "".join(
            fix_to_json(fix) + "\n"
            for fix in (make_fix(), make_fix(position=Position(-33.9, 151.2)), make_fix(reason="silence"))
        )
    )
    return path


def test_a_fixed_place_south_of_the_equator(fixes, capsys):
    assert main(["score", str(fixes), "--truth", "-33.9, 151.2", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["fixes"], result["no_fix"], result["scored"]) == (3, 1, 2)
    assert result["error_m"]["median"] == pytest.approx(result["error_m"]["rmse"] / 2**0.5)
    assert result["containment"] == {"39.35": 0.5, "50": 0.5, "68": 0.5, "90": 0.5, "95": 0.5}


def test_a_track(fixes, tmp_path, capsys):
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "timestamp,latitude,longitude\n2026-01-02T03:04:00Z,45.123,7.456\n2026-01-02T03:05:00Z,45.123,7.456\n"
    )
    assert main(["score", str(fixes), "--truth", str(truth), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unmatched"] == 0


def test_table_names_one_sigma(fixes, capsys):
    assert main(["score", str(fixes), "--truth", "45.123,7.456"]) == 0
    out = capsys.readouterr().out
    assert "39.35 % (1 σ)" in out
    assert "RMSE" in out
    assert "50.0 %" in out


def test_nothing_to_score_still_prints_the_counts(make_fix, tmp_path, capsys):
    path = tmp_path / "fixes.jsonl"
    path.write_text(fix_to_json(make_fix(reason="silence")) + "\n")
    assert main(["score", str(path), "--truth", "0,0"]) == 0
    assert "without position" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--truth", "0,0"],
        ["FIXES"],
        ["FIXES", "--truth", "91,0"],
        ["FIXES", "--truth", "0,181"],
        ["FIXES", "--truth", "1.2.3,4"],
        ["FIXES", "--truth", "no-such.csv"],
        ["no-such.jsonl", "--truth", "0,0"],
    ],
)
def test_wrong_usage_is_2(fixes, arguments, capsys):
    assert main(["score", *(str(fixes) if text == "FIXES" else text for text in arguments)]) == 2
    assert capsys.readouterr().out == ""


def test_a_bad_line_fails_with_file_and_line(fixes, capsys):
    with fixes.open("a") as file:
        file.write("{\n")
    assert main(["score", str(fixes), "--truth", "0,0", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{fixes}, line 4" in captured.err
