"""An evaluation as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import localize_core
from localize_core.errors import MissingExtraError, PublishError
from localize_core.evaluation.evaluate import MODEL, Evaluation, window_s
from localize_core.evaluation.metrics import VALID_PROBABILITY
from localize_core.evaluation.summary import bound_note, breakdowns, comparison, metres, percent, title_of

EXTRA = "report"
PAGE = "index.html"
CAPTIONS = {
    "map": (
        "Error map",
        "True places of the emitter, coloured by the error of the model; dotted: the area; triangles: receivers.",
    ),
    "cdf": (
        "Distribution of errors",
        "Share of the windows with an emitter in the area that is located at least so well. A line that ends below "
        "100 % belongs to a baseline that does not answer every window.",
    ),
    "calibration": (
        "Calibration of the ellipses",
        "How often an ellipse holds the truth over how often it says it does. Below the diagonal ellipses are too "
        "small, above it too large; grey is where an honest model lies with as many windows.",
    ),
    "snr": ("Error over SNR", "RMSE for each 5 dB of the median receiver's SNR in the whole sample rate."),
    "reliability": (
        "Reliability of the confidence",
        "Share of valid fixes over the confidence stated, and the confidence of all windows. A fix is valid if there "
        f"is an emitter in the area and its place lies in the {100.0 * VALID_PROBABILITY:g} % ellipse.",
    ),
}


def require_report() -> None:
    """Raise MissingExtraError naming the extra where a report cannot be made: before an evaluation, not after it."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("a report", EXTRA) from error


def write_report(
    evaluation: Evaluation,
    folder: Path,
    *,
    box_m: np.ndarray | None = None,
    origin: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Path:
    """Write `index.html` to `folder`, made if need be, and return its path.

    `box_m` (2, 2): corners of the area in the windows' plane. `origin`: what else to say of where it comes from, such
    as "data", "split" and "command"; "data" and "split" stand on top too. `now`: the date on the page.

    Raises MissingExtraError without the extra `report`, PublishError where the page cannot be written.
    """
    require_report()
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    from localize_core.evaluation.plots import plots

    drawn = plots(evaluation, box_m)
    environment = Environment(
        loader=PackageLoader("localize_core.evaluation", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    text = environment.get_template("report.html").render(
        title=f"{evaluation.model.name}, version {evaluation.model.version}",
        lead=_lead(evaluation, origin or {}),
        cards=_cards(evaluation),
        main_table=comparison(evaluation),
        missing=[(title_of(name), why) for name, why in evaluation.notes.items()],
        plots=[(name, *CAPTIONS[name], base64.b64encode(svg.encode()).decode()) for name, svg in drawn.items()],
        tables=breakdowns(evaluation),
        facts=_facts(evaluation, origin or {}, now or datetime.now(timezone.utc)),
    )
    path = folder / PAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PublishError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _lead(evaluation: Evaluation, origin: Mapping[str, str]) -> list[str]:
    count = evaluation.windows
    told = f"{count['all']:,} windows: {count['inside']:,} with an emitter in the area"
    for kind, text in (("no_emitter", "without emitter"), ("outside", "with one outside the area")):
        if count[kind]:
            told += f", {count[kind]:,} {text}"
    lines = [f"{told}."]
    if "data" in origin:
        lines.insert(0, f"Evaluated on {origin['data']}")
    if "split" in origin:
        lines.append(f"Split: {origin['split']}")
    return lines


def _cards(evaluation: Evaluation) -> list[tuple[str, str]]:
    found = evaluation.figures[MODEL]
    accuracy = found.accuracy
    cards = []
    if accuracy is not None:
        cards += [
            (metres(accuracy.median_m), "median error"),
            (metres(accuracy.p90_m), "error, P90"),
            (metres(accuracy.rmse_m), "RMSE"),
        ]
        if evaluation.bound is not None and MODEL in evaluation.bound.with_area_ratio:
            cards.append((f"× {evaluation.bound.with_area_ratio[MODEL]:.2f}", "RMSE over the bound with area"))
        if accuracy.containment is not None:
            cards.append((percent(accuracy.containment["95"].share), "of truths in the 95 % ellipse"))
    if found.reliability is not None:
        cards.append((f"{found.reliability.calibration_error:.3f}", "calibration error of the confidence"))
    return cards


def _facts(evaluation: Evaluation, origin: Mapping[str, str], now: datetime) -> list[tuple[str, Any]]:
    contract, source = evaluation.contract, evaluation.source
    features = ", ".join(
        f"{sum(channel.feature == feature for channel in source.channels)} × {feature}" for feature in source.parameters
    )
    facts: list[tuple[str, Any]] = [
        ("model", f"{evaluation.model.name}, version {evaluation.model.version}"),
        ("SHA-256", evaluation.model.sha256),
        *origin.items(),
        (
            "windows",
            f"{evaluation.time_steps} frames of {source.rows} rows, {features}; "
            f"{1e3 * window_s(source, evaluation.time_steps):.4g} ms at {source.sample_rate_hz / 1e6:g} MS/s",
        ),
        ("receivers", ", ".join(receiver.name for receiver in source.receivers)),
        ("bound", bound_note(evaluation)),
        ("made", f"{now:%Y-%m-%d %H:%M} UTC by gr-localize {localize_core.__version__}"),
    ]
    if contract.provenance:
        facts.append(("provenance of the model", contract.provenance))
    if contract.accuracy:
        facts.append(("accuracy that it claims", contract.accuracy))
    return facts
