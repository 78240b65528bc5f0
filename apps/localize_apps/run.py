"""`gr-localize run`: a station without a screen."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from localize_core.errors import ConfigError, ModelError, SourceError, UnknownModelError
from localize_core.sanity.monitor import CONDITIONS
from localize_core.station.config import HttpTable, Station, load_station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_to_json
from localize_core.wire.text import fix_line

from localize_apps import logs
from localize_apps.graph import OnFix, Recorder
from localize_apps.native_lines import native_lines
from localize_apps.runner import run_station
from localize_apps.stdout import own_stdout
from localize_apps.systemd import ServiceReport

log = logging.getLogger(__name__)


OWN_LINES = ("receiver_lost", *CONDITIONS)
"""Reasons of a status whose beginning and every change has a warning of its own."""


def with_http(station: Station, port: int | None) -> Station:
    """The station, its HTTP service at this port where one is given."""
    if port is None:
        return station
    table = station.http or HttpTable()
    return station.model_copy(update={"http": table.model_copy(update={"port": port})})


STATION_OPTIONS = (
    click.argument("station_file", metavar="STATION", type=click.Path(path_type=Path)),
    click.option(
        "--duration",
        "duration_s",
        type=click.FloatRange(min=0, min_open=True),
        help="End after so many seconds. Recordings always run to their end.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print each fix as one line of JSON, and nothing else."),
    click.option(
        "--recordings",
        "folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder that relative paths in STATION start from; by default the station file's own.",
    ),
    click.option("--fast", is_flag=True, help="Simulated streams run as fast as they go instead of in real time."),
)


def runs_station(function: Callable[..., int]) -> Callable[..., int]:
    """A command with the STATION and the options of all that run one."""
    for option in reversed(STATION_OPTIONS):
        function = option(function)
    return function


@click.command("run")
@runs_station
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, print what would run and all that is wrong, and open no radio and publish nothing.",
)
@click.option(
    "--http",
    "http_port",
    type=click.IntRange(0, 65_535),
    help="Serve map, fixes and metrics at this port of this machine, 0 for any; STATION's [http] can do more.",
)
def command(
    station_file: Path,
    duration_s: float | None,
    as_json: bool,
    folder: Path | None,
    fast: bool,
    dry_run: bool,
    http_port: int | None,
) -> int:
    """Run the station in the file STATION, or in a folder that `record` made, and print its fixes.

    SIGHUP reads STATION again: a station with radios goes over to it, any other to the model that its [model] names.

    Exit code 0 when the streams ended, 1 when a block failed, 2 when the station cannot work; with --dry-run 0 or 2.
    SIGINT and SIGTERM end it with the fixes that are on their way, a second one at once (130, 143), and a dry run at
    once, too.
    """

    def load() -> Station:
        return with_http(load_station(station_file, folder=folder), http_port)

    if dry_run:
        from localize_apps.dry_run import dry_run as look
        from localize_apps.dry_run import show as tell

        return tell(look(station_file, folder, load), as_json)

    def show(fix: Fix) -> None:
        print(fix_to_json(fix) if as_json else fix_line(fix), flush=True)

    return carry_out(load, on_fix=show, duration_s=duration_s, live=not fast)


class StatusLog:
    """Called with each status of an engine: logs what has changed since the last.

    A problem is worth a warning, and so are its end and a model that has changed; nothing else is.
    """

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}
        self._reasons: dict[str, set[str]] = {}

    def __call__(self, status: dict[str, Any]) -> None:
        state = status["state"]
        told = {key: status.get(key) for key in ("state", "model", "version", "sha256")}
        reasons = {each["reason"]: set(each["detail"].split("; ")) for each in status["reasons"]}
        over = [reason for reason in self._reasons if reason not in reasons]
        # A detail may be a list, such as one of receivers: what is new in it.
        fresh = {
            each["reason"]: "; ".join(
                part for part in each["detail"].split("; ") if part not in self._reasons.get(each["reason"], ())
            )
            for each in status["reasons"]
        }
        news = "".join(f"; {reason}: {detail}" for reason, detail in fresh.items() if detail)
        news += "".join(f"; {reason} is over" for reason in over if reasons)
        changed = bool(self._told) and told != self._told and state != "stopped"
        worse = any(
            detail or reason not in self._reasons for reason, detail in fresh.items() if reason not in OWN_LINES
        )
        if told == self._told and reasons == self._reasons:
            level = logging.DEBUG
        else:
            level = logging.WARNING if changed or worse or over or state == "failed" else logging.INFO
        self._told, self._reasons = told, reasons
        serving = f"{told['model']} version {told['version']} ({str(told['sha256'])[:12]})"
        fields = {**told, "reasons": list(reasons), "topic": "status"}
        log.log(level, "status: %s, %s%s", state, serving, news, extra=fields)


def carry_out(
    load: Callable[[], Station],
    *,
    on_fix: OnFix,
    duration_s: float | None,
    live: bool,
    recorder: Recorder | None = None,
) -> int:
    """Run a station, say on standard error what happens to it, and return the exit code.

    `load`: the station as its file says, asked for at SIGHUP again. The rest is as of `run_station`.
    """
    station = load()

    note = StatusLog()
    try:
        with native_lines(), own_stdout():
            result = run_station(
                station,
                on_fix=on_fix,
                on_status=note,
                on_alive=ServiceReport(),
                duration_s=duration_s,
                live=live,
                reread=load,
                recorder=recorder,
                on_serving=lambda what, url: logs.say(f"{what}: {url}", what=what, url=url),
            )
    except (ModelError, SourceError, UnknownModelError) as error:  # nothing has run yet
        raise ConfigError(str(error)) from error
    if isinstance(result.failure, BrokenPipeError):
        # Whoever read this has seen enough; the interpreter must not flush to the closed pipe when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if result.failure is not None:
        logs.complain(result.failure)
        return 1
    if result.fixes == 0 and not result.interrupted:
        logs.complain(f"no fix was made: {result.without_fix}")
        return 1
    return 0
