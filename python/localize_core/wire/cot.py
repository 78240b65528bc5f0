"""A fix as a Cursor on Target event, for ATAK, WinTAK and TAK servers.

Sources: MITRE's public CoT base event schema 2.0 (case 11-3895) and shape schema (case 11-3904), both in ATAK-CIV's
takcot/mitre, and ATAK-CIV's ShapeDetailHandler, which draws the ellipse.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

from localize_core.errors import ConfigError
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_dict
from localize_core.wire.text import fix_line
from localize_core.wire.xml_text import xml_text

UNKNOWN = "9999999.0"
HOW = "m-f"
"""Machine generated, fused: corroborated from multiple sources. There is no agreed word for a radio location."""
YEAR_S = 365.0 * 86400.0
COT_TYPE = re.compile(r"\w+(-\w+)*")


def fix_to_cot(fix: Fix, *, stale_s: float = 60.0, cot_type: str = "a-u-G") -> str | None:
    """The events of `fix_to_cot_events` in one line, one after the other; None without any."""
    return "".join(fix_to_cot_events(fix, stale_s=stale_s, cot_type=cot_type)) or None


def fix_to_cot_events(fix: Fix, *, stale_s: float = 60.0, cot_type: str = "a-u-G") -> list[str]:
    """The fix as events of one line each, without XML declaration: one for each of its tracks where it has any, else
    one for its position; none without either: markers go stale.

    All fixes of a station on a frequency are one marker that moves, over restarts too: its uid holds both, and
    neither stream nor sequence. Each track is one, whose uid holds stream and number besides: those begin anew with the
    stream. Markers go stale `stale_s` seconds after the window. `cot_type`: by default an unknown thing on the ground.
    `ce` is the radius of the circle round the ellipse, as the shape schema wants it, not one sigma. The ellipse's axes
    are whole ones, not half, as ATAK reads a marker's.

    Raises ConfigError for a `stale_s` that is not positive or beyond a year, a `cot_type` that the schema does not
    allow, or as `fix_to_dict` does.
    """
    check_cot(stale_s, cot_type)
    encoded = fix_to_dict(fix)
    name, uid = fix.station, f"gr-localize.{fix.station}"
    if fix.frequency_hz is not None:
        name, uid = f"{name} {fix.frequency_hz / 1e6:.9g} MHz", f"{uid}.{fix.frequency_hz:.0f}"
    if fix.tracks:
        return [
            _event(fix, track, stale_s, cot_type, f"{name} #{track['id']}", f"{uid}.{fix.stream}.{track['id']}")
            for track in encoded["tracks"]
        ]
    return [] if fix.position is None else [_event(fix, encoded, stale_s, cot_type, name, uid)]


def _event(fix: Fix, placed: dict[str, Any], stale_s: float, cot_type: str, name: str, uid: str) -> str:
    """`placed`: a fix or track with a position, as in the JSON form."""
    position, uncertainty, velocity = placed["position"], placed["uncertainty"], placed.get("velocity")
    at = fix.timestamp - timedelta(seconds=placed.get("lag_s", 0.0))
    event = ElementTree.Element(
        "event",
        version="2.0",
        uid=xml_text(uid),
        type=cot_type,
        how=HOW,
        time=_time(at),
        start=_time(at),
        stale=_time(fix.timestamp + timedelta(seconds=stale_s)),
    )
    ElementTree.SubElement(
        event,
        "point",
        lat=_decimal(position["latitude"], 9),
        lon=_decimal(position["longitude"], 9),
        hae=UNKNOWN,
        ce=_decimal(uncertainty["semi_major_m"]),
        le=UNKNOWN,
    )
    detail = ElementTree.SubElement(event, "detail")
    ElementTree.SubElement(detail, "contact", callsign=xml_text(name))
    ElementTree.SubElement(detail, "precisionlocation", geopointsrc="CALC", altsrc="???")
    if velocity is not None:
        course_deg = round(velocity["course_deg"], 2) % 360.0
        ElementTree.SubElement(detail, "track", course=_decimal(course_deg), speed=_decimal(velocity["speed_mps"]))
    ElementTree.SubElement(
        ElementTree.SubElement(detail, "shape"),
        "ellipse",
        major=_decimal(2.0 * uncertainty["semi_major_m"]),
        minor=_decimal(2.0 * uncertainty["semi_minor_m"]),
        angle=_decimal(uncertainty["azimuth_deg"], 1),
    )
    ElementTree.SubElement(detail, "remarks").text = xml_text(fix_line(fix))
    return ElementTree.tostring(event, encoding="unicode")


def check_cot(stale_s: float, cot_type: str) -> None:
    """Raises ConfigError as `fix_to_cot` does, before there is a fix."""
    if not 0.0 < stale_s <= YEAR_S:
        raise ConfigError(f"stale_s={stale_s}: wanted seconds above 0, a year at most")
    if not COT_TYPE.fullmatch(cot_type):
        raise ConfigError(f"cot_type={cot_type!r}: wanted letters and digits joined by dashes, like a-u-G")


def _time(moment: datetime) -> str:
    """UTC with milliseconds: what every TAK product writes."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _decimal(value: float, digits: int = 2) -> str:
    """Never with an exponent, which xs:decimal does not know."""
    return f"{value:.{digits}f}"
