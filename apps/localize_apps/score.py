"""`gr-localize score`: how far a file of fixes is from the truth, and whether its ellipses are honest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
from localize_core.score import Score, Track, read_fixes, read_track, score
from localize_core.types.fix import Position
from rich.console import Console
from rich.table import Table

_PLACE = re.compile(r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*,\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*")


def score_table(result: Score) -> Table:
    """The score for people: one figure a line."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("fixes", str(result.fixes))
    table.add_row("without position", str(result.no_fix))
    table.add_row("outside the track's time", str(result.unmatched))
    table.add_section()
    for name, error_m in (("median", result.median_m), ("P90", result.p90_m), ("RMSE", result.rmse_m)):
        table.add_row(f"error, {name}", "-" if error_m is None else f"{error_m:.1f} m")
    if result.containment is None or result.mean_nees is None or result.nees_interval is None:
        return table
    table.add_section()
    for percent, share in result.containment.items():
        label = f"{percent} % (1 σ)" if percent == "39.35" else f"{percent} %"
        table.add_row(f"truth inside the ellipse of {label}", f"{100.0 * share:.1f} %")
    low, high = result.nees_interval
    table.add_row("mean NEES, 2 when honest", f"{result.mean_nees:.3g}")
    table.add_row("its 95 % interval when honest", f"{low:.3g} to {high:.3g}")
    return table


class TruthType(click.ParamType):
    """A fixed place, or an existing file with a track."""

    name = "LAT,LON | TRUTH.csv"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Position | Path:
        place = _PLACE.fullmatch(value)
        if place is None:
            path: Path = click.Path(exists=True, dir_okay=False, path_type=Path).convert(value, param, ctx)
            return path
        latitude, longitude = (float(text) for text in place.groups())
        if abs(latitude) > 90.0 or abs(longitude) > 180.0:
            self.fail(f"{value}: latitude lies in [-90, 90], longitude in [-180, 180]", param, ctx)
        return Position(latitude, longitude)


@click.command("score")
@click.argument("fixes", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--truth", type=TruthType(), required=True, help="A fixed place, or a track with its times.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def command(fixes: Path, truth: Position | Path, as_json: bool) -> None:
    """Score FIXES, a file with one fix a line, against the truth.

    TRUTH.csv has the columns timestamp (ISO 8601 or Unix seconds), latitude and longitude.
    """
    known: Position | Track = read_track(truth) if isinstance(truth, Path) else truth
    result = score(read_fixes(fixes), known)
    if as_json:
        click.echo(json.dumps(result.as_dict()))
    else:
        Console().print(score_table(result))
