from __future__ import annotations

import importlib
import logging
import signal
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from localize_apps.main import COMMANDS, main
from localize_core import __version__
from localize_core.errors import ConfigError, PublishError


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Make `gr-localize probe` run a function of the test."""

    def add(function: Callable[[], object]) -> None:
        module = type(sys)("probe_command")
        module.command = click.command("probe")(function)
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(COMMANDS, "probe", ("probe_command", "Of the test."))

    return add


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(COMMANDS[name][0]).command.name == name
    assert main([name, "--help"]) == 0
    assert f"gr-localize {name}" in capsys.readouterr().out


def test_help_lists_the_commands_without_importing_them() -> None:
    script = (
        "import sys; from localize_apps.main import COMMANDS, main; code = main(['--help']);"
        "sys.exit(code or any(module in sys.modules for module, _ in COMMANDS.values()) or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("args", [["no-such-command"], ["doctor", "--no-such-option"]])
def test_wrong_usage_is_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    captured = capsys.readouterr()
    assert args[-1] in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("rate_hz must be positive"), 2), (PublishError("port 5555 is taken"), 1)]
)
def test_our_errors_are_one_line_on_standard_error(
    error: Exception,
    code: int,
    add_command: Callable[[Callable[[], object]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    add_command(fail)
    assert main(["probe"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"gr-localize: {error}\n"
    assert captured.out == ""


def test_a_missing_package_leads_to_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(COMMANDS, "probe", ("no_such_package.probe", "Of the test."))
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == (
        "gr-localize: probe needs the package no_such_package: `gr-localize doctor` says how to get it\n"
    )


def test_interrupt_is_130(add_command: Callable[[Callable[[], object]], None]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started these tests may ignore it
    add_command(lambda: signal.raise_signal(signal.SIGINT))
    try:
        assert main(["probe"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_returns_its_exit_code(add_command: Callable[[Callable[[], object]], None]) -> None:
    add_command(lambda: 1)
    assert main(["probe"]) == 1


def test_unexpected_errors_keep_their_traceback(add_command: Callable[[Callable[[], object]], None]) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    add_command(fail)
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


@pytest.mark.parametrize(
    ("options", "level"),
    [([], logging.WARNING), (["-v"], logging.INFO), (["-vv"], logging.DEBUG), (["-q"], logging.ERROR)],
)
def test_log_level(options: list[str], level: int, add_command: Callable[[Callable[[], object]], None]) -> None:
    root = logging.getLogger()
    before, handlers = root.level, root.handlers[:]
    add_command(lambda: None)
    try:
        main([*options, "probe"])
        assert root.level == level
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)


def test_logs_go_to_standard_error() -> None:
    script = (
        "import click, logging, sys, types; from localize_apps.main import COMMANDS, main;"
        "sys.modules['probe'] = types.SimpleNamespace(command=click.command()(lambda: logging.warning('noted')));"
        "COMMANDS['probe'] = ('probe', ''); sys.exit(main(['probe']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "WARNING root: noted" in done.stderr


ABANDONED = """
from concurrent.futures import Future
from localize_apps import ending
work = Future()
if {done}:
    work.set_result(None)
ending.abandoned.append(work)
print("said", end="")
ending.leave(3)
print(" and done", end="")
"""


@pytest.mark.parametrize(("done", "code", "said"), [(False, 3, "said"), (True, 0, "said and done")])
def test_work_that_cannot_be_ended_holds_up_no_end(done, code, said):
    command = [sys.executable, "-c", ABANDONED.format(done=done)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60.0)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, said, "")
