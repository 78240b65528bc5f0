"""`gr-localize train`: from a station, a channel data set or labelled recordings to a calibrated model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource
from localize_core.dataset.drawn import WAVEFORMS, Draws
from localize_core.errors import ConfigError, MissingExtraError, SourceError
from localize_core.types.fix import Position
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from localize_apps.score import TruthType

try:
    import onnxscript as _onnxscript  # noqa: F401
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("training", "train") from error

from localize_core.training.data import TrainingData, channel_data, recording_data, scene_data
from localize_core.training.fit import Epoch, FitConfig
from localize_core.training.train import FOLDS, train

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DEFAULTS = FitConfig()


def _open(
    scene: Path | None,
    channels: Path | None,
    recordings: Path | None,
    truth: tuple[Position | Path, ...],
    *,
    windows: int,
    repeats: int,
    seed: int,
    split: str | None,
    block_m: float | None,
    blocks: int,
    rate_hz: float | None,
    snr_db: tuple[float, float] | None,
    waveforms: tuple[str, ...],
) -> TrainingData:
    named = {"--scene": scene, "--channels": channels, "--recordings": recordings}
    given = [name for name, path in named.items() if path is not None]
    if len(given) != 1:
        raise click.UsageError(f"one of {', '.join(named)} says what to learn from; given: {' '.join(given) or 'none'}")
    for option, used, belongs in (
        ("--truth", truth, recordings),
        ("--split", split, channels),
        ("--block-m", block_m, channels),
        ("--blocks", _is_given("blocks"), channels),
        ("--repeats", _is_given("repeats"), channels),
        ("--sample-rate", rate_hz, channels),
        ("--snr", snr_db, scene),
        ("--windows", _is_given("windows"), scene),
    ):
        if used and belongs is None:
            raise click.UsageError(f"{option} means nothing with {given[0]}")
    if scene is not None:
        return scene_data(scene, windows=windows, seed=seed, snr_db=snr_db, waveforms=waveforms)
    if channels is not None:
        return channel_data(
            channels,
            repeats=repeats,
            seed=seed,
            kind=split,  # type: ignore[arg-type]
            block_m=block_m,
            blocks=blocks,
            sample_rate_hz=rate_hz,
            draws=Draws(waveforms=waveforms),
        )
    assert recordings is not None
    if not truth:
        raise click.UsageError("--recordings needs --truth")
    return recording_data(recordings, truth, seed=seed)


def _is_given(name: str) -> bool:
    """Whether an option with a default stands on the command line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


@click.command("train")
@click.option("--scene", type=_FILE, help="Learn the scene of a station file, simulated.")
@click.option("--channels", type=_FILE, help="Learn a channel data set (.npz).")
@click.option(
    "--recordings",
    type=click.Path(exists=True, path_type=Path),
    help="Learn from a station file's recordings, or from a folder of such.",
)
@click.option(
    "--truth", type=TruthType(), multiple=True, help="Where the emitter of the recordings was; for all, or one each."
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="ONNX file.")
@click.option("--name", default="localization_model", show_default=True, help="Of the model, in every fix.")
@click.option("--model-version", "version", default="1", show_default=True, help="Of the model, in every fix.")
@click.option("--windows", type=click.IntRange(min=200), default=8000, show_default=True, help="For training; scenes.")
@click.option("--repeats", type=click.IntRange(min=1), default=8, show_default=True, help="Of each row; channels.")
@click.option("--snr", "snr_db", type=(float, float), help="Lowest and highest SNR of a scene's median receiver, dB.")
@click.option("--waveform", "waveforms", type=click.Choice(WAVEFORMS), multiple=True, help="What emitters may send.")
@click.option(
    "--split",
    type=click.Choice(["place", "time", "row"]),
    help="How a channel data set is split: by blocks of place where it has delays, else of time; row flatters.",
)
@click.option(
    "--block-m",
    type=click.FloatRange(min=0, min_open=True),
    help="Size of blocks of place; by default a tenth of the map.",
)
@click.option("--blocks", type=click.IntRange(min=4), default=20, show_default=True, help="Stretches of time.")
@click.option(
    "--sample-rate", "rate_hz", type=click.FloatRange(min=0, min_open=True), help="For a channel data set, Hz."
)
@click.option("--epochs", type=click.IntRange(min=1), default=_DEFAULTS.epochs, show_default=True)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=_DEFAULTS.patience,
    show_default=True,
    help="Epochs without a better one that end it.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of everything random.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted training with the same options ended.")
@click.option("--json", "as_json", is_flag=True, help="Print what came out as one JSON object, and nothing else.")
def command(
    scene: Path | None,
    channels: Path | None,
    recordings: Path | None,
    truth: tuple[Position | Path, ...],
    output: Path,
    name: str,
    version: str,
    windows: int,
    repeats: int,
    snr_db: tuple[float, float] | None,
    waveforms: tuple[str, ...],
    split: str | None,
    block_m: float | None,
    blocks: int,
    rate_hz: float | None,
    epochs: int,
    patience: int,
    seed: int,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a model that knows its site, calibrate it on windows that training never saw, and write it as ONNX.

    Interrupted, it leaves a folder OUTPUT.train, from which --resume goes on.
    """
    if not name:
        raise click.UsageError("--name: must not be empty")
    if not output.resolve().parent.is_dir():
        raise click.UsageError(f"{output}: the folder does not exist")
    config = FitConfig(epochs=epochs, patience=patience, seed=seed)
    try:
        data = _open(
            scene,
            channels,
            recordings,
            truth,
            windows=windows,
            repeats=repeats,
            seed=seed,
            split=split,
            block_m=block_m,
            blocks=blocks,
            rate_hz=rate_hz,
            snr_db=snr_db,
            waveforms=waveforms,
        )
    except SourceError as error:  # nothing has run yet: what the command line names is no good
        raise ConfigError(str(error)) from error
    screen = Console(stderr=True)
    screen.print(f"{data.description}; split {data.split_description}", highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:

        @contextmanager
        def step(text: str, total: int) -> Iterator[Callable[[int], None]]:
            task = progress.add_task(text, total=total or None)
            yield lambda count: progress.advance(task, count)
            progress.remove_task(task)

        networks = FOLDS if data.has_map else 1
        task = progress.add_task("epochs", total=epochs * networks)

        def on_epoch(epoch: Epoch) -> None:
            progress.update(task, completed=epochs * epoch.network + epoch.number + 1)
            which = f"network {epoch.network + 1} of {networks}, " if networks > 1 else ""
            screen.print(
                f"{which}epoch {epoch.number + 1}: loss {epoch.train_loss:.3f}, "
                f"validation {epoch.validation_loss:.3f}, "
                f"median error {epoch.validation_median_m:.0f} m{', best so far' if epoch.is_best else ''}",
                highlight=False,
                soft_wrap=True,
            )

        try:
            trained = train(
                data, output, name=name, version=version, config=config, resume=resume, step=step, on_epoch=on_epoch
            )
        except KeyboardInterrupt:
            screen.print(f"interrupted; the same command with --resume goes on from {output}.train", soft_wrap=True)
            raise
    if as_json:
        click.echo(
            json.dumps(
                {
                    "model": str(output),
                    "contract": json.loads(trained.contract.model_dump_json()),
                    "parity": vars(trained.parity),
                    "calibration": trained.calibration.containment,
                }
            )
        )
        return
    accuracy = trained.contract.accuracy or {}
    click.echo(
        f"{output}: {output.stat().st_size / 1024:.0f} KiB. On {accuracy.get('windows', {}).get('inside')} windows of "
        f"the test split: median error {accuracy.get('median_m'):.0f} m. File and network differ by "
        f"{trained.parity.worst:.1g}. `gr-localize evaluate {output}` says more."
    )
