"""Fixes as GeoJSON (RFC 7946): position and error ellipse, the columns of `fix_csv` as properties."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localize_core.types.fix import Fix, Position
from localize_core.wire.ellipse import Ring, cut_ring, ellipse_ring, surrounds_pole
from localize_core.wire.fix_csv import fix_columns, track_columns


def fix_to_geojson(fix: Fix) -> dict[str, Any]:
    """The fix as one Feature: a collection of its position and its ellipse; no geometry where there is no position.

    Tracks are a property `tracks`, a list, where there are any. Ellipses are cut at the antimeridian. Raises
    ConfigError as `fix_to_dict` does.
    """
    properties = fix_columns(fix)
    if fix.tracks:
        properties["tracks"] = [track_columns(fix, track) for track in fix.tracks]
    if fix.position is None or fix.uncertainty is None:
        return _feature(fix, properties, None)
    ring = ellipse_ring(fix.position, fix.uncertainty)
    parts = [_point(fix.position), _polygon(ring)]
    feature = _feature(fix, properties, {"type": "GeometryCollection", "geometries": parts})
    return feature | {"bbox": _bounds(ring, fix.position)}


def feature_collection(fixes: Iterable[Fix]) -> dict[str, Any]:
    """The fixes as a FeatureCollection with two Features each: the ellipse, and above it the position.

    Unlike the Feature of `fix_to_geojson`, each has a single geometry: QGIS and others that keep a layer for each type
    of geometry show no collections. Both have all properties. Without a position there is one, without geometry.
    Tracks follow, each with two Features of its own, whose properties are `track_columns`.
    Raises ConfigError as `fix_to_dict` does.
    """
    features = []
    for fix in fixes:
        properties = fix_columns(fix)
        if fix.position is None or fix.uncertainty is None:
            features.append(_feature(fix, properties, None))
        else:
            ellipse = _polygon(ellipse_ring(fix.position, fix.uncertainty))
            features.append(_feature(fix, properties, ellipse, "/ellipse"))
            features.append(_feature(fix, properties, _point(fix.position)))
        for track in fix.tracks:
            columns, suffix = track_columns(fix, track), f"/track-{track.id}"
            ellipse = _polygon(ellipse_ring(track.position, track.uncertainty))
            features.append(_feature(fix, columns, ellipse, f"{suffix}/ellipse"))
            features.append(_feature(fix, columns, _point(track.position), suffix))
    return {"type": "FeatureCollection", "features": features}


def _feature(fix: Fix, properties: dict[str, Any], geometry: dict[str, Any] | None, suffix: str = "") -> dict[str, Any]:
    name = f"{fix.station}/{fix.stream}/{fix.sequence}{suffix}"
    return {"type": "Feature", "id": name, "geometry": geometry, "properties": properties}


def _point(position: Position) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [float(position.longitude), float(position.latitude)]}


def _polygon(ring: Ring) -> dict[str, Any]:
    polygons = [[[list(place) for place in part]] for part in cut_ring(ring)]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _bounds(ring: Ring, centre: Position) -> list[float]:
    """West, south, east, north. West is above east across the antimeridian. Source: RFC 7946, 5.2 and 5.3."""
    longitudes, latitudes = zip(*ring, strict=True)
    if surrounds_pole(ring):
        north = centre.latitude > 0.0
        return [-180.0, min(latitudes) if north else -90.0, 180.0, 90.0 if north else max(latitudes)]
    west, east = min(longitudes), max(longitudes)
    west = round(west + 360.0, 12) if west < -180.0 else west
    east = round(east - 360.0, 12) if east > 180.0 else east
    return [west, min(latitudes), east, max(latitudes)]
