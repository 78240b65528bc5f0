"""`gr-localize models`: a registry from the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from localize_apps.main import main
from localize_core.model.contract import Golden
from localize_core.model.onnx_model import model_digest

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("no mlflow here: pip install mlflow-skinny sqlalchemy alembic", allow_module_level=True)


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch, empty_registry):
    """Folders of the user's that only this test has, with the default registry in them: making one takes seconds."""
    for variable in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "gr-localize").mkdir(parents=True)
    shutil.copyfile(empty_registry, tmp_path / "data" / "gr-localize" / "mlflow.db")


@pytest.fixture
def tiny(make_contract, make_model, golden_of) -> Path:
    """A model with a golden vector that it keeps, and figures."""
    accuracy = {"median_m": 37.142, "p90_m": 214.26, "split": "by place"}
    return make_model(make_contract(golden=golden_of, accuracy=accuracy))


@pytest.fixture
def printed(capsys):
    """Runs the command, which must succeed, and gives the JSON that it prints, and nothing else."""

    def run(*args: str) -> dict:
        capsys.readouterr()
        assert main(["models", *args, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def failure(capsys, *args: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["models", *args])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


def test_the_life_of_a_model(tiny, printed):
    assert printed("list")["models"] == []
    first = printed("register", str(tiny), "--alias", "champion")
    assert (first["name"], first["version"], first["aliases"]) == ("localization_model", "1", ["champion"])
    assert first["sha256"] == model_digest(tiny)
    assert first["accuracy"]["median_m"] == "37.142"
    assert printed("register", str(tiny))["version"] == "2"
    moved = {"name": "localization_model", "alias": "champion"}
    assert printed("promote", "localization_model", "latest") == moved | {"version": "2", "previous": "1"}
    (model,) = printed("list")["models"]
    assert (model["name"], model["latest"], model["aliases"]) == ("localization_model", "2", {"champion": "2"})
    assert printed("rollback", "localization_model") == moved | {"version": "1", "previous": "2"}
    versions = printed("list", "localization_model")["versions"]
    assert [(version["version"], version["aliases"]) for version in versions] == [("2", []), ("1", ["champion"])]
    shown = printed("show", "models:/localization_model@champion")
    assert shown["model"] == {"name": "localization_model", "version": "1", "sha256": model_digest(tiny)}
    assert (shown["golden"], shown["contract"]["name"], len(shown["versions"])) == ("ok", "tiny", 2)


def test_tables(tiny, capsys):
    assert main(["models", "list"]) == 0
    assert "gr-localize models register MODEL.onnx adds one" in capsys.readouterr().out
    assert main(["models", "register", str(tiny), "--name", "tiny", "--alias", "champion"]) == 0
    assert capsys.readouterr().out.endswith("mlflow.db: models:/tiny@champion\n")
    assert main(["models", "list"]) == 0
    assert "champion → 1" in capsys.readouterr().out
    assert main(["models", "list", "tiny"]) == 0
    assert f"{model_digest(tiny)[:12]}   37.14 m        214.3 m" in capsys.readouterr().out
    assert main(["models", "promote", "tiny", "1", "--alias", "challenger"]) == 0
    assert capsys.readouterr().out == "challenger of tiny is version 1, was not set\n"
    assert main(["models", "show", "models:/tiny/1"]) == 0
    out = capsys.readouterr().out
    for text in ("tiny, version 1", "answers as when it was made", "3 of log_mel and 3 of cross_correlation", "37.14"):
        assert text in out


def test_show_a_file(tiny, make_contract, make_model, printed, capsys):
    assert printed("show", str(tiny))["golden"] == "ok"
    plain = make_model(make_contract(), name="plain.onnx")
    assert printed("show", str(plain))["golden"] == "none"
    golden = Golden(seed=5, time_steps=6, position=(1.0, 1.0), uncertainty=(1.0, 1.0, 0.0), confidence=1.0)
    altered = make_model(make_contract(golden=golden), name="altered.onnx")
    capsys.readouterr()
    assert main(["models", "show", str(altered), "--json"]) == 1
    assert "golden vector: expected position" in json.loads(capsys.readouterr().out)["golden"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("show", "compiled"), "gr-localize compile STATION -o MODEL.onnx"),
        (("export", "compiled", "-o", "out"), "gr-localize compile STATION -o MODEL.onnx"),
        (("export", "grpc://localhost:1/tiny", "-o", "out"), "is served already"),
        (("show", "none.onnx"), "cannot be read"),
        (("show", "models:/tiny"), "wanted models:/NAME@ALIAS"),
        (("show", "models:/other@champion"), "has no model other"),
        (("list", "other"), "has no model other"),
        (("promote", "tiny", "9"), "tiny has no version 9; it has 1"),
        (("promote", "tiny", "last"), "a version is a number, latest"),
        (("promote", "tiny", "1", "--alias", "v1"), "reserved"),
        (("rollback", "tiny"), "no version to go back to"),
        (("register", "bad.onnx"), "not a usable ONNX model"),
        (("register", "tiny.onnx", "--name", "a/b"), "the name of a registered model"),
        (("export", "models:/other/1", "-o", "out"), "has no model other"),
    ],
)
def test_wrong_usage(tiny, capsys, args, message):
    Path("bad.onnx").write_text("nothing")
    assert main(["models", "register", str(tiny), "--name", "tiny"]) == 0
    code, text = failure(capsys, *args)
    assert code == 2
    assert message in text
    assert text.startswith("gr-localize: ")


def test_a_registry_that_is_not_reached(tiny, capsys):
    for args in (("list",), ("show", "models:/tiny@champion"), ("register", str(tiny))):
        code, text = failure(capsys, *args, "--registry", "http://127.0.0.1:1")
        assert code == 1
        assert text == "gr-localize: registry http://127.0.0.1:1: cannot be reached: Connection refused\n"


def test_without_mlflow(tiny, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, text = failure(capsys, "register", str(tiny))
    assert code == 2
    assert "pip install 'gr-localize[mlflow]'" in text


def test_nothing_else_is_printed_with_a_server(mlflow_server, tiny):
    both = (("register", str(tiny), "--name", "printed", "--alias", "champion"), ("list", "printed"))
    script = (
        "import sys; from localize_apps.main import main;"
        f"sys.exit(any(main(['-v', 'models', *args, '--json']) for args in {both!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"MLFLOW_TRACKING_URI": mlflow_server.uri, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["printed", "printed"]


def test_export_to_triton(tiny, printed):
    pytest.importorskip("tritonclient.grpc")
    printed("register", str(tiny), "--name", "located")
    printed("register", str(tiny), "--name", "located")
    folder = Path(printed("export", "models:/located/2", "-o", "served")["folder"])
    assert folder == Path("served") / "located"
    assert (folder / "2" / "model.onnx").is_file()
    other = Path(printed("export", str(tiny), "-o", "served", "--name", "other", "--model-version", "5")["folder"])
    assert (other / "5" / "model.onnx").is_file()
