"""`gr-localize subscribe`: the fixes that stations publish, as a table that lives, or line by line."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from localize_core.client import FixSubscriber, subscribe
from localize_core.client.subscribe import SCHEMES
from localize_core.types.fix import Fix
from localize_core.wire.fix_csv import CSV_FIELDS, fix_to_csv_rows
from localize_core.wire.fix_json import fix_to_json
from localize_core.wire.text import fix_line

TOKEN = "GR_LOCALIZE_TOKEN"
FILE = click.Path(dir_okay=False, path_type=Path)


def csv_line(values: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


FORMATS: dict[str, Callable[[Fix], str]] = {
    "json": fix_to_json,
    "csv": lambda fix: "\n".join(csv_line(row) for row in fix_to_csv_rows(fix)),
    "lines": fix_line,
}


@click.command("subscribe", epilog=f"URL is one of {', '.join(SCHEMES.values())}.")
@click.argument("url", default="tcp://127.0.0.1:5555", envvar="GR_LOCALIZE_URL")
@click.option("--json", "form", flag_value="json", help="Print each fix as one line of JSON.")
@click.option("--csv", "form", flag_value="csv", help="Print a row per fix and per track, after the names of columns.")
@click.option("--lines", "form", flag_value="lines", help="Print a line per fix also on a terminal.")
@click.option("--station", metavar="NAME", help="Only fixes of this station.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many fixes.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Fail after so many seconds without a fix.",
)
@click.option(
    "--history",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Begin with the last N fixes. [redis, http; mqtt: 1]",
)
@click.option("--topic", help="Topic, or its beginning. [tcp, ipc: fix; mqtt: gr-localize]")
@click.option("--prefix", help="First word of the keys. [redis: gr-localize]")
@click.option("--token", help=f"Token of the service; better in the environment, as {TOKEN}. [http]")
@click.option("--ca-file", type=FILE, help="Certificates to trust instead of the system's. [rediss, mqtts, https]")
@click.option("--server-key", type=FILE, help="The publisher's public CURVE key, NAME.key. [tcp, ipc]")
@click.option("--secret-key", type=FILE, help="Your own CURVE key, NAME.key_secret. [tcp, ipc]")
def command(
    url: str,
    form: str | None,
    count: int | None,
    token: str | None,
    server_key: Path | None,
    secret_key: Path | None,
    **options: Any,
) -> None:
    """Show the fixes that are published at URL, by default tcp://127.0.0.1:5555 or GR_LOCALIZE_URL.

    On a terminal they are a table with a row per stream, and one per track below it, elsewhere lines. A lost connection
    is made again.
    """
    fixes = subscribe(
        url,
        token=token or (os.environ.get(TOKEN) or None if url.startswith("http") else None),
        curve_server_key_file=server_key,
        curve_secret_key_file=secret_key,
        **options,
    )
    try:
        with fixes:
            if form is None and sys.stdout.isatty():
                show(fixes, count)
            else:
                print_lines(fixes, count, form or "lines")
    except BrokenPipeError:
        # Whoever read this has seen enough; the interpreter must not flush to the closed pipe when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_lines(fixes: FixSubscriber, count: int | None, form: str) -> None:
    if form == "csv":
        click.echo(csv_line(CSV_FIELDS))
    for fix in itertools.islice(fixes, count):
        click.echo(FORMATS[form](fix))


def show(fixes: FixSubscriber, count: int | None) -> None:
    """The table, until it ends."""
    from rich.live import Live

    from localize_apps.subscribe_view import FixTable

    table = FixTable(fixes)
    with Live(table, redirect_stderr=sys.stderr.isatty()), logs_above():
        for fix in itertools.islice(fixes, count):
            table.add(fix)


@contextlib.contextmanager
def logs_above() -> Iterator[None]:
    """Logs go to where standard error goes now: above the table, if both are on the terminal."""
    handlers = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
