"""The `gr-localize` command: finds the subcommand, sets up logging, turns errors into exit codes.

0 done, 1 failed while running, 2 wrong usage or configuration, 130 and 143 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

import click
from localize_core import __version__
from localize_core.errors import ConfigError, LocalizeError

from localize_apps import early, ending, logs

# name: (module, one line for --help). The module is imported only when it is called; its click command is named
# `command` and returns None or an exit code.
COMMANDS = {
    "demo": ("localize_apps.demo", "Locate a simulated emitter, in this terminal or as a picture."),
    "run": ("localize_apps.run", "Run the station that a station file describes."),
    "record": ("localize_apps.record", "Run a station and keep what it hears, for a replay with the same fixes."),
    "control": ("localize_apps.control", "Ask a running station about its models, or have it change them."),
    "compile": ("localize_apps.compile", "Write a station's model from its geometry, without training."),
    "serve": ("localize_apps.serve", "Answer questions over HTTP, and show fixes on a live map."),
    "subscribe": ("localize_apps.subscribe", "Print the fixes that a station publishes."),
    "keys": ("localize_apps.keys", "Make keys, so that only some may listen, and over encrypted connections."),
    "train": ("localize_apps.train", "Train a model from simulation, channel data sets or labelled recordings."),
    "evaluate": ("localize_apps.evaluate", "Hold a model against the truth, baselines and the Cramér–Rao bound."),
    "score": ("localize_apps.score", "Hold recorded fixes against the true positions."),
    "models": ("localize_apps.models", "Register, promote, roll back and look at models."),
    "bench": ("localize_apps.bench", "Measure speed on this machine, beside its peers."),
    "doctor": ("localize_apps.doctor", "Say what is wrong with this installation or a station, and the mending."),
}

RUNNING = ("run", "record")
"""Commands that take signals while they run, and before that need their time."""

LOG_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
GNURADIO_LEVELS = {logging.ERROR: "error", logging.WARNING: "warn", logging.INFO: "info", logging.DEBUG: "debug"}


def _level(verbose: int, quiet: bool) -> int:
    return LOG_LEVELS[-1 if quiet else min(verbose, 2)]


class LazyGroup(click.Group):
    """A click group whose commands stand in COMMANDS."""

    def invoke(self, ctx: click.Context) -> object:
        # before a command is looked for: what is wrong with it is said in the form that was asked for
        logs.set_up(_level(ctx.params["verbose"], ctx.params["quiet"]), ctx.params["log_format"])
        return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] in RUNNING and logs.owns_process:
            early.mind_interruption() if "--dry-run" in args else early.mind_signals()
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # GNU Radio reads these when the command imports it; left alone, it logs everything to standard output.
        level = _level(ctx.params.get("verbose", 0), ctx.params.get("quiet", False))
        os.environ.setdefault("GR_CONF_LOG_LOG_FILE", "stderr")
        os.environ.setdefault("GR_CONF_LOG_LOG_LEVEL", GNURADIO_LEVELS[level])
        try:
            command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("localize_apps", "localize_benchmarks", "localize_core"):
                raise
            raise ConfigError(
                f"{cmd_name} needs the package {package}: `gr-localize doctor` says how to get it"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gr-localize")
@click.option("-v", "--verbose", count=True, help="More log lines on standard error; twice for all.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on standard error.")
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    envvar="GR_LOCALIZE_LOG_FORMAT",
    help="Form of the log lines on standard error: text, or a JSON object each. Or set GR_LOCALIZE_LOG_FORMAT.",
)
def cli(verbose: int, quiet: bool, log_format: str) -> None:
    """SDR streams in, transmitter position with an honest uncertainty out."""


def main(args: list[str] | None = None) -> int:
    """Run the command line `args` (default: the process's own). Returns the exit code."""
    logs.close()
    logs.owns_process = args is None
    code = _exit_code(args)
    if logs.owns_process:
        ending.leave(code)
    return code


def _exit_code(args: list[str] | None) -> int:
    try:
        result = cli.main(args, prog_name="gr-localize", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:  # what click makes of Ctrl-C
        return 130
    except click.ClickException as error:
        if logs.is_json():
            logs.complain(error.format_message())
        else:
            error.show()
        return error.exit_code
    except LocalizeError as error:
        logs.complain(error)
        return 2 if isinstance(error, ConfigError) else 1


if __name__ == "__main__":
    sys.exit(main())
