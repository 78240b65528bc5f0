"""`gr-localize doctor`: what is wrong with this installation or a station, and the command that mends it.

Facts about the machine are gathered first; the checks are plain functions of them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
from localize_core.errors import ConfigError
from packaging.version import Version

from localize_apps.finding import Finding
from localize_apps.radio_checks import check_drivers, check_station_radios, gather_radio_facts

# Distribution: lowest version. The same as in pyproject.toml, which is not there after an installation with CMake.
REQUIRED = {
    "click": "8.0",
    "numpy": "1.22",
    "onnx": "1.16",
    "onnxruntime": "1.17",
    "packaging": "21",
    "protobuf": "3.20",
    "pydantic": "2.5",
    "pyproj": "3.4",
    "pyzmq": "22",
    "rich": "13",
    "scipy": "1.8",
    "spox": "0.12",
}
EXTRAS = {
    "client": {"httpx": "0.27", "httpx-sse": "0.4.1", "paho-mqtt": "2", "redis": "5"},
    "fast": {"numba": "0.57", "pyfftw": "0.13"},
    "metrics": {"prometheus-client": "0.20"},
    "mlflow": {"alembic": "1.10", "mlflow-skinny": "3.1", "requests": "2.32", "sqlalchemy": "2"},
    "mqtt": {"paho-mqtt": "2"},
    "plot": {"matplotlib": "3.5"},
    "redis": {"pybreaker": "1.2", "redis": "5"},
    "report": {"jinja2": "3.0", "matplotlib": "3.5"},
    "serve": {
        "fastapi": "0.110",
        "httptools": "0.6",
        "msgspec": "0.18",
        "prometheus-client": "0.20",
        "pysimdjson": "6",
        "uvicorn": "0.27",
        "uvloop": "0.19",
    },
    "sigmf": {"sigmf": "1.14", "tomli-w": "1"},
    "track": {"stonesoup": "1.9"},
    "train": {"onnxscript": "0.2", "torch": "2.5"},
    "triton": {"pybreaker": "1.2", "tritonclient": "2.40"},
}
PYTHON = (3, 10)
GNURADIO = "3.10"

# Run in a Python of its own: a GNU Radio that was built for another numpy may crash it.
PROBE = """
import json, sys
facts = {"gnuradio": None, "gnuradio_error": None, "block_paths": [], "user_folder": None, "blocks": [],
         "blocks_error": None, "blocks_places": []}
try:
    import gnuradio
    from gnuradio import blocks, gr
    from gnuradio.grc.core.Config import Config
    facts.update(gnuradio=gr.version(), user_folder=gr.userconf_path(),
                 block_paths=Config(gr.version(), prefs=gr.prefs()).block_paths)
except Exception as error:
    facts["gnuradio_error"] = str(error) or repr(error)
else:
    import pathlib
    places = [pathlib.Path(place, "localize") for place in gnuradio.__path__]
    facts["blocks_places"] = [str(place) for place in places if place.joinpath("__init__.py").is_file()]
    try:
        from gnuradio import localize
        facts["blocks"] = [name for name in dir(localize) if isinstance(getattr(localize, name), type)]
    except Exception as error:
        facts["blocks_error"] = str(error) or repr(error)
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class Facts:
    """What the checks look at."""

    python: tuple[int, ...]
    executable: str
    packages: Mapping[str, str | None]  # distribution: version, None where it is not installed
    gnuradio: str | None
    gnuradio_error: str | None
    blocks: tuple[str, ...]  # classes in gnuradio.localize
    blocks_error: str | None
    blocks_places: tuple[str, ...]  # every gnuradio/localize that Python could take, the one it takes first
    own_blocks: str  # the one that belongs to this command
    definitions: Mapping[str, tuple[str, ...]]  # block of ours: every file that defines it for GRC
    own_definitions: str | None  # folder with the definitions that belong to this installation
    user_folder: str | None  # where GNU Radio keeps its preferences
    user_folder_writable: bool


def check_python(facts: Facts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    if facts.python[:2] < PYTHON:
        yield Finding("python", "error", f"Python {version} is too old, 3.10 is the oldest", "./gr-localize setup")
    else:
        yield Finding("python", "ok", f"{version} ({facts.executable})")


def check_gnuradio(facts: Facts) -> Iterator[Finding]:
    numpy = facts.packages["numpy"]
    if facts.gnuradio is None and facts.gnuradio_error and numpy and Version(numpy).major >= 2:
        yield Finding(
            "gnuradio",
            "error",
            f"does not load beside numpy {numpy}, it was built for numpy 1: {facts.gnuradio_error}",
            _pip_install(facts, []),
        )
    elif facts.gnuradio is None:
        yield Finding(
            "gnuradio",
            "error",
            f"{facts.executable} cannot load GNU Radio: {facts.gnuradio_error}",
            "apt-get install gnuradio, or conda install -c conda-forge gnuradio; then ./gr-localize setup",
        )
    elif Version(".".join(facts.gnuradio.split(".")[:2])) < Version(GNURADIO):
        yield Finding(
            "gnuradio",
            "error",
            f"{facts.gnuradio} is too old, {GNURADIO} is the oldest",
            "conda install -c conda-forge gnuradio",
        )
    else:
        yield Finding("gnuradio", "ok", facts.gnuradio)


def _outdated(facts: Facts, wanted: Mapping[str, str]) -> list[str]:
    """The packages of `wanted` that are missing or too old, as pip wants them named."""
    return [
        f"{name}>={lowest}"
        for name, lowest in wanted.items()
        if (installed := facts.packages[name]) is None or Version(installed) < Version(lowest)
    ]


def _pip_install(facts: Facts, requirements: list[str]) -> str:
    # as in constraints.txt: older Pythons come with a GNU Radio that was built for numpy 1
    hold_numpy = ["numpy<2"] if facts.python < (3, 13) else []
    return shlex.join([facts.executable, "-m", "pip", "install", *requirements, *hold_numpy])


def _installed(facts: Facts, names: Iterable[str]) -> str:
    return ", ".join(f"{name} {facts.packages[name]}" for name in sorted(names) if facts.packages[name])


def check_packages(facts: Facts) -> Iterator[Finding]:
    if outdated := _outdated(facts, REQUIRED):
        message = f"missing or too old: {', '.join(outdated)}; installed: {_installed(facts, REQUIRED) or 'none'}"
        yield Finding("packages", "error", message, _pip_install(facts, outdated))
    else:
        yield Finding("packages", "ok", _installed(facts, REQUIRED))


def check_extras(facts: Facts) -> Iterator[Finding]:
    for extra, wanted in EXTRAS.items():
        if outdated := _outdated(facts, wanted):
            message = "not installed; only needed for what it adds"
            yield Finding(f"extra {extra}", "ok", message, _pip_install(facts, outdated))
        else:
            yield Finding(f"extra {extra}", "ok", _installed(facts, wanted))


def check_blocks(facts: Facts) -> Iterator[Finding]:
    if facts.gnuradio is None:
        return  # said by check_gnuradio
    if facts.blocks_error:
        yield Finding(
            "blocks",
            "error",
            f"`from gnuradio import localize` fails: {facts.blocks_error}",
            "./gr-localize setup, or export PYTHONPATH=PREFIX/lib/python3.X/site-packages of your installation",
        )
        return
    others = [place for place in facts.blocks_places if place != facts.own_blocks]
    if others and facts.blocks_places[0] in others:
        message = f"Python takes {others[0]} instead of this installation's {facts.own_blocks}"
        yield Finding("blocks", "error", message, f"rm -r {shlex.join(others)}")
        return
    if others:
        yield Finding("blocks", "warning", f"installed again in {', '.join(others)}", f"rm -r {shlex.join(others)}")
    yield Finding("blocks", "ok", f"gnuradio.localize with {', '.join(facts.blocks)}")


def check_companion(facts: Facts) -> Iterator[Finding]:
    """GNU Radio Companion and grcc need a definition file for each block."""
    if facts.gnuradio is None:
        return
    fine = True
    if missing := sorted(set(facts.blocks) - set(facts.definitions)):
        fine = False
        yield Finding(
            "companion",
            "error",
            f"GNU Radio Companion does not find the definition of {', '.join(missing)}",
            f"export GRC_BLOCKS_PATH={shlex.quote(facts.own_definitions or 'PREFIX/share/gnuradio/grc/blocks')}",
        )
    if stale := sorted(set(facts.definitions) - set(facts.blocks)):
        fine = False
        files = [file for name in stale for file in facts.definitions[name]]
        yield Finding("companion", "warning", f"definitions of blocks that are gone: {', '.join(files)}", _rm(files))
    if doubled := [file for files in facts.definitions.values() for file in files[1:]]:
        fine = False
        yield Finding(
            "companion", "warning", f"blocks defined more than once, also in: {', '.join(doubled)}", _rm(doubled)
        )
    if fine:
        yield Finding("companion", "ok", f"finds {len(facts.definitions)} block definitions")


def _rm(files: list[str]) -> str:
    return f"rm {shlex.join(files)}"


def check_user_folder(facts: Facts) -> Iterator[Finding]:
    if facts.user_folder is None:
        return
    folder = shlex.quote(facts.user_folder)
    if facts.user_folder_writable:
        yield Finding("user folder", "ok", facts.user_folder)
    else:
        yield Finding(
            "user folder",
            "warning",
            f"GNU Radio cannot write its preferences to {facts.user_folder}",
            f"mkdir -p {folder} && chmod u+w {folder}, or export HOME=A_WRITABLE_FOLDER",
        )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    check_python,
    check_gnuradio,
    check_packages,
    check_extras,
    check_blocks,
    check_companion,
    check_user_folder,
)


def check_station(path: Path, folder: Path | None = None) -> Iterator[Finding]:
    """Whether the station file holds and the files it names are there; relative ones start at `folder`."""
    try:
        from localize_core.model.source import FileUri, parse_model_uri
        from localize_core.station.config import load_station
    except ImportError as error:
        yield Finding("station", "error", f"cannot be read without {error.name}", "see above")
        return
    try:
        station = load_station(path, folder=folder)
    except ConfigError as error:
        yield Finding("station", "error", str(error), f"edit {path}")
        return
    wanted = [receiver.source.path for receiver in station.receiver if hasattr(receiver.source, "path")]
    model = station.model
    uris = [model.uri, model.fallback, None if model.challenger is None else model.challenger.uri]
    wanted += [named.path for named in map(parse_model_uri, filter(None, uris)) if isinstance(named, FileUri)]
    wanted += [Path(model.contract)] if model.contract else []
    if station.played_scene is not None and station.played_scene.channels:
        wanted.append(Path(station.played_scene.channels))
    for zmq in station.publish.zmq:
        wanted += [Path(place) for place in (zmq.curve_secret_key_file, zmq.curve_clients) if place is not None]
    for tls in (*station.publish.mqtt, *station.publish.cot):
        wanted += [Path(place) for place in (tls.ca_file, tls.cert_file, tls.key_file) if place is not None]
    if station.http is not None and station.http.token_file is not None:
        wanted.append(Path(station.http.token_file))
    folders = [sink.path.parent for sink in station.publish.file]
    missing = [place for place in (*wanted, *folders) if not place.exists()]
    for place in missing:
        yield Finding("station", "error", f"{path} names {place}, which is not there", f"edit {path}")
    if not missing:
        names = ", ".join(receiver.name for receiver in station.receiver)
        yield Finding("station", "ok", f"{station.station.name}: receivers {names}")


def check_geometry(path: Path, folder: Path | None = None) -> Iterator[Finding]:
    """What the receivers' places are good for; nothing where `check_station` has said why the file cannot be read."""
    try:
        import numpy as np
        from localize_core.model.compiled.spec import Area
        from localize_core.sanity.survey import remarks
        from localize_core.station.config import load_station
        from localize_core.station.plan import arrival_geometry

        station = load_station(path, folder=folder)
        geometry = arrival_geometry(station)
    except (ImportError, ConfigError):
        return
    if geometry is None:
        return
    altitudes_m = np.array([receiver.altitude_m for receiver in station.receiver])
    for remark in remarks(geometry, Area(**station.area.model_dump()), altitudes_m):
        level: Literal["ok", "warning"] = "ok" if remark.fix is None else "warning"
        yield Finding("geometry", level, remark.message, remark.fix)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts
    died = f"Python ended with status {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])}"
    return {"gnuradio": None, "gnuradio_error": died}


def _definitions(folders: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[Path, None]] = defaultdict(dict)  # a file reached in two ways counts once
    for folder in folders:
        for file in sorted(Path(folder).rglob("localize_*.block.yml")):
            found[file.name.removeprefix("localize_").removesuffix(".block.yml")][file.resolve()] = None
    return {name: tuple(map(str, files)) for name, files in found.items()}


def _own_blocks() -> str:
    """Beside this package where it is installed, in python/ in a clone."""
    here = Path(__file__).resolve().parent
    in_clone = here.parent.parent / "python" / "localize"
    return str(in_clone if in_clone.is_dir() else here.parent / "gnuradio" / "localize")


def _own_definitions() -> str | None:
    """The clone's folder, or the one below the prefix this package was installed to."""
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / "grc", parent / "share" / "gnuradio" / "grc" / "blocks"):
            if any(folder.glob("localize_*.block.yml")):
                return str(folder)
    return None


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


def gather_facts() -> Facts:
    """Look at this machine."""
    probed = _probe()
    user_folder = probed.get("user_folder")
    return Facts(
        python=sys.version_info[:3],
        executable=sys.executable,
        packages={name: _version(name) for wanted in (REQUIRED, *EXTRAS.values()) for name in wanted},
        gnuradio=probed["gnuradio"],
        gnuradio_error=probed["gnuradio_error"],
        blocks=tuple(probed.get("blocks", ())),
        blocks_error=probed.get("blocks_error"),
        blocks_places=tuple(dict.fromkeys(os.path.realpath(place) for place in probed.get("blocks_places", ()))),
        own_blocks=_own_blocks(),
        definitions=_definitions(probed.get("block_paths", [])),
        own_definitions=_own_definitions(),
        user_folder=user_folder,
        user_folder_writable=user_folder is not None and _writable(Path(user_folder)),
    )


def diagnose(facts: Facts) -> list[Finding]:
    """All checks of the installation, in the order they are shown."""
    return [finding for check in CHECKS for finding in check(facts)]


@click.command("doctor")
@click.argument("station", required=False, type=click.Path(path_type=Path))
@click.option(
    "--recordings",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that relative paths in STATION start from; by default the station file's own.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: check, level, message, fix.")
def command(station: Path | None, folder: Path | None, as_json: bool) -> int:
    """Say what is wrong with this installation, or with STATION, and how to mend it.

    Exits with 1 if anything is an error.
    """
    radio_facts = gather_radio_facts()
    findings = [*diagnose(gather_facts()), *check_drivers(radio_facts)]
    if station is not None:
        findings += check_station(station, folder)
        findings += check_station_radios(station, folder, radio_facts)
        findings += check_geometry(station, folder)
    for finding in findings:
        if as_json:
            click.echo(json.dumps(asdict(finding)))
            continue
        color = {"ok": "green", "warning": "yellow", "error": "red"}[finding.level]
        click.echo(f"{click.style(f'{finding.level:8}', fg=color)}{finding.check}: {finding.message}")
        if finding.fix:
            click.echo(f"{'':8}→ {finding.fix}")
    return 1 if any(finding.level == "error" for finding in findings) else 0
