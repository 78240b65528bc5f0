from __future__ import annotations

import stat
from pathlib import Path

import pytest
from localize_apps.main import main
from localize_core.wire.curve import read_public_key, read_secret_key
from zmq import curve_public


def test_a_pair_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "north-1", "--folder", str(tmp_path)]) == 0
    public, secret = tmp_path / "north-1.key", tmp_path / "north-1.key_secret"
    assert sorted(tmp_path.iterdir()) == [public, secret]
    assert curve_public(read_secret_key(secret)) == read_public_key(public)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (public, secret)] == [0o644, 0o600]
    printed = capsys.readouterr().out
    assert str(public) in printed
    assert f'curve_secret_key_file = "{secret}"' in printed


@pytest.mark.parametrize("there", ["north.key", "north.key_secret"])
def test_keys_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str) -> None:
    (tmp_path / there).write_text("precious")
    assert main(["keys", "north", "--folder", str(tmp_path)]) == 2
    assert f"{there} is there already" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "precious")]


@pytest.mark.parametrize("name", ["", "../north", "a/b", ".key", "a b"])
def test_a_name_that_is_no_files(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["keys", name]) == 2
    assert f"NAME={name!r}" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "north", "--folder", str(tmp_path / "missing")]) == 2
    assert "missing: keys cannot be written there: No such file" in capsys.readouterr().err
