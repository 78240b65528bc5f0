from __future__ import annotations

import csv
import io
import math

import numpy as np
import pandas
import pytest
from localize_core.errors import ConfigError
from localize_core.types.fix import Alignment, Fix, Position, TrackReport, Uncertainty
from localize_core.wire.fix_csv import CSV_FIELDS, FIX_FIELDS, TRACK_FIELDS, fix_columns, fix_to_csv_rows, track_columns
from localize_core.wire.fix_json import fix_to_dict


def written(*fixes: Fix) -> io.StringIO:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(CSV_FIELDS)
    for fix in fixes:
        writer.writerows(fix_to_csv_rows(fix))
    table.seek(0)
    return table


def read_back(*fixes: Fix) -> list[dict[str, str]]:
    return list(csv.DictReader(written(*fixes), strict=True))


def track(number: int, latitude: float) -> TrackReport:
    rows = tuple(tuple(map(float, row)) for row in np.eye(4))
    ellipse = Uncertainty(9.0, 5.0, 0.0)
    return TrackReport(number, "confirmed", Position(latitude, 7.4), ellipse, 3.0, 4.0, rows, 5, 2.0, 0.0, 0.5)


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
        name: str(flat[name]) for name in FIX_FIELDS if name != "reason"
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
        *(set(TRACK_FIELDS) - set(FIX_FIELDS)),
    }


def test_rows_of_tracks_follow_their_fix(make_fix):
    lost = make_fix(reason="silence", sequence=2, tracks=(track(3, 45.1),))
    fixes = make_fix(sequence=1, tracks=(track(3, 45.2), track(4, 45.3))), lost, make_fix(sequence=3)
    rows = read_back(*fixes)
    assert [(row["sequence"], row["track"]) for row in rows] == [
        ("1", ""), ("1", "3"), ("1", "4"), ("2", ""), ("2", "3"), ("3", ""),
    ]  # fmt: skip
    assert {name: text for name, text in rows[2].items() if text} == {
        name: str(value) for name, value in track_columns(fixes[0], fixes[0].tracks[1]).items()
    }
    assert tuple(track_columns(fixes[0], fixes[0].tracks[1])) == TRACK_FIELDS
    assert (rows[2]["speed_mps"], rows[2]["latitude"], rows[2]["status"]) == ("5.0", "45.3", "")


def test_pandas_reads_fixes_and_tracks(make_fix):
    fixes = [make_fix(sequence=n, tracks=(track(3, 45.0 + n / 10),) if n else ()) for n in range(3)]
    table = pandas.read_csv(written(*fixes), parse_dates=["timestamp"])
    located, followed = table[table["track"].isna()], table.dropna(subset="track").astype({"track": int})
    assert list(located["sequence"]) == [0, 1, 2]
    assert set(located["status"]) == {"ok"}
    assert list(followed.groupby("track").get_group(3)["latitude"]) == [45.1, 45.2]
    assert (located["timestamp"].iloc[1] - followed["timestamp"].iloc[0]).total_seconds() == 0.5  # its lag
    assert pandas.read_csv(written(fixes[0]))["speed_mps"].isna().all()


def test_station_with_delimiters_comes_back(make_fix):
    name = 'roof, "north"\nsecond line; é'
    assert [row["station"] for row in read_back(make_fix(station=name), make_fix())] == [name, "demo"]


def test_what_is_not_finite_is_refused(make_fix):
    with pytest.raises(ConfigError, match="latency_ms"):
        fix_columns(make_fix(latency_ms=math.nan))
    with pytest.raises(ConfigError, match="latency_ms"):
        fix_to_csv_rows(make_fix(latency_ms=math.nan))
