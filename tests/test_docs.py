"""The guide says what is so: blocks and parameters are all there, its example runs, its links lead somewhere."""

from __future__ import annotations

import inspect
import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gnuradio import gr, localize
from gnuradio.localize import tags
from localize_core.client import subscribe
from localize_core.simulation.scene import SceneConfig
from localize_core.sinks.zmq_sink import ZmqFixSink
from localize_core.station.sources import LIVE_KINDS, SOURCE_TABLES
from localize_core.types.fix import REASONS, Fix
from localize_core.wire.fix_json import fix_from_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCKS = {
    name: block
    for name, block in vars(localize).items()
    if isinstance(block, type) and issubclass(block, (gr.gateway.gateway_block, gr.hier_block2))
}


@pytest.fixture(scope="module")
def blocks_page() -> str:
    return (DOCS / "blocks.md").read_text(encoding="utf-8")


def parameters(block: type) -> set[str]:
    names = [name for name in inspect.signature(block.__init__).parameters if name != "self"]
    return {*names} - {"scene"} | ({*SceneConfig.model_fields} if "scene" in names else set())


def test_every_block_and_parameter_is_described(blocks_page: str) -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", blocks_page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(BLOCKS)
    for name, section in sections.items():
        rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
        assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == parameters(BLOCKS[name])
        assert f"| [`{name}`](#{name}) |" in blocks_page
        live = {key for key in parameters(BLOCKS[name]) if hasattr(BLOCKS[name], f"set_{key}")}
        assert set(re.findall(r"^\| `(\w+)` \|.*\*live\* \|$", section, re.MULTILINE)) == live


def test_every_key_of_a_radio_is_described() -> None:
    page = (DOCS / "radios.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(LIVE_KINDS)
    for kind, section in sections.items():
        rows = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
        keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
        assert keys == set(SOURCE_TABLES[kind].model_fields) - {"kind"}
        examples = re.findall(r"^source = (.*)", section, re.MULTILINE)
        assert examples
        for example in examples:
            table = tomllib.loads(f"source = {example}")["source"]
            assert SOURCE_TABLES[kind].model_validate(table).model_dump(exclude_unset=True) == table


def test_every_tag_and_reason_is_described(blocks_page: str) -> None:
    keys = {str(value) for value in vars(tags).values() if isinstance(value, type(tags.RX_TIME))}
    assert keys
    assert keys == set(re.findall(r"^\| `((?:rx|localize)_\w+)` \|", blocks_page, re.MULTILINE))
    assert all(f"`{reason}`" in blocks_page for reason in REASONS)


def run_example(page: str, number: int, folder: Path) -> str:
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[number]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs(blocks_page: str, tmp_path: Path) -> None:
    printed = run_example(blocks_page, 0, tmp_path)
    lines = (tmp_path / "fixes.jsonl").read_text().splitlines()
    assert printed == f"{len(lines)} fixes; failures: [None, None, None, None]\n"
    assert [fix_from_json(line).status for line in lines] == ["ok"] * 4


def test_the_example_of_a_request_runs(blocks_page: str, tmp_path: Path) -> None:
    assert re.fullmatch(r"mine ok None -36\.9897\d*\n", run_example(blocks_page, 1, tmp_path))


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.fixture
def publisher(make_fix: Callable[..., Fix]) -> Iterator[str]:
    """An endpoint at which fixes are published until the test ends."""
    sink = ZmqFixSink("tcp://127.0.0.1:*", linger_ms=0)
    sink.open()
    done = threading.Event()

    def publish() -> None:
        for sequence in itertools.count():
            if done.wait(0.01):
                return
            sink.publish(make_fix(sequence=sequence))

    thread = threading.Thread(target=publish)
    thread.start()
    yield str(sink.bound_endpoint)
    done.set()
    thread.join()
    sink.close()


CLIENTS = re.findall(r"```python\n(.*?)```", (DOCS / "clients.md").read_text(encoding="utf-8"), re.DOTALL)
PRINTED = (r"demo 45\.123 7\.456 ±110 m", r"2026-01-02 03:04:05\.678901\+00:00 ok", r"\{'latitude': 45\.123, .*")


@pytest.mark.parametrize(("program", "printed"), [*zip(CLIENTS, PRINTED, strict=True)])
def test_the_examples_of_clients_run(program: str, printed: str, publisher: str) -> None:
    assert "tcp://127.0.0.1:5555" in program
    program = program.replace("tcp://127.0.0.1:5555", publisher)
    with subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    assert re.fullmatch(printed, line.strip()), line


def test_the_options_of_subscribe_are_described() -> None:
    page = (DOCS / "clients.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert names >= {*inspect.signature(subscribe).parameters} - {"url"}
