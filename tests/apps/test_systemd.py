"""What systemd hears of a run, over a socket that speaks its protocol, and what it says of the unit that is shipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from localize_apps.systemd import Notifier, ServiceReport, summary
from localize_benchmarks.stations import SCENE, SIMULATED, station_text

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "gr-localize@.service"
COMMAND = [sys.executable, "-m", "localize_apps.main"]
WAIT_S = 60.0


class Manager:
    """The end of the protocol that systemd has."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[dict[str, str]] = []

    def hear(self, timeout_s: float = WAIT_S) -> dict[str, str] | None:
        """The next notification; None when none comes."""
        self._socket.settimeout(timeout_s)
        try:
            text = self._socket.recv(65536).decode()
        except TimeoutError:
            return None
        self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))
        return self.heard[-1]

    def wait_for(self, name: str, pattern: str = ".*") -> dict[str, str]:
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            heard = self.hear()
            if heard and name in heard and re.fullmatch(pattern, heard[name]):
                return heard
        raise AssertionError(f"{name} was not told; told was {self.heard}")

    def environment(self, watchdog_s: float | None = None) -> dict[str, str]:
        told = {"NOTIFY_SOCKET": self.address}
        return told if watchdog_s is None else told | {"WATCHDOG_USEC": str(round(watchdog_s * 1e6))}

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@gr-localize-test-{tmp_path}"[:100])
    yield made
    made.close()


@pytest.fixture
def one_manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.fixture
def folder(folder) -> Path:
    """With a station in it."""
    (folder / "station.toml").write_text(station_text([SIMULATED], name="one") + SCENE)
    return folder


def status(progress: int, **changes: Any) -> dict[str, Any]:
    said = {"phase": "running", "state": "ready", "reasons": [], "live": True, "fixes": 0, "progress": [progress]}
    return {**said, **changes}


AWAY = {"state": "absent", "error": "no such device"}
HERE = {"state": "streaming", "error": ""}


def report_to(manager: Manager, watchdog_s: float | None = 10.0) -> ServiceReport:
    return ServiceReport(Notifier(manager.environment(watchdog_s)))


def test_ready_comes_with_the_first_samples(manager):
    report = report_to(manager)
    report(status(0))
    assert manager.hear() == {"STATUS": "ready; 0 fixes"}
    report(status(0))
    report(status(5))
    assert manager.hear() == {"READY": "1", "WATCHDOG": "1"}
    report(status(6, fixes=3))
    assert manager.hear() == {"WATCHDOG": "1", "STATUS": "ready; 3 fixes"}


def test_recordings_are_ready_at_once(one_manager):
    report_to(one_manager, None)(status(0, live=False))
    assert one_manager.hear() == {"READY": "1", "STATUS": "ready; 0 fixes"}


def test_a_graph_that_stands_still_gets_no_watchdog(one_manager):
    report = report_to(one_manager)
    for progress in (0, 1, 1, 1):
        report(status(progress, receivers={"a": HERE}))
    for _ in range(2):
        one_manager.hear()
    assert one_manager.hear(0.01) is None


def test_receivers_that_are_away_and_say_why_are_reason_enough(one_manager):
    report = report_to(one_manager)
    report(status(0, receivers={"a": {"state": "connecting", "error": ""}, "b": AWAY}))
    assert "READY" not in one_manager.hear()
    for _ in range(2):
        report(status(0, receivers={"a": AWAY, "b": AWAY}))
    ready = one_manager.hear()
    assert (ready["READY"], ready["WATCHDOG"]) == ("1", "1")
    assert ready["STATUS"] == "ready; 0 fixes; 0 of 2 receivers, a absent, b absent"
    assert one_manager.hear() == {"WATCHDOG": "1"}
    report(status(0, receivers={"a": AWAY, "b": HERE}))  # its samples should go through the graph
    assert "WATCHDOG" not in one_manager.hear()


def test_reloading_and_stopping(one_manager):
    report = report_to(one_manager)
    for progress in range(2):
        report(status(progress))
        one_manager.hear()
    before_us = time.monotonic_ns() // 1000
    report(status(2, phase="reloading"))
    told = one_manager.hear()
    assert told["RELOADING"] == "1"
    assert before_us <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    report(status(2, phase="reloading"))  # it takes its time
    assert one_manager.hear() == {"WATCHDOG": "1"}
    report(status(3))
    assert one_manager.hear()["READY"] == "1"
    report(status(3, phase="stopping"))
    assert one_manager.hear() == {"STOPPING": "1", "WATCHDOG": "1", "STATUS": "stopping"}


def test_a_status_is_one_short_line():
    reasons = [{"reason": "model\nunreachable"}] * 100
    line = summary(status(0, state="degraded", reasons=reasons))
    assert line.startswith("degraded; 0 fixes; model unreachable, ")
    assert len(line) <= 400


def test_the_watchdog_of_another_process_is_not_ours(one_manager):
    environment = one_manager.environment(10.0) | {"WATCHDOG_PID": "1"}
    assert Notifier(environment).watchdog_s is None
    assert Notifier(one_manager.environment(10.0)).watchdog_s == 10.0


def test_without_systemd_and_with_one_that_has_gone(one_manager, caplog):
    Notifier({}).tell(READY=1)
    ServiceReport(Notifier({}))(status(0))
    assert caplog.text == ""
    one_manager.close()
    os.unlink(one_manager.address)
    Notifier(one_manager.environment()).tell(READY=1)
    assert "systemd cannot be told READY=1: No such file" in re.sub(r"\[Errno 2\] ", "", caplog.text)


# the command


def test_a_live_run_from_its_start_to_its_end(folder, one_manager):
    environment = {**os.environ, **one_manager.environment(30.0)}
    process = subprocess.Popen([*COMMAND, "run", "station.toml"], env=environment, stdout=subprocess.DEVNULL)
    try:
        assert "WATCHDOG" in one_manager.wait_for("READY")
        assert "RELOADING" not in one_manager.heard[-1]
        one_manager.wait_for("STATUS", r"ready; [1-9]\d* fixes")
        for _ in range(3):
            one_manager.wait_for("WATCHDOG")
        process.send_signal(signal.SIGHUP)
        one_manager.wait_for("RELOADING")
        one_manager.wait_for("READY")
        process.send_signal(signal.SIGTERM)
        one_manager.wait_for("STOPPING")
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()


HANGING = """
import sys, threading
from localize_apps.main import main
from localize_core.simulation.scene import Scene
samples = Scene.samples
def hanging(self, first, count):
    if first > 40_000:
        threading.Event().wait()
    return samples(self, first, count)
Scene.samples = hanging
sys.exit(main())
"""


def test_the_watchdog_ends_a_graph_that_hangs_and_it_says_where(folder, one_manager):
    watchdog_s = 4.0
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, "run", "station.toml"],
        env={**os.environ, **one_manager.environment(watchdog_s)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        one_manager.wait_for("READY")
        heard: dict[str, str] | None = {}
        fed_s = time.monotonic()
        while time.monotonic() - fed_s < watchdog_s:  # as systemd counts
            heard = one_manager.hear(0.5)
            if heard and "WATCHDOG" in heard:
                fed_s = time.monotonic()
        assert process.poll() is None  # its main loop is well
        process.send_signal(signal.SIGABRT)
        _, errors = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGABRT
    assert "in hanging" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_run_that_does_not_end(folder, one_manager, number):
    """A reader that does not read holds up the listener, and so the end."""
    process = subprocess.Popen(
        [*COMMAND, "run", "station.toml", "--json"],
        env={**os.environ, **one_manager.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pipesize=4096,
    )
    try:
        time_of_full_pipe(process)
        process.send_signal(number)
        process.send_signal(number)  # as `timeout` does: taken for one
        one_manager.wait_for("STOPPING")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        began_s = time.monotonic()
        process.send_signal(number)
        assert process.wait(WAIT_S) == 128 + number
        assert time.monotonic() - began_s < 1.5  # it would wait for seconds otherwise
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def time_of_full_pipe(process: subprocess.Popen[bytes]) -> None:
    """Return when the process has written as much as it can."""
    waits = Path(f"/proc/{process.pid}/task")
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        if any("pipe" in (task / "wchan").read_text() for task in waits.iterdir()):
            return
        time.sleep(0.05)
    raise AssertionError("the pipe was never full")


# the unit

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """As it is instantiated, with a command that is there."""
    text = UNIT.read_text()
    assert "ExecStart=/usr/local/bin/gr-localize run /etc/gr-localize/%i.toml\n" in text
    path = tmp_path / "gr-localize@dcf77.service"
    path.write_text(text.replace("/usr/local/bin/gr-localize", sys.executable))
    return path


@needs_systemd
def test_systemd_understands_the_unit(unit):
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_unit_is_confined(unit):
    command = ["systemd-analyze", "security", "--offline=true", "--json=short", "--no-pager", "--threshold=20", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    open_ones = {each["json_field"] for each in json.loads(done.stdout) if each["set"] is False}
    assert not open_ones & {
        "CapabilityBoundingSet_CAP_SYS_ADMIN",
        "NoNewPrivileges",
        "ProtectSystem",
        "UserOrDynamicUser",
    }
