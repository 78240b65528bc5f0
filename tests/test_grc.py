"""What GNU Radio Companion sees: the block definitions hold, fit the blocks, and the examples compile."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from gnuradio import gr, localize
from gnuradio.grc.core.schema_checker import BLOCK_SCHEME, Validator

ROOT = Path(__file__).resolve().parent.parent
DEFINITIONS = sorted((ROOT / "grc").glob("*.block.yml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.grc"))
BLOCKS = {
    name: block
    for name, block in vars(localize).items()
    if isinstance(block, type) and issubclass(block, (gr.gateway.gateway_block, gr.hier_block2))
}


def read(definition: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(definition.read_text(encoding="utf-8"))
    return content


def block_of(definition: Path) -> type:
    return BLOCKS[read(definition)["id"].removeprefix("localize_")]


def by_name(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=[file.name.partition(".")[0] for file in files])


def test_every_block_has_a_definition() -> None:
    assert BLOCKS
    assert {file.name for file in DEFINITIONS} == {f"localize_{name}.block.yml" for name in BLOCKS}


@by_name(DEFINITIONS)
def test_definition_follows_the_schema(file: Path) -> None:
    content = read(file)
    validator = Validator(BLOCK_SCHEME)
    assert validator.run(content), [str(message) for message in validator.messages]
    assert content["id"] == file.name.removesuffix(".block.yml")
    assert content["documentation"].strip()


@by_name(DEFINITIONS)
def test_definition_calls_the_block_as_it_is(file: Path) -> None:
    content = read(file)
    block = block_of(file)
    call = ast.parse(re.sub(r"\$\{.*?\}", "0", content["templates"]["make"], flags=re.DOTALL).strip(), mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == f"localize.{block.__name__}"
    keywords = {keyword.arg: 0 for keyword in call.keywords if keyword.arg}
    inspect.signature(block.__init__).bind(None, *(0 for _ in call.args), **keywords)
    for callback in content["templates"].get("callbacks", []):
        assert callable(getattr(block, callback.partition("(")[0])), callback


@by_name(EXAMPLES)
def test_example_compiles(file: Path, tmp_path: Path) -> None:
    grcc = shutil.which("grcc")
    assert grcc, "GNU Radio comes with grcc"
    done = subprocess.run(
        [sys.executable, grcc, "-o", tmp_path, file],
        env={**os.environ, "GRC_BLOCKS_PATH": str(ROOT / "grc")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    scripts = list(tmp_path.glob("*.py"))
    assert scripts
    for script in scripts:
        compile(script.read_text(encoding="utf-8"), str(script), "exec")
