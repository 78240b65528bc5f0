"""Pictures of figures: rates beside peers, growth with the fitted powers, latency. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from localize_benchmarks.figures import Figure, Found, Growth

COLOURS = ("#2a6f97", "#a9b4bd")


def draw(found: Iterable[Found], folder: Path) -> Iterator[Path]:
    """Write performance_*.png for what there are figures of; the paths written."""
    found = list(found)
    folder.mkdir(parents=True, exist_ok=True)
    measured = [each for each in found if isinstance(each, Figure)]
    growth = [each for each in found if isinstance(each, Growth)]
    compared = [each for each in measured if each.unit.startswith("MS/s") and each.ratio is not None]
    latency = [each for each in measured if each.benchmark == "latency"]
    for name, chosen, drawing in (
        ("rates", compared, _ratios),
        ("growth", growth, _growth),
        ("latency", latency, _latency),
    ):
        if chosen:
            path = folder / f"performance_{name}.png"
            figure = drawing(chosen)
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            yield path


def _ratios(figures: list[Figure]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(figures) + 1))
    names = [f"{each.benchmark}: {each.what} / {each.peer}" for each in figures]
    values = [each.ratio or 0.0 for each in figures]
    places = np.arange(len(figures))[::-1]
    axes.barh(places, values, color=[COLOURS[each.met is None] for each in figures])
    for place, each in zip(places, figures, strict=True):
        axes.text(each.ratio or 0.0, place, f" {each.ratio:.2g}", va="center", fontsize=8)
        if each.goal is not None:
            goal = float(each.goal.split()[1])
            axes.plot([goal, goal], [place - 0.4, place + 0.4], color="#c1121f", linewidth=2)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("rate over the peer's rate; red: the goal")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _growth(growths: list[Growth]) -> plt.Figure:
    columns = min(len(growths), 3)
    rows = math.ceil(len(growths) / columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4 * columns, 3.4 * rows), squeeze=False)
    for axes, each in zip(grid.flat, growths, strict=False):
        sizes, seconds = np.array(each.sizes, float), np.array(each.seconds)
        middle = np.exp(np.log(sizes).mean()), np.exp(np.log(seconds).mean())
        axes.loglog(sizes, seconds, "o", color=COLOURS[0])
        axes.loglog(sizes, middle[1] * (sizes / middle[0]) ** each.exponent, color=COLOURS[1])
        axes.set_title(f"{each.what}\nexponent {each.exponent:.2f} ± {each.standard_error:.2f}", fontsize=9)
        axes.set_xlabel(each.over, fontsize=9)
        axes.set_ylabel("seconds", fontsize=9)
        axes.grid(True, which="both", alpha=0.25)
    for axes in list(grid.flat)[len(growths) :]:
        axes.set_visible(False)
    figure.tight_layout()
    return figure


def _latency(figures: list[Figure]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(figures) + 1))
    places = np.arange(len(figures))[::-1]
    axes.barh(places, [each.value for each in figures], color=COLOURS[0])
    for place, each in zip(places, figures, strict=True):
        axes.text(each.value, place, f" {each.value:.3g}", va="center", fontsize=8)
        goal = float((each.goal or "≤ nan").split()[1])
        axes.plot([goal, goal], [place - 0.4, place + 0.4], color="#c1121f", linewidth=2)
    axes.set_yticks(places, [each.what for each in figures], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds; red: the goal")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
