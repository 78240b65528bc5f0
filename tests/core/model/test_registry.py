"""Models in a registry: a SQLite file for most tests, a server that comes and goes for those of the network."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import spox.opset.ai.onnx.v17 as op
from localize_core.errors import ConfigError, MissingExtraError, ModelError, RegistryError, UnknownModelError
from localize_core.model.contract import METADATA_KEY, Golden
from localize_core.model.downloads import KEPT_DOWNLOADS
from localize_core.model.onnx_model import model_digest, model_files
from localize_core.model.registry import (
    DEFAULT_NAME,
    ENVIRONMENT,
    MAX_HISTORY,
    MAX_TAG_CHARACTERS,
    ModelRegistry,
    registry_uri,
)
from localize_core.model.registry_source import RegistrySource
from localize_core.model.source import parse_model_uri

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("no mlflow here: pip install mlflow-skinny sqlalchemy alembic", allow_module_level=True)

URI_VARIABLES = ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    """Folders of the user's that only this test has, and no registry of theirs."""
    for variable in URI_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def mlflow_client(uri: str):
    """MLflow itself, for what others do to a registry."""
    os.environ.update(ENVIRONMENT)  # as the registry does before its own import
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def registry(tmp_path, empty_registry) -> ModelRegistry:
    shutil.copyfile(empty_registry, tmp_path / "mlflow.db")
    return ModelRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def make_versions(make_contract, make_model):
    """A maker of models that answer differently: number k is k degrees north."""

    def make(count: int) -> list[Path]:
        return [make_model(make_contract(), position=(float(k), 8.5), name=f"{k}.onnx") for k in range(count)]

    return make


@pytest.fixture
def large_model(make_contract, make_model) -> Path:
    """A model with weights that MLflow puts into a file beside it."""
    contract = make_contract()
    wide = op.const(np.zeros((len(contract.channels), 512), np.float32))
    ending = op.const(np.zeros((512, 2), np.float32))
    path = make_model(
        contract,
        position=lambda means: op.add(
            op.matmul(op.matmul(means, wide), ending), op.const(np.array([[47.0, 8.0]], np.float32))
        ),
        name="large.onnx",
    )
    model = onnx.load(path)
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    onnx.save(model, path)
    return path


def source(registry: ModelRegistry, uri: str, **options) -> RegistrySource:
    return RegistrySource(parse_model_uri(uri), registry=registry.uri, **options)


def latitude(model) -> float:
    contract = model.contract
    answer = model.run(np.ones((1, len(contract.channels), contract.rows, 5), np.float32))
    return float(answer.position[0, 0])


def artifact_folder(registry: ModelRegistry, name: str, version: str) -> Path:
    """Where a version's files lie in the store of a SQLite registry."""
    uri = mlflow_client(registry.uri).get_model_version_download_uri(name, version)
    return Path(uri.removeprefix("file://"))


def as_another_user(uri: str, script: str, *args: str) -> str:
    """Run a script in a process that knows MLflow, and nothing of this project. Returns what it prints."""
    environment = os.environ | ENVIRONMENT | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(
        [sys.executable, "-c", script, *args], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# What a source string stands for


def test_an_alias_is_pinned_to_a_number(registry, make_versions):
    for path in make_versions(2):
        registry.register(path, "tiny")
    registry.promote("tiny", "1", "champion")
    followed = source(registry, "models:/tiny@champion")
    first = followed.latest()
    registry.promote("tiny", "2", "champion")
    second = followed.latest()
    assert (first.version, second.version, followed.release("1").version) == ("1", "2", "1")
    assert followed.uri == "models:/tiny@champion"
    models = first.open(), second.open()
    assert [latitude(model) for model in models] == [0.0, 1.0]
    assert [(model.identity.name, model.identity.version) for model in models] == [("tiny", "1"), ("tiny", "2")]


def test_numbers_latest_and_stages(registry, make_versions):
    for path in make_versions(3):
        registry.register(path, "tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        mlflow_client(registry.uri).transition_model_version_stage("tiny", "2", "Production")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys = {
            text: source(registry, f"models:/tiny/{text}").latest().version
            for text in ("1", "03", "latest", "Production")
        }
    assert keys == {"1": "1", "03": "3", "latest": "3", "Production": "2"}
    assert [version.stage for version in registry.versions("tiny")] == [None, "Production", None]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/other@champion", r"has no model other; it has tiny$"),
        ("models:/tiny@challenger", r"tiny has no alias challenger; it has champion \(1\)$"),
        ("models:/tiny/7", r"tiny has no version 7; it has 2, 1$"),
        ("models:/tiny/Production", r"tiny has no version for Production; it has none in a stage$"),
    ],
)
def test_what_the_registry_does_not_have(registry, make_versions, uri, message):
    for path in make_versions(2):
        registry.register(path, "tiny")
    registry.promote("tiny", "1", "champion")
    with pytest.raises(UnknownModelError, match=message) as raised:
        source(registry, uri).latest()
    assert registry.uri in str(raised.value)
    with pytest.raises(RegistryError, match="no version 9"):
        source(registry, "models:/tiny@champion").release("9")


def test_a_model_without_versions(registry):
    mlflow_client(registry.uri).create_registered_model("empty")
    with pytest.raises(UnknownModelError, match="it has no versions at all"):
        source(registry, "models:/empty/latest").latest()
    with pytest.raises(UnknownModelError, match="it has none at all"):
        source(registry, "models:/empty/1").latest()


def test_a_contract_and_settings_given_with_the_source(registry, tmp_path, make_contract, make_model):
    contract = make_contract()
    plain = make_model(contract, embed=False, name="plain.onnx")
    version = add_folder(registry, plain.parent / "plain", {"plain.onnx": plain.read_bytes()})
    with pytest.raises(ModelError, match=f"has no '{METADATA_KEY}'"):
        source(registry, f"models:/tiny/{version}").latest().open()
    given = source(registry, f"models:/tiny/{version}", contract=contract)
    assert given.latest().open().contract == contract


# Which registry


def test_where_the_registry_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert registry_uri() == f"sqlite:///{tmp_path}/data/gr-localize/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000/")
    assert registry_uri() == "http://tracking:5000"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///registry.db")
    assert registry_uri() == f"sqlite:///{tmp_path}/registry.db"
    assert registry_uri("http://explicit:5000") == "http://explicit:5000"


def test_the_default_registry_is_a_file_of_the_users(tmp_path, make_versions, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = ModelRegistry()
    assert registry.models() == []
    with pytest.raises(UnknownModelError, match="does not exist"):
        registry.versions("tiny")
    assert not (tmp_path / "data").exists()  # reading writes nothing
    registry.register(make_versions(1)[0])
    assert [model.name for model in registry.models()] == [DEFAULT_NAME]
    assert artifact_folder(registry, DEFAULT_NAME, "1").is_relative_to(tmp_path / "data" / "gr-localize")
    assert not (tmp_path / "mlruns").exists()


def test_a_password_stays_out_of_messages():
    registry = ModelRegistry("http://user:secret@127.0.0.1:1/path")
    with pytest.raises(RegistryError, match="cannot be reached") as raised:
        registry.models()
    assert "secret" not in str(raised.value)


def test_without_mlflow(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"models:/ sources need.*pip install 'gr-localize\[mlflow\]'"):
        registry.models()


def test_nothing_of_the_whole_mlflow_is_needed(registry, make_versions):
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('flask', 'pandas', 'pyarrow', 'sklearn', 'matplotlib')));"
        "import localize_core.model.registry as r; from pathlib import Path; assert 'mlflow' not in sys.modules;"
        "g = r.ModelRegistry(sys.argv[1]); v = g.register(Path(sys.argv[2]), 'tiny');"
        "g.promote('tiny', '1', 'champion'); print(g.fetch('tiny', '1').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, registry.uri, str(make_versions(1)[0])],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr) == ("model.onnx\n", "")


@pytest.mark.parametrize("content", [b"no database" * 1000, None])
def test_a_database_that_is_none(tmp_path, content):
    path = tmp_path / "bad.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"bad\.db: .*(not a database|unable to open)"):
        ModelRegistry(f"sqlite:///{path}").models()


def test_a_server_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(RegistryError, match="cannot be reached: no answer in time"):
            ModelRegistry(f"http://127.0.0.1:{silent.getsockname()[1]}").models()
        assert time.monotonic() - began < 20.0  # MLflow itself would try for a quarter of an hour


# Registering


@pytest.mark.parametrize("external", [False, True])
def test_a_registered_model_keeps_its_bytes_and_others_can_load_it(registry, large_model, external, tmp_path):
    if external:
        model = onnx.load(large_model)
        (large_model.parent / "w").mkdir()
        onnx.save_model(model, large_model, save_as_external_data=True, location="w/large.weights", size_threshold=0)
    version = registry.register(large_model, "large", tags={"site": "Uetliberg"})
    assert (version.name, version.version, version.sha256) == ("large", "1", model_digest(large_model))
    assert mlflow_client(registry.uri).get_model_version("large", "1").tags["site"] == "Uetliberg"
    fetched = registry.fetch("large", "1")
    pairs = list(zip(model_files(large_model), model_files(fetched), strict=True))
    assert len(pairs) == 1 + external
    assert all(ours.read_bytes() == theirs.read_bytes() for ours, theirs in pairs)
    script = (
        "import sys, numpy, mlflow.onnx, mlflow.pyfunc;"
        "model = mlflow.onnx.load_model('models:/large/1'); print(len(model.graph.output));"
        "served = mlflow.pyfunc.load_model('models:/large/1');"
        "print(served.predict(numpy.ones((1, 6, 16, 5), numpy.float32))['position'].tolist())"
    )
    assert as_another_user(registry.uri, script).splitlines() == ["3", "[[47.0, 8.0]]"]


def test_tags_and_figures(registry, make_contract, make_model):
    accuracy = {"median_m": 12.5, "split": "by place", "containment": {"95": {"share": 0.96}}, "interval": [1.0, 2.0]}
    contract = make_contract(accuracy=accuracy)
    version = registry.register(make_model(contract))
    assert version.name == DEFAULT_NAME
    assert version.accuracy == {"median_m": "12.5", "split": "by place", "containment.95.share": "0.96"}
    client = mlflow_client(registry.uri)
    known = client.get_model_version(DEFAULT_NAME, "1")
    assert json.loads(known.tags["localize.contract"]) == contract.model_dump(mode="json")
    run = client.get_run(known.run_id)
    assert run.data.metrics == {"median_m": 12.5, "containment.95.share": 0.96}
    assert run.info.status == "FINISHED"


def test_a_contract_too_long_for_a_tag(registry, make_contract, make_model):
    contract = make_contract(provenance={"notes": "x" * MAX_TAG_CHARACTERS})
    registry.register(make_model(contract), "tiny")
    tags = mlflow_client(registry.uri).get_model_version("tiny", "1").tags
    assert "localize.contract" not in tags
    assert "too long for a tag" in tags["localize.contract.omitted"]
    assert source(registry, "models:/tiny/1").latest().open().contract == contract


def test_a_model_that_must_not_serve_is_not_registered(registry, make_contract, make_model):
    golden = Golden(seed=5, time_steps=6, position=(1.0, 1.0), uncertainty=(1.0, 1.0, 0.0), confidence=1.0)
    bad = make_model(make_contract(golden=golden), name="bad.onnx")
    with pytest.raises(ModelError, match="golden vector"):
        registry.register(bad)
    endless = make_model(make_contract(time_steps=8), position=(np.nan, 1.0), name="nan.onnx")
    with pytest.raises(ModelError, match="not finite"):
        registry.register(endless)
    assert registry.models() == []


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", ".."])
def test_a_name_that_no_source_string_can_have(registry, make_versions, name):
    with pytest.raises(ConfigError, match="name"):
        registry.register(make_versions(1)[0], name)


def test_tensors_under_a_name_that_mlflow_needs(registry, large_model):
    onnx.save_model(onnx.load(large_model), large_model, save_as_external_data=True, location="MLmodel")
    with pytest.raises(ModelError, match="a name that a registered model needs"):
        registry.register(large_model)


@pytest.mark.parametrize("name", [".hidden", "it's", "Zürich centre"])
def test_odd_names(registry, make_versions, name):
    registry.register(make_versions(1)[0], name)
    path = registry.fetch(name, "1")
    assert path.is_relative_to(registry.folder)
    assert registry.folder in registry.model_folder(name).parents
    assert ".." not in path.parts
    assert [version.version for version in registry.versions(name)] == ["1"]


# Fetching


def add_folder(registry: ModelRegistry, folder: Path, files: dict[str, bytes], name: str = "tiny") -> str:
    """A version made by somebody else. Returns its number."""
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    client = mlflow_client(registry.uri)
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, folder.as_uri()).version)


def test_a_bare_file_is_held_against_its_first_download(registry, tmp_path, make_versions):
    (path,) = make_versions(1)
    version = add_folder(registry, tmp_path / "bare", {"some.onnx": path.read_bytes()})
    fetched = registry.fetch("tiny", version)
    assert fetched.read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path / "bare")
    assert registry.fetch("tiny", version) == fetched


MLMODEL = b"flavors: {onnx: {data: model.onnx}}"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.onnx": b"1", "b.onnx": b"2"}, r"one ONNX file is expected in it, found a\.onnx, b\.onnx"),
        ({"readme": b"nothing"}, "one ONNX file is expected in it, found none"),
        ({"MLmodel": b"flavors: {sklearn: {}}"}, "is no ONNX model but of the kinds sklearn"),
        ({"MLmodel": b"flavors: [onnx"}, "its MLmodel cannot be read"),
        ({"MLmodel": b"just text"}, "its MLmodel cannot be read"),
        ({"MLmodel": MLMODEL}, r"the file model\.onnx that its MLmodel names is missing"),
        ({"MLmodel": MLMODEL.replace(b"model.onnx", b"../../x.onnx")}, "names a file outside it"),
        ({"MLmodel": MLMODEL, "model.onnx": b"no model"}, "not a usable ONNX model"),
    ],
)
def test_an_artifact_that_is_no_good(registry, tmp_path, files, message):
    version = add_folder(registry, tmp_path / "artifact", files)
    with pytest.raises(ModelError, match=message):
        registry.fetch("tiny", version)
    assert list(registry.model_folder("tiny").iterdir()) == []


def test_an_artifact_that_is_not_what_was_registered(registry, make_versions):
    good, other = make_versions(2)
    registry.register(good, "tiny")
    stored = artifact_folder(registry, "tiny", "1") / "model.onnx"
    shutil.copyfile(other, stored)
    with pytest.raises(ModelError) as raised:
        registry.fetch("tiny", "1")
    assert model_digest(good) in str(raised.value)
    assert model_digest(other) in str(raised.value)
    shutil.copyfile(good, stored)
    assert registry.fetch("tiny", "1").read_bytes() == good.read_bytes()


def test_a_damaged_download_is_fetched_anew(registry, make_versions):
    good, other = make_versions(2)
    registry.register(good, "tiny")
    path = registry.fetch("tiny", "1")
    shutil.copyfile(other, path)
    with pytest.raises(ModelError) as raised:
        registry.fetch("tiny", "1")
    assert model_digest(good) in str(raised.value)
    assert model_digest(other) in str(raised.value)
    assert registry.fetch("tiny", "1").read_bytes() == good.read_bytes()
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="not a usable ONNX model"):
        registry.fetch("tiny", "1")
    assert registry.fetch("tiny", "1").read_bytes() == good.read_bytes()


def test_an_artifact_that_is_gone(registry, make_versions):
    registry.register(make_versions(1)[0], "tiny")
    shutil.rmtree(artifact_folder(registry, "tiny", "1"))
    with pytest.raises(ModelError, match="its files are gone from"):
        source(registry, "models:/tiny/1").latest().open()


def test_a_number_that_comes_again(registry, make_versions):
    first, second = make_versions(2)
    registry.register(first, "tiny")
    assert registry.fetch("tiny", "1").read_bytes() == first.read_bytes()
    mlflow_client(registry.uri).delete_registered_model("tiny")
    registry.register(second, "tiny")
    assert registry.fetch("tiny", "1").read_bytes() == second.read_bytes()


def test_several_fetch_at_once(registry, make_versions):
    (path,) = make_versions(1)
    registry.register(path, "tiny")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ModelRegistry(registry.uri).fetch("tiny", "1"), range(8)))
    assert len(set(found)) == 1
    assert found[0].read_bytes() == path.read_bytes()
    assert [each.name for each in registry.model_folder("tiny").iterdir()] == ["1"]


def test_a_cache_that_cannot_be_written(registry, make_versions, tmp_path, monkeypatch):
    registry.register(make_versions(1)[0], "tiny")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RegistryError, match="cannot be kept: Not a directory; XDG_CACHE_HOME can name another"):
        registry.fetch("tiny", "1")


def test_old_downloads_go_but_never_the_one_that_serves(registry, make_versions):
    for path in make_versions(KEPT_DOWNLOADS + 3):
        registry.register(path, "tiny")
    followed = source(registry, "models:/tiny@champion")
    first = followed.release("1")
    first.open()
    followed.remember(first)
    folder = registry.model_folder("tiny")
    for number in range(2, KEPT_DOWNLOADS + 4):
        registry.fetch("tiny", str(number))
        for other in folder.glob("*/record.json"):  # a use of long ago, whatever the clock's resolution
            os.utime(other, (int(other.parent.name), int(other.parent.name)))
    kept = {each.name for each in folder.iterdir() if each.is_dir()}
    assert kept == {"1", *(str(number) for number in range(4, KEPT_DOWNLOADS + 4))}
    assert latitude(followed.remembered().open()) == 0.0


# Without the registry


def test_the_release_that_served_last(registry, make_versions, tmp_path):
    for path in make_versions(2):
        registry.register(path, "tiny")
    followed, fixed = source(registry, "models:/tiny/latest"), source(registry, "models:/tiny/1")
    assert followed.remembered() is None
    followed.remember(followed.latest())  # without a download nothing is kept
    assert followed.remembered() is None
    release = followed.latest()
    release.open()
    followed.remember(release)
    (tmp_path / "mlflow.db").unlink()
    kept = source(registry, "models:/tiny/latest").remembered()
    assert kept.version == "2"
    model = kept.open()
    assert latitude(model) == 1.0
    assert (model.identity.name, model.identity.version) == ("tiny", "2")
    assert fixed.remembered() is None  # another source of the same model


@pytest.mark.parametrize("damage", ["model", "note", "record", "download"])
def test_a_damaged_release_is_not_served(registry, make_versions, damage):
    registry.register(make_versions(1)[0], "tiny")
    followed = source(registry, "models:/tiny/latest")
    release = followed.latest()
    path = release.open().path
    followed.remember(release)
    folder = registry.model_folder("tiny")
    if damage == "model":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "note":
        next(folder.glob("served-*.json")).write_text('{"version"')
    elif damage == "record":
        (folder / "1" / "record.json").write_text("[]")
    else:
        shutil.rmtree(folder / "1")
    assert followed.remembered() is None


def test_a_release_that_cannot_be_remembered(registry, make_versions, caplog, monkeypatch):
    registry.register(make_versions(1)[0], "tiny")
    followed = source(registry, "models:/tiny/latest")
    release = followed.latest()
    release.open()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    followed.remember(release)
    assert "version 1 is not kept" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_server_that_goes_and_comes_back(mlflow_server, make_versions):
    registry = ModelRegistry(mlflow_server.uri)
    for path in make_versions(3):
        registry.register(path, "comes-and-goes")
    registry.promote("comes-and-goes", "2", "champion")
    followed = RegistrySource(parse_model_uri("models:/comes-and-goes@champion"), registry=mlflow_server.uri)
    release = followed.latest()
    release.open()
    followed.remember(release)
    third = followed.release("3")
    mlflow_server.kill()
    try:
        again = RegistrySource(parse_model_uri("models:/comes-and-goes@champion"), registry=mlflow_server.uri)
        began = time.monotonic()
        with pytest.raises(RegistryError, match="cannot be reached"):
            again.latest()
        assert time.monotonic() - began < 5.0
        with pytest.raises(RegistryError, match="cannot be reached"):
            third.open()
        assert latitude(again.remembered().open()) == 1.0
        assert latitude(release.open()) == 1.0  # downloaded before
    finally:
        mlflow_server.start()
    assert again.latest().version == "2"
    assert latitude(third.open()) == 2.0


def test_a_model_that_mlflow_logged_with_its_weights_beside_it(mlflow_server, large_model):
    script = (
        "import sys, onnx, mlflow.onnx;"
        "mlflow.onnx.log_model(onnx.load(sys.argv[1]), name='m', registered_model_name='logged',"
        " pip_requirements=['onnxruntime'])"
    )
    as_another_user(mlflow_server.uri, script, str(large_model))
    path = ModelRegistry(mlflow_server.uri).fetch("logged", "1")
    (weights,) = [file for file in model_files(path) if file != path]
    assert weights.suffix == ".data"
    model = RegistrySource(parse_model_uri("models:/logged/latest"), registry=mlflow_server.uri).latest().open()
    assert model.sha256 == model_digest(path)
    assert latitude(model) == 47.0


def test_a_server_whose_artifact_is_gone(mlflow_server, make_versions):
    registry = ModelRegistry(mlflow_server.uri)
    version = registry.register(make_versions(1)[0], "gone")
    client = mlflow_client(mlflow_server.uri)
    run_id = client.get_model_version("gone", version.version).run_id
    repository = client._tracking_client._get_artifact_repo(run_id)
    repository.delete_artifacts("model")
    with pytest.raises(ModelError, match="its files are gone from mlflow-artifacts:"):
        registry.fetch("gone", version.version)


# Aliases that move


def test_promote_and_roll_back_again_and_again(registry, make_versions):
    for path in make_versions(4):
        registry.register(path, "tiny")
    assert [registry.promote("tiny", version, "champion") for version in "1234"] == [None, "1", "2", "3"]
    assert registry.promote("tiny", "4", "champion") == "4"  # no step to go back over
    assert registry.rollback("tiny", "champion") == "3"
    assert registry.model("tiny").aliases == {"champion": "3"}
    mlflow_client(registry.uri).delete_model_version("tiny", "2")
    assert registry.rollback("tiny", "champion") == "1"
    with pytest.raises(UnknownModelError, match="champion of tiny has pointed at no other than 1"):
        registry.rollback("tiny", "champion")
    with pytest.raises(UnknownModelError, match="challenger of tiny is not set"):
        registry.rollback("tiny", "challenger")
    assert registry.promote("tiny", "latest", "champion") == "1"
    assert [version.aliases for version in registry.versions("tiny")] == [("champion",), (), ()]


def test_a_long_history_fits_its_tag(registry, make_versions):
    for path in make_versions(2):
        registry.register(path, "tiny")
    client = mlflow_client(registry.uri)
    client.set_registered_model_tag("tiny", "localize.history.champion", " ".join(["2"] * MAX_HISTORY))
    registry.promote("tiny", "1", "champion")
    registry.promote("tiny", "2", "champion")
    history = client.get_registered_model("tiny").tags["localize.history.champion"].split()
    assert history == ["2"] * (MAX_HISTORY - 1) + ["1"]
    assert registry.rollback("tiny", "champion") == "1"


@pytest.mark.parametrize("alias", ["v1", "latest", "a b"])
def test_an_alias_that_mlflow_does_not_allow(registry, make_versions, alias):
    registry.register(make_versions(1)[0], "tiny")
    with pytest.raises(ConfigError, match="alias"):
        registry.promote("tiny", "1", alias)


def test_a_version_that_is_not_there_is_not_promoted(registry, make_versions):
    registry.register(make_versions(1)[0], "tiny")
    with pytest.raises(UnknownModelError, match="no version 2"):
        registry.promote("tiny", "2", "champion")


def test_a_golden_vector_survives(registry, make_contract, make_model, golden_of):
    registry.register(make_model(make_contract(golden=golden_of)), "tiny")
    assert source(registry, "models:/tiny/1").latest().open().contract.golden == golden_of
