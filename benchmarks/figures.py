"""What a benchmark finds, and how it reads: lines of JSON, a table, Markdown."""

from __future__ import annotations

import importlib.util
import json
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Settings:
    """How long benchmarks measure. `rounds`: paired turns of which the median counts, each about `turn_s` long for
    every way; `seconds`: how long a live station is watched."""

    rounds: int = 20
    seconds: float = 30.0
    turn_s: float = 0.1


@dataclass(frozen=True)
class Figure:
    """One thing measured. `ratio` is `value` over `peer_value` where there is a peer; `goal` is about the ratio where
    there is one, else about the value: "≥ 0.5", "≤ 4", "= 1". `details`: what else is worth keeping, as JSON has it."""

    benchmark: str
    what: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        judged = self.value if self.ratio is None else self.ratio
        return {"≥": operator.ge, "≤": operator.le, "=": operator.eq}[sign](judged, float(bound))

    def as_dict(self) -> dict[str, Any]:
        return {"figure": "measured", **asdict(self), "met": self.met}


@dataclass(frozen=True)
class Missing:
    """A peer that is not installed here, and what would install it."""

    benchmark: str
    peer: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        return {"figure": "missing", **asdict(self)}


@dataclass(frozen=True)
class Growth:
    """Seconds of `what` at each of `sizes`, in the unit that `what` names, and t ∝ size^`exponent` fitted to them."""

    benchmark: str
    what: str
    over: str
    sizes: Sequence[float]
    seconds: Sequence[float]
    exponent: float
    standard_error: float

    def as_dict(self) -> dict[str, Any]:
        return {"figure": "growth", **asdict(self)}


Found = Figure | Missing | Growth


def figure_from_dict(line: Mapping[str, Any]) -> Found:
    """The inverse of `as_dict()`."""
    kinds: dict[str, type[Found]] = {"measured": Figure, "missing": Missing, "growth": Growth}
    fields = {key: value for key, value in line.items() if key not in ("figure", "met")}
    return kinds[line["figure"]](**fields)


def to_json(line: Mapping[str, Any]) -> str:
    """One line; what is not a number there is null, which JSON has."""
    return json.dumps(_finite(line), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def row_line(row: Mapping[str, Any], *, as_json: bool) -> str:
    """One line of named values, for people or as JSON."""
    if as_json:
        return to_json(row)
    return "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def absent(benchmark: str, peers: Mapping[str, str]) -> Iterator[Missing]:
    """Those of `peers` (module: distribution) that cannot be imported."""
    for module, distribution in peers.items():
        if importlib.util.find_spec(module) is None:
            yield Missing(benchmark, module, f"pip install {distribution}")


PICTURES = {
    "rates": "Rates over those of peers, on a logarithmic scale",
    "growth": "Time over what grows, with the powers fitted",
    "latency": "Percentiles of latency beside their goals",
}
"""What the pictures performance_*.png show."""

COLUMNS = ("what", "measured", "peer", "ratio", "goal", "verdict")


def _row(figure: Figure) -> tuple[str, ...]:
    peer = "" if figure.peer is None else figure.peer
    if figure.peer_value is not None:
        peer += f": {_number(figure.peer_value)} {figure.unit}".rstrip()
    verdict = {True: "met", False: "missed", None: ""}[figure.met]
    ratio = "" if figure.ratio is None else _number(figure.ratio)
    what = f"{figure.benchmark}: {figure.what}"
    return what, f"{_number(figure.value)} {figure.unit}".rstrip(), peer, ratio, figure.goal or "", verdict


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _growth_row(growth: Growth) -> tuple[str, ...]:
    span = f"{_number(growth.sizes[0])} … {_number(growth.sizes[-1])}"
    times = f"{_time(growth.seconds[0])} … {_time(growth.seconds[-1])}"
    return growth.what, growth.over, span, times, f"{growth.exponent:.2f} ± {growth.standard_error:.2f}"


GROWTH_COLUMNS = ("time of", "over", "from … to", "takes", "exponent")


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def tables(found: Iterable[Found]) -> Iterator[Table]:
    """For a terminal."""
    found = list(found)
    for columns, rows in ((COLUMNS, _rows(found)), (GROWTH_COLUMNS, _growth_rows(found))):
        if rows:
            table = Table(*columns)
            for row in rows:
                table.add_row(*row, style="red" if row[-1] == "missed" else None)
            yield table


def notes(found: Iterable[Found]) -> Iterator[str]:
    """What the rows of tables leave out."""
    for each in found:
        if isinstance(each, Missing):
            yield f"{each.benchmark}: without {each.peer}, which is not installed ({each.remedy})"
        elif isinstance(each, Figure) and each.note:
            peer = "" if each.peer is None else f" / {each.peer}"
            yield f"{each.benchmark}: {each.what}{peer}: {each.note}"


def markdown(machine: Mapping[str, Any], found: Iterable[Found], pictures: Sequence[str] = ()) -> str:
    """Machine, tables, notes and pictures (paths as the page has them) for a page."""
    found = list(found)
    lines = [machine_line(machine), ""]
    for columns, rows in ((COLUMNS, _rows(found)), (GROWTH_COLUMNS, _growth_rows(found))):
        if rows:
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows] + [""]
    lines += [f"- {note}" for note in notes(found)]
    for picture in pictures:
        lines += ["", f"![{PICTURES[picture.rpartition('_')[2].partition('.')[0]]}]({picture})"]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    text = text.replace("|", "\\|")
    return f"**{text}**" if text == "missed" else text


def _rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    return [_row(each) for each in found if isinstance(each, Figure)]


def _growth_rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    return [_growth_row(each) for each in found if isinstance(each, Growth)]


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in a line for people."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, {machine['kernel']}, governor "
        f"{machine['governor'] or 'not readable'}, load {machine['load']:.1f} before; {versions}."
    )
