from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.types.fix import Position, TrackReport, Uncertainty
from localize_core.wire.cot import check_cot, fix_to_cot, fix_to_cot_events
from localize_core.wire.text import fix_line
from lxml import etree

# The rules of MITRE's base event schema 2.0 (case 11-3895) and shape schema (case 11-3904), written anew.
SCHEMA = etree.XMLSchema(
    etree.XML("""
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" elementFormDefault="qualified">
  <xs:simpleType name="latitude"><xs:restriction base="xs:decimal">
    <xs:minInclusive value="-90"/><xs:maxInclusive value="90"/></xs:restriction></xs:simpleType>
  <xs:simpleType name="longitude"><xs:restriction base="xs:decimal">
    <xs:minInclusive value="-180"/><xs:maxInclusive value="180"/></xs:restriction></xs:simpleType>
  <xs:simpleType name="length"><xs:restriction base="xs:decimal">
    <xs:minInclusive value="0"/></xs:restriction></xs:simpleType>
  <xs:simpleType name="version"><xs:restriction base="xs:decimal">
    <xs:minInclusive value="2"/></xs:restriction></xs:simpleType>
  <xs:simpleType name="type"><xs:restriction base="xs:string">
    <xs:pattern value="\\w+(-\\w+)*(;[^;]*)?"/></xs:restriction></xs:simpleType>
  <xs:simpleType name="how"><xs:restriction base="xs:string">
    <xs:pattern value="\\w(-\\w+)*"/></xs:restriction></xs:simpleType>
  <xs:element name="event"><xs:complexType>
    <xs:all>
      <xs:element name="point"><xs:complexType>
        <xs:attribute name="lat" type="latitude" use="required"/>
        <xs:attribute name="lon" type="longitude" use="required"/>
        <xs:attribute name="hae" type="xs:decimal" use="required"/>
        <xs:attribute name="ce" type="xs:decimal" use="required"/>
        <xs:attribute name="le" type="xs:decimal" use="required"/>
      </xs:complexType></xs:element>
      <xs:element name="detail" minOccurs="0"><xs:complexType><xs:sequence>
        <xs:any processContents="lax" minOccurs="0" maxOccurs="unbounded"/>
      </xs:sequence></xs:complexType></xs:element>
    </xs:all>
    <xs:attribute name="version" type="version" use="required"/>
    <xs:attribute name="type" type="type" use="required"/>
    <xs:attribute name="uid" type="xs:string" use="required"/>
    <xs:attribute name="time" type="xs:dateTime" use="required"/>
    <xs:attribute name="start" type="xs:dateTime" use="required"/>
    <xs:attribute name="stale" type="xs:dateTime" use="required"/>
    <xs:attribute name="how" type="how" use="required"/>
  </xs:complexType></xs:element>
  <xs:element name="shape"><xs:complexType><xs:sequence>
    <xs:element name="ellipse"><xs:complexType>
      <xs:attribute name="major" type="length" use="required"/>
      <xs:attribute name="minor" type="length" use="required"/>
      <xs:attribute name="angle" type="xs:decimal" use="required"/>
    </xs:complexType></xs:element>
  </xs:sequence></xs:complexType></xs:element>
</xs:schema>""")
)


def read_back(text: str | None) -> etree._Element:
    assert text is not None
    event = etree.fromstring(text)
    SCHEMA.assertValid(event)
    return event


def test_event_as_documented(make_fix):
    event = read_back(fix_to_cot(make_fix()))
    assert dict(event.attrib) == {
        "version": "2.0",
        "uid": "gr-localize.demo.433920000",
        "type": "a-u-G",
        "how": "m-f",
        "time": "2026-01-02T03:04:05.678Z",
        "start": "2026-01-02T03:04:05.678Z",
        "stale": "2026-01-02T03:05:05.678Z",
    }
    detail = event.find("detail")
    assert detail.find("contact").get("callsign") == "demo 433.92 MHz"
    assert dict(detail.find("precisionlocation").attrib) == {"geopointsrc": "CALC", "altsrc": "???"}
    assert detail.findtext("remarks") == fix_line(make_fix())


def test_point_is_the_circle_round_the_ellipse(make_fix):
    fix = make_fix()
    event = read_back(fix_to_cot(fix))
    point, ellipse = event.find("point"), event.find("detail/shape/ellipse")
    assert (float(point.get("lat")), float(point.get("lon"))) == (45.123, 7.456)
    assert (point.get("hae"), point.get("le")) == ("9999999.0", "9999999.0")
    assert float(point.get("ce")) == pytest.approx(fix.uncertainty.semi_major_m, abs=0.01)
    assert float(ellipse.get("major")) == pytest.approx(2.0 * fix.uncertainty.semi_major_m, abs=0.01)
    assert float(ellipse.get("minor")) == pytest.approx(2.0 * fix.uncertainty.semi_minor_m, abs=0.01)
    assert float(ellipse.get("angle")) == pytest.approx(fix.uncertainty.azimuth_deg, abs=0.05)


def test_fixes_of_a_station_on_a_frequency_are_one_marker(make_fix):
    def uid(**changes):
        return read_back(fix_to_cot(make_fix(**changes))).get("uid")

    assert uid() == uid(stream="restarted", sequence=0, timestamp=datetime.now(timezone.utc))
    others = {uid(station="roof"), uid(frequency_hz=433920001.0), uid(frequency_hz=None), uid()}
    assert len(others) == 4


def test_without_a_position_there_is_no_event(make_fix):
    assert fix_to_cot(make_fix(reason="silence")) is None


def test_settings(make_fix):
    local = datetime(2026, 7, 1, 1, 59, 59, 500000, timezone(timedelta(hours=2)))
    event = read_back(fix_to_cot(make_fix(timestamp=local), stale_s=0.5, cot_type="a-h-G-E-S"))
    assert event.get("type") == "a-h-G-E-S"
    assert (event.get("time"), event.get("stale")) == ("2026-06-30T23:59:59.500Z", "2026-07-01T00:00:00.000Z")


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    st.floats(-90.0, 90.0),
    st.floats(-180.0, 180.0),
    st.floats(1e-3, 1e7),
    st.floats(1e-3, 1e7),
    st.none() | st.floats(0.0, 1e11),
)
@settings(max_examples=60, deadline=None)
def test_every_event_is_valid_and_one_line(make_fix, station, latitude, longitude, sigma_x, sigma_y, frequency_hz):
    fix = make_fix(
        station=station,
        position=Position(latitude, longitude),
        uncertainty=Uncertainty(sigma_x, sigma_y, 30.0),
        frequency_hz=frequency_hz,
    )
    text = fix_to_cot(fix)
    assert "\n" not in text
    assert "\r" not in text
    assert text.startswith("<event")
    assert text.endswith("</event>")  # that is where a TAK server cuts the stream
    read_back(text)


@pytest.mark.parametrize("stale_s", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_stale_time_has_to_be_positive_and_within_a_year(make_fix, stale_s):
    with pytest.raises(ConfigError, match="stale_s"):
        fix_to_cot(make_fix(), stale_s=stale_s)


@pytest.mark.parametrize("cot_type", ["", "a-u-", "-a", 'a"u', "a u", "a-u-G\n"])
def test_type_has_to_be_one_of_the_schema(make_fix, cot_type):
    with pytest.raises(ConfigError, match="cot_type"):
        fix_to_cot(make_fix(), cot_type=cot_type)
    with pytest.raises(ConfigError, match="cot_type"):
        check_cot(60.0, cot_type)


def test_what_is_not_finite_is_refused(make_fix):
    with pytest.raises(ConfigError, match="latitude"):
        fix_to_cot(make_fix(position=Position(math.nan, 0.0)))


ROWS = ((4.0, 0.0, 1.0, 0.0), (0.0, 4.0, 0.0, 1.0), (1.0, 0.0, 2.0, 0.0), (0.0, 1.0, 0.0, 2.0))


def track(number: int, **changes: object) -> TrackReport:
    fields = {"east_mps": -3.0, "north_mps": 4.0, "lag_s": 0.5} | changes
    return TrackReport(
        number,
        "confirmed",
        Position(45.1, 7.4),
        Uncertainty(20.0, 10.0, 0.0),
        covariance=ROWS,
        updates=7,
        age_s=3.0,
        idle_s=0.0,
        **fields,
    )


@pytest.mark.parametrize("reason", [None, "silence"])
def test_tracks_are_markers_of_their_own(make_fix, reason):
    fix = make_fix(tracks=(track(1), track(7)), **({} if reason is None else {"reason": reason}))
    events = [read_back(event) for event in fix_to_cot_events(fix)]
    assert [event.get("uid") for event in events] == [f"gr-localize.demo.433920000.a1b2.{k}" for k in (1, 7)]
    assert {event.get("time") for event in events} == {"2026-01-02T03:04:05.178Z"}
    assert {event.get("stale") for event in events} == {"2026-01-02T03:05:05.678Z"}
    for event in events:
        assert event.find("point").get("lat") == "45.100000000"
        assert dict(event.find("detail/track").attrib) == {"course": "323.13", "speed": "5.00"}
        assert event.find("detail/shape/ellipse").get("angle") == "90.0"
    together = fix_to_cot(fix)
    assert together is not None
    assert len(etree.fromstring(f"<all>{together}</all>")) == 2
    assert "\n" not in together


def test_course_stays_below_360_when_rounded(make_fix):
    (event,) = fix_to_cot_events(make_fix(tracks=(track(1, east_mps=-1e-6, north_mps=1.0),)))
    assert read_back(event).find("detail/track").get("course") == "0.00"


def test_without_position_and_tracks_there_is_no_event(make_fix):
    assert fix_to_cot_events(make_fix(reason="silence")) == []
