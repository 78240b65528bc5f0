"""The tools that hold the code to its style; their settings are in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def check(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_lint() -> None:
    check(sys.executable, "-m", "ruff", "check", ".")


def test_format() -> None:
    check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_types_of_core() -> None:
    check(sys.executable, "-m", "mypy")


def test_shell_scripts() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    check("shellcheck", "gr-localize", ".ci/run", *sorted((ROOT / "benchmarks").glob("*.sh")))
