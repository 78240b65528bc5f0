"""The two ways of installation, each into a place of its own, used from processes that look there first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from localize_apps.doctor import EXTRAS, REQUIRED
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "gnuradio/localize": ROOT / "python" / "localize",
    "localize_core": ROOT / "python" / "localize_core",
    "localize_apps": ROOT / "apps" / "localize_apps",
    "localize_benchmarks": ROOT / "benchmarks",
}
FILES = {
    f"{name}/{file.relative_to(folder)}"
    for name, folder in PACKAGES.items()
    for file in folder.rglob("*")
    if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".sh"
}
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@dataclass(frozen=True)
class Installation:
    python: Path
    modules: Path
    share: Path
    command: Path

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("GRC_BLOCKS_PATH", "PYTHONPATH")}
        return subprocess.run(
            command,
            env={**clean, "PYTHONPATH": str(self.modules), **environment},
            capture_output=True,
            text=True,
            check=False,
        )


def run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": TOOLS}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: builds write into it."""
    copy = tmp_path_factory.mktemp("source") / "gr-localize"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def cmake_installation(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    build = tmp_path_factory.mktemp("build")
    prefix = tmp_path_factory.mktemp("prefix")
    options = (f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DPYTHON_EXECUTABLE={sys.executable}")
    run("cmake", "-G", "Ninja", "-S", source, "-B", build, *options)
    run("cmake", "--build", build)
    run("cmake", "--install", build)
    modules = prefix / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    return Installation(Path(sys.executable), modules, prefix / "share", prefix / "bin" / "gr-localize")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def pip_installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", venv)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    modules = venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    # the dependencies of the Python that runs the tests; its own gr-localize comes after the one under test
    (modules / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return Installation(python, modules, venv / "share", venv / "bin" / "gr-localize")


@pytest.fixture(params=["cmake", "pip"])
def installation(request: pytest.FixtureRequest) -> Installation:
    installed: Installation = request.getfixturevalue(f"{request.param}_installation")
    return installed


def test_every_file_is_installed(installation: Installation) -> None:
    assert {name for name in FILES if not (installation.modules / name).is_file()} == set()
    for folder, pattern, target in (
        ("grc", "*.yml", "gnuradio/grc/blocks"),
        ("examples", "*", "gr-localize/examples"),
        ("models", "*", "gr-localize/models"),
    ):
        names = {file.name for file in (ROOT / folder).glob(pattern)}
        assert {name for name in names if not (installation.share / target / name).is_file()} == set()


def test_the_unit_starts_what_is_installed(cmake_installation: Installation, pip_installation: Installation) -> None:
    for installed, command in (
        (cmake_installation, cmake_installation.command),
        (pip_installation, "/usr/local/bin/gr-localize"),
    ):
        unit = (installed.share.parent / "lib" / "systemd" / "system" / "gr-localize@.service").read_text()
        assert f"\nExecStart={command} run /etc/gr-localize/%i.toml\n" in unit


def test_gnuradio_is_not_hidden(installation: Installation) -> None:
    assert not (installation.modules / "gnuradio" / "__init__.py").exists()
    done = installation.run(
        installation.python, "-c", "from gnuradio import blocks, gr, localize; print(localize.__file__)"
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == installation.modules / "gnuradio" / "localize" / "__init__.py"


def test_grcc_compiles_an_example(installation: Installation, tmp_path: Path) -> None:
    example = installation.share / "gr-localize" / "examples" / "single_receiver.grc"
    definitions = str(installation.share / "gnuradio" / "grc" / "blocks")
    grcc = shutil.which("grcc")
    assert grcc
    done = installation.run(installation.python, grcc, "-o", tmp_path, example, GRC_BLOCKS_PATH=definitions)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (script,) = tmp_path.glob("*.py")
    assert "localize." in script.read_text()


def test_command_and_its_doctor(installation: Installation) -> None:
    def companion(**environment: str) -> tuple[int, dict[str, str]]:
        done = installation.run(installation.command, "doctor", "--json", **environment)
        assert done.stderr == ""
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert [one["message"] for one in found if one["level"] == "error" and one["check"] != "companion"] == []
        return done.returncode, next(one for one in found if one["check"] == "companion")

    code, finding = companion()
    assert (code, finding["level"]) == (1, "error")
    definitions = installation.share / "gnuradio" / "grc" / "blocks"
    assert finding["fix"] == f"export GRC_BLOCKS_PATH={definitions}"

    code, finding = companion(GRC_BLOCKS_PATH=str(definitions))
    assert (code, finding["level"]) == (0, "ok")


def test_wheel_names_its_dependencies(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    base = {one.name for one in wanted if one.marker is None}
    assert base == set(REQUIRED)
    plot = {one.name for one in wanted if one.marker and one.marker.evaluate({"extra": "plot"})}
    assert set(EXTRAS["plot"]) <= plot
    (numpy,) = (one for one in wanted if one.name == "numpy")
    assert numpy.specifier.contains("2.1"), "which numpy GNU Radio needs depends on the machine: constraints.txt"


def test_cmake_takes_the_folder_that_python_searches(tmp_path: Path) -> None:
    """Below a prefix that the Python knows, modules go where it looks."""
    script = ROOT / "cmake" / "python_dir.py"
    done = subprocess.run([sys.executable, script, sys.prefix], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in sys.path
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def test_cmake_refuses_a_python_without_gnuradio(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    run(sys.executable, "-m", "venv", "--without-pip", bare)
    done = subprocess.run(
        ["cmake", "-G", "Ninja", "-S", source, "-B", tmp_path / "build", f"-DPYTHON_EXECUTABLE={bare}/bin/python"],
        env={**os.environ, "PATH": TOOLS, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"PYTHON_EXECUTABLE={bare}/bin/python cannot load GNU Radio" in " ".join(done.stderr.split())


def test_core_needs_no_gnuradio() -> None:
    folder = ROOT / "python" / "localize_core"
    names = [
        ".".join(("localize_core", *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        for file in sorted(folder.rglob("*.py"))
    ]
    script = (
        "import importlib, sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None;"
        "[importlib.import_module(name) for name in sys.argv[1:]]"
    )
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
