"""`gr-localize record`: a station that keeps what it hears, and what it made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from localize_core.errors import ConfigError
from localize_core.recorder.sigmf_writer import MIN_FREE_BYTES, PART_BYTES, SAMPLE_BYTES, Limits
from localize_core.station.config import Station, load_station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json
from localize_core.wire.text import fix_line
from pydantic import ByteSize, TypeAdapter, ValidationError

from localize_apps import logs
from localize_apps.folder_recorder import FolderRecorder
from localize_apps.run import carry_out, runs_station


class Size(click.ParamType):
    """A number of bytes, with a unit or without."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(TypeAdapter(ByteSize).validate_python(value))
        except ValidationError:
            self.fail(f"{value!r}: wanted a number of bytes, such as 500MB or 2GiB", param, ctx)


def recorded_station(station: Station) -> Station:
    """The station, each window answered by itself: how many are answered together shows in the last digits of fixes."""
    queue = station.model.queue.model_copy(update={"max_batch": 1, "max_delay_ms": 0.0})
    return station.model_copy(update={"model": station.model.model_copy(update={"queue": queue})})


@click.command("record")
@runs_station
@click.option(
    "-o",
    "--output",
    "output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the recordings; it is made, and must be empty.",
)
@click.option(
    "--datatype",
    type=click.Choice(tuple(SAMPLE_BYTES)),
    default="cf32_le",
    show_default=True,
    help="cf32_le keeps samples as they are; ci16_le and ci8 round and clip, and fixes differ accordingly.",
)
@click.option("--max-part-bytes", type=Size(), default=PART_BYTES, help="Of a part of a recording; 1GiB if left out.")
@click.option("--max-part-s", type=click.FloatRange(min=0, min_open=True), help="Seconds in a part of a recording.")
@click.option(
    "--max-bytes", type=Size(), help="Of all recordings in the folder; the oldest parts go when there are more."
)
@click.option("--max-parts", type=click.IntRange(min=2), help="Parts of each receiver that are kept.")
@click.option(
    "--min-free-bytes",
    type=Size(),
    default=MIN_FREE_BYTES,
    help="Left free on the disk: recording pauses below it, and goes on by itself; 256MiB if left out.",
)
@click.option("--author", default="", help="Whom the recordings name as their author, such as an address.")
def command(
    station_file: Path,
    output: Path,
    duration_s: float | None,
    as_json: bool,
    folder: Path | None,
    fast: bool,
    datatype: str,
    max_part_bytes: int,
    max_part_s: float | None,
    max_bytes: int | None,
    max_parts: int | None,
    min_free_bytes: int,
    author: str,
) -> int:
    """Run the station in the file STATION as `run` does, and keep what its receivers hear.

    `gr-localize run FOLDER` plays it: the same samples, tags, model and windows, and so the same fixes.

    Exit codes are those of `run`; a recording that could not be gone on with, or of which nothing could be written,
    makes 1 of 0.
    """

    def load() -> Station:
        return recorded_station(load_station(station_file, folder=folder))

    station = load()
    if any(receiver.source is None for receiver in station.receiver):
        raise ConfigError(f"{station_file}: a receiver has no source: only a flowgraph can bring the stream itself")
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output}: is not empty; a recording wants a folder of its own")
    limits = Limits(max_part_bytes, max_part_s, None, max_parts, min_free_bytes)
    live = not (fast or station.is_recorded)
    recorder = FolderRecorder(output, datatype=datatype, live=live, limits=limits, max_bytes=max_bytes, author=author)

    def keep(fix: Fix) -> None:
        recorder.keep(fix)
        print(fix_to_json(fix) if as_json else fix_line(fix), flush=True)

    try:
        code = carry_out(load, on_fix=keep, duration_s=duration_s, live=not fast, recorder=recorder)
    finally:
        recorder.close()
        undone = recorder.undo()
    logs.say("nothing was recorded" if undone else recorder.summary())
    why: object = recorder.failure
    if why is None and recorder.lost > 0 and recorder.recorded == 0:
        why = f"nothing could be written into {output}"
    if why is not None:
        logs.complain(why)
    return code or int(why is not None)
