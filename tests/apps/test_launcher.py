"""./gr-localize in copies of this tree, on machines made of a PATH and a few settings for pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "gr-localize",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "constraints.txt",
    "python",
    "apps",
    "benchmarks",
    "grc",
)
# what every Debian has, as far as the launcher uses it
BASE_SYSTEM = (
    *("bash", "cat", "cut", "dirname", "env", "flock", "id", "ln", "mkdir", "mv", "readlink", "rm", "sed"),
    *("sha256sum", "tail"),
)
# the set-up without the network: dependencies come from the Python that runs the tests
OFFLINE = {
    "PYTHONPATH": sysconfig.get_path("purelib"),
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",
}


def copy_tree(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in PARTS:
        part = ROOT / name
        if part.is_dir():
            shutil.copytree(part, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(part, target / name)
    return target


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return copy_tree(tmp_path / "a clone")


def make_machine(folder: Path) -> Path:
    """A PATH with the base system and nothing else."""
    folder.mkdir()
    for name in BASE_SYSTEM:
        (folder / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name} here"))
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    return make_machine(tmp_path / "bin")


def install_program(machine: Path, name: str, script: str) -> None:
    program = machine / name
    program.write_text(f"#!{machine}/bash\n{script}\n")
    program.chmod(0o755)


def start(launcher: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [launcher, *args],
        cwd="/",
        env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_says_what_to_do_by_hand(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert "apt-get install --no-install-recommends gnuradio python3-venv" in done.stderr
    assert "conda create -n gnuradio -c conda-forge" in done.stderr


def test_without_apt(clone: Path, machine: Path) -> None:
    done = start(clone / "gr-localize", "doctor", PATH=str(machine))
    assert_says_what_to_do_by_hand(done)
    assert "there is no apt-get" in done.stderr
    assert not (clone / ".venv").exists()


def test_without_root_and_sudo(clone: Path, machine: Path) -> None:
    install_program(machine, "apt-get", "exit 0")
    (machine / "id").unlink()
    install_program(machine, "id", "echo 1000")
    done = start(clone / "gr-localize", "doctor", PATH=str(machine))
    assert_says_what_to_do_by_hand(done)
    assert "there is no sudo" in done.stderr


def test_apt_fails(clone: Path, machine: Path) -> None:
    install_program(machine, "apt-get", 'echo "E: no route to the mirror for $*"; exit 100')
    install_program(machine, "sudo", '"$@"')
    done = start(clone / "gr-localize", "doctor", PATH=str(machine))
    assert_says_what_to_do_by_hand(done)
    assert "E: no route to the mirror for install -y --no-install-recommends" in done.stderr
    assert "gnuradio python3-venv" in (clone / ".setup.log").read_text()


def test_leaves_an_environment_of_someone_else_alone(clone: Path) -> None:
    (clone / ".venv").mkdir()
    done = start(clone / "gr-localize", "doctor", **OFFLINE)
    assert done.returncode == 1
    assert "was not made by this command" in done.stderr
    assert list((clone / ".venv").iterdir()) == []


def test_help_sets_nothing_up(clone: Path, machine: Path) -> None:
    done = start(clone / "gr-localize", "--help", PATH=str(machine))
    assert done.returncode == 0
    assert "companion" in done.stdout
    assert not (clone / ".venv").exists()


@dataclass(frozen=True)
class SetUp:
    """A clone on a machine without GNU Radio: what a first start said, whose pip failed, and then two at once."""

    clone: Path
    half_made: Path
    failed: subprocess.CompletedProcess[str]
    both: list[tuple[int, str, str]]


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> SetUp:
    folder = tmp_path_factory.mktemp("machine")
    clone, machine = copy_tree(folder / "a clone"), make_machine(folder / "bin")
    install_program(machine, "sudo", '"$@"')
    install_program(
        machine, "apt-get", f'[ "$1" = update ] || ln -sf "{os.path.realpath(sys.executable)}" "{machine}/python3"'
    )
    failed = start(clone / "gr-localize", "doctor", PATH=str(machine), PIP_NO_INDEX="1")
    half_made = clone / ".venv" / "half-made"
    if half_made.parent.exists():
        half_made.touch()
    command = [str(clone / "gr-localize"), "--version"]
    environment = {"HOME": os.environ["HOME"], "PATH": str(machine), **OFFLINE}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    return SetUp(
        clone, half_made, failed, [(process.returncode, *each) for process, each in zip(both, said, strict=True)]
    )


def test_apt_installs_a_python_with_gnuradio(set_up: SetUp) -> None:
    assert set_up.failed.returncode == 1
    assert set_up.failed.stdout == ""
    assert "installing gnuradio python3-venv" in set_up.failed.stderr
    assert "failed: installing Python packages" in set_up.failed.stderr
    assert "No matching distribution found" in set_up.failed.stderr


def test_an_environment_half_made_is_made_anew_by_one_of_two_starts_at_once(set_up: SetUp) -> None:
    assert [code for code, _, _ in set_up.both] == [0, 0], set_up.both
    assert all(out.startswith("gr-localize, version") for _, out, _ in set_up.both)
    assert sum("making the Python environment" in err for _, _, err in set_up.both) == 1
    assert not set_up.half_made.exists()


@pytest.fixture
def ready_clone(set_up: SetUp) -> Path:
    assert [code for code, _, _ in set_up.both] == [0, 0], set_up.both
    return set_up.clone


def test_second_start_does_nothing_but_start(ready_clone: Path, tmp_path: Path) -> None:
    link = tmp_path / "a link"
    link.symlink_to(ready_clone / "gr-localize")
    done = start(link, "--version", PYTHONPATH=OFFLINE["PYTHONPATH"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gr-localize, version")


def test_tests_bring_their_servers_and_browser_and_go_on_without(
    ready_clone: Path, machine: Path, tmp_path: Path
) -> None:
    launcher = ready_clone / "gr-localize"
    programs = "redis-server mosquitto chromium shellcheck osmocom_fft SoapySDRUtil uhd_find_devices"
    for name in programs.split():
        install_program(machine, name, "exit 0")
    install_program(machine, "sudo", '"$@"')
    done = start(launcher, "test", "--version", **{**OFFLINE, "PATH": f"{machine}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    assert "redis-server" not in done.stderr
    (machine / "redis-server").unlink()
    (machine / "chromium").unlink()

    done = start(launcher, "test", "--version", PATH=str(machine), PYTHONPATH=OFFLINE["PYTHONPATH"])
    assert done.returncode == 0
    assert "going on without redis-server chromium: their tests are skipped" in done.stderr

    asked = tmp_path / "asked"
    install_program(machine, "apt-get", f'echo "$@" >> "{asked}"')
    install_program(machine, "chromium-browser", "exit 0")  # Ubuntu's name
    done = start(launcher, "test", "--version", PATH=str(machine), PYTHONPATH=OFFLINE["PYTHONPATH"])
    assert done.returncode == 0, done.stderr
    assert "pytest" in done.stdout
    assert asked.read_text().splitlines()[-1].endswith("=300 redis-server")


def test_arguments_and_exit_code_pass_through(ready_clone: Path) -> None:
    done = start(ready_clone / "gr-localize", "doctor", "--no such", PYTHONPATH=OFFLINE["PYTHONPATH"])
    assert done.returncode == 2
    assert "--no such" in done.stderr


def test_edits_in_the_clone_take_effect(ready_clone: Path) -> None:
    version = ready_clone / "python" / "localize_core" / "__init__.py"
    before = version.read_text()
    version.write_text(before.replace('__version__ = "', '__version__ = "99.'))
    try:
        done = start(ready_clone / "gr-localize", "--version", PYTHONPATH=OFFLINE["PYTHONPATH"])
    finally:
        version.write_text(before)
    assert "version 99." in done.stdout


def test_the_clone_is_on_the_ordinary_search_path(ready_clone: Path) -> None:
    """A mere editable install would come after a copy that is installed on the system."""
    script = (
        "import gnuradio; from importlib.machinery import PathFinder;"
        "print(PathFinder.find_spec('localize_core').origin);"
        "print(PathFinder.find_spec('gnuradio.localize', gnuradio.__path__).origin)"
    )
    python = ready_clone / ".venv" / "bin" / "python"
    found = subprocess.run([python, "-c", script], env={"PATH": ""}, capture_output=True, text=True, check=True)
    folders = [Path(line).resolve().parent for line in found.stdout.splitlines()]
    assert folders == [ready_clone / "python" / "localize_core", ready_clone / "python" / "localize"]


def test_changed_requirements_are_installed(ready_clone: Path) -> None:
    constraints = ready_clone / "constraints.txt"
    constraints.write_text(constraints.read_text() + "# changed\n")
    kept = ready_clone / ".venv" / "kept"
    kept.touch()
    done = start(ready_clone / "gr-localize", "--version", **OFFLINE)
    assert done.returncode == 0
    assert "installing Python packages" in done.stderr
    assert kept.exists()
    assert start(ready_clone / "gr-localize", "--version", PYTHONPATH=OFFLINE["PYTHONPATH"]).stderr == ""


def test_blocks_of_the_clone_are_found_by_companion(ready_clone: Path) -> None:
    script = "import os, sys; print(sys.argv[1:], sys.prefix, os.environ['GRC_BLOCKS_PATH'], sep='\\n')"
    machine = ready_clone.parent / "companion"
    machine.mkdir()
    (machine / "gnuradio-companion").write_text(script)
    (machine / "gnuradio-companion").chmod(0o755)
    done = start(
        ready_clone / "gr-localize",
        "companion",
        "a graph.grc",
        PATH=f"{machine}:{os.environ['PATH']}",
        GRC_BLOCKS_PATH="/mine",
    )
    assert done.stdout.splitlines() == ["['a graph.grc']", str(ready_clone / ".venv"), f"{ready_clone / 'grc'}:/mine"]
