"""`gr-localize evaluate`: what a model is worth, on windows that it was not tuned on."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from localize_core.dataset.splits import SplitKind
from localize_core.errors import ConfigError, ModelError, SourceError, UnknownModelError
from localize_core.evaluation.baselines import Locator, ModelLocator
from localize_core.evaluation.data import PARTS, Data, open_channels, open_recordings, open_scene
from localize_core.evaluation.evaluate import Evaluation, evaluate, usual_baselines
from localize_core.evaluation.report import require_report, write_report
from localize_core.evaluation.summary import Table, breakdowns, comparison, title_of
from localize_core.model.base import Model
from localize_core.model.contract import Contract
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.session import SessionSettings
from localize_core.model.store import compiled_model_path
from localize_core.serving.settings import ServingSettings, make_settings
from localize_core.serving.sources import open_source
from localize_core.types.fix import Position
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from localize_apps.score import TruthType

FILE_WIDTH = 132
"""Of tables that go to a file or a pipe."""


def open_windows(
    contract: Contract,
    *,
    channels: Path | None,
    scene: Path | None,
    recordings: Path | None,
    truth: tuple[Position | Path, ...],
    part: str | None,
    by: SplitKind | None,
    windows: int | None,
    seed: int,
    snr_db: tuple[float, float] | None,
) -> Data:
    """The windows that the command line names, made for a model. Raises ConfigError for what does not go together."""
    named = {"--channels": channels, "--scene": scene, "--recordings": recordings}
    given = [name for name, path in named.items() if path is not None]
    if len(given) != 1:
        raise click.UsageError(
            f"one of {', '.join(named)} says what to evaluate on; given: {' '.join(given) or 'none'}"
        )
    for option, used, belongs in (
        ("--truth", truth, recordings),
        ("--split-by", by, channels),
        ("--snr", snr_db, scene),
    ):
        if used and belongs is None:
            raise click.UsageError(f"{option} means nothing with {given[0]}")
    if channels is not None:
        return open_channels(channels, contract, part=part or "test", by=by, windows=windows, seed=seed)
    if scene is not None:
        return open_scene(scene, contract, part=part or "test", windows=windows, seed=seed, snr_db=snr_db)
    assert recordings is not None
    if not truth:
        raise click.UsageError("--recordings needs --truth")
    return open_recordings(recordings, truth, contract, part=part, windows=windows, seed=seed)


class _Steps:
    """Progress bars on standard error, where that is a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def step(self, text: str, total: int) -> Iterator[object]:
        """A bar; what it gives is called with how much more is done."""
        task = self._progress.add_task(text, total=total)
        yield lambda count: self._progress.advance(task, count)
        self._progress.update(task, completed=total)


def _run(model: Model, data: Data, *, baselines: bool, steps: _Steps) -> Evaluation:
    ModelLocator(model, data.source)  # refuses windows that do not suit before baselines learn from them
    found: dict[str, Locator] = {}
    missing: dict[str, str] = {}
    if baselines:
        compiled = OnnxModel(compiled_model_path(data.station), session=SessionSettings(threads=_threads()))
        with steps.step("windows for baselines to learn", len(data.training or ())) as advance:
            found, missing = usual_baselines(
                data.source,
                box_m=data.box_m,
                compiled=compiled,
                noise_dbfs=None if data.station.level is None else data.station.level.noise_dbfs,
                training=data.training,
                progress=advance,
            )
    with steps.step("windows", len(data.source)) as advance:
        return evaluate(
            model,
            data.source,
            baselines=found,
            notes=missing,
            spec=data.scene,
            no_bound=data.no_bound,
            progress=advance,
        )


def _threads() -> int:
    return min(os.cpu_count() or 1, 4)


def rich_table(table: Table) -> RichTable:
    """A table of words for a terminal."""
    drawn = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    drawn.add_column(no_wrap=True)
    for column in table.columns:
        drawn.add_column(column, justify="right")
    for section in table.sections:
        for label, cells in section:
            drawn.add_row(label, *cells)
        drawn.add_section()
    return drawn


def _print(evaluation: Evaluation, data: Data) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    count = evaluation.windows
    console.print(
        f"{evaluation.model.name}, version {evaluation.model.version}, on {data.description}\n"
        f"split: {data.split}\n"
        f"{count['all']} windows: {count['inside']} with an emitter in the area, {count['no_emitter']} without, "
        f"{count['outside']} with one outside",
        highlight=False,
        soft_wrap=True,
    )
    for table in (comparison(evaluation), *breakdowns(evaluation)):
        console.print(rich_table(table))
        console.print(table.note, highlight=False, soft_wrap=True)
    for name, why in evaluation.notes.items():
        console.print(f"Without {title_of(name)}: {why}.", highlight=False, soft_wrap=True)


PATIENT_MS = 60_000.0
"""For a batch at an inference server: nobody waits for a stream here."""
_EXISTING = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("evaluate")
@click.argument("model_uri", metavar="MODEL")
@click.option("--registry", help="MLflow tracking URI, for a MODEL that is models:/NAME@ALIAS.")
@click.option("--channels", type=_FILE, help="Evaluate on a channel data set (.npz).")
@click.option("--scene", type=_FILE, help="Evaluate on the scene of a station file, simulated.")
@click.option("--recordings", type=_EXISTING, help="Evaluate on a station file's recordings, or on a folder of such.")
@click.option(
    "--truth",
    type=TruthType(),
    multiple=True,
    help="Where the emitter of the recordings was; one for all, or one each.",
)
@click.option("--windows", type=click.IntRange(min=1), help="How many; by default 1000 of a scene, else all there are.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of what is drawn.")
@click.option(
    "--split",
    "part",
    type=click.Choice(PARTS),
    help="Which part: test, on which nothing was tuned, if left out. Recordings with a compiled model: all.",
)
@click.option(
    "--split-by",
    "by",
    type=click.Choice(["place", "time", "row"]),
    help="How a channel data set is split where that is not as the model says; row flatters.",
)
@click.option("--snr", "snr_db", type=(float, float), help="Lowest and highest SNR of a scene's median receiver, dB.")
@click.option("--baselines/--no-baselines", default=True, show_default=True, help="Run baselines on the same windows.")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Folder to write an HTML page to.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
def command(
    model_uri: str,
    registry: str | None,
    channels: Path | None,
    scene: Path | None,
    recordings: Path | None,
    truth: tuple[Position | Path, ...],
    windows: int | None,
    seed: int,
    part: str | None,
    by: SplitKind | None,
    snr_db: tuple[float, float] | None,
    baselines: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Evaluate MODEL on windows with known truth, beside baselines and the Cramér–Rao bound.

    MODEL is an ONNX file, models:/NAME@ALIAS or models:/NAME/VERSION of a registry, or grpc://HOST:PORT/NAME.

    Error, containment of the ellipses, reliability of the confidence, by SNR and by receivers.
    """
    if report is not None:
        require_report()
    try:
        settings = {"registry": registry, "session": SessionSettings(threads=_threads()), "deadline_ms": PATIENT_MS}
        serving = make_settings(ServingSettings, uri=model_uri, **settings)
        model = open_source(model_uri, serving).latest().open()
        check_golden(model)
        data = open_windows(
            model.contract,
            channels=channels,
            scene=scene,
            recordings=recordings,
            truth=truth,
            part=part,
            by=by,
            windows=windows,
            seed=seed,
            snr_db=snr_db,
        )
    except (
        ModelError,
        SourceError,
        UnknownModelError,
    ) as error:  # nothing has run yet
        raise ConfigError(str(error)) from error
    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        evaluation = _run(model, data, baselines=baselines, steps=_Steps(progress))
    origin = {"data": data.description, "split": data.split, "command": shlex.join(["gr-localize", *sys.argv[1:]])}
    if report is not None:
        page = write_report(evaluation, report, box_m=data.box_m, origin=origin)
        click.echo(f"report: {page}", err=True)
    if as_json:
        click.echo(json.dumps(evaluation.as_dict() | {"origin": origin}, allow_nan=False))
    else:
        _print(evaluation, data)
