"""What GNU Radio Companion sees: the block definitions hold, fit the blocks, and the examples compile and run."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pmt
import pytest
import yaml
import zmq
from gnuradio import gr, localize
from gnuradio.grc.core.platform import Platform
from gnuradio.grc.core.schema_checker import BLOCK_SCHEME, Validator
from localize_core.errors import LocalizeError
from localize_core.geodesy import GEOD
from localize_core.model.compiled.compile import compile_model
from localize_core.resources import shared_file
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.station.config import load_station, parse_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_json
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
DEFINITIONS = sorted((ROOT / "grc").glob("*.block.yml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.grc"))
OSMOSDR = importlib.util.find_spec("osmosdr") is not None
TWINS = {file: "kraken_zmq.toml" if file.stem == "kraken_sender" else f"{file.stem}.toml" for file in EXAMPLES}
BLOCKS = {
    name: block
    for name, block in vars(localize).items()
    if isinstance(block, type) and issubclass(block, (gr.gateway.gateway_block, gr.hier_block2))
}
MODEL = shared_file("models/single_receiver.onnx")
STATION = shared_file("examples/four_receivers.toml")
WAIT_S = 90.0

REQUIRED: dict[str, dict[str, Any]] = {
    "file_fix_sink": {"path": "fixes.jsonl"},
    "kiwi_wav_source": {"path": "recording.wav"},
    "localizer": {"source": STATION},
    "onnx_inference": {"model": MODEL, "time_steps": 8},
    "sigmf_source": {"path": "recording.sigmf-meta"},
}
"""What a block needs before it is valid; sample_rate_hz is the flowgraph's samp_rate."""

BAD: dict[str, list[dict[str, Any]]] = {
    "mel_spectrogram": [
        {"sample_rate_hz": 0.0},
        {"n_fft": 1, "n_mels": 1},
        {"hop": 0},
        {"n_mels": 0},
        {"n_mels": 1024},
        {"n_mels": 127},
        {"f_min_hz": -1.0},
        {"f_min_hz": 20e3, "f_max_hz": 10e3},
        {"f_max_hz": 50e3},
        {"corner_hz": 0.0},
        {"log_offset": 0.0},
    ],
    "cross_correlation": [
        {"sample_rate_hz": -1.0},
        {"n_receivers": 1},
        {"n_fft": 1, "n_lags": 1},
        {"hop": 0},
        {"hop": 0.5},
        {"n_lags": 0},
        {"lag_step": 0.0},
        {"n_fft": 64, "n_lags": 128},
        {"weighting": "scot"},
        {"signal": "real"},
    ],
    "reference_clock": [
        {"receivers": [("one", 45.0, 7.0)]},
        {"receivers": [("one", 45.0, 7.0), ("two", 91.0, 7.0)]},
        {"sample_rate_hz": 0.0},
        {"frequency_hz": 0.0},
        {"latitude": 90.5},
        {"longitude": 181.0},
        {"altitude_m": 1e6},
        {"bandwidth_hz": 0.0},
        {"reference_hz": 144.6e6},
        {"max_ppm": 0.0},
        {"max_ppm": 150.0},
        {"search_s": 0.0},
        {"block_s": 0.001},
        {"wander_ppb": 0.0},
        {"max_error_ns": 0.0},
        {"max_wait_s": 0.0},
    ],
    "time_align": [
        {"sample_rate_hz": 0.0},
        {"n_receivers": 0},
        {"acquire_s": 0.0},
        {"max_fill_s": -0.1},
        {"max_wait_s": 1.0},
        {"clocks": "trusted", "max_wait_s": 1.0, "max_fill_s": 0.6},
    ],
    "onnx_inference": [
        {"model": ""},
        {"n_channels": -1},
        {"rows": -1},
        {"time_steps": -1},
        {"window_hop": -1},
        {"min_confidence": 1.5},
        {"probability": 1.0},
        {"poll_s": -1.0},
        {"challenger": MODEL, "challenger_mode": "split", "share_percent": 101.0},
        {"deadline_ms": 0.0},
        {"max_in_flight": 0},
        {"queue_windows": 0},
        {"max_batch": 101},
        {"max_delay_ms": -1.0},
        {"threads": 0},
        {"providers": ""},
    ],
    "localizer": [
        {"source": ""},
        {"n_receivers": 0},
        {"time_steps": -1},
        {"window_hop": -1},
        {"min_confidence": -0.1},
        {"probability": 0.0},
    ],
    "tracker": [
        {"acceleration_mps2": 0.0},
        {"max_speed_mps": -1.0},
        {"lag_s": -1.0},
        {"lost_s": 0.0},
        {"confirm": 1},
        {"gate": 1.0},
        {"common": 1.0},
        {"max_tracks": 0},
    ],
    "zmq_fix_sink": [
        {"endpoint": "udp://127.0.0.1:5555"},
        {"endpoint": "tcp://127.0.0.1:*", "bind": False},
        {"topic": ""},
        {"high_water_mark": 0},
        {"linger_ms": -1},
        {"curve_clients": "clients"},
        {"bind": False, "curve_secret_key_file": "server.key_secret", "curve_clients": "clients"},
    ],
    "file_fix_sink": [{"path": ""}, {"max_bytes": 0}, {"max_files": 0}, {"format": "csv"}],
    "http_fix_sink": [
        {"host": "0.0.0.0"},
        {"host": ""},
        {"port": -1},
        {"port": 65_536},
        {"token": "short"},
        {"history": 0},
        {"tiles": "https://tiles.example.org/"},
    ],
    "redis_fix_sink": [
        {"url": "http://127.0.0.1"},
        {"prefix": ""},
        {"max_len": 0},
        {"capacity": 0},
        {"linger_ms": -1},
    ],
    "mqtt_fix_sink": [
        {"url": "tcp://127.0.0.1:1883"},
        {"topic": "a/#"},
        {"qos": 3},
        {"capacity": 0},
        {"linger_ms": -1},
        {"ca_file": "ca.pem"},
        {"url": "mqtts://127.0.0.1", "cert_file": "ours.pem"},
    ],
    "cot_fix_sink": [
        {"url": "http://127.0.0.1:6969"},
        {"cot_type": ""},
        {"stale_s": 0.0},
        {"multicast_ttl": 256},
        {"ca_file": "ca.pem"},
        {"url": "tls://127.0.0.1:8089", "cert_file": "ours.pem"},
        {"capacity": 0},
        {"linger_ms": -1},
    ],
    "kiwi_wav_source": [{"path": ""}, {"frequency_hz": float("inf")}],
    "sigmf_sink": [
        {"folder": ""},
        {"receivers": []},
        {"receivers": [("north", 45.0)]},
        {"receivers": [("north", 91.0, 7.0)]},
        {"sample_rate_hz": 0.0},
        {"frequency_hz": float("inf")},
        {"flush_s": -1.0},
        {"max_part_bytes": 4095},
        {"max_part_s": -1.0},
        {"max_bytes": 2**30},
        {"max_parts": 1},
        {"min_free_bytes": -1},
        {"collection": ""},
    ],
    "sigmf_source": [{"path": ""}, {"channel": -1}, {"frequency_hz": float("inf")}],
    "scene_source": [
        {"receivers": []},
        {"receivers": [("north", 91.0, 7.0)]},
        {"receivers": [("north", 45.0)]},
        {"sample_rate_hz": 0.0},
        {"frequency_hz": 0.0},
        {"duration_s": -1.0},
        {"seed": -1},
        {"bandwidth_hz": 30e3},
        {"track": []},
        {"track": [(45.0, 181.0)]},
        {"altitude_m": 1e6},
        {"speed_mps": -1.0},
        {"level_dbfs_at_1km": 100.0},
        {"path_loss_exponent": 9.0},
        {"shadowing_db": -1.0},
        {"shadowing_distance_m": 0.0},
        {"noise_dbfs": 30.0},
        {"shadowing_correlation": 1.5},
        {"gain_error_db": -1.0},
        {"carrier_offset_hz": -1.0},
        {"carrier_drift_hz_per_s": -1.0},
        {"also": [{"waveform": "noise"}]},
        {"also": [{"track": [(45.0, 7.0)]}] * 17},
        {"clock_offset_ns": -1.0},
        {"clock_drift_ppb": 1e6},
        {"timing_jitter_ns": -1.0},
        {"timing_jitter_s": 0.001},
        {"channels": "set.npz"},
        {"channels": "set.npz", "track": [], "speed_mps": 3.0},
        {"channels": "set.npz", "track": [], "path_loss_exponent": 3.0},
        {"channels": "set.npz", "track": [], "channel_rows": [-1]},
        {"channels": "set.npz", "track": [], "dwell_s": 0.0},
        {"channels": "set.npz", "track": [], "emitter_gain_db": 300.0},
        {"dwell_s": 2.0},
        {"adc_bits": 0},
    ],
}
"""Values that neither the editor nor the block takes, each alone or with what else it needs."""


def read(definition: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(definition.read_text(encoding="utf-8"))
    return content


def block_of(definition: Path) -> type:
    return BLOCKS[read(definition)["id"].removeprefix("localize_")]


def by_name(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=[file.name.partition(".")[0] for file in files])


def constructor(block: type) -> dict[str, Any]:
    """Parameters of the constructor and their defaults (inspect.Parameter.empty where there is none)."""
    found = {}
    for name, parameter in inspect.signature(block.__init__).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            assert name == "scene", "the one block that takes more than it names"
            for key, field in SceneConfig.model_fields.items():
                missing = field.default is PydanticUndefined
                found["loop_track" if key == "loop" else key] = inspect.Parameter.empty if missing else field.default
        elif name != "self":
            found[name] = parameter.default
    return found


def expression(parameter: Any, value: Any) -> str:
    """`value` as somebody would write it into a field of the editor."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    return value if isinstance(value, str) and parameter.dtype != "raw" else repr(value)


@pytest.fixture(scope="module")
def platform() -> Platform:
    """GRC's library of blocks, ours among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRC_BLOCKS_PATH", str(ROOT / "grc"))
        version = (gr.major_version(), gr.api_version(), gr.minor_version())
        platform = Platform(name="tests", prefs=gr.prefs(), version=gr.version(), version_parts=version)
        platform.build_library()
    return platform


def flowgraph_with(platform: Platform, name: str, **values: Any) -> tuple[Any, Any]:
    """A flowgraph that holds one unconnected block, and the block."""
    graph = platform.make_flow_graph()
    graph.options_block.params["id"].set_value("flowgraph")
    graph.options_block.params["generate_options"].set_value("no_gui")
    rate = graph.new_block("variable")
    rate.params["id"].set_value("samp_rate")
    rate.params["value"].set_value("32000")
    block = graph.new_block(f"localize_{name}")
    block.params["id"].set_value("block")
    for key, value in (REQUIRED.get(name, {}) | values).items():
        block.params[key].set_value(expression(block.params[key], value))
    graph.rewrite()
    return graph, block


def problems(graph: Any, block: Any) -> list[str]:
    """What the editor finds wrong with the block, except that nothing is connected to it."""
    graph.validate()
    return [message for message in block.get_error_messages() if not message.endswith("Port is not connected.")]


def test_every_block_has_a_definition() -> None:
    assert BLOCKS
    assert {file.name for file in DEFINITIONS} == {f"localize_{name}.block.yml" for name in BLOCKS}


def test_every_block_is_in_the_tree_once(platform: Platform) -> None:
    tree = yaml.safe_load((ROOT / "grc" / "localize.tree.yml").read_text(encoding="utf-8"))
    listed = [name for branch in tree["[Localize]"] for names in branch.values() for name in names]
    assert sorted(listed) == sorted(f"localize_{name}" for name in BLOCKS)
    for name in listed:
        assert platform.blocks[name].category[0] == "Localize"


@by_name(DEFINITIONS)
def test_definition_follows_the_schema(file: Path) -> None:
    content = read(file)
    validator = Validator(BLOCK_SCHEME)
    assert validator.run(content), [str(message) for message in validator.messages]
    assert content["id"] == file.name.removesuffix(".block.yml")


@by_name(DEFINITIONS)
def test_documentation_describes_every_parameter(file: Path) -> None:
    content = read(file)
    paragraphs = content["documentation"].replace("\\\n", "").split("\n\n")
    assert len(paragraphs[0]) > 20
    described = {}
    for paragraph in paragraphs:
        if match := re.match(r"((?:\w+, )*\w+): (.{15,})", paragraph, re.DOTALL):
            described |= dict.fromkeys(match[1].split(", "), match[2])
    parameters = {parameter["id"] for parameter in content["parameters"]}
    ports = [*content.get("outputs", []), *content.get("inputs", [])]
    messages = {port["id"] for port in ports if port["domain"] == "message"} - (
        {"fix"} if not content.get("outputs") else set()  # a sink says in its first lines what it takes
    )
    assert set(described) == parameters | messages
    optional = {name for name, default in constructor(block_of(file)).items() if default is not inspect.Parameter.empty}
    assert {name for name in optional if "Default" not in described[name]} == set()


@by_name(DEFINITIONS)
def test_definition_calls_the_block_as_it_is(file: Path) -> None:
    content = read(file)
    block = block_of(file)
    make = content["templates"]["make"]
    call = ast.parse(re.sub(r"\$\{.*?\}", "0", make, flags=re.DOTALL).strip(), mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == f"localize.{block.__name__}"
    keywords = {keyword.arg: 0 for keyword in call.keywords if keyword.arg}
    inspect.signature(block.__init__).bind(None, *(0 for _ in call.args), **keywords)
    passed = re.findall(r"(\w+)='?\$\{(\w+)\}'?,\n", make)
    assert [keyword for keyword, value in passed] == list(keywords)
    assert [(a, b) for a, b in passed if a != b] == ([("loop", "loop_track")] if "scene" in file.name else [])
    assert {value for _, value in passed} == {parameter["id"] for parameter in content["parameters"]}


@by_name(DEFINITIONS)
def test_parameters_and_defaults_are_the_blocks_own(file: Path, platform: Platform) -> None:
    block = block_of(file)
    wanted = constructor(block)
    _, drawn = flowgraph_with(platform, block.__name__)
    ids = {parameter["id"]: parameter for parameter in read(file)["parameters"]}
    assert set(ids) == set(wanted)
    for name, default in wanted.items():
        parameter = drawn.params[name]
        if default is inspect.Parameter.empty:
            continue
        if (block.__name__, name) in {("onnx_inference", "n_channels"), ("onnx_inference", "rows")}:
            assert (default, parameter.default) in {(0, "1"), (0, "128")}  # the editor has to draw ports
            continue
        if (block.__name__, name) == ("scene_source", "track"):
            assert (default, len(ast.literal_eval(parameter.default))) == ((), 1)  # a block just drawn can run
            continue
        if isinstance(default, datetime):
            assert datetime.fromisoformat(parameter.default.replace("Z", "+00:00")) == default
        elif isinstance(default, str):
            assert parameter.default == default
        elif isinstance(default, tuple):
            assert tuple(ast.literal_eval(parameter.default)) == default
        else:
            assert ast.literal_eval(parameter.default) == default
            assert isinstance(default, bool) == (ids[name]["dtype"] == "bool")


@by_name(DEFINITIONS)
def test_the_ports_are_the_blocks_own(file: Path, platform: Platform, tmp_path: Path, write_sigmf: Any) -> None:
    """Drawn and real ports are as many, as wide and called alike, with other than default numbers too."""
    name = block_of(file).__name__
    settings: dict[str, list[dict[str, Any]]] = {
        "mel_spectrogram": [{}, {"n_mels": 64}],
        "cross_correlation": [{}, {"n_receivers": 5, "n_lags": 33}],
        "time_align": [{}, {"n_receivers": 3}],
        "reference_clock": [{}, {"receivers": [("one", 45.0, 7.0), ("two", 45.1, 7.1, 200.0)]}],
        "onnx_inference": [{}],
        "localizer": [{}],
        "scene_source": [{}, {"receivers": [("only", 45.0, 7.0, 300.0)]}],
        "tracker": [{}],
        "zmq_fix_sink": [{}],
        "redis_fix_sink": [{}],
        "mqtt_fix_sink": [{}],
        "cot_fix_sink": [{}],
        "http_fix_sink": [{}],
        "file_fix_sink": [{"path": str(tmp_path / "fixes.jsonl")}],
        "sigmf_sink": [{}, {"receivers": [("only", 45.0, 7.0, 300.0)]}],
    }
    if name == "sigmf_source":
        settings[name] = [{"path": str(write_sigmf(tmp_path / "a", np.zeros((9, 2), complex))), "channel": 1}]
    if name == "kiwi_wav_source":
        folder = Path(os.environ.get("GR_LOCALIZE_DATA", ROOT.parent / "shared" / "data"))
        recordings = sorted(folder.rglob("*_iq.wav"))
        if not recordings:
            pytest.skip(f"no KiwiSDR recording below {folder}; set GR_LOCALIZE_DATA to where one is")
        settings[name] = [{"path": str(recordings[0])}]
    for values in settings[name]:
        graph, drawn = flowgraph_with(platform, name, **values)
        assert problems(graph, drawn) == []
        real = generated(graph, tmp_path).flowgraph().block
        speaker = getattr(real, "inference", real)  # a hierarchical block's messages are those of a block inside
        for ports, signature, messages in (
            (drawn.sinks, real.input_signature(), pmt.to_python(speaker.message_ports_in())),
            (
                drawn.sources,
                real.output_signature(),
                pmt.to_python(speaker.message_ports_out()),
            ),
        ):
            streams = [port for port in ports if port.domain == "stream"]
            assert len(streams) == signature.max_streams() == signature.min_streams()
            assert [port.item_size for port in streams] == [
                signature.sizeof_stream_item(k) for k in range(len(streams))
            ]
            assert {port.key for port in ports if port.domain == "message"} == {*messages} - {"system"}


@by_name(DEFINITIONS)
def test_bad_values_are_refused_in_the_editor_as_by_the_block(file: Path, platform: Platform) -> None:
    """Each assertion of the definition is the answer to at least one bad value."""
    block = block_of(file)
    name = block.__name__
    graph, drawn = flowgraph_with(platform, name)
    assert problems(graph, drawn) == []
    good = {key: drawn.params[key].get_evaluated() for key in constructor(block)}
    if "norm" in good:
        good["norm"] = ast.literal_eval(good["norm"])
    answers = set()
    for values in BAD[name]:
        graph, drawn = flowgraph_with(platform, name, **values)
        found = problems(graph, drawn)
        assert found, values
        answers |= {expression for expression in drawn.asserts if f'Assertion "{expression}" failed.' in found}
        arguments = good | values
        if "loop_track" in arguments:
            arguments["loop"] = arguments.pop("loop_track")
        with pytest.raises(LocalizeError):
            block(**arguments)
    assert answers == set(drawn.asserts)


def generated(graph: Any, folder: Path) -> ModuleType:
    """The Python that GRC writes for a flowgraph, imported; its class is called `flowgraph`."""
    graph.rewrite()
    generator = graph.parent_platform.Generator(graph, str(folder))
    generator.write()
    spec = importlib.util.spec_from_file_location("flowgraph", generator.file_path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "parameter", "value", "seen"),
    [
        ("mel_spectrogram", "log_offset", 1e-6, lambda block: block.config.log_offset),
        ("cross_correlation", "weighting", "phat", lambda block: block.config.weighting),
        ("cross_correlation", "signal", "envelope", lambda block: block.config.signal),
        ("onnx_inference", "min_confidence", 0.9, lambda block: block.engine.min_confidence),
        ("localizer", "min_confidence", 0.9, lambda block: block.engine.min_confidence),
    ],
)
def test_a_variable_changes_a_running_block(
    name: str, parameter: str, value: Any, seen: Any, platform: Platform, tmp_path: Path
) -> None:
    graph, block = flowgraph_with(platform, name)
    before = block.params[parameter].get_evaluated()
    knob = graph.new_block("variable")
    knob.params["id"].set_value("knob")
    knob.params["value"].set_value(repr(before))
    block.params[parameter].set_value("knob")
    top = generated(graph, tmp_path).flowgraph()
    assert seen(top.block) == (0.5 if before is None else before)  # None: what the station says, or the default
    top.set_knob(value)
    assert seen(top.block) == value


def test_every_callback_is_tried_above() -> None:
    callbacks = {
        (block_of(file).__name__, callback)
        for file in DEFINITIONS
        for callback in read(file)["templates"].get("callbacks", [])
    }
    (mark,) = (m for m in test_a_variable_changes_a_running_block.pytestmark if m.name == "parametrize")
    assert callbacks == {(name, f"set_{key}(${{{key}}})") for name, key, *_ in mark.args[1]}


def load(platform: Platform, example: Path) -> Any:
    graph = platform.make_flow_graph()
    graph.grc_file_path = str(example)
    graph.import_data(platform.parse_flow_graph(str(example)))
    graph.rewrite()
    graph.validate()
    return graph


@by_name(EXAMPLES)
def test_example_is_valid_in_the_editor(file: Path, platform: Platform) -> None:
    if file.stem == "rtlsdr_reference" and not OSMOSDR:
        pytest.skip("gr-osmosdr is not installed, whose source it has")
    graph = load(platform, file)
    assert graph.is_valid(), [message for _, message in graph.iter_error_messages()]
    assert not [block.name for block in graph.blocks if block.is_dummy_block]
    assert graph.get_option("id") == file.stem
    assert (ROOT / "examples" / TWINS[file]).is_file()


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("localize_mel_spectrogram_0", "hop", "0", "hop >= 1"),
        ("localize_onnx_inference_0", "rows", "64", "IO size"),
        ("localize_onnx_inference_0", "n_channels", "2", "Port is not connected"),
        ("localize_scene_source_0", "receivers", "[]", "len(receivers) >= 1"),
    ],
)
def test_a_bad_value_makes_an_example_invalid(
    name: str, parameter: str, value: str, message: str, platform: Platform
) -> None:
    graph = load(platform, ROOT / "examples" / "single_receiver.grc")
    graph.get_block(name).params[parameter].set_value(value)
    graph.rewrite()
    graph.validate()
    assert not graph.is_valid()
    assert any(message in found for _, found in graph.iter_error_messages())


@by_name([ROOT / "examples" / "four_receivers.grc", ROOT / "examples" / "single_receiver.grc"])
def test_example_simulates_what_its_station_file_says(file: Path, platform: Platform) -> None:
    station = load_station(file.with_suffix(".toml"))
    source = load(platform, file).get_block("localize_scene_source_0").params
    assert station.scene is not None
    for name in SceneConfig.model_fields:
        value = source["loop_track" if name == "loop" else name].get_evaluated()
        assert SceneConfig.of(**{"track": station.scene.track, name: value}).model_dump()[name] == getattr(
            station.scene, name
        )
    assert [tuple(receiver) for receiver in source["receivers"].get_evaluated()] == [
        (receiver.name, receiver.latitude, receiver.longitude, receiver.altitude_m) for receiver in station.receiver
    ]
    assert source["sample_rate_hz"].get_evaluated() == station.station.sample_rate_hz
    assert source["frequency_hz"].get_evaluated() == station.station.frequency_hz


def test_single_receiver_runs_as_its_station_is_planned(platform: Platform) -> None:
    graph = load(platform, ROOT / "examples" / "single_receiver.grc")
    station = load_station(ROOT / "examples" / "single_receiver.toml")
    plan = plan_station(station)
    inference = {key: p.get_evaluated() for key, p in graph.get_block("localize_onnx_inference_0").params.items()}
    assert (inference["time_steps"], inference["window_hop"]) == (plan.time_steps, plan.window_hop)
    assert (inference["station"], inference["rows"]) == (station.station.name, plan.spec.rows)


def compile_examples(examples: Sequence[Path], folder: Path) -> list[Path]:
    grcc = shutil.which("grcc")
    assert grcc, "GNU Radio comes with grcc"
    done = subprocess.run(
        [sys.executable, grcc, "-o", folder, *examples],
        env={**os.environ, "GRC_BLOCKS_PATH": str(ROOT / "grc")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [folder / f"{example.stem}.py" for example in examples]


def compile_example(example: Path, folder: Path) -> Path:
    return compile_examples([example], folder)[0]


def test_examples_compile(tmp_path: Path) -> None:
    """Those that are not compiled to be run below."""
    others = [file for file in EXAMPLES if file.stem in ("rtlsdr", "usrp_gpsdo", "rtlsdr_reference")]
    for script in compile_examples([file for file in others if OSMOSDR or file.stem != "rtlsdr_reference"], tmp_path):
        compile(script.read_text(), script, "exec")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """Starts a compiled flowgraph as a program, in a folder of its own; ends it if the test did not."""
    started: list[subprocess.Popen[str]] = []

    def start(script: Path, *arguments: str | Path) -> subprocess.Popen[str]:
        log = (tmp_path / "log").open("w")
        program = subprocess.Popen(
            [sys.executable, "-u", script, *arguments], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        started.append(program)
        return program

    yield start
    for program in started:
        if program.poll() is None:
            program.kill()
        program.wait()


def written_fix(path: Path, program: subprocess.Popen[str], sequence: int = 0) -> Fix:
    """That fix out of the file which the program writes, once it is there."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and program.poll() is None:
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        if len(lines) > sequence:
            return fix_from_json(lines[sequence])
        time.sleep(0.1)
    pytest.fail(f"no fix; the program has ended with {program.poll()}:\n{(path.parent / 'log').read_text()}")


def ends_cleanly(program: subprocess.Popen[str], log: Path) -> str:
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0
    text = log.read_text()
    assert "Traceback" not in text
    assert "error" not in text
    return text


def distance_m(fix: Fix, latitude: float, longitude: float) -> float:
    assert fix.position is not None
    metres: float = GEOD.inv(fix.position.longitude, fix.position.latitude, longitude, latitude)[2]
    return metres


def test_single_receiver_gives_a_ring(run: Any, tmp_path: Path) -> None:
    """Around the receiver, wide enough for the emitter, and as wide as it is long."""
    script = compile_example(ROOT / "examples" / "single_receiver.grc", tmp_path)
    program = run(script, "--fixes-file", tmp_path / "fixes.jsonl")
    fix = written_fix(tmp_path / "fixes.jsonl", program)
    assert fix.uncertainty is not None
    assert distance_m(fix, 45.0690, 7.6933) < 200.0
    assert distance_m(fix, 45.0781, 7.6703) < fix.uncertainty.semi_minor_m
    assert fix.uncertainty.semi_minor_m > 0.9 * fix.uncertainty.semi_major_m
    assert (fix.station, fix.frequency_hz, fix.time_source) == ("single-receiver", 433.92e6, "rx_time")
    printed = ends_cleanly(program, tmp_path / "log")
    assert "(state . ready)" in printed
    assert "(schema . gr-localize/fix/1)" in printed


def test_four_receivers_publish_where_the_emitter_is(run: Any, tmp_path: Path) -> None:
    script = compile_example(ROOT / "examples" / "four_receivers.grc", tmp_path)
    endpoint = f"ipc://{tmp_path}/fixes"
    program = run(script, "--fixes-file", tmp_path / "fixes.jsonl", "--endpoint", endpoint)
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.subscribe("fix")
        subscriber.connect(endpoint)
        assert subscriber.poll(WAIT_S * 1e3), (tmp_path / "log").read_text()
        topic, encoded = subscriber.recv_multipart()
    assert topic == b"fix"
    fix = fix_from_json(encoded)
    assert fix.uncertainty is not None
    station = load_station(STATION)
    assert station.scene is not None
    scene = Scene(station.scene, station.receiver, sample_rate_hz=100e3, frequency_hz=433.92e6)
    assert distance_m(fix, *scene.truth(fix.timestamp.timestamp())) < 1.5 * fix.uncertainty.semi_major_m < 300.0
    assert [receiver.name for receiver in fix.receivers] == ["Superga", "Stupinigi", "Rivoli", "Venaria"]
    assert fix.alignment is not None
    assert written_fix(tmp_path / "fixes.jsonl", program, fix.sequence) == fix
    ends_cleanly(program, tmp_path / "log")


def test_five_channels_come_over_zeromq(run: Any, tmp_path: Path) -> None:
    """From one flowgraph into another, and into the station file's twin without an editor."""
    sender, receiver = compile_examples(
        [ROOT / "examples" / name for name in ("kraken_sender.grc", "kraken_zmq.grc")], tmp_path
    )
    address = f"ipc://{tmp_path}/channels"
    text = (ROOT / "examples" / "kraken_zmq.toml").read_text().replace("tcp://127.0.0.1:5600", address)
    (tmp_path / "station.toml").write_text(f'{text}[publish.file]\npath = "{tmp_path}/headless.jsonl"\n')
    sent = run(sender, "--address", address)
    program = run(
        receiver,
        "--address",
        address,
        "--fixes-file",
        tmp_path / "fixes.jsonl",
        "--endpoint",
        f"ipc://{tmp_path}/fixes",
    )
    headless = run(shutil.which("gr-localize", path=Path(sys.executable).parent), "run", tmp_path / "station.toml")
    for file, by in ((tmp_path / "fixes.jsonl", program), (tmp_path / "headless.jsonl", headless)):
        fix = written_fix(file, by, sequence=2)
        assert fix.uncertainty is not None
        assert distance_m(fix, 49.4945, 8.4330) < 250.0  # the emitter drives on at 5 m/s
        assert all(receiver.used for receiver in fix.receivers)
        ends_cleanly(by, tmp_path / "log")
    ends_cleanly(sent, tmp_path / "log")


def test_kiwi_recordings_are_located(run: Any, tmp_path: Path, data_dir: Path) -> None:
    shutil.copy(ROOT / "examples" / "dcf77.toml", tmp_path)
    for file in (data_dir / "kiwi-dcf77").glob("*.wav"):
        (tmp_path / file.name).symlink_to(file)
    script = compile_example(ROOT / "examples" / "dcf77.grc", tmp_path)
    fixes, endpoint = tmp_path / "fixes.jsonl", f"ipc://{tmp_path}/fixes"
    program = run(script, "--station-path", tmp_path / "dcf77.toml", "--fixes-file", fixes, "--endpoint", endpoint)
    assert program.wait(WAIT_S) == 0
    (line,) = fixes.read_bytes().splitlines()
    assert distance_m(fix_from_json(line), 50.0152, 9.0112) < 2e3


def test_recordings_are_replayed(run: Any, tmp_path: Path) -> None:
    """Written by `record`, and located by a model compiled for the replay: nearly the same fixes."""
    command = shutil.which("gr-localize", path=Path(sys.executable).parent)
    station = ROOT / "examples" / "four_receivers.toml"
    recorded = run(command, "record", station, "-o", tmp_path / "recordings", "--duration", "3", "--fast")
    assert recorded.wait(WAIT_S) == 0, (tmp_path / "log").read_text()
    shutil.copy(ROOT / "examples" / "sigmf_replay.toml", tmp_path)
    script = compile_example(ROOT / "examples" / "sigmf_replay.grc", tmp_path)
    fixes, endpoint = tmp_path / "fixes.jsonl", f"ipc://{tmp_path}/fixes"
    program = run(
        script, "--station-path", tmp_path / "sigmf_replay.toml", "--fixes-file", fixes, "--endpoint", endpoint
    )
    assert program.wait(WAIT_S) == 0, (tmp_path / "log").read_text()
    first, again = (
        [fix_from_json(line) for line in file.read_bytes().splitlines()]
        for file in (tmp_path / "recordings" / "fixes.jsonl", fixes)
    )
    assert len(again) >= 8
    before = {fix.timestamp: fix for fix in first}
    for fix in again:
        was = before[fix.timestamp]
        assert was.position is not None
        assert was.uncertainty is not None
        assert distance_m(fix, was.position.latitude, was.position.longitude) < was.uncertainty.semi_major_m / 2.0


def test_a_copied_example_still_finds_its_files(run: Any, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "single_receiver.grc"
    copy.parent.mkdir()
    shutil.copy(ROOT / "examples" / copy.name, copy)
    program = run(compile_example(copy, tmp_path), "--fixes-file", tmp_path / "fixes.jsonl")
    assert written_fix(tmp_path / "fixes.jsonl", program).status == "ok"
    ends_cleanly(program, tmp_path / "log")


def test_parts_connected_by_hand_locate_too(platform: Platform, tmp_path: Path) -> None:
    """Log-mel of each receiver, then each pair's correlation, as the guide draws what a localizer holds inside."""
    text = Path(STATION).read_text(encoding="utf-8")
    text = text.replace("window_s", 'channels = ["log_mel", "cross_correlation"]\nwindow_s')
    station = parse_station(text, folder=tmp_path)
    assert station.scene is not None
    plan = plan_station(station)
    contract = compile_model(plan.spec, tmp_path / "model.onnx")
    mel, correlation = (
        {key: value for key, value in config.as_dict().items() if key != "feature"}
        for config in (contract.mel_config, contract.correlation_config)
        if config is not None
    )
    scene = {"loop_track" if key == "loop" else key: value for key, value in station.scene.model_dump().items()}
    scene |= {"start_time": station.scene.start_time.isoformat(), "duration_s": 4.0}
    scene |= {"receivers": [(r.name, r.latitude, r.longitude, r.altitude_m) for r in station.receiver]}
    scene |= {"sample_rate_hz": station.station.sample_rate_hz, "frequency_hz": station.station.frequency_hz}

    graph, source = flowgraph_with(platform, "scene_source", **scene)

    def add(name: str, **values: Any) -> Any:
        block = graph.new_block(f"localize_{name}")
        block.params["id"].set_value(f"{name}_{len(graph.blocks)}")
        for key, value in values.items():
            block.params[key].set_value(expression(block.params[key], value))
        graph.rewrite()
        return block

    def connect(one: Any, output: int, other: Any, port: int) -> None:
        graph.connect(one.sources[output], other.sinks[port])

    align = add("time_align", sample_rate_hz=contract.sample_rate_hz, n_receivers=4)
    pairs = add("cross_correlation", **correlation)
    inference = add(
        "onnx_inference",
        model=str(tmp_path / "model.onnx"),
        n_channels=10,
        rows=contract.rows,
        time_steps=plan.time_steps,
        window_hop=plan.window_hop,
    )
    sink = add("file_fix_sink", path=str(tmp_path / "fixes.jsonl"))
    for receiver in range(4):
        spectrum = add("mel_spectrogram", **mel)
        connect(source, receiver, align, receiver)
        connect(align, receiver, spectrum, 0)
        connect(align, receiver, pairs, receiver)
        connect(spectrum, 0, inference, receiver)
    for pair in range(6):
        connect(pairs, pair, inference, 4 + pair)
    connect(inference, 0, sink, 0)
    graph.rewrite()
    graph.validate()
    assert graph.is_valid(), [message for _, message in graph.iter_error_messages()]

    generated(graph, tmp_path).flowgraph().run()
    fixes = [fix_from_json(line) for line in (tmp_path / "fixes.jsonl").read_bytes().splitlines()]
    assert len(fixes) >= 14
    truth = Scene(station.scene, station.receiver, sample_rate_hz=contract.sample_rate_hz, frequency_hz=433.92e6).truth
    for fix in fixes:
        assert fix.uncertainty is not None
        assert distance_m(fix, *truth(fix.timestamp.timestamp())) < 2.0 * fix.uncertainty.semi_major_m < 400.0


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ({"n_channels": 3}, "n_channels=3: the model compiled-single-receiver wants 1 (log_mel Mole)"),
        ({"rows": 64}, "rows=64: the model compiled-single-receiver wants 128"),
    ],
)
def test_ports_drawn_for_another_model_are_named(drawn: dict[str, int], message: str) -> None:
    with pytest.raises(LocalizeError, match=re.escape(message)):
        localize.onnx_inference(MODEL, time_steps=8, **drawn)
