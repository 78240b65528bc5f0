"""A station with four receivers and everything that can happen to it, for as long as one likes.

`python -m localize_benchmarks.soak --minutes 30` runs `gr-localize run` as a process of its own, with rtl_tcp servers
that play what four places hear of an emitter, and does something to it every ten seconds, drawn by a seeded generator:
receivers are cut off, away, silent or lose samples, Redis dies or hangs, the model is exchanged, a subscriber is
frozen, the station file changes and SIGHUP comes. It prints what it found, writes it as JSON, and ends with 1 where the
station died, fell silent, grew, or has windows or fixes that nobody can account for.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import zmq
from localize_apps.main import main as gr_localize
from localize_benchmarks import redis_server, rtl_tcp_server
from localize_benchmarks.flowgraphs import free_endpoint
from localize_benchmarks.machine import Busy, describe
from localize_benchmarks.process import start_app, start_python
from localize_benchmarks.stations import PLACES, heard, rtl_tcp, station_text
from localize_core.errors import LocalizeError
from localize_core.model.contract import METADATA_KEY, Contract
from localize_core.serving.control import send_command

RATE_HZ = 250e3
WINDOW_S = 0.5
LOOP_S = 4.0
TABLES = """
[model]
uri = "{model}"
min_confidence = {min_confidence}
[control]
endpoint = "{control}"
[http]
port = {http}
[publish]
file = {{ path = "fixes.jsonl" }}
zmq = {{ endpoint = "{zmq}" }}
redis = {{ url = "{redis}", capacity = 100 }}
"""
SERVICE = {"MALLOC_ARENA_MAX": "2"}
"""As in the unit that is shipped."""
FIRST_FIX_S = 120.0
STOP_S = 30.0
EVERY_S = 10.0
ANSWER_S = 10.0
LONGEST_SILENCE_S = 10.0
"""A fault of one receiver, and the windows that end with it, may take so long."""
LOOK_S = 1.0
WARM_UP_S = 300.0
"""What is loaded late, and what the first faults need, is there by then. A run is judged by its memory only where more
than this is left of it."""
MOST_GROWTH_MIB_PER_H = 12.0
MOST_GROWTH_MIB = 8.0
"""The noise of a slope: both have to be passed for a run to have grown."""
MOST_FDS, MOST_THREADS = 8, 6
"""More than after the warm-up, where a fault is being dealt with."""


@dataclass
class Report:
    """What a run has shown. `problems` is empty where all is well."""

    minutes: float
    seed: int
    machine: dict[str, Any] = field(default_factory=describe)
    faults: dict[str, int] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    fixes: int = 0
    fixes_ok: int = 0
    longest_silence_s: float = 0.0
    silence_after: str = ""
    windows: dict[str, Any] = field(default_factory=dict)
    receivers: dict[str, Any] = field(default_factory=dict)
    accounts_checked: int = 0
    published: dict[str, int] = field(default_factory=dict)
    streams: int = 0
    restarts_of_graph: int = 0
    rss_mib: dict[str, float] = field(default_factory=dict)
    rss_every_10_s_mib: list[float] = field(default_factory=list)
    rss_slope_mib_per_h: float = 0.0
    threads: tuple[int, int] = (0, 0)
    fds: tuple[int, int] = (0, 0)
    cores: float = 0.0
    exit_code: int | None = None
    log_lines: int = 0
    problems: list[str] = field(default_factory=list)


class Fixes:
    """What the station prints, as it comes: `came` is (moment, status) of each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.came: list[tuple[float, str]] = []
        self.first: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            fix = json.loads(line)
            self.first = self.first or fix
            self.came.append((time.monotonic(), fix["status"]))

    def join(self) -> None:
        self._thread.join(STOP_S)


class Soak:
    """A station with its surroundings, and what can be done to it."""

    def __init__(self, folder: Path, seed: int, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._draw = np.random.default_rng(seed)
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._drawn: list[int] = []
        self._confidence, self._version = 0.0, 1
        self.redis = redis_server.RedisServer(folder)
        self.redis.start()
        stack.callback(self.redis.stop)
        played = heard(rate_hz=RATE_HZ, bandwidth_hz=40e3, duration_s=LOOP_S, seed=seed)
        epoch = time.monotonic()
        self.servers = [rtl_tcp_server.RtlTcpServer(samples, epoch=epoch) for samples in played]
        for server in self.servers:
            stack.callback(server.close)
        self.control, self.zmq = free_endpoint(), free_endpoint()
        self.http = int(free_endpoint().rpartition(":")[2])
        self._write("compiled")
        previous = os.getcwd()
        os.chdir(folder)
        try:
            if gr_localize(["compile", "station.toml", "-o", "model.onnx"]) != 0:
                raise LocalizeError("the station's model cannot be compiled")
        finally:
            os.chdir(previous)
        self._write()
        self.log = folder / "log.jsonl"
        with self.log.open("wb") as log:
            self.process = start_app(
                "--log-format", "json", "-v", "run", "station.toml", "--json",
                cwd=folder, stderr=log, env={**os.environ, **SERVICE},
            )  # fmt: skip
        stack.callback(self._end)
        self.fixes = Fixes(self.process)
        self._subscriber: subprocess.Popen[str] | None = None
        self.faults: list[tuple[str, Callable[[], str]]] = [
            ("receiver cut", self._cut),
            ("receiver away", self._away),
            ("receiver silent", self._silent),
            ("samples lost", self._gap),
            ("redis killed", self._redis_killed),
            ("redis hangs", self._redis_hangs),
            ("model exchanged", self._model),
            ("subscriber frozen", self._frozen),
            ("SIGHUP", self._hangup),
        ]

    def subscribe(self) -> None:
        """Start the subscriber that may be frozen."""
        self._subscriber = start_python("soak", self.zmq, stdin=subprocess.DEVNULL)
        self._stack.callback(self._subscriber.wait)
        self._stack.callback(self._subscriber.kill)

    def strike(self) -> tuple[str, str]:
        """Do what the generator draws, everything once before anything comes again. Returns what, and to whom."""
        if not self._drawn:
            self._drawn = list(self._draw.permutation(len(self.faults)))
        name, fault = self.faults[self._drawn.pop()]
        return name, fault()

    def mend(self, *, everything: bool = False) -> None:
        """End what is to end by now."""
        now_s = time.monotonic()
        due = [each for each in self._later if everything or each[0] <= now_s]
        self._later = [each for each in self._later if each not in due]
        for _, action in due:
            action()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _after(self, least_s: float, most_s: float, action: Callable[[], None]) -> str:
        span_s = float(self._draw.uniform(least_s, most_s))
        self._later.append((time.monotonic() + span_s, action))
        return f"{span_s:.1f} s"

    def _server(self) -> tuple[str, rtl_tcp_server.RtlTcpServer]:
        index = int(self._draw.integers(len(self.servers)))
        return PLACES[index][0], self.servers[index]

    def _cut(self) -> str:
        name, server = self._server()
        reset = bool(self._draw.integers(2))
        server.cut(reset=reset)
        return f"{name}{', reset' if reset else ''}"

    def _away(self) -> str:
        name, server = self._server()
        server.refuse()
        return f"{name} for {self._after(2.0, 9.0, server.restart)}"

    def _silent(self) -> str:
        name, server = self._server()
        server.stall()
        return f"{name} for {self._after(2.5, 9.0, server.resume)}"

    def _gap(self) -> str:
        name, server = self._server()
        server.stall()
        return f"{name} for {self._after(0.05, 1.0, server.resume)}"

    def _redis_killed(self) -> str:
        os.kill(self.redis.pid, signal.SIGKILL)
        self.redis.stop()
        return f"for {self._after(1.0, 9.0, self.redis.start)}"

    def _redis_hangs(self) -> str:
        self.redis.hang()
        return f"for {self._after(1.0, 9.0, self.redis.wake)}"

    def _model(self) -> str:
        """Another version of the model lies there, and the station is told."""
        self._version += 1
        path = self._folder / "model.onnx"
        model = onnx.load(path)
        (entry,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
        contract = Contract.from_json(entry.value).model_copy(update={"model_version": str(self._version)})
        onnx.helper.set_model_props(model, {METADATA_KEY: contract.model_dump_json()})
        onnx.save(model, path.with_suffix(".draft"))
        path.with_suffix(".draft").replace(path)
        send_command(self.control, "reload", timeout_s=ANSWER_S)
        return f"version {self._version}"

    def _frozen(self) -> str:
        assert self._subscriber is not None
        self._subscriber.send_signal(signal.SIGSTOP)
        return f"for {self._after(2.0, 9.0, lambda: self._subscriber.send_signal(signal.SIGCONT))}"  # type: ignore[union-attr]

    def _hangup(self) -> str:
        self._confidence = 0.05 - self._confidence
        self._write()
        self.process.send_signal(signal.SIGHUP)
        return f"min_confidence {self._confidence:g}"

    def _write(self, model: str = "model.onnx") -> None:
        sources = rtl_tcp([server.address for server in self.servers])
        text = station_text(sources, name="soak", rate_hz=RATE_HZ, window_s=WINDOW_S) + TABLES.format(
            min_confidence=self._confidence, model=model,
            control=self.control, zmq=self.zmq, http=self.http, redis=self.redis.url,
        )  # fmt: skip
        draft = self._folder / "station.draft"
        draft.write_text(text)
        draft.replace(self._folder / "station.toml")


@dataclass
class Look:
    """The process at a moment."""

    at_s: float
    rss_mib: float
    threads: int
    fds: int


def look(pid: int) -> Look:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    fds = len(os.listdir(f"/proc/{pid}/fd"))
    return Look(time.monotonic(), int(status["VmRSS"].split()[0]) / 1024.0, int(status["Threads"]), fds)


def run_soak(
    minutes: float, seed: int, folder: Path, tell: Callable[[str], None], *, every_s: float = EVERY_S
) -> Report:
    """Run the station in `folder` for so many minutes from its first fix, with a fault every `every_s`, and tell what
    happens."""
    report = Report(minutes, seed)
    looks: list[Look] = []
    with ExitStack() as stack:
        soak = Soak(folder, seed, stack)
        _wait(lambda: soak.fixes.came or soak.process.poll() is not None, FIRST_FIX_S)
        if not soak.fixes.came:
            report.problems.append(f"no first fix within {FIRST_FIX_S:g} s: {_last_lines(soak.log)}")
            return report
        soak.subscribe()
        busy, began_s = Busy(), time.monotonic()
        end_s, next_s = began_s + 60.0 * minutes, began_s + every_s
        while (now_s := time.monotonic()) < end_s and soak.process.poll() is None:
            soak.mend()
            if now_s >= next_s and now_s < end_s - every_s:
                next_s += every_s
                try:
                    name, whom = soak.strike()
                except LocalizeError as error:
                    report.problems.append(f"at {now_s - began_s:.0f} s: {error}")
                    continue
                report.events.append({"at_s": round(now_s - began_s, 1), "fault": name, "detail": whom})
                tell(f"{now_s - began_s:6.0f} s  {name}: {whom}  ({len(soak.fixes.came)} fixes)")
            looks.append(look(soak.process.pid))
            _check_account(report, soak.control)
            time.sleep(max(LOOK_S - (time.monotonic() - now_s), 0.05))
        report.cores = round(busy.cores()[0] + busy.cores()[1], 2)
        soak.mend(everything=True)
        if soak.process.poll() is None:
            soak.process.send_signal(signal.SIGTERM)
            try:
                soak.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                report.problems.append(f"did not end within {STOP_S:g} s of SIGTERM")
                soak.process.kill()
        else:
            report.problems.append(f"died after {time.monotonic() - began_s:.0f} s: {_last_lines(soak.log)}")
        report.exit_code = soak.process.wait()
        soak.fixes.join()
        _judge(report, soak, looks, began_s, folder)
    return report


def _check_account(report: Report, control: str) -> None:
    """Hold the station's own account of its windows and samples against itself."""
    try:
        told = send_command(control, "info", timeout_s=ANSWER_S)
    except LocalizeError:  # it has died, or is ending
        return
    windows = told.get("windows")
    if windows is None:
        return
    report.accounts_checked += 1
    report.windows, report.receivers = windows, told.get("receivers", {})
    gone = windows["served"] + sum(windows["dropped"].values()) + windows["waiting"] + windows["answering"]
    if windows["offered"] != gone:
        report.problems.append(f"windows do not add up: {windows}")
    for name, each in report.receivers.items():
        if each["taken"] != each["delivered"] + each["dropped"] + each["waiting"]:
            report.problems.append(f"samples of {name} do not add up: {each}")


def _judge(report: Report, soak: Soak, looks: list[Look], began_s: float, folder: Path) -> None:
    report.faults = dict(Counter(event["fault"] for event in report.events))
    moments = [moment for moment, _ in soak.fixes.came]
    report.fixes = len(moments)
    report.fixes_ok = sum(status == "ok" for _, status in soak.fixes.came)
    silences = [(after - before, before - began_s) for before, after in itertools.pairwise(moments)]
    if silences:
        report.longest_silence_s, at_s = max(silences)
        last = [event for event in report.events if event["at_s"] <= at_s + report.longest_silence_s]
        report.silence_after = f"{last[-1]['fault']}, {last[-1]['detail']}" if last else ""
    if report.longest_silence_s > LONGEST_SILENCE_S:
        report.problems.append(f"silent for {report.longest_silence_s:.1f} s after {report.silence_after}")
    if report.exit_code != 0:
        report.problems.append(f"ended with {report.exit_code}")
    _check_file(report, folder / "fixes.jsonl")
    text = soak.log.read_text(errors="replace")
    report.log_lines = len(text.splitlines())
    report.restarts_of_graph = text.count("the flowgraph failed, starting another")
    _check_growth(report, looks)


def _check_file(report: Report, path: Path) -> None:
    """Every fix that was printed is in the file, in order, and what is missing was said to be lost."""
    streams: dict[str, int] = {}
    count = 0
    for line in path.read_text().splitlines():
        fix = json.loads(line)
        count += 1
        expected = streams.get(fix["stream"], -1) + 1 + fix["dropped_windows"]
        if fix["sequence"] != expected:
            report.problems.append(f"sequence {fix['sequence']} where {expected} is expected, stream {fix['stream']}")
        streams[fix["stream"]] = fix["sequence"]
    report.streams = len(streams)
    report.published = {"printed": report.fixes, "file": count}
    if count != report.fixes:
        report.problems.append(f"{report.fixes} fixes were printed, {count} are in the file")


def _check_growth(report: Report, looks: list[Look]) -> None:
    if len(looks) < 3:
        return
    span_s = looks[-1].at_s - looks[0].at_s
    report.rss_every_10_s_mib = [round(each.rss_mib, 1) for each in looks[:: round(10.0 / LOOK_S)]]
    warm_s = min(WARM_UP_S, span_s / 3.0)
    warm = [each for each in looks if each.at_s - looks[0].at_s >= warm_s]
    hours = np.array([(each.at_s - looks[0].at_s) / 3600.0 for each in warm])
    rss = np.array([each.rss_mib for each in warm])
    report.rss_slope_mib_per_h = round(float(np.polyfit(hours, rss, 1)[0]), 1)
    tenth = max(len(warm) // 10, 1)
    report.rss_mib = {
        "warm": round(float(np.median(rss[:tenth])), 1),
        "end": round(float(np.median(rss[-tenth:])), 1),
        "most": round(float(rss.max()), 1),
        "warm_after_s": round(warm_s, 1),
    }
    grown = report.rss_mib["end"] - report.rss_mib["warm"]
    if span_s > 2.0 * WARM_UP_S and report.rss_slope_mib_per_h > MOST_GROWTH_MIB_PER_H and grown > MOST_GROWTH_MIB:
        report.problems.append(f"grew by {grown:.0f} MiB, {report.rss_slope_mib_per_h:.0f} MiB/h")
    for name, most in (("threads", MOST_THREADS), ("fds", MOST_FDS)):
        early = int(np.median([getattr(each, name) for each in warm[:tenth]]))
        late = int(np.median([getattr(each, name) for each in warm[-tenth:]]))
        setattr(report, name, (early, late))
        if late > early + most:
            report.problems.append(f"{name}: {early} after the warm-up, {late} at the end")


def _wait(condition: Callable[[], object], timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.05)


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    faults = ", ".join(f"{count} × {name}" for name, count in sorted(report.faults.items()))
    yield f"{report.minutes:g} min, seed {report.seed}; faults: {faults or 'none'}"
    yield f"{report.fixes} fixes ({report.fixes_ok} with a position) in {report.streams} streams"
    yield f"longest silence {report.longest_silence_s:.1f} s, after {report.silence_after or 'no fault'}"
    yield f"windows {report.windows}; {report.accounts_checked} accounts looked at"
    yield f"published {report.published}; the graph started anew {report.restarts_of_graph} times"
    yield f"memory {report.rss_mib} MiB, slope {report.rss_slope_mib_per_h:g} MiB/h"
    yield f"threads {report.threads[0]} → {report.threads[1]}, file descriptors {report.fds[0]} → {report.fds[1]}"
    yield f"{report.cores:g} cores busy on the machine; {report.log_lines} log lines; ended with {report.exit_code}"
    yield from (f"PROBLEM: {problem}" for problem in report.problems)
    yield "well" if not report.problems else f"{len(report.problems)} problems"


def main() -> None:
    """The subscriber: takes the fixes at the endpoint in `sys.argv[2]`, until it is killed."""
    with zmq.Context() as context, context.socket(zmq.SUB) as link:
        link.subscribe("fix")
        link.connect(sys.argv[2])
        while True:
            link.recv_multipart()


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="File for the figures.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep logs, fixes and station here.")
def command(minutes: float, seed: int, output: Path | None, folder: Path | None) -> None:
    """Run a station through faults and say how it stood them."""
    for module in (redis_server, rtl_tcp_server):
        if (why := module.missing()) is not None:
            raise click.ClickException(why)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        report = run_soak(minutes, seed, place.resolve(), lambda line: click.echo(line, err=True))
    for line in lines(report):
        click.echo(line)
    if output is not None:
        output.write_text(json.dumps(asdict(report), indent=1, default=str) + "\n", encoding="utf-8")
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    command()
