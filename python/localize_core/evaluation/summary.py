"""The figures of an evaluation as a table of words: one wording for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from localize_core.evaluation.evaluate import MODEL, Evaluation
from localize_core.evaluation.metrics import (
    CLEAR_SNR_DB,
    PROBABILITIES,
    VALID_PROBABILITY,
    Accuracy,
    Figures,
    Row,
)

TITLES = {MODEL: "model", "compiled": "compiled", "tdoa": "TDOA", "centroid": "centroid"}
GROUPS = {
    "emitter_clear": f"emitter, SNR ≥ {CLEAR_SNR_DB:g} dB",
    "emitter": "emitter, any SNR",
    "no_emitter": "no emitter",
    "outside": "outside the area",
}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Rows of a label and one cell for each of `columns`, in sections that are set apart. `note`: what to mind."""

    title: str
    columns: tuple[str, ...]
    sections: tuple[tuple[tuple[str, tuple[str, ...]], ...], ...]
    note: str = ""


def title_of(name: str) -> str:
    """A model's or baseline's name for people: `knn5` is kNN-5."""
    return TITLES.get(name) or (f"kNN-{name[3:]}" if name.startswith("knn") else name)


def metres(value: float | None) -> str:
    """Three digits, in m or km, centimetres at the least."""
    if value is None:
        return NOTHING
    return f"{_digits(value)} m" if value < 9_995.0 else f"{_digits(value / 1e3)} km"


def _digits(value: float) -> str:
    """Three digits, of which two at most are decimals."""
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100.0 * value:.1f} %"


def _plain(value: float | None) -> str:
    return NOTHING if value is None else _digits(value)


def comparison(evaluation: Evaluation) -> Table:
    """Model and baselines side by side."""
    names = list(evaluation.figures)
    found = [evaluation.figures[name] for name in names]

    def row(label: str, cell: Callable[[Figures], str]) -> tuple[str, tuple[str, ...]]:
        return label, tuple(cell(item) for item in found)

    def of_accuracy(cell: Callable[[Accuracy], str]) -> Callable[[Figures], str]:
        return lambda item: NOTHING if item.accuracy is None else cell(item.accuracy)

    def within(key: str) -> Callable[[Accuracy], str]:
        return lambda a: NOTHING if a.containment is None else percent(a.containment[key].share)

    errors = [
        row("answered", lambda item: f"{item.answered} of {item.windows}"),
        row("median error", of_accuracy(lambda a: metres(a.median_m))),
        row("P90 of the error", of_accuracy(lambda a: metres(a.p90_m))),
        row("RMSE", of_accuracy(lambda a: metres(a.rmse_m))),
    ]
    if any(item.answered < item.windows for item in found[1:]):
        same = [evaluation.same_windows.get(name) for name in names]
        for label, median in (("median", True), ("RMSE", False)):
            cells = tuple(metres(None if a is None else a.median_m if median else a.rmse_m) for a in same)
            errors.append((f"{label} of the model on these", cells))
    sections = [errors]
    if (bound := evaluation.bound) is not None:
        ratios = [
            ("RMSE / bound", tuple(_plain(bound.ratio.get(name)) for name in names)),
            ("RMSE / bound with area", tuple(_plain(bound.with_area_ratio.get(name)) for name in names)),
        ]
        sections.append(ratios)
    held = []
    for key in PROBABILITIES:
        label = f"{key} % (1 σ)" if key == "39.35" else f"{key} %"
        held.append(row(f"truth in ellipse of {label}", of_accuracy(within(key))))
    held.append(row("mean NEES, honest: 2", of_accuracy(lambda a: _plain(a.mean_nees))))
    held.append(row("honest in 95 % of runs", of_accuracy(_interval)))
    sections.append(held)
    groups = [
        row(
            f"confidence, {text}",
            lambda item, kind=kind: _quantiles(item, kind),  # type: ignore[misc]
        )
        for kind, text in GROUPS.items()
        if any(item.reliability is not None and kind in item.reliability.groups for item in found)
    ]
    if groups:
        groups.append(
            row(
                "calibration error",
                lambda item: NOTHING if item.reliability is None else f"{item.reliability.calibration_error:.3f}",
            )
        )
        sections.append(groups)
    note = (
        "Confidence: quantiles of 5, 50 and 95 %. It is calibrated when it is the share of fixes whose truth lies in "
        f"the {100.0 * VALID_PROBABILITY:g} % ellipse. "
    )
    return Table(
        "Accuracy, ellipses and confidence",
        tuple(title_of(name) for name in names),
        tuple(tuple(section) for section in sections),
        note + bound_note(evaluation),
    )


def _interval(found: Accuracy) -> str:
    return NOTHING if found.nees_interval is None else "{:.2f} to {:.2f}".format(*found.nees_interval)


def _quantiles(found: Figures, kind: str) -> str:
    if found.reliability is None or kind not in found.reliability.groups:
        return NOTHING
    return " / ".join(f"{value:.2f}" for value in found.reliability.groups[kind].quantiles.values())


def bound_note(evaluation: Evaluation) -> str:
    """What the bound is, or why there is none."""
    bound = evaluation.bound
    if bound is None:
        return f"No Cramér–Rao bound: {evaluation.no_bound}."
    told = f"Cramér–Rao bound: {metres(bound.rmse_m)} RMSE"
    if bound.unbounded:
        told += f" over {bound.windows - bound.unbounded} of {bound.windows} windows, the others have none"
    return f"{told}; for estimates that know the area, {metres(bound.with_area_rmse_m)}."


def breakdowns(evaluation: Evaluation) -> list[Table]:
    """Tables over SNR and over receivers; those that would have one row or none are left out."""
    kinds: list[tuple[str, Callable[[Figures], tuple[Row, ...]], str]] = [
        ("Median receiver's SNR, dB", lambda item: item.by_snr, "SNR of usable receivers in the whole sample rate."),
        (
            "Receivers that hear the emitter",
            lambda item: item.by_heard,
            "A receiver hears it with 0 dB or more in the emitter's own bandwidth.",
        ),
        ("Usable receivers", lambda item: item.by_usable, ""),
    ]
    tables = []
    for title, pick, note in kinds:
        rows = [pick(item) for item in evaluation.figures.values()]
        if len(rows[0]) < 2:
            continue
        columns = ["windows", *(title_of(name) for name in evaluation.figures)]
        if evaluation.bound is not None:
            columns.append("bound")
        section = []
        for parts in zip(*rows, strict=True):
            cells = [str(parts[0].windows), *(_both(part.accuracy) for part in parts)]
            if evaluation.bound is not None:
                cells.append(metres(parts[0].bound_rmse_m))
            section.append((parts[0].label, tuple(cells)))
        tables.append(
            Table(
                title,
                tuple(columns),
                (tuple(section),),
                f"Errors: median / RMSE. Bound: RMSE, for estimates that know the area. {note}".strip(),
            )
        )
    return tables


def _both(found: Accuracy | None) -> str:
    return NOTHING if found is None else f"{metres(found.median_m)} / {metres(found.rmse_m)}"
