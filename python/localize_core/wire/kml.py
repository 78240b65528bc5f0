"""Fixes as a KML 2.2 document (OGC 07-147r2), for Google Earth and others."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from localize_core.types.fix import Fix, Position, Uncertainty
from localize_core.wire.ellipse import cut_ring, ellipse_ring
from localize_core.wire.fix_csv import fix_columns
from localize_core.wire.xml_text import xml_text

NAMESPACE = "http://www.opengis.net/kml/2.2"
ICON = "http://maps.google.com/mapfiles/kml/shapes/target.png"
LINE_COLOR, FILL_COLOR = "ff0055ff", "400055ff"  # alpha, blue, green, red


def fixes_to_kml(fixes: Iterable[Fix], name: str = "gr-localize") -> str:
    """A document called `name` with a folder for each station, and in it a placemark for each fix that has a position.

    A placemark holds position and error ellipse, the time, and the columns of `fix_csv` as extended data. Fixes
    without a position are counted in the document's description. Raises ConfigError as `fix_to_dict` does.
    """
    root = ElementTree.Element("kml", xmlns=NAMESPACE)
    document = ElementTree.SubElement(root, "Document")
    _text(document, "name", name)
    description = ElementTree.SubElement(document, "description")
    _style(document)
    folders: dict[str, ElementTree.Element] = {}
    shown = left_out = 0
    for fix in fixes:
        if fix.position is None or fix.uncertainty is None:
            left_out += 1
            continue
        shown += 1
        if fix.station not in folders:
            folders[fix.station] = ElementTree.SubElement(document, "Folder")
            _text(folders[fix.station], "name", fix.station)
        _placemark(folders[fix.station], fix, fix.position, fix.uncertainty)
    description.text = f"Fixes with a position: {shown}. Left out, without one: {left_out}."
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


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


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = xml_text(text)
