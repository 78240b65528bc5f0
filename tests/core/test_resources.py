from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from localize_core import resources
from localize_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def installed(modules: Path):
    """The module as it is when installed below `modules`."""
    package = modules / "localize_core"
    package.mkdir(parents=True)
    shutil.copy(resources.__file__, package)
    spec = importlib.util.spec_from_file_location("installed_resources", package / "resources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_file_of_the_source_tree():
    assert resources.shared_file("examples/dcf77.toml") == str(ROOT / "examples" / "dcf77.toml")


@pytest.mark.parametrize(
    "modules", ["lib/python3.11/site-packages", "lib/python3/dist-packages", "local/lib/python3.11/dist-packages", "."]
)
def test_a_file_of_an_installation(modules, tmp_path):
    share = tmp_path / ("local/share" if modules.startswith("local/") else "share") / "gr-localize" / "examples"
    share.mkdir(parents=True)
    (share / "here.toml").touch()
    assert installed(tmp_path / modules).shared_file("examples/here.toml") == str(share / "here.toml")


def test_a_file_that_is_not_there(tmp_path):
    module = installed(tmp_path / "lib/python3.11/site-packages")
    with pytest.raises(ConfigError, match=r"examples/nothing\.toml: not found in .*share/gr-localize"):
        module.shared_file("examples/nothing.toml")
