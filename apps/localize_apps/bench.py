"""`gr-localize bench`: how fast this installation is on this machine, beside its peers in the same run.

The benchmarks are the package localize_benchmarks. Each runs in a process of its own, which prints a figure a line.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from localize_benchmarks import BENCHMARKS
from localize_benchmarks.figures import (
    Found,
    Settings,
    figure_from_dict,
    machine_line,
    markdown,
    notes,
    tables,
    to_json,
)
from localize_benchmarks.machine import describe, single_threaded
from localize_benchmarks.process import start_python
from localize_core.errors import ConfigError, LocalizeError, MissingExtraError
from rich.console import Console

BEGIN, END = "<!-- figures: gr-localize bench --markdown -->", "<!-- end of figures -->"
BUSY_LOAD = 0.5
FILE_WIDTH = 150
"""Columns of tables where no terminal says how many it has."""


def run_benchmark(name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """What a benchmark prints, as it comes. Raises LocalizeError if it failed."""
    with start_python("child", name, json.dumps(asdict(settings)), stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"figure"'):
                yield json.loads(line)
            else:
                click.echo(line, nl=False, err=True)  # what a library prints there; figures alone are the output
    if process.returncode:
        raise LocalizeError(f"benchmark {name}: ended with status {process.returncode}")


def read_figures(path: Path) -> list[dict[str, Any]]:
    """Lines that `--json` printed. Raises ConfigError naming a line that is none, or a file without a machine."""
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            if line["figure"] != "machine":
                figure_from_dict(line)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: no figure of `gr-localize bench --json`") from error
        lines.append(line)
    if not any(line["figure"] == "machine" for line in lines):
        raise ConfigError(f"{path}: has no line on the machine; is it from `gr-localize bench --json`?")
    return lines


def write_markdown(page: Path, text: str) -> None:
    """Put `text` into the page, in place of what stands between the marks. Raises ConfigError if it has none."""
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{text}{END}", old, flags=re.DOTALL
    )
    if count != 1:
        raise ConfigError(f"{page}: has no place for figures, between {BEGIN} and {END}")
    page.write_text(new, encoding="utf-8")


def _drawing() -> Callable[[Iterable[Found], Path], Iterator[Path]]:
    try:
        from localize_benchmarks.plots import draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtraError("--plot", "plot") from error
    return draw


def _measured(names: tuple[str, ...], settings: Settings, as_json: bool) -> Iterator[dict[str, Any]]:
    single_threaded()
    machine = describe()
    if machine["load"] > BUSY_LOAD:
        click.echo(f"gr-localize: this machine is busy already (load {machine['load']:.1f}): figures suffer", err=True)
    yield machine
    for name in names:
        if not as_json:
            click.echo(f"{name} …", err=True)
        yield from run_benchmark(name, settings)


@click.command("bench")
@click.option("--only", "names", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Run this one; repeatable.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=20, show_default=True, help="Turns of which the median counts."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="That latency, realtime, memory and overload watch a station.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: the machine, then each figure.")
@click.option(
    "--plot",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw performance_*.png into this folder.",
)
@click.option(
    "--markdown",
    "page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the figures into this page, such as docs/performance.md.",
)
@click.option(
    "--from",
    "before",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: take what an earlier --json printed into this file.",
)
@click.option("--list", "listing", is_flag=True, help="Say which benchmarks there are.")
def command(
    names: tuple[str, ...],
    rounds: int,
    seconds: float,
    as_json: bool,
    folder: Path | None,
    page: Path | None,
    before: Path | None,
    listing: bool,
) -> int:
    """Measure this installation beside its peers, in the same run on this machine.

    Ratios are medians over short turns that all take by turns. A peer that is not installed is left out and named.
    """
    if listing:
        for name, (_, summary) in BENCHMARKS.items():
            click.echo(json.dumps({"benchmark": name, "summary": summary}) if as_json else f"{name:12} {summary}")
        return 0
    draw = None if folder is None else _drawing()  # before minutes are spent on what could not be drawn
    names = tuple(dict.fromkeys(names)) or tuple(BENCHMARKS)
    # Read by GNU Radio in the benchmarks' processes, where `gr-localize` itself has not said it.
    os.environ.setdefault("GR_CONF_LOG_LOG_FILE", "stderr")
    os.environ.setdefault("GR_CONF_LOG_LOG_LEVEL", "warn")
    lines: list[dict[str, Any]] = []
    for line in read_figures(before) if before is not None else _measured(names, Settings(rounds, seconds), as_json):
        if line.get("benchmark", names[0]) not in names:
            continue
        lines.append(line)
        if as_json:
            click.echo(to_json(line))
    machine = next(line for line in lines if line["figure"] == "machine")
    found: list[Found] = [figure_from_dict(line) for line in lines if line["figure"] != "machine"]
    if not as_json:
        console = Console()
        if not console.is_terminal:
            console = Console(width=FILE_WIDTH)
        console.print(machine_line(machine), highlight=False, soft_wrap=True)
        for table in tables(found):
            console.print(table)
        for note in notes(found):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
    pictures = [] if folder is None or draw is None else list(draw(found, folder))
    for path in pictures:
        click.echo(f"drawn: {path}", err=True)
    if page is not None:
        places = [Path(os.path.relpath(path, page.parent)).as_posix() for path in pictures]
        write_markdown(page, markdown(machine, found, places))
    return 0
