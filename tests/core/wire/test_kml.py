from __future__ import annotations

import math
from dataclasses import replace
from io import BytesIO

import pytest
from fastkml import KML
from fastkml.features import Placemark
from fastkml.utils import find_all
from fastkml.validator import validate
from localize_core.errors import ConfigError
from localize_core.types.fix import Position, TrackReport, Uncertainty
from localize_core.wire.fix_csv import fix_columns
from localize_core.wire.kml import fixes_to_kml
from shapely.geometry import shape


def read_back(text: str) -> KML:
    """What another library makes of it, once it is valid by the schema of OGC 07-147r2."""
    assert validate(file_to_validate=BytesIO(text.encode()))
    return KML.from_string(text.encode())


def placemarks(text: str) -> list[Placemark]:
    return list(find_all(read_back(text), of_type=Placemark))


def test_placemark_has_time_position_and_ellipse(make_fix):
    fix = make_fix()
    (placemark,) = placemarks(fixes_to_kml([fix]))
    assert placemark.times.timestamp.dt == fix.timestamp
    point, ellipse = (shape(part) for part in placemark.geometry.geoms)
    assert (point.x, point.y) == (7.456, 45.123)
    assert ellipse.contains(point)
    assert ellipse.exterior.is_ccw


def test_data_are_the_columns_of_csv(make_fix):
    fix = make_fix()
    (placemark,) = placemarks(fixes_to_kml([fix]))
    data = {element.name: element.value for element in placemark.extended_data.elements}
    assert data == {name: str(value) for name, value in fix_columns(fix).items() if value is not None}


def test_each_station_has_a_folder_in_order_of_appearance(make_fix):
    fixes = [make_fix(station=name, sequence=i) for i, name in enumerate(["west", "east", "west"])]
    (document,) = read_back(fixes_to_kml(fixes, name="drive")).features
    assert document.name == "drive"
    assert [(folder.name, len(folder.features)) for folder in document.features] == [("west", 2), ("east", 1)]


def test_style_is_the_documents(make_fix):
    (document,) = read_back(fixes_to_kml([make_fix()])).features
    assert [placemark.style_url.url for placemark in document.features[0].features] == ["#fix"]
    assert [style.id for style in document.styles] == ["fix", "track"]


def test_fixes_without_a_position_are_counted(make_fix):
    text = fixes_to_kml([make_fix(), make_fix(reason="silence"), make_fix(reason="no_emitter")])
    assert len(placemarks(text)) == 1
    assert read_back(text).features[0].description == "Fixes with a position: 1. Left out, without one: 2."


def test_document_of_nothing_is_valid():
    assert placemarks(fixes_to_kml([])) == []


@pytest.mark.parametrize("name", ["<&>\"' ]]>", "Zürich 東京 🛰", "bell \x07 and \x00"])
def test_names_are_text(make_fix, name):
    (document,) = read_back(fixes_to_kml([make_fix(station=name)], name=name)).features
    shown = name.replace("\x07", "\ufffd").replace("\x00", "\ufffd")
    assert document.name == shown
    assert document.features[0].name == shown


def test_ellipse_across_the_antimeridian_is_two_polygons(make_fix):
    fix = make_fix(position=Position(-17.0, 179.9), uncertainty=Uncertainty(20e3, 10e3, 0.0))
    (placemark,) = placemarks(fixes_to_kml([fix]))
    _, *parts = placemark.geometry.geoms
    assert sorted(shape(part).bounds[0] for part in parts) == [-180.0, pytest.approx(179.44, abs=0.02)]


def test_what_is_not_finite_is_refused(make_fix):
    with pytest.raises(ConfigError, match="longitude"):
        fixes_to_kml([make_fix(position=Position(0.0, math.inf))])


def test_a_track_is_a_line_with_its_last_state(make_fix):
    place = Position(45.0, 179.99)
    rows = ((1.0, 0.0, 0.0, 0.0),) * 4
    track = TrackReport(3, "confirmed", place, Uncertainty(5.0, 5.0, 0.0), 1.0, 0.0, rows, 5, 2.0, 0.0)
    before = replace(track, position=Position(45.0, 179.98))
    east = [replace(track, position=Position(45.0, -x), updates=6) for x in (179.99, 179.98)]
    fixes = [make_fix(reason="silence", tracks=(each,)) for each in (before, track)]
    fixes += [
        make_fix(sequence=413, tracks=(east[0],)),
        make_fix(reason="silence", tracks=(east[1], replace(track, id=4))),
    ]
    marks = placemarks(fixes_to_kml(fixes))
    assert [mark.name for mark in marks] == ["2026-01-02T03:04:05.678901Z", "track 3", "track 4"]
    last, first, second = (shape(part) for part in marks[1].geometry.geoms)
    assert (last.x, last.y) == (-179.98, 45.0)
    assert list(first.coords) == [(179.98, 45.0), (179.99, 45.0)]  # cut at the antimeridian
    assert list(second.coords) == [(-179.99, 45.0), (-179.98, 45.0)]
    data = {element.name: element.value for element in marks[1].extended_data.elements}
    assert (data["updates"], data["speed_mps"], data["course_deg"]) == ("6", "1.0", "90.0")
