"""The plots of an evaluation, as SVG. Needs the extra `report`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from scipy.stats import binom, chi2

from localize_core.dataset.windows import Label
from localize_core.evaluation.baselines import receivers_enu_m
from localize_core.evaluation.evaluate import MODEL, Evaluation
from localize_core.evaluation.metrics import errors_m, squared_mahalanobis
from localize_core.evaluation.summary import title_of

# Okabe & Ito's colours, told apart with any eyes
COLOURS = {MODEL: "#0072B2", "compiled": "#E69F00", "tdoa": "#009E73", "knn5": "#CC79A7", "centroid": "#7F7F7F"}
OTHER, RECEIVERS, INK, FAINT = "#56B4E9", "#D55E00", "#1B2733", "#C9D1D9"
STYLE = {
    "font.size": 10.0,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#8A96A3",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6EAEE",
    "text.color": INK,
    "xtick.color": "#5A6672",
    "ytick.color": "#5A6672",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "svg.hashsalt": "gr-localize",
}
MANY_POINTS = 1500
"""More of them are drawn as pixels: a vector for each would make the page heavy."""


def plots(evaluation: Evaluation, box_m: np.ndarray | None) -> dict[str, str]:
    """SVG by name: "map", "cdf", "calibration", "snr", "reliability"; those that have no data are left out.

    `box_m` (2, 2): south-west and north-east corner of the area, in the plane of the windows.
    """
    drawn: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        if np.isfinite(errors_m(evaluation.answers[MODEL], evaluation.truth)).any():
            drawn["map"] = _svg(_map(evaluation, box_m))
            drawn["cdf"] = _svg(_cdf(evaluation))
            drawn["calibration"] = _svg(_calibration(evaluation))
        if len(evaluation.figures[MODEL].by_snr) > 1:
            drawn["snr"] = _svg(_snr(evaluation))
        if evaluation.figures[MODEL].reliability is not None:
            drawn["reliability"] = _svg(_reliability(evaluation))
    return drawn


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None})
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER)


def _order(evaluation: Evaluation) -> Iterator[str]:
    """Baselines first, so that the model is drawn over them."""
    yield from reversed(list(evaluation.figures))


def _legend(axes: Axes, where: Literal["upper left", "best"]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc=where)


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10 on a logarithmic axis, in figures that people read; fewer where it spans many decades."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3.0 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _map(evaluation: Evaluation, box_m: np.ndarray | None) -> Figure:
    figure = _figure(6.6, 6.0)
    axes = figure.add_subplot()
    truth = evaluation.truth
    error_m = errors_m(evaluation.answers[MODEL], truth)
    drawn = np.isfinite(error_m)
    receivers_m = receivers_enu_m(evaluation.source)[:, :2]
    corners = [receivers_m, truth.position_m[drawn], *([] if box_m is None else [box_m])]
    extent_m = np.ptp(np.concatenate(corners), axis=0).max()
    scale, unit = (1e3, "km") if extent_m >= 3e3 else (1.0, "m")
    if box_m is not None:
        width, height = (box_m[1] - box_m[0]) / scale
        axes.add_patch(Rectangle(tuple(box_m[0] / scale), width, height, fill=False, edgecolor=INK, linestyle=":"))
    low, high = np.quantile(error_m[drawn], [0.02, 0.98])
    norm = LogNorm(max(low, 1e-3), max(high, low * 1.5, 2e-3))
    order = np.argsort(error_m[drawn])  # the worst on top
    east, north = (truth.position_m[drawn][order] / scale).T
    points = axes.scatter(
        east,
        north,
        c=error_m[drawn][order],
        s=float(np.clip(12_000.0 / drawn.sum(), 4.0, 30.0)),
        cmap="viridis_r",
        norm=norm,
        linewidths=0.0,
        rasterized=bool(drawn.sum() > MANY_POINTS),
    )
    axes.plot(*(receivers_m / scale).T, "^", color=RECEIVERS, markersize=9, markeredgecolor="white", label="receivers")
    for place, receiver in zip(receivers_m / scale, evaluation.source.receivers, strict=True):
        axes.annotate(
            receiver.name, place, (0, 8), textcoords="offset points", ha="center", fontsize=8, color=RECEIVERS
        )
    bar = figure.colorbar(points, ax=axes, shrink=0.75, extend="both")
    _plain_numbers(bar.ax.yaxis)
    bar.set_label("error of the model, m")
    bar.outline.set_visible(False)
    axes.set_aspect("equal")
    axes.margins(0.06)
    axes.set_xlabel(f"east, {unit}")
    axes.set_ylabel(f"north, {unit}")
    return figure


def _cdf(evaluation: Evaluation) -> Figure:
    figure = _figure(6.6, 4.4)
    axes = figure.add_subplot()
    windows = evaluation.figures[MODEL].windows
    lowest = []
    for name in _order(evaluation):
        error_m = errors_m(evaluation.answers[name], evaluation.truth)
        error_m = np.sort(error_m[np.isfinite(error_m)])
        if len(error_m) == 0:
            continue
        share = np.arange(1, len(error_m) + 1) / windows
        width = 2.4 if name == MODEL else 1.4
        axes.step(error_m, share, where="post", color=_colour(name), linewidth=width, label=title_of(name))
        lowest.append(np.quantile(error_m, 0.005))
    axes.set_xscale("log")
    axes.set_xlim(left=max(min(lowest), 1e-3))
    _plain_numbers(axes.xaxis)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("error, m")
    axes.set_ylabel("windows with an emitter in the area")
    _legend(axes, "upper left")
    return figure


def _calibration(evaluation: Evaluation) -> Figure:
    figure = _figure(6.6, 4.4)
    axes = figure.add_subplot()
    truth = evaluation.truth
    nominal = np.linspace(0.0, 1.0, 201)
    count = evaluation.figures[MODEL].answered
    low, high = binom.interval(0.95, count, nominal[1:-1])
    axes.fill_between(
        nominal[1:-1], low / count, high / count, color=FAINT, alpha=0.6, linewidth=0, label="honest, 95 %"
    )
    axes.plot([0.0, 1.0], [0.0, 1.0], color=INK, linewidth=0.8)
    for name in _order(evaluation):
        answers = evaluation.answers[name]
        squared = squared_mahalanobis(answers.position_m - truth.position_m, answers.covariance_m2)[truth.inside]
        squared = squared[~np.isnan(squared)]
        if len(squared) == 0:
            continue
        needed = np.sort(chi2.cdf(squared, 2))
        observed = np.searchsorted(needed, nominal, side="right") / len(needed)
        width = 2.4 if name == MODEL else 1.4
        axes.plot(nominal, observed, color=_colour(name), linewidth=width, label=title_of(name))
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("what the ellipse states")
    axes.set_ylabel("truths inside")
    _legend(axes, "upper left")
    return figure


def _snr(evaluation: Evaluation) -> Figure:
    figure = _figure(6.6, 4.4)
    axes = figure.add_subplot()
    labels = [row.label for row in evaluation.figures[MODEL].by_snr]
    place = np.arange(len(labels))
    if evaluation.bound is not None:
        bound = [np.nan if row.bound_rmse_m is None else row.bound_rmse_m for row in evaluation.figures[MODEL].by_snr]
        axes.plot(place, bound, "--", color=INK, linewidth=1.4, label="Cramér–Rao bound, with area")
    for name in _order(evaluation):
        rmse = [np.nan if r.accuracy is None else r.accuracy.rmse_m for r in evaluation.figures[name].by_snr]
        width = 2.4 if name == MODEL else 1.4
        axes.plot(place, rmse, ".-", color=_colour(name), linewidth=width, markersize=7, label=title_of(name))
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    turned = len(labels) > 6
    axes.set_xticks(place, labels, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_xlabel("median receiver's SNR, dB")
    axes.set_ylabel("RMSE, m")
    _legend(axes, "best")
    return figure


def _reliability(evaluation: Evaluation) -> Figure:
    figure = _figure(6.6, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    found = evaluation.figures[MODEL].reliability
    assert found is not None
    confidence = np.array([item.confidence for item in found.bins])
    share, low, high = np.array([(item.valid.share, item.valid.low, item.valid.high) for item in found.bins]).T
    above.plot([0.0, 1.0], [0.0, 1.0], color=INK, linewidth=0.8)
    above.errorbar(
        confidence,
        share,
        yerr=np.maximum([share - low, high - share], 0.0),
        fmt="o",
        color=COLOURS[MODEL],
        markersize=6,
        capsize=3,
        label="share of valid fixes, with 95 % interval",
        clip_on=False,
    )
    above.set_ylim(0.0, 1.0)
    above.yaxis.set_major_formatter(PercentFormatter(1.0))
    above.set_ylabel("valid fixes")
    above.legend(loc="upper left")
    stated = evaluation.answers[MODEL].confidence
    kinds = [(Label.INSIDE, "emitter", COLOURS[MODEL]), (Label.OUTSIDE, "outside", OTHER), (Label.NONE, "none", FAINT)]
    present = [kind for kind in kinds if (evaluation.truth.label == kind[0]).any()]
    below.hist(
        [stated[(evaluation.truth.label == label) & np.isfinite(stated)] for label, _, _ in present],
        bins=np.linspace(0.0, 1.0, 21).tolist(),
        stacked=True,
        color=[colour for _, _, colour in present],
        label=[text for _, text, _ in present],
    )
    below.set_xlim(0.0, 1.0)
    below.set_xlabel("confidence of the model")
    below.set_ylabel("windows")
    below.legend(loc="upper center", ncols=len(present))
    return figure
