"""`gr-localize subscribe`: print the fixes that a station publishes over ZeroMQ."""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Iterator

import click
import zmq
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.zmq_sink import check_endpoint
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_json, fix_to_json
from localize_core.wire.text import fix_line

log = logging.getLogger(__name__)


def receive(endpoint: str, topic: str, timeout_s: float | None) -> Iterator[Fix]:
    """The fixes that arrive. What is no fix is logged and passed over.

    Raises PublishError if there is no fix for `timeout_s` seconds or the endpoint cannot be reached at all.
    """
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe(topic)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise PublishError(f"cannot connect {endpoint}: {error.strerror}") from error
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if not socket.poll(None if timeout_s is None else math.ceil(1000 * left_s)):
                break
            try:
                fix = fix_from_json(socket.recv_multipart()[-1])
            except ConfigError as error:
                log.warning("passing over a message that is no fix: %s", error)
                continue
            yield fix
            deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    raise PublishError(f"no fix from {endpoint} for {timeout_s:g} s")


@click.command("subscribe")
@click.argument("endpoint", default="tcp://127.0.0.1:5555")
@click.option("--topic", default="fix", show_default=True, help="Topic to subscribe to.")
@click.option("--json", "as_json", is_flag=True, help="Print each fix as one line of JSON.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many fixes.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Fail after so many seconds without a fix.",
)
def command(endpoint: str, topic: str, as_json: bool, count: int | None, timeout_s: float | None) -> None:
    """Print the fixes that are published at ENDPOINT, by default tcp://127.0.0.1:5555."""
    check_endpoint(endpoint, bind=False)
    try:
        for fix in itertools.islice(receive(endpoint, topic, timeout_s), count):
            click.echo(fix_to_json(fix) if as_json else fix_line(fix))
    except BrokenPipeError:
        # Whoever read this has seen enough; the interpreter must not flush to the closed pipe when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
