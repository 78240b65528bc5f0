from __future__ import annotations

import csv
import io
import math

import pytest
from localize_core.errors import ConfigError
from localize_core.types.fix import Alignment
from localize_core.wire.fix_csv import CSV_FIELDS, fix_columns, fix_to_csv_row
from localize_core.wire.fix_json import fix_to_dict


def read_back(*fixes) -> list[dict[str, str]]:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(CSV_FIELDS)
    writer.writerows(fix_to_csv_row(fix) for fix in fixes)
    table.seek(0)
    return list(csv.DictReader(table, strict=True))


def test_row_with_a_position_has_the_values_of_the_json_form(make_fix):
    fix = make_fix(alignment=Alignment(35.0), id="request 7")
    encoded = fix_to_dict(fix)
    (row,) = read_back(fix)
    flat = encoded | encoded["position"] | encoded["uncertainty"] | encoded["alignment"]
    flat |= {f"model_{key}": value for key, value in encoded["model"].items()} | {
        "receivers_used": 1,
        "request_id": "request 7",
    }
    assert {name: text for name, text in row.items() if text} == {
        name: str(flat[name]) for name in CSV_FIELDS if name != "reason"
    }
    assert float(row["semi_major_m"]) == fix.uncertainty.semi_major_m


def test_row_without_a_position_is_empty_there(make_fix):
    (row,) = read_back(make_fix(reason="silence", frequency_hz=None))
    assert row["reason"] == "silence"
    empty = {name for name, text in row.items() if text == ""}
    assert empty == {
        "request_id",
        "latitude",
        "longitude",
        "semi_major_m",
        "semi_minor_m",
        "azimuth_deg",
        "probability",
        "frequency_hz",
        "residual_ns",
    }


def test_station_with_delimiters_comes_back(make_fix):
    name = 'roof, "north"\nsecond line; é'
    assert [row["station"] for row in read_back(make_fix(station=name), make_fix())] == [name, "demo"]


def test_what_is_not_finite_is_refused(make_fix):
    with pytest.raises(ConfigError, match="latency_ms"):
        fix_columns(make_fix(latency_ms=math.nan))
    with pytest.raises(ConfigError, match="latency_ms"):
        fix_to_csv_row(make_fix(latency_ms=math.nan))
