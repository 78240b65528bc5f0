"""`gr-localize compile`: a station's geometry as an ONNX model."""

from __future__ import annotations

from pathlib import Path

import click
from localize_core.errors import ConfigError, ModelError, SourceError
from localize_core.model.compiled.compile import compile_model
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station


@click.command("compile")
@click.argument("station_file", metavar="STATION", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="ONNX file to write."
)
@click.option(
    "--recordings",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that relative paths in STATION start from; by default the station file's own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the model's contract as JSON.")
def command(station_file: Path, output: Path, folder: Path | None, as_json: bool) -> None:
    """Write the model of the station described in STATION, from geometry and without training."""
    if not output.resolve().parent.is_dir():
        raise click.UsageError(f"{output}: the folder does not exist")
    try:
        plan = plan_station(load_station(station_file, folder=folder))
    except SourceError as error:
        raise ConfigError(str(error)) from error
    try:
        contract = compile_model(plan.spec, output)
    except OSError as error:
        raise ModelError(f"{output}: cannot be written: {error.strerror}") from error
    if as_json:
        print(contract.model_dump_json())
        return
    features = " and ".join(dict.fromkeys(channel.feature for channel in contract.channels))
    print(
        f"{output}: {len(contract.receivers)} receivers, {len(contract.channels)} channels of {features}, "
        f"{contract.rows} rows; {output.stat().st_size / 1024:.0f} KiB. Run it with windows of {plan.time_steps} "
        f"frames ({plan.time_steps * contract.hop / contract.sample_rate_hz:.3g} s)."
    )
