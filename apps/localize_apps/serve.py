"""`gr-localize serve`: a model that answers over HTTP, and a live map of its fixes and of other stations'."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from localize_core.cache.settings import CacheSettings
from localize_core.client import FixSubscriber, subscribe
from localize_core.errors import ConfigError, ModelError, SourceError, UnknownModelError
from localize_core.service.server import HttpServer
from localize_core.service.service import Service, model_service, station_service
from localize_core.service.settings import HttpOptions, HttpSettings, http_settings, is_loopback, read_token
from localize_core.serving.settings import make_settings
from localize_core.station.config import ModelTable, Station, load_station
from localize_core.station.engine import model_engine, station_engine

from localize_apps import logs

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "GR_LOCALIZE_TOKEN"
TOKEN_HELP = (
    f"What every request must carry. Others on this machine can see it: better is --token-file, or {TOKEN_VARIABLE} in "
    "the environment."
)
PORT_HELP = "0 takes any that is free.  [default: the station's, 8080]"


@click.command("serve")
@click.argument("station_file", metavar="[STATION]", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help="Without STATION: the model that answers, such as an ONNX file.")
@click.option(
    "--from",
    "sources",
    metavar="URL",
    multiple=True,
    help="Also show the fixes that are published there: tcp://, ipc://, redis://, mqtt:// or http://. Any number.",
)
@click.option(
    "--from-token-file", type=click.Path(path_type=Path), help="File with the token that http:// sources ask for."
)
@click.option(
    "--from-ca-file",
    type=click.Path(path_type=Path),
    help="Certificates to trust for rediss://, mqtts:// and https://.",
)
@click.option(
    "--from-server-key", type=click.Path(path_type=Path), help="Public CURVE key of tcp:// and ipc:// sources."
)
@click.option("--from-secret-key", type=click.Path(path_type=Path), help="The own CURVE key for them.")
@click.option("--host", help="Address to listen at.  [default: the station's, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65_535), help=PORT_HELP)
@click.option("--token", help=TOKEN_HELP)
@click.option("--token-file", type=click.Path(path_type=Path), help="File whose first line is the token.")
@click.option(
    "--recordings",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that relative paths in STATION start from; by default the station file's own.",
)
def command(
    station_file: Path | None,
    model: str | None,
    sources: tuple[str, ...],
    from_token_file: Path | None,
    from_ca_file: Path | None,
    from_server_key: Path | None,
    from_secret_key: Path | None,
    host: str | None,
    port: int | None,
    token: str | None,
    token_file: Path | None,
    folder: Path | None,
) -> int:
    """Answer questions with the model of STATION or with MODEL, and show fixes on a live map.

    With --from alone there is only the map. What the answers and the map are at is printed on standard error; /docs
    there describes the API. Ends with SIGINT or SIGTERM; with --from alone also, with exit code 1, when every source
    has refused.
    """
    if station_file is not None and model is not None:
        raise click.UsageError("either STATION or --model: the station file says which model answers")
    if station_file is None and model is None and not sources:
        raise click.UsageError("nothing to serve: wanted STATION, --model or --from")
    station = None if station_file is None else load_station(station_file, folder=folder)
    settings = _settings(station, host, port, token, token_file)
    settings.check()
    with ExitStack() as stack:
        service = _service(station, model, stack)
        server = HttpServer(service, settings)
        stopped = stack.enter_context(_signals())
        refused: list[str] = []

        def give_up(name: str) -> None:
            refused.append(name)
            if service.engine is None and len(refused) == len(sources):
                stopped.set()

        secrets = {
            ("http", "https"): {"token": None if from_token_file is None else read_token(from_token_file)},
            ("rediss", "mqtts", "https"): {"ca_file": from_ca_file},
            ("tcp", "ipc"): {"curve_server_key_file": from_server_key, "curve_secret_key_file": from_secret_key},
        }
        for url in sources:
            scheme = url.partition("://")[0]
            options = [each for schemes, each in secrets.items() if scheme in schemes]
            known = {name: value for each in options for name, value in each.items()}
            stack.enter_context(_following(subscribe(url, **known), service, give_up))
        stack.callback(server.stop)
        server.start()
        # What is there by now stays: looking through all of it again and again would make answers wait 0.1 s each time.
        gc.collect()
        gc.freeze()
        beyond = "" if is_loopback(settings.host) else f", to others at port {server.port}"
        logs.say(f"gr-localize: serving at {server.url}{beyond}", url=server.url)
        stopped.wait()
        return 1 if service.engine is None and len(refused) == len(sources) else 0


def _settings(
    station: Station | None, host: str | None, port: int | None, token: str | None, token_file: Path | None
) -> HttpSettings:
    """The station's, with what the command line says otherwise."""
    options = HttpOptions() if station is None or station.http is None else station.http
    given = {"host": host, "port": port}
    values = options.model_dump(exclude={"token_file"}) | {k: v for k, v in given.items() if v is not None}
    if token_file is None and token is None and TOKEN_VARIABLE not in os.environ and station and station.http:
        token_file = station.http.token_file
    if token is None:
        token = os.environ.get(TOKEN_VARIABLE, "") if token_file is None else read_token(token_file)
    return http_settings(**values, token=token)


def _service(station: Station | None, model: str | None, stack: ExitStack) -> Service:
    """What is shown, with an engine that runs where there is a model."""
    from localize_core.metrics.metrics import Metrics

    try:
        if station is not None:
            engine, time_steps, _ = station_engine(station, cache=station.cache)
            engine.prepare(time_steps)
        elif model is not None:
            engine = model_engine(make_settings(ModelTable, uri=model), cache=CacheSettings())
            engine.prepare_for_requests()
        else:
            return Service()
        stack.callback(engine.close)
    except (ModelError, SourceError, UnknownModelError) as error:  # nothing has run yet
        raise ConfigError(str(error)) from error
    metrics = Metrics(engine.station)
    metrics.watch(engine)
    engine.start(live=True)  # questions do not wait for comparisons
    stack.callback(engine.stop)
    if station is not None:
        return station_service(station, engine, metrics=metrics)
    return model_service(engine, metrics=metrics)


@contextmanager
def _following(fixes: FixSubscriber, service: Service, give_up: Callable[[str], None]) -> Iterator[None]:
    """Show the fixes of another station meanwhile. `give_up`: told where it refuses them."""

    def tell(error: Exception) -> None:
        log.error("%s is not shown any more: %s", fixes.name, error)
        give_up(fixes.name)

    subscription = fixes.start(service.publish, tell)
    try:
        yield
    finally:
        subscription.stop()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; none does outside the main thread."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
