from __future__ import annotations

import json
import math

import geojson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.types.fix import Position, TrackReport, Uncertainty
from localize_core.wire.fix_csv import fix_columns
from localize_core.wire.geojson import feature_collection, fix_to_geojson
from shapely.geometry import shape
from shapely.geometry.polygon import LinearRing

VALUES = (str, int, float, type(None))


def read_back(encoded: dict) -> dict:
    """What is read from the text, once another library finds it valid."""
    text = json.dumps(encoded, allow_nan=False)
    read = geojson.loads(text)
    assert read.is_valid, read.errors()
    return json.loads(text)


def places(coordinates: list) -> list[tuple[float, float]]:
    if isinstance(coordinates[0], float):
        return [tuple(coordinates)]
    return [place for inner in coordinates for place in places(inner)]


def between(west: float, x: float, east: float) -> bool:
    """Whether a longitude lies in a bounding box, which may lead across the antimeridian."""
    return west <= x <= east if west <= east else x >= west or x <= east


def test_feature_has_position_and_ellipse(make_fix):
    feature = read_back(fix_to_geojson(make_fix()))
    assert feature["id"] == "demo/a1b2/412"
    point, polygon = feature["geometry"]["geometries"]
    assert (point["type"], point["coordinates"]) == ("Point", [7.456, 45.123])
    assert polygon["type"] == "Polygon"
    assert shape(polygon).contains(shape(point))
    assert tuple(feature["bbox"]) == shape(polygon).bounds


def test_properties_are_the_columns_of_csv(make_fix):
    for fix in (make_fix(), make_fix(reason="silence")):
        properties = fix_to_geojson(fix)["properties"]
        assert properties == fix_columns(fix)
        assert all(isinstance(value, VALUES) for value in properties.values())  # attribute tables are flat


def test_without_a_position_there_is_no_geometry(make_fix):
    feature = fix_to_geojson(make_fix(reason="silence"))
    assert feature["geometry"] is None
    assert "bbox" not in feature
    assert feature["properties"]["reason"] == "silence"


@given(
    st.sampled_from([-90.0, 90.0, 89.9]) | st.floats(-90.0, 90.0),
    st.sampled_from([-180.0, 180.0, 179.99]) | st.floats(-180.0, 180.0),
    st.floats(0.0, 5.9),
    st.floats(0.001, 1.0),
    st.floats(0.0, 180.0),
)
@settings(max_examples=60, deadline=None)
def test_feature_is_valid_everywhere(make_fix, latitude, longitude, exponent, ratio, theta):
    uncertainty = Uncertainty(10.0**exponent, ratio * 10.0**exponent, theta)
    feature = read_back(fix_to_geojson(make_fix(position=Position(latitude, longitude), uncertainty=uncertainty)))
    west, south, east, north = feature["bbox"]
    point, ellipse = feature["geometry"]["geometries"]
    assert shape(ellipse).is_valid
    polygons = ellipse["coordinates"] if ellipse["type"] == "MultiPolygon" else [ellipse["coordinates"]]
    assert (len(polygons) > 1) == (ellipse["type"] == "MultiPolygon")
    assert all(LinearRing(ring).is_ccw for (ring,) in polygons)  # RFC 7946, 3.1.6
    for x, y in [*places(point["coordinates"]), *places(polygons)]:
        assert abs(x) <= 180.0
        # edges along the cut are on both sides of it, and the centre is not rounded
        assert abs(x) == 180.0 or between(west - 1e-6, x, east + 1e-6)
        assert south - 1e-6 <= y <= north + 1e-6


def test_bounding_box_leads_across_the_antimeridian(make_fix):
    fiji = make_fix(position=Position(-17.0, 179.9), uncertainty=Uncertainty(20e3, 10e3, 0.0))
    feature = fix_to_geojson(fiji)
    west, south, east, north = feature["bbox"]
    assert -180.0 < east < -179.0 < 179.0 < west < 180.0  # RFC 7946, 5.2
    assert south < -17.0 < north
    assert feature["geometry"]["geometries"][1]["type"] == "MultiPolygon"


@pytest.mark.parametrize(("latitude", "south", "north"), [(89.99, None, 90.0), (-89.99, -90.0, None)])
def test_bounding_box_round_a_pole_goes_all_round(make_fix, latitude, south, north):
    fix = make_fix(position=Position(latitude, 20.0), uncertainty=Uncertainty(20e3, 10e3, 0.0))
    box = fix_to_geojson(fix)["bbox"]
    assert (box[0], box[2]) == (-180.0, 180.0)  # RFC 7946, 5.3
    assert south in (None, box[1])
    assert north in (None, box[3])


def test_collection_has_a_geometry_of_one_type_in_each_feature(make_fix):
    fixes = [make_fix(), make_fix(sequence=413, reason="silence"), make_fix(sequence=414)]
    features = read_back(feature_collection(fixes))["features"]
    geometries = [feature["geometry"] and feature["geometry"]["type"] for feature in features]
    assert geometries == ["Polygon", "Point", None, "Polygon", "Point"]
    assert [feature["properties"]["sequence"] for feature in features] == [412, 412, 413, 414, 414]
    assert len({feature["id"] for feature in features}) == 5
    assert shape(features[0]["geometry"]).contains(shape(features[1]["geometry"]))


def test_collection_of_nothing_is_valid():
    assert read_back(feature_collection([]))["features"] == []


def test_what_is_not_finite_is_refused(make_fix):
    with pytest.raises(ConfigError, match="latitude"):
        fix_to_geojson(make_fix(position=Position(math.nan, 0.0)))
    with pytest.raises(ConfigError, match="latitude"):
        feature_collection([make_fix(position=Position(math.nan, 0.0))])


def test_tracks_are_features_of_a_collection(make_fix):
    rows = ((1.0, 0.0, 0.0, 0.0),) * 4
    place, ellipse = Position(45.2, 7.5), Uncertainty(5.0, 5.0, 0.0)
    track = TrackReport(3, "coasting", place, ellipse, 3.0, 4.0, rows, 5, 2.0, 1.0, 0.5)
    features = read_back(feature_collection([make_fix(tracks=(track,))]))["features"]
    assert [feature["id"] for feature in features] == [
        f"demo/a1b2/412{suffix}" for suffix in ("/ellipse", "", "/track-3/ellipse", "/track-3")
    ]
    assert features[3]["geometry"]["coordinates"] == [7.5, 45.2]
    properties = features[3]["properties"]
    assert properties == features[2]["properties"]
    assert (properties["track"], properties["state"], properties["speed_mps"]) == (3, "coasting", 5.0)
    assert properties["timestamp"] == "2026-01-02T03:04:05.178901Z"
    alone = read_back(fix_to_geojson(make_fix(reason="silence", tracks=(track,))))
    assert alone["geometry"] is None
    assert alone["properties"]["tracks"] == [properties]
