"""The demo's picture: receivers, truth, fixes and their ellipses, and how errors went."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from localize_core.errors import PublishError
from localize_core.geodesy import LocalFrame
from localize_core.score import Track
from localize_core.station.config import Station
from localize_core.types.fix import Fix
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart with any eyes
TRUTH, FIXES, RECEIVERS = "#000000", "#0072B2", "#D55E00"
SIZE_INCHES, DOTS_PER_INCH = (9.0, 10.0), 130


def draw(station: Station, fixes: list[Fix], truth: Track, summary: str, path: Path) -> None:
    """Write the picture to `path` as PNG. Raises PublishError if it cannot be written."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[5, 1])
    frame = LocalFrame(float(truth.latitude[0]), float(truth.longitude[0]), station.area.altitude_m)
    _draw_map(above, frame, station, fixes, truth)
    _draw_errors(below, frame, fixes, truth)
    table = station.station
    above.set_title(f"{table.name}: {len(station.receiver)} receivers, {table.frequency_hz / 1e6:g} MHz", loc="left")
    figure.supxlabel(summary, fontsize="medium")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.print_png(path)
    except OSError as error:
        raise PublishError(f"{path}: cannot be written: {error.strerror}") from error


def _plane(frame: LocalFrame, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """East and north in kilometres, (n, 2)."""
    return frame.to_enu_m(latitude, longitude, frame.altitude_m)[..., :2] / 1e3


def _located(fixes: list[Fix]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, latitudes and longitudes of the fixes that have a position."""
    rows = [(f.timestamp.timestamp(), f.position.latitude, f.position.longitude) for f in fixes if f.position]
    times_s, latitude, longitude = np.array(rows, float).reshape(-1, 3).T
    return times_s, latitude, longitude


def _draw_map(axes: Axes, frame: LocalFrame, station: Station, fixes: list[Fix], truth: Track) -> None:
    _, latitude, longitude = _located(fixes)
    places = _plane(frame, latitude, longitude)
    ellipses = [fix.uncertainty for fix in fixes if fix.position is not None and fix.uncertainty is not None]
    axes.add_collection(
        EllipseCollection(
            [2.0 * ellipse.semi_major_m / 1e3 for ellipse in ellipses],
            [2.0 * ellipse.semi_minor_m / 1e3 for ellipse in ellipses],
            [90.0 - ellipse.azimuth_deg for ellipse in ellipses],
            units="xy",
            offsets=places,
            offset_transform=axes.transData,
            facecolor=FIXES,
            edgecolor="none",
            alpha=0.07,
        )
    )
    axes.plot(*_plane(frame, truth.latitude, truth.longitude).T, color=TRUTH, linewidth=1.2, label="truth")
    axes.plot(*places.T, ".", color=FIXES, markersize=4, label="fixes, shaded: their 95 % ellipses")
    receivers = _plane(
        frame, np.array([r.latitude for r in station.receiver]), np.array([r.longitude for r in station.receiver])
    )
    axes.plot(*receivers.T, "^", color=RECEIVERS, markersize=9, label="receivers")
    for place, receiver in zip(receivers, station.receiver, strict=True):
        axes.annotate(receiver.name, place, (0, 9), textcoords="offset points", ha="center", color=RECEIVERS)
    axes.set_aspect("equal")
    axes.margins(0.08)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="best", frameon=False)
    _draw_scale(axes)


def _draw_scale(axes: Axes) -> None:
    """A bar of a round length, about a fifth of the map, at the lower right."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    wanted = (right - left) / 5.0
    decade = 10.0 ** math.floor(math.log10(wanted))
    length = max(step * decade for step in (1.0, 2.0, 5.0) if step * decade <= wanted)
    end, height = right - 0.04 * (right - left), bottom + 0.04 * (top - bottom)
    axes.plot([end - length, end], [height, height], color=TRUTH, linewidth=3, solid_capstyle="butt")
    text = f"{length:g} km" if length >= 1.0 else f"{1e3 * length:g} m"
    axes.annotate(text, (end - length / 2.0, height), (0, 5), textcoords="offset points", ha="center")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _draw_errors(axes: Axes, frame: LocalFrame, fixes: list[Fix], truth: Track) -> None:
    times_s, latitude, longitude = _located(fixes)
    error_m = 1e3 * np.linalg.norm(_plane(frame, latitude, longitude) - _plane(frame, *truth.at(times_s)), axis=1)
    elapsed_s = times_s - truth.times_s[0]
    reach_m = [
        fix.uncertainty.semi_major_m for fix in fixes if fix.position is not None and fix.uncertainty is not None
    ]
    axes.fill_between(elapsed_s, reach_m, color=FIXES, alpha=0.15, linewidth=0, label="semi-major axis, 95 %")
    axes.plot(elapsed_s, error_m, ".-", color=FIXES, markersize=3, linewidth=0.8, label="error")
    axes.set_xlim(0.0, truth.times_s[-1] - truth.times_s[0])
    axes.set_ylim(0.0)
    axes.set_xlabel("s")
    axes.set_ylabel("m")
    axes.legend(loc="upper right", frameon=False, ncols=2, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
