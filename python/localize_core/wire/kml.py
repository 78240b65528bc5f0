"""Fixes as a KML 2.2 document (OGC 07-147r2), for Google Earth and others."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from localize_core.types.fix import Fix, Position, TrackReport, Uncertainty
from localize_core.wire.ellipse import cut_ring, ellipse_ring
from localize_core.wire.fix_csv import fix_columns, track_columns
from localize_core.wire.xml_text import xml_text

NAMESPACE = "http://www.opengis.net/kml/2.2"
ICON = "http://maps.google.com/mapfiles/kml/shapes/target.png"
LINE_COLOR, FILL_COLOR, TRACK_COLOR = "ff0055ff", "400055ff", "ffb04000"  # alpha, blue, green, red


def fixes_to_kml(fixes: Iterable[Fix], name: str = "gr-localize") -> str:
    """A document called `name` with a folder for each station, and in it a placemark for each fix that has a position.

    A placemark holds position and error ellipse, the time, and the columns of `fix_csv` as extended data. Fixes
    without a position are counted in the document's description. Each track is a placemark more: the line of its
    places, and its last state as extended data. Raises ConfigError as `fix_to_dict` does.
    """
    root = ElementTree.Element("kml", xmlns=NAMESPACE)
    document = ElementTree.SubElement(root, "Document")
    _text(document, "name", name)
    description = ElementTree.SubElement(document, "description")
    _style(document)
    folders: dict[str, ElementTree.Element] = {}
    tracks: dict[tuple[str, str, float | None, int], list[tuple[Fix, TrackReport]]] = {}
    shown = left_out = 0
    for fix in fixes:
        for track in fix.tracks:
            tracks.setdefault((fix.station, fix.stream, fix.frequency_hz, track.id), []).append((fix, track))
        if fix.position is None or fix.uncertainty is None:
            left_out += 1
            continue
        shown += 1
        _placemark(_folder(document, folders, fix.station), fix, fix.position, fix.uncertainty)
    for (station, *_), states in tracks.items():
        _track(_folder(document, folders, station), states)
    description.text = f"Fixes with a position: {shown}. Left out, without one: {left_out}."
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _folder(document: ElementTree.Element, folders: dict[str, ElementTree.Element], name: str) -> ElementTree.Element:
    if name not in folders:
        folders[name] = ElementTree.SubElement(document, "Folder")
        _text(folders[name], "name", name)
    return folders[name]


def _track(folder: ElementTree.Element, states: list[tuple[Fix, TrackReport]]) -> None:
    """Cut at the antimeridian, where the line would go round the Earth."""
    columns = [track_columns(fix, track) for fix, track in states]
    placemark = ElementTree.SubElement(folder, "Placemark")
    _text(placemark, "name", f"track {columns[-1]['track']}")
    span = ElementTree.SubElement(placemark, "TimeSpan")
    _text(span, "begin", columns[0]["timestamp"])
    _text(span, "end", columns[-1]["timestamp"])
    _text(placemark, "styleUrl", "#track")
    data = ElementTree.SubElement(placemark, "ExtendedData")
    for column, value in columns[-1].items():
        _text(ElementTree.SubElement(data, "Data", name=column), "value", str(value))
    lines: list[list[str]] = [[]]
    before = columns[0]["longitude"]
    for each in columns:
        if abs(each["longitude"] - before) > 180.0:
            lines.append([])
        before = each["longitude"]
        lines[-1].append(f"{each['longitude']},{each['latitude']}")
    geometry = ElementTree.SubElement(placemark, "MultiGeometry")
    _text(ElementTree.SubElement(geometry, "Point"), "coordinates", lines[-1][-1])
    for line in lines:
        if len(line) > 1:
            drawn = ElementTree.SubElement(geometry, "LineString")
            _text(drawn, "tessellate", "1")
            _text(drawn, "coordinates", " ".join(line))


def _placemark(folder: ElementTree.Element, fix: Fix, position: Position, uncertainty: Uncertainty) -> None:
    placemark = ElementTree.SubElement(folder, "Placemark")
    columns = fix_columns(fix)
    _text(placemark, "name", columns["timestamp"])
    _text(ElementTree.SubElement(placemark, "TimeStamp"), "when", columns["timestamp"])
    _text(placemark, "styleUrl", "#fix")
    data = ElementTree.SubElement(placemark, "ExtendedData")
    for column, value in columns.items():
        if value is not None:
            _text(ElementTree.SubElement(data, "Data", name=column), "value", str(value))
    geometry = ElementTree.SubElement(placemark, "MultiGeometry")
    _text(ElementTree.SubElement(geometry, "Point"), "coordinates", f"{columns['longitude']},{columns['latitude']}")
    for part in cut_ring(ellipse_ring(position, uncertainty)):
        polygon = ElementTree.SubElement(geometry, "Polygon")
        _text(polygon, "tessellate", "1")
        ring = ElementTree.SubElement(ElementTree.SubElement(polygon, "outerBoundaryIs"), "LinearRing")
        _text(ring, "coordinates", " ".join(f"{longitude},{latitude}" for longitude, latitude in part))


def _style(document: ElementTree.Element) -> None:
    style = ElementTree.SubElement(document, "Style", id="fix")
    icon = ElementTree.SubElement(style, "IconStyle")
    _text(ElementTree.SubElement(icon, "Icon"), "href", ICON)
    _text(ElementTree.SubElement(style, "LabelStyle"), "scale", "0")
    line = ElementTree.SubElement(style, "LineStyle")
    _text(line, "color", LINE_COLOR)
    _text(line, "width", "2")
    _text(ElementTree.SubElement(style, "PolyStyle"), "color", FILL_COLOR)
    line = ElementTree.SubElement(ElementTree.SubElement(document, "Style", id="track"), "LineStyle")
    _text(line, "color", TRACK_COLOR)
    _text(line, "width", "3")


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = xml_text(text)
