"""Stations that run: in a thread of the test or as a process, simulated or with radios."""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from localize_apps.graph import RunResult
from localize_apps.runner import run_station
from localize_benchmarks import stations
from localize_benchmarks.process import start_app
from localize_core.station.config import Station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_json

WAIT_S = 60.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cache: Path) -> Path:
    """The working directory of a run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def heard() -> np.ndarray:
    """What each place hears of the emitter at 250 kHz, 0.4 s: complex, (place, sample)."""
    return stations.heard(rate_hz=250e3, bandwidth_hz=100e3, duration_s=0.4, seed=3)


@pytest.fixture
def servers(start_rtl_tcp: Callable[..., Any], heard: np.ndarray) -> Callable[[int], list[Any]]:
    """Starts as many rtl_tcp servers, one for each place, whose samples are on the air at the same time."""

    def start(count: int) -> list[Any]:
        epoch = time.monotonic()
        return [start_rtl_tcp(heard[place], epoch=epoch) for place in range(count)]

    return start


class Told(ABC):
    """What a run has told so far."""

    def __init__(self) -> None:
        self.fixes: list[Fix] = []

    @abstractmethod
    def last_words(self) -> str:
        """What it has said last, beside fixes."""

    @abstractmethod
    def ended(self) -> str | None:
        """How it has ended, None while it runs."""

    def until(self, condition: Callable[[], Any]) -> None:
        """Wait for what is to come while it runs."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            ended = self.ended()
            assert ended is None or condition(), ended
            assert time.monotonic() < deadline_s, (self.fixes[-1:], self.last_words())
            time.sleep(0.02)

    def more(self, count: int = 3) -> list[Fix]:
        """The next fixes."""
        before = len(self.fixes)
        self.until(lambda: len(self.fixes) >= before + count)
        return self.fixes[before : before + count]


class Thread(Told):
    """A station that runs in a thread of the test, with `run_station`'s options. `keep` has each fix first.

    `statuses`, `alive`: what the run's on_status and on_alive have heard.
    """

    def __init__(self, station: Station, *, keep: Callable[[Fix], None] | None = None, **options: Any) -> None:
        super().__init__()
        self.statuses: list[dict[str, Any]] = []
        self.alive: list[dict[str, Any]] = []
        self._keep = keep
        self.result: RunResult | None = None
        self.error: Exception | None = None
        self._stopped = threading.Event()
        told = {"on_fix": self._take, "on_status": self.statuses.append, "on_alive": self.alive.append}
        self._thread = threading.Thread(target=self._run, args=(station, {**told, **options}), daemon=True)
        self._thread.start()

    def _run(self, station: Station, options: dict[str, Any]) -> None:
        try:
            self.result = run_station(station, stopped=self._stopped, **options)
        except Exception as error:
            self.error = error

    def _take(self, fix: Fix) -> None:
        if self._keep is not None:
            self._keep(fix)
        self.fixes.append(fix)

    def last_words(self) -> str:
        return str(self.alive[-1:])

    def ended(self) -> str | None:
        return None if self._thread.is_alive() else f"{self.result}, {self.error}"

    def state(self, name: str) -> str:
        """Of a receiver."""
        return self.alive[-1]["receivers"][name]["state"] if self.alive else ""

    def wait(self) -> RunResult:
        """For its end."""
        self._thread.join(WAIT_S)
        assert self.result is not None, self.error
        return self.result

    def stop(self) -> RunResult:
        self._stopped.set()
        return self.wait()

    def end(self) -> None:
        self._stopped.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), f"it did not end within {WAIT_S:g} s"


class Process(Told):
    """`gr-localize` with these arguments as a process that prints fixes as JSON; `log` is what else it says."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__()
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = start_app(*arguments, "--json", stderr=log)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.fixes.append(fix_from_json(line))

    @property
    def log(self) -> str:
        return self._log.read_text()

    def last_words(self) -> str:
        return self.log[-1000:]

    def ended(self) -> str | None:
        return None if self.process.poll() is None else f"ended with {self.process.returncode}: {self.log}"

    def wait(self) -> int:
        """For its end and its last fix. Returns its exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it the signal, where it runs, and wait. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()


@pytest.fixture
def run(folder: Path) -> Iterator[Callable[..., Thread]]:
    """Runs stations in threads until the test ends."""
    with ExitStack() as runs:

        def start(station: Station, **options: Any) -> Thread:
            thread = Thread(station, **options)
            runs.callback(thread.end)
            return thread

        yield start


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Process]]:
    """Runs `gr-localize ARGUMENTS --json` until the test ends."""
    processes: list[Process] = []

    def started(*arguments: str) -> Process:
        processes.append(Process(folder, *arguments))
        return processes[-1]

    yield started
    for each in processes:
        each.end(signal.SIGKILL)


@pytest.fixture
def published(folder: Path) -> Callable[[], list[Fix]]:
    """What fixes.jsonl holds."""
    return lambda: [fix_from_json(line) for line in (folder / "fixes.jsonl").read_text().splitlines()]
