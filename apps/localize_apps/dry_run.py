"""`gr-localize run --dry-run`: everything that a run needs, looked at without opening a radio or publishing a fix."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from localize_core.addresses import without_credentials, without_password
from localize_core.errors import ConfigError, LocalizeError, MissingExtraError, SourceError
from localize_core.serving.control import ControlServer
from localize_core.serving.engine import Engine
from localize_core.sinks.cot_sink import CotFixSink
from localize_core.sinks.mqtt_sink import MqttFixSink, mqtt_address
from localize_core.sinks.redis_sink import RedisFixSink
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.station.config import Station
from localize_core.station.engine import station_engine
from localize_core.station.plan import read_recordings
from localize_core.station.sources import devices_of
from localize_core.tracking.tracker import Tracker

from localize_apps.doctor import check_geometry, check_station
from localize_apps.finding import Finding
from localize_apps.outlets import why_not_free
from localize_apps.radio_checks import check_radios, gather_radio_facts

CONNECT_S = 2.0


@dataclass
class DryRun:
    """What would run, by part, and what was found about it."""

    plan: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    @contextlib.contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Meanwhile, our errors become findings."""
        try:
            yield
        except LocalizeError as error:
            self.add(name, "error", str(error))

    def add(self, name: str, level: Any, message: str, fix: str | None = None) -> None:
        found = Finding(name, level, without_password(message), fix)
        if all(found.message != other.message for other in self.findings):  # one reason may stop several parts
            self.findings.append(found)


def dry_run(path: Path, folder: Path | None, load: Callable[[], Station]) -> DryRun:
    """Look at the station in the file `path`, relative paths from `folder`; `load` gives it as it is to run."""
    run = DryRun()
    try:
        station = load()
    except ConfigError as error:  # there is nothing that could be looked at
        run.add("station", "error", str(error))
        return run
    run.plan["station"] = _station(station)
    for finding in (*check_station(path, folder), *check_geometry(path, folder)):
        if finding.level != "ok":
            run.add(finding.check, finding.level, finding.message, finding.fix)
    if station.source_kind == "none":
        names = ", ".join(receiver.name for receiver in station.receiver if receiver.source is None)
        run.add("source", "error", f"receiver {names}: source is missing; only a flowgraph can bring the stream itself")
    if devices_of(station):
        for finding in check_radios(station, gather_radio_facts()):
            if finding.level != "ok":
                run.add(finding.check, finding.level, finding.message, finding.fix)
    if not run.fails:  # else said already what is not there
        with run.checking("recordings"):
            read_recordings(station)
    if station.tracker is not None:
        with run.checking("tracker"):
            Tracker(station.tracker)
    engine = None
    with run.checking("model"), _but_recordings(run, station):
        engine, time_steps, window_hop = station_engine(station, cache=None)
        engine.prepare(time_steps)
        run.plan |= _features(engine, time_steps, window_hop)
        for reason in engine.health.as_dict()["reasons"]:
            run.add("model", "warning", f"{reason['reason']}: {reason['detail']}")
    try:
        _addresses(run, station, engine)
    finally:
        if engine is not None:
            engine.close()
    return run


@contextlib.contextmanager
def _but_recordings(run: DryRun, station: Station) -> Iterator[None]:
    """Meanwhile, that recordings are missing, as said before, is no error."""
    try:
        yield
    except SourceError:
        sources = [receiver.source for receiver in station.receiver]
        if not run.fails or all(source.path.exists() for source in sources if hasattr(source, "path")):
            raise


def _station(station: Station) -> dict[str, Any]:
    table = station.station
    devices = [device.name for device in devices_of(station)]
    return {
        "name": table.name,
        "receivers": [receiver.name for receiver in station.receiver],
        "source": station.source_kind,
        "devices": devices,
        "sample_rate_hz": table.sample_rate_hz,
        "frequency_hz": table.frequency_hz,
    }


def _features(engine: Engine, time_steps: int, window_hop: int) -> dict[str, Any]:
    """Of the model that would serve, which has answered its golden vector."""
    contract = engine.contract
    version = engine.serving["champion"]
    identity = None if version is None else version.locator.model.identity
    hop_s = contract.hop / contract.sample_rate_hz
    frame_s = contract.n_fft / contract.sample_rate_hz
    features = {}
    for name, parameters in contract.parameters.items():
        kept = {key: value for key, value in parameters.items() if key in ("n_fft", "hop", "lag_step", "signal")}
        features[name] = {**kept, "rows": contract.rows, "inputs": sum(c.feature == name for c in contract.channels)}
    return {
        "model": {
            "uri": without_credentials(engine.settings.uri),
            "name": contract.name,
            "version": None if identity is None else identity.version,
            "sha256": None if identity is None else identity.sha256,
            "golden": contract.golden is not None,
        },
        "features": features,
        "window": {
            "frames": time_steps,
            "duration_s": frame_s + (time_steps - 1) * hop_s,
            "hop_s": window_hop * hop_s,
        },
    }


def _addresses(run: DryRun, station: Station, engine: Engine | None) -> None:
    """Where fixes would go and who could ask: places that can be written, addresses that are free or that answer."""
    publish = station.publish
    run.plan["publish"] = sinks = []
    for zmq in publish.zmq:
        sinks.append(f"zmq {zmq.endpoint}")
        with run.checking("publish.zmq"):
            sink = ZmqFixSink(**zmq.model_dump(exclude_none=True))
            try:
                sink.open()
            finally:
                sink.close()
    for file in publish.file:
        sinks.append(f"file {file.path}")
        _check_writable(run, file.path)
    for redis in publish.redis:
        sinks.append(f"redis {without_credentials(redis.url)}")
        with run.checking("publish.redis"):
            RedisFixSink(**redis.model_dump())
            _check_answers(run, "publish.redis", *_redis(redis.url))
    for mqtt in publish.mqtt:
        sinks.append(f"mqtt {without_credentials(mqtt.url)}")
        with run.checking("publish.mqtt"):
            MqttFixSink(station=station.station.name, **mqtt.model_dump(exclude_none=True))
            _check_answers(run, "publish.mqtt", *mqtt_address(mqtt.url)[:2])
    for cot in publish.cot:
        sinks.append(f"cot {cot.url}")
        with run.checking("publish.cot"):
            CotFixSink(**cot.model_dump(exclude_none=True))
            parts = urlsplit(cot.url)
            if parts.scheme != "udp" and parts.hostname and parts.port:
                _check_answers(run, "publish.cot", parts.hostname, parts.port)
    if station.cache.redis:
        _check_packages(run, "cache.redis", "redis", "pybreaker", "redis")
        _check_answers(run, "cache.redis", *_redis(station.cache.redis))
    run.plan["serves"] = serves = []
    if station.http is not None:
        serves.append(f"map http://{station.http.host}:{station.http.port}/")
        with run.checking("http"):
            station.http.settings.check()
        _check_packages(run, "http", "serve", "fastapi", "msgspec", "prometheus_client", "simdjson", "uvicorn")
        _check_free(run, "http", station.http.host, station.http.port)
    if station.metrics is not None:
        serves.append(f"metrics http://{station.metrics.host}:{station.metrics.port}/metrics")
        _check_packages(run, "metrics", "metrics", "prometheus_client")
        _check_free(run, "metrics", station.metrics.host, station.metrics.port)
    if station.control is not None:
        serves.append(f"control {station.control.endpoint}")
        if engine is not None:
            with run.checking("control"):
                server = ControlServer(engine, station.control.endpoint)
                server.start()
                server.stop()


def _redis(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 6379


def _check_writable(run: DryRun, path: Path) -> None:
    """Nothing is written: what is there may be another's."""
    if path.exists():
        reason = errno.EISDIR if path.is_dir() else 0 if os.access(path, os.W_OK) else errno.EACCES
    elif path.parent.is_dir():
        reason = 0 if os.access(path.parent, os.W_OK | os.X_OK) else errno.EACCES
    else:
        reason = errno.ENOTDIR if path.parent.exists() else 0  # that there is none was said before
    if reason:
        run.add("publish.file", "error", f"cannot write {path}: {os.strerror(reason)}")


def _check_answers(run: DryRun, name: str, host: str, port: int) -> None:
    """A server that is away is waited for, so this is no error."""
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        run.add(name, "warning", f"{host}:{port} does not answer: {error.strerror or error}; it is waited for")


def _check_free(run: DryRun, name: str, host: str, port: int) -> None:
    if reason := why_not_free(host, port):
        run.add(name, "error", f"{name} at {host}:{port} cannot be had: {reason}")


def _check_packages(run: DryRun, name: str, extra: str, *packages: str) -> None:
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError:
        run.add(name, "error", str(MissingExtraError(f"[{name}]", extra)))


def show(run: DryRun, as_json: bool) -> int:
    """Print it. Returns the exit code: 2 where it could not run."""
    if as_json:
        click.echo(json.dumps({"ok": not run.fails, **run.plan, "findings": [asdict(each) for each in run.findings]}))
        return 2 if run.fails else 0
    for line in _lines(run.plan):
        click.echo(line)
    for finding in run.findings:
        color = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
        click.echo(f"{click.style(f'{finding.level:8}', fg=color)}{finding.check}: {finding.message}")
        if finding.fix:
            click.echo(f"{'':8}→ {finding.fix}")
    errors = sum(finding.level == "error" for finding in run.findings)
    click.echo(f"{errors} {'error' if errors == 1 else 'errors'}: it would not run" if errors else "it would run")
    return 2 if errors else 0


def _with_unit(value: float, unit: str) -> str:
    """As 433.92 MHz."""
    power = min(max(math.floor(math.log10(value)) // 3, 0), 3)
    return f"{value / 1e3**power:.9g} {('', 'k', 'M', 'G')[power]}{unit}"


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    if station := plan.get("station"):
        tuned = f"{_with_unit(station['frequency_hz'], 'Hz')}, {_with_unit(station['sample_rate_hz'], 'S/s')}"
        heard = ", ".join(station["devices"]) or station["source"]
        yield f"station {station['name']}: {', '.join(station['receivers'])} ({heard}), {tuned}"
    if model := plan.get("model"):
        checked = "golden vector answered" if model["golden"] else "no golden vector"
        version = f"{model['version']} ({str(model['sha256'])[:12]})" if model["version"] else "unknown"
        yield f"model {model['name']} version {version} from {model['uri']}, {checked}"
    for name, found in plan.get("features", {}).items():
        lags = f", {found['rows']} lags of {found['lag_step']:g} samples" if "lag_step" in found else ""
        rows = lags or f", {found['rows']} rows"
        yield f"{name}: {found['inputs']} of n_fft {found['n_fft']}, hop {found['hop']}{rows}"
    if window := plan.get("window"):
        spans = f"{window['duration_s']:.4g} s; a new one every {window['hop_s']:.4g} s"
        yield f"window: {window['frames']} frames, {spans}"
    if plan.get("publish"):
        yield f"publishes: {', '.join(plan['publish'])}"
    if plan.get("serves"):
        yield f"serves: {', '.join(plan['serves'])}"
