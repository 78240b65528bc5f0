"""`gr-localize control`: ask a running station about its models, or have it change them."""

from __future__ import annotations

import json
from typing import Any

import click
from localize_core.serving.control import send_command
from localize_core.serving.engine import COMMANDS

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5556"


@click.command("control")
@click.argument("name", metavar="COMMAND", type=click.Choice(COMMANDS))
@click.argument("value", required=False)
@click.option("--endpoint", default=DEFAULT_ENDPOINT, show_default=True, help="Of the station's [control].")
@click.option("--arm", type=click.Choice(["champion", "challenger"]), default="champion", show_default=True)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the station's answer as one JSON object.")
def command(name: str, value: str | None, endpoint: str, arm: str, timeout_s: float, as_json: bool) -> int:
    """Have the running station carry out COMMAND and print how it stands then.

    \b
    info              models, versions, figures, experiment
    health            whether it is well, and why not
    reload            ask for a newer model now; try again what was rejected
    activate VERSION  serve that version, until the model's source names another
    rollback          serve the version before, at once
    promote           the challenger's version becomes the champion
    share PERCENT     of the streams, for a challenger in mode split

    Exits with 1 when no station answers, with 2 when it refuses.
    """
    parts: dict[str, Any] = {"arm": arm}
    wanted = {"activate": "version", "share": "percent"}.get(name)
    if (value is not None) != (wanted is not None):
        raise click.UsageError(f"{name} takes {'a ' + wanted if wanted else 'no value'}")
    if wanted is not None and value is not None:
        parts[wanted] = _number(value) if wanted == "percent" else value
    answer = send_command(endpoint, name, timeout_s=timeout_s, **parts)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        _show(answer)
    return 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise click.UsageError(f"share takes a number of percent, not {text!r}") from error


def _show(answer: dict[str, Any]) -> None:
    click.echo(answer["state"])
    for reason in answer["reasons"]:
        click.echo(f"  {reason['reason']} since {reason['since']}: {reason['detail']}")
    for arm, found in answer.get("arms", {}).items():
        for label, version in ((arm, found["serving"]), ("  before", found["previous"])):
            if version is not None:
                click.echo(f"{label}: {_described(version)}")
        if found["held"]:
            click.echo(f"  held: {found['uri']} names {found['source_version']}; activate that one to end it")
    if answer.get("fallback"):
        click.echo(f"fallback: {_described(answer['fallback'])}")
    if windows := answer.get("windows"):
        lost = ", ".join(f"{count} at stage {stage}" for stage, count in windows["dropped"].items() if count)
        waiting = f"{windows['waiting']} wait, the oldest for {windows['age_ms']:.3g} ms"
        counts = f"{windows['offered']} offered, {windows['served']} served, {lost or 'none'} lost"
        click.echo(f"windows: {counts}, {waiting}")
    if cache := answer.get("cache"):
        click.echo(f"cache: {_cached(cache)}")
    for block, found in answer.get("blocks", {}).items():
        full = f"input {found['input_full']:.0%} full, output {found['output_full']:.0%}"
        click.echo(f"block {block}: {found['cores']:.2f} cores, {full}")
    if experiment := answer.get("experiment"):
        reason = f", {experiment['reason']}" if experiment["reason"] else ""
        figures = ", ".join(f"{key} {_shown(value)}" for key, value in experiment["comparison"].items())
        click.echo(f"experiment {experiment['name']}: {experiment['mode']}, {experiment['state']}{reason}")
        click.echo(f"  {experiment['share_percent']:g} % of streams; {figures}")


def _described(version: dict[str, Any]) -> str:
    times = " / ".join(_shown(value) for value in version["inference_time_ms"].values())
    return (
        f"{version['name']} {version['version']} ({version['sha256'][:12]}) since {version['loaded_since']}, "
        f"{version['windows']} windows, {version['errors']} errors, P50 / P95 / P99 {times} ms"
    )


def _cached(cache: dict[str, Any]) -> str:
    stores = ", ".join(f"{name} {store['state']}" for name, store in cache["stores"].items())
    hits = f"{cache['hits']} hits, {cache['misses']} misses, {cache['errors']} errors, {cache['evictions']} evictions"
    return f"{hits}, {cache['net_benefit_ms']:.3g} ms gained; {stores}"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
