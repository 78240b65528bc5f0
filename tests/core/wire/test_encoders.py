from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_core.types.fix import ModelIdentity, Position, TrackReport, Uncertainty
from localize_core.wire.encoders import ENCODERS
from localize_core.wire.fix_csv import CSV_FIELDS, fix_to_csv_rows
from localize_core.wire.fix_json import fix_from_json
from localize_core.wire.geojson import fix_to_geojson
from localize_core.wire.kml import fixes_to_kml
from localize_core.wire.text import fix_line
from lxml import etree

FORMATS = Path(__file__).resolve().parents[3] / "docs" / "formats.md"


def test_names():
    assert set(ENCODERS) == {"json", "geojson", "text", "cot"}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_fix_is_one_line(make_fix, name):
    for fix in (make_fix(), make_fix(station="two\nlines", model=ModelIdentity("a\r\nb", "1", ""))):
        encoded = ENCODERS[name](fix)
        assert encoded
        assert encoded.splitlines() == [encoded]


@pytest.mark.parametrize("fix", [{}, {"reason": "silence"}])
def test_each_is_what_its_module_makes(make_fix, fix):
    fix = make_fix(**fix)
    assert fix_from_json(ENCODERS["json"](fix)) == fix
    assert json.loads(ENCODERS["geojson"](fix)) == fix_to_geojson(fix)
    assert ENCODERS["text"](fix) == fix_line(fix)
    assert (ENCODERS["cot"](fix) is None) == (fix.position is None)


def documented(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", FORMATS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def canonical(xml: str) -> bytes:
    return etree.tostring(etree.fromstring(xml.encode(), etree.XMLParser(remove_blank_text=True)), method="c14n")


def test_documented_examples_are_what_is_made(make_fix):
    fix = make_fix()
    assert documented("text") == [f"{fix_line(fix)}\n"]
    _, event = documented("xml")
    assert canonical(event) == canonical(ENCODERS["cot"](fix))
    (table,) = documented("csv")
    made = io.StringIO()
    csv.writer(made, lineterminator="\n").writerows([CSV_FIELDS, *fix_to_csv_rows(fix)])
    assert table == made.getvalue()
    (feature,) = map(json.loads, documented("json"))
    full = fix_to_geojson(fix)
    assert {key: feature[key] for key in ("type", "id", "bbox")} == {key: full[key] for key in ("type", "id", "bbox")}
    assert (
        feature["properties"].items()
        <= {
            name: round(value, 1) if name.endswith("_m") else value for name, value in full["properties"].items()
        }.items()
    )
    point, polygon = feature["geometry"]["geometries"]
    full_point, full_polygon = full["geometry"]["geometries"]
    assert point == full_point
    (ring,), (full_ring,) = polygon["coordinates"], full_polygon["coordinates"]
    assert ring == [*full_ring[:3], full_ring[-1]]


def test_documented_programs_run(make_fix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = tuple(tuple(map(float, row)) for row in np.eye(4))
    track = TrackReport(3, "confirmed", Position(45.0, 7.0), Uncertainty(9.0, 5.0, 0.0), 3.0, 4.0, rows, 5, 2.0, 0.0)
    fixes = [make_fix(), make_fix(reason="silence", tracks=(track,))]
    Path("fixes.jsonl").write_text("".join(f"{ENCODERS['json'](fix)}\n" for fix in fixes))
    maps, table, frame = documented("python")
    exec(maps, {})
    assert len(json.loads(Path("fixes.geojson").read_text())["features"]) == 5
    assert Path("fixes.kml").read_text(encoding="utf-8") == fixes_to_kml(fixes, name="Test drive")
    exec(table, {})
    assert len(Path("fixes.csv").read_text().splitlines()) == 4
    read: dict[str, Any] = {}
    exec(frame, read)
    assert list(read["fixes"]["status"]) == ["ok", "no_fix"]
    assert capsys.readouterr().out == f"3 5.0 {track.course_deg}\n"


def test_encoders_work_without_gnuradio():
    code = (
        "import sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None\n"
        "import localize_core.wire.encoders, localize_core.wire.kml"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
