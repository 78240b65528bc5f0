"""The station file: every key within its range, every mistake named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.errors import ConfigError
from localize_core.station.config import HttpTable, MetricsTable, Station, load_station, parse_station
from localize_core.tracking.settings import TrackerSettings

MINIMAL = """
[station]
name = "test"
sample_rate_hz = 48e3
frequency_hz = 100e6

[[receiver]]
name = "north"
latitude = 47.1
longitude = 8.0
source = { kind = "scene" }

[[receiver]]
name = "south"
latitude = 46.9
longitude = 8.0
source = { kind = "scene" }

[area]
south = 46.8
west = 7.8
north = 47.2
east = 8.2

[scene]
track = [[47.0, 8.0]]
"""

REFERENCE_HZ = 100.01e6
REFERENCE = f"""
[reference]
latitude = 47.0
longitude = 8.1
frequency_hz = {REFERENCE_HZ}
bandwidth_hz = 1000.0
"""

HOUSE_PLAN = """
[station]
name = "dcf77"
sample_rate_hz = 12000.0
frequency_hz = 77500.0

[[receiver]]
name = "HB9ODP"
latitude = 46.499351
longitude = 8.798828
[receiver.source]
kind = "kiwi-wav"
path = "20200813T065220Z_77500_HB9ODP_iq.wav"

[area]                            # where an emitter may be
south = 45.0
west = -2.0
north = 55.0
east = 14.0

[features]                        # optional: left out, chosen from rate, geometry and sources
[model]
uri = "compiled"
[cache]                           # off for live streams unless asked for
[publish]                         # zmq, redis, file, …: any number
[metrics]
"""


def parse(text: str) -> Station:
    return parse_station(text, folder=Path("/somewhere"))


def with_table(table: str, line: str) -> str:
    """MINIMAL with one more line in a table, which may be there already with another value of that key."""
    key = line.split("=")[0].strip()
    lines, inside, done = [], False, False
    for old in (MINIMAL + REFERENCE * (table == "[reference]")).splitlines():
        if old.startswith("["):
            inside = old == table and not done
        if inside and old.split("=")[0].strip() == key:
            continue
        lines.append(old)
        if inside and old.startswith("[") and not done:
            lines.append(line)
            done = True
    return "\n".join(lines if done else [*lines, table, line])


def test_the_least_that_a_station_needs():
    station = parse(MINIMAL)
    assert [receiver.name for receiver in station.receiver] == ["north", "south"]
    assert station.source_kind == "scene"
    assert station.has_common_clock
    assert station.model.uri == "compiled"
    assert (station.publish.zmq, station.publish.file) == ([], [])
    assert station.metrics is None


def test_the_station_file_of_the_house_plan(data_dir):
    station = parse_station(HOUSE_PLAN, folder=data_dir / "kiwi-dcf77")
    assert station.receiver[0].source.path.is_file()
    assert station.metrics is not None
    assert (station.metrics.host, station.metrics.port) == ("127.0.0.1", 9464)


GOOD_AND_BAD: list[tuple[str, str, list[Any], list[Any]]] = [
    ("[station]", "name", ["x"], ["", 5]),
    ("[station]", "sample_rate_hz", [1.0, 2_000_000], [0.0, -1.0, "fast", "nan", "inf"]),
    ("[station]", "frequency_hz", [1.0], [0.0, -5.0]),
    ("[station]", "common_clock", [True, False], ["maybe"]),
    ("[[receiver]]", "name", ["x"], [""]),
    ("[[receiver]]", "latitude", [-90.0, 90.0], [-90.1, 91.0, "north"]),
    ("[[receiver]]", "longitude", [-180.0, 180.0], [-181.0, 180.5]),
    ("[[receiver]]", "altitude_m", [-500.0, 50e3], [-501.0, 60e3]),
    ("[[receiver]]", "timing_sigma_ns", [0.1], [0.0, -1.0]),
    ("[[receiver]]", "gain_sigma_db", [0.0], [-0.1]),
    ("[[receiver]]", "noise_dbfs", [0.0, -90.0], [0.1]),
    ("[area]", "south", [-89.0 + 130.0], [47.2, 47.3, -91.0]),
    ("[area]", "north", [47.0], [46.8, 46.0, 91.0]),
    ("[area]", "west", [-80.0], [8.2, 9.0, -181.0]),
    ("[area]", "east", [90.0], [7.8, 7.0, 361.0, 98.0]),
    ("[area]", "altitude_m", [0.0, 10e3, -500.0], [-501.0, 51e3]),
    ("[features]", "channels", [["log_mel"], ["log_mel", "cross_correlation"]], [[], ["mfcc"], ["log_mel"] * 2]),
    ("[features]", "rows", [8, 4096], [7, 4097, 8.5]),
    ("[features]", "n_fft", [16, 1 << 20], [15, (1 << 20) + 1]),
    ("[features]", "hop", [1, 1 << 20], [0, (1 << 20) + 1]),
    ("[features]", "lag_step", [0.01, 64.0], [0.0, 64.1]),
    ("[features]", "signal", ["iq", "envelope", "phase"], ["real"]),
    ("[features]", "weighting", ["plain", "phat"], ["scot"]),
    ("[features]", "window_s", [0.001], [0.0, -1.0]),
    ("[features]", "window_hop_s", [0.001], [0.0]),
    ("[propagation]", "timing_sigma_ns", [0.0], [-1.0]),
    ("[propagation]", "max_speed_mps", [0.1, 10e3], [0.0, 10_001.0]),
    ("[propagation]", "path_loss_exponent", [1.0, 8.0], [0.9, 8.1]),
    ("[propagation]", "path_loss_exponent_sigma", [0.0, 2.0], [-0.1, 2.1]),
    ("[propagation]", "shadowing_db", [0.0, 30.0], [-0.1, 31.0]),
    ("[propagation]", "level_dbfs_at_1km", [-30.0], ["loud", "inf"]),
    ("[propagation]", "level_sigma_db", [0.1], [0.0]),
    ("[metrics]", "host", ["127.0.0.1", "0.0.0.0", "::1"], [""]),
    ("[metrics]", "port", [0, 9464, 65535], [-1, 65536, "http"]),
    ("[model]", "uri", ["compiled", "other.onnx"], [""]),
    ("[model]", "registry", ["sqlite:///models.db", "http://127.0.0.1:5000"], [5]),
    ("[model]", "poll_s", [0.0, 3600.0], [-1.0, 90_000.0]),
    ("[model]", "contract", ["model.json"], [5]),
    ("[model]", "fallback", ["compiled", "local.onnx"], ["", "grpc://nowhere"]),
    ("[model]", "deadline_ms", [1.0, 1000.0], [0.0, 70_000.0]),
    ("[model]", "max_in_flight", [1, 256], [0, 257]),
    ("[model]", "session", [{"threads": 2, "providers": ["cuda", "cpu"], "strict": True}], [{"threads": 0}]),
    (
        "[model]",
        "queue",
        [{"drop": "newest", "max_delay_ms": 2.5}],
        [{"windows": 0}, {"max_batch": 1, "max_delay_ms": 1}],
    ),
    ("[model]", "challenger", [{"uri": "b.onnx", "mode": "canary"}], [{"uri": "compiled"}, {"uri": "b", "mode": "x"}]),
    ("[model]", "min_confidence", [0.0, 1.0], [-0.1, 1.1]),
    ("[model]", "probability", [0.5], [0.0, 1.0]),
    ("[model]", "peaks", [1, 8], [0, 9]),
    ("[tracker]", "acceleration_mps2", [0.01, 1e4], [0.0, -1.0, 1e5]),
    ("[tracker]", "max_speed_mps", [0.1, 1e4], [0.0, 1e5]),
    ("[tracker]", "gate", [0.5, 0.9999], [0.4, 1.0]),
    ("[tracker]", "confirm", [2, 100], [1, 101]),
    ("[tracker]", "lost_s", [0.1, 86_400.0], [0.0, 1e6]),
    ("[tracker]", "common", [0.0, 0.99], [-0.1, 1.0]),
    ("[tracker]", "lag_s", [0.0, 600.0], [-0.1, 601.0]),
    ("[tracker]", "max_tracks", [1, 256], [0, 257]),
    *(
        ("[reference]", key, good, bad)
        for key, good, bad in [
            ("name", ["x"], [""]),
            ("latitude", [-90.0, 90.0], [-90.1, 91.0, "north"]),
            ("longitude", [-180.0, 180.0], [-181.0, 180.5]),
            ("altitude_m", [-500.0, 50e3], [-501.0, 60e3]),
            ("frequency_hz", [REFERENCE_HZ], [0.0, 1e9]),
            ("bandwidth_hz", [100.0], [0.0, -1.0, 90e6]),
            ("carrier", ["shared", "independent"], ["none"]),
            ("max_ppm", [0.1, 20.0], [0.0, 201.0]),
            ("search_s", [0.001, 10.0], [0.0, 11.0]),
            ("block_s", [0.02, 2.0], [0.0, 2.1]),
            ("wander_ppb", [0.1, 1000.0], [0.0, 1001.0]),
            ("max_error_ns", [1.0, 1e6], [0.0, 2e6]),
            ("timing_sigma_ns", [0.0, 1e6], [-1.0, 2e6]),
        ]
    ),
    ("[alignment]", "clocks", ["fitted", "trusted"], ["true", ""]),
    ("[alignment]", "max_wait_s", [0.01, 60.0], [0.0, -1.0, 61.0]),
    ("[alignment]", "fill_gaps_s", [0.0, 60.0], [-0.1, 61.0]),
    ("[alignment]", "acquire_s", [0.01, 60.0], [0.0, 61.0]),
    ("[cache]", "live", [True, False], ["maybe"]),
    ("[cache]", "replay", [True, False], [5]),
    ("[cache]", "requests", [True, False], [5]),
    ("[cache]", "ttl_s", [1, 2_592_000], [0, -1, 2_592_001]),
    ("[cache]", "max_items", [1, 100_000_000], [0, -1]),
    ("[cache]", "max_bytes", [1200, 1 << 30], [1199]),
    ("[cache]", "redis", ["redis://localhost:6379/0", "rediss://a:b@host"], ["localhost", "redis://h?timeout=5", ""]),
    ("[cache]", "timeout_ms", [0.5, 100.0], [0.0, 101.0, "nan"]),
    ("[cache]", "prefix", ["", "site:"], [5]),
    ("[cache]", "similar", [{}, {"max_age_s": 2.5, "max_windows": 8}], [{"max_age_s": 0}, {"power": 1.0}]),
    ("[http]", "host", ["0.0.0.0", "::1", "localhost"], ["", "http://a", "[::1]", "a:b c"]),
    ("[http]", "port", [0, 8080, 65_535], [-1, 65_536]),
    ("[http]", "token_file", ["token", "/run/secrets/token"], [5]),
    ("[http]", "history", [1, 1_000_000], [0, 1_000_001]),
    ("[http]", "tiles", ["", "/tiles/{z}/{x}/{y}.png", "https://{s}.a.org/{z}/{x}/{y}.png"], ["https://a.org/", "x"]),
    ("[http]", "attribution", ["", "© somebody"], [5]),
    ("[http]", "max_body_bytes", [1024, 1 << 32], [1023, (1 << 32) + 1]),
    ("[http]", "queue_requests", [0, 10_000], [-1, 10_001]),
    ("[http]", "cors_origins", [[], ["https://map.example.org:8443"]], ["*", ["*"], ["https://a.org/"]]),
    ("[publish.zmq]", "endpoint", ["tcp://*:5555"], [5]),
    ("[publish.zmq]", "high_water_mark", [1], [0]),
    ("[publish.zmq]", "linger_ms", [0], [-1]),
    ("[publish.zmq]", "curve_secret_key_file", ["keys/server.key_secret"], [5]),
    ("[publish.zmq]", "curve_clients", ["clients"], [5]),
    ('[publish.file]\npath = "a"', "format", ["jsonl", "geojson-seq"], ["csv"]),
    ('[publish.file]\npath = "a"', "max_bytes", [1024], [1023]),
    ('[publish.file]\npath = "a"', "max_files", [1], [0]),
    ("[publish.redis]", "url", ["rediss://a:b@host:6379/1"], ["http://host", "redis://h?timeout=5", 5]),
    ("[publish.redis]", "prefix", ["site"], [""]),
    ("[publish.redis]", "max_len", [1], [0]),
    ("[publish.redis]", "capacity", [1], [0]),
    ("[publish.redis]", "linger_ms", [0], [-1]),
    ("[publish.mqtt]", "url", ["mqtts://a:b@host:8883"], ["tcp://host", "mqtt://h/x", 5]),
    ("[publish.mqtt]", "topic", ["sites/here"], [""]),
    ("[publish.mqtt]", "qos", [0, 1, 2], [3, -1]),
    ("[publish.mqtt]", "retain", [True], ["maybe"]),
    ("[publish.mqtt]", "capacity", [1], [0]),
    ("[publish.mqtt]", "linger_ms", [0], [-1]),
    ("[publish.mqtt]", "ca_file", ["ca.pem"], [5]),
    ("[publish.mqtt]", "cert_file", ["ours.pem"], [5]),
    ("[publish.mqtt]", "key_file", ["ours.key"], [5]),
    ("[publish.mqtt]", "client_id", ["station-1"], [5]),
    ("[publish.cot]", "url", ["tls://tak.example:8089"], [5]),
    ("[publish.cot]", "cot_type", ["a-h-G"], [5]),
    ("[publish.cot]", "stale_s", [0.5], [0.0, "nan"]),
    ("[publish.cot]", "multicast_ttl", [0, 255], [-1, 256]),
    ("[publish.cot]", "interface", ["eth0"], [5]),
    ("[publish.cot]", "ca_file", ["ca.pem"], [5]),
    ("[publish.cot]", "cert_file", ["ours.pem"], [5]),
    ("[publish.cot]", "key_file", ["ours.key"], [5]),
    ("[publish.cot]", "server_name", ["takserver"], [5]),
    ("[publish.cot]", "capacity", [1], [0]),
    ("[publish.cot]", "linger_ms", [0], [-1]),
]


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if value in ("nan", "inf"):
        return str(value)
    return repr(value).replace("'", '"')


@pytest.mark.parametrize(
    ("table", "key", "value"), [(table, key, v) for table, key, good, _ in GOOD_AND_BAD for v in good]
)
def test_values_in_range(table, key, value):
    parse(with_table(table, f"{key} = {toml(value)}"))


@pytest.mark.parametrize(
    ("table", "key", "value"), [(table, key, v) for table, key, _, bad in GOOD_AND_BAD for v in bad]
)
def test_values_out_of_range_are_named(table, key, value):
    with pytest.raises(ConfigError) as raised:
        parse(with_table(table, f"{key} = {toml(value)}"))
    assert key in str(raised.value)
    if isinstance(value, (int, float)):
        assert str(value) in str(raised.value)


def test_every_key_has_a_range_or_a_reason():
    """A new key is to be listed above."""
    tested = {(table.strip("[]"), key) for table, key, _, _ in GOOD_AND_BAD}
    for name in ("station", "area", "features", "propagation", "model", "alignment", "cache"):
        table = Station.model_fields[name].annotation
        assert table is not None
        assert {key for tab, key in tested if tab == name} == set(table.model_fields)
    assert {key for tab, key in tested if tab == "reference"} == set(ReferenceSettings.model_fields)
    assert {key for tab, key in tested if tab == "http"} == set(HttpTable.model_fields)
    assert {key for tab, key in tested if tab == "metrics"} == set(MetricsTable.model_fields)
    assert {key for tab, key in tested if tab == "tracker"} == set(TrackerSettings.model_fields)


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ("[station]", "station.colour"),
        ("[[receiver]]", "receiver north.colour"),
        ("[area]", "area.colour"),
        ("[features]", "features.colour"),
        ("[propagation]", "propagation.colour"),
        ("[model]", "model.colour"),
        ("[reference]", "reference.colour"),
        ("[alignment]", "alignment.colour"),
        ("[tracker]", "tracker.colour"),
        ("[cache]", "cache.colour"),
        ("[metrics]", "metrics.colour"),
        ("[http]", "http.colour"),
        ("[publish]", "publish.colour"),
        ("[publish.zmq]", "publish.zmq.0.colour"),
        ("[[publish.file]]", "publish.file.0.colour"),
        ("[publish.redis]", "publish.redis.0.colour"),
        ("[publish.mqtt]", "publish.mqtt.0.colour"),
        ("[publish.cot]", "publish.cot.0.colour"),
        ("[scene]", "scene.colour"),
        ("[colour]", "colour"),
    ],
)
def test_an_unknown_key_is_named(table, path):
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        parse(with_table(table, 'colour = "red"'))


def test_answers_are_kept_unless_streams_are_live():
    cache = parse(MINIMAL).cache
    assert (cache.live, cache.replay, cache.requests, cache.redis) == (False, True, True, None)


def test_passwords_are_not_repeated():
    with pytest.raises(ConfigError, match=r"cache\.redis") as raised:
        parse(with_table("[cache]", 'redis = "redis://station:hunter2@host/zero"'))
    assert "hunter2" not in str(raised.value)
    assert "redis://station:…@host/zero" in str(raised.value)


@pytest.mark.parametrize("sink", ["redis", "mqtt"])
def test_passwords_of_sinks_are_not_repeated(sink):
    with pytest.raises(ConfigError, match=rf"publish\.{sink}\.0\.url") as raised:
        parse(with_table(f"[publish.{sink}]", f'url = "{sink}://station:hunter2@host/zero"'))
    assert "hunter2" not in str(raised.value)


def test_receivers_without_a_source_are_for_flowgraphs():
    """Their streams come from elsewhere, and nothing is known of their clocks."""
    text = MINIMAL.replace('source = { kind = "scene" }\n', "")
    assert parse(text).source_kind == "none"
    assert not parse(text).has_common_clock
    assert parse(text.replace("[station]", "[station]\ncommon_clock = true")).has_common_clock
    with pytest.raises(ConfigError, match=r"\['none', 'scene'\]"):
        parse(MINIMAL.replace('source = { kind = "scene" }\n', "", 1))


def test_an_unknown_key_of_a_source():
    with pytest.raises(ConfigError, match=r"receiver north\.source\.colour: unknown key; allowed: kind"):
        parse(MINIMAL.replace('{ kind = "scene" }', '{ kind = "scene", colour = "red" }', 1))


def test_an_unknown_kind_of_source():
    wanted = r"receiver north\.source\.kind: wanted one of 'kiwi-wav', 'sigmf', 'scene', .*'zmq'"
    with pytest.raises(ConfigError, match=wanted + r" \(given: 'crystal'\)"):
        parse(MINIMAL.replace('kind = "scene"', 'kind = "crystal"', 1))
    with pytest.raises(ConfigError, match=wanted + ", found none"):
        parse(MINIMAL.replace('kind = "scene"', 'path = "crystal"', 1))


def test_a_sigmf_source():
    text = MINIMAL.replace('{ kind = "scene" }', '{ kind = "sigmf", path = "a.sigmf-meta", channel = 1 }', 1)
    text = text.replace('{ kind = "scene" }', '{ kind = "sigmf", path = "a.sigmf-meta" }')
    station = parse(text)
    assert (station.source_kind, station.is_recorded, station.has_common_clock) == ("sigmf", True, True)
    assert station.receiver[0].source.path == Path("/somewhere/a.sigmf-meta")
    assert station.receiver[0].source.channel == 1
    for wrong in ("channel = -1", "channel = 0.5", "path = 5"):
        with pytest.raises(ConfigError, match=rf"receiver north\.source\.{wrong.split()[0]}"):
            parse(re.sub(rf"{wrong.split()[0]} = [^,}}]*", wrong, text))
    with pytest.raises(ConfigError, match="two receivers have the same recording and channel"):
        parse(text.replace(", channel = 1", ""))
    with pytest.raises(ConfigError, match=r"unknown key, did you mean channel\?; allowed: channel, kind, path"):
        parse(text.replace("channel", "chanel"))


def test_an_unknown_key_hints_at_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"station\.sample_rate: unknown key, did you mean sample_rate_hz\?"):
        parse(MINIMAL.replace("sample_rate_hz", "sample_rate", 1))


@pytest.mark.parametrize("table", ["station", "receiver", "area"])
def test_a_missing_table(table):
    lines = MINIMAL.split("\n\n")
    text = "\n\n".join(part for part in lines if not part.strip().startswith((f"[{table}]", f"[[{table}]]")))
    with pytest.raises(ConfigError, match=table):
        parse(text)


def test_receivers_with_one_name():
    with pytest.raises(ConfigError, match="more than once: north"):
        parse(MINIMAL.replace('"south"', '"north"'))


def test_sources_of_two_kinds():
    with pytest.raises(ConfigError, match=r"\['kiwi-wav', 'scene'\]"):
        parse(MINIMAL.replace('{ kind = "scene" }', '{ kind = "kiwi-wav", path = "a.wav" }', 1))


def test_a_scene_source_without_a_scene():
    with pytest.raises(ConfigError, match=r"\[scene\]"):
        parse(MINIMAL[: MINIMAL.index("[scene]")])


def test_too_many_receivers():
    one = MINIMAL[MINIMAL.index("[[receiver]]") : MINIMAL.index("[area]")]
    many = "".join(one.replace("north", f"n{k}").replace('"south"', f'"s{k}"') for k in range(17))
    with pytest.raises(ConfigError, match="receiver"):
        parse(MINIMAL.replace(one, many))


def test_not_toml(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[station\nname = ")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML.*line 1"):
        load_station(path)


def test_not_text(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read"):
        load_station(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"^\S+/none\.toml: cannot be read: No such file or directory$"):
        load_station(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: is a folder without station\.toml, and so no recording"):
        load_station(tmp_path)


def test_paths_start_at_the_station_file_or_where_asked(tmp_path):
    path = tmp_path / "station.toml"
    path.write_text(HOUSE_PLAN.replace('"compiled"', '"models/m.onnx"'))
    station = load_station(path)
    assert station.receiver[0].source.path == tmp_path / "20200813T065220Z_77500_HB9ODP_iq.wav"
    assert station.model.uri == str(tmp_path / "models/m.onnx")
    elsewhere = load_station(path, folder=tmp_path / "elsewhere")
    assert elsewhere.receiver[0].source.path.parent == tmp_path / "elsewhere"


def test_keys_and_certificates_lie_beside_the_station_file():
    zmq = 'zmq = { curve_secret_key_file = "server.key_secret", curve_clients = "/etc/clients" }'
    cot = 'cot = { url = "tls://tak.example:8089", ca_file = "ca.pem", cert_file = "ours.pem", key_file = "ours.key" }'
    publish = parse(f"{MINIMAL}[publish]\n{zmq}\n{cot}\n").publish
    mqtt = parse(f'{MINIMAL}[publish]\nmqtt = {{ url = "mqtts://h", ca_file = "ca.pem" }}\n').publish.mqtt[0]
    assert (mqtt.ca_file, mqtt.cert_file) == (Path("/somewhere/ca.pem"), None)
    assert publish.zmq[0].curve_secret_key_file == Path("/somewhere/server.key_secret")
    assert publish.zmq[0].curve_clients == Path("/etc/clients")
    table = publish.cot[0]
    assert [path.parent for path in (table.ca_file, table.cert_file, table.key_file)] == [Path("/somewhere")] * 3
    (plain,) = parse(f"{MINIMAL}[publish]\nzmq = {{}}\n").publish.zmq
    assert (plain.curve_secret_key_file, plain.curve_clients) == (None, None)


def test_publishing_is_one_table_or_many(tmp_path):
    one = parse(MINIMAL + '[publish]\nfile = { path = "a.jsonl" }\n')
    two = parse(MINIMAL + '[[publish.file]]\npath = "a.jsonl"\n[[publish.file]]\npath = "b.jsonl"\n')
    assert [table.path.name for table in one.publish.file] == ["a.jsonl"]
    assert [table.path.name for table in two.publish.file] == ["a.jsonl", "b.jsonl"]


def test_a_clock_that_is_told():
    assert not parse(with_table("[station]", "common_clock = false")).has_common_clock


def test_a_channel_data_set_lies_beside_the_station_file():
    text = MINIMAL.replace("track = [[47.0, 8.0]]", 'channels = "town.npz"\nchannel_rows = [3, 1]')
    station = parse_station(text, folder=Path("/somewhere"))
    assert station.scene is not None
    assert station.scene.channels == "/somewhere/town.npz"
    assert station.scene.channel_rows == (3, 1)
    with pytest.raises(ConfigError, match=r"scene: speed_mps=2\.0: means nothing with a channel data set"):
        parse_station(text + "speed_mps = 2.0", folder=Path())
    with pytest.raises(ConfigError, match=r"scene\.track: needs at least one point, or `channels`"):
        parse_station(MINIMAL.replace("track = [[47.0, 8.0]]", ""), folder=Path())


def test_the_token_of_http_stands_in_a_file_beside_the_station(tmp_path):
    station = parse_station(with_table("[http]", 'token_file = "token"'), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"token_file=.*cannot be read"):
        assert station.http.settings
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o604)
    with pytest.raises(ConfigError, match="anybody can read it"):
        assert station.http.settings
    (tmp_path / "token").chmod(0o600)
    assert station.http.settings.token == "0123456789abcdef"
    (tmp_path / "token").write_text("\n0123456789abcdef")
    with pytest.raises(ConfigError, match="first line is empty"):
        assert station.http.settings


def test_a_token_in_the_station_file_is_not_repeated():
    with pytest.raises(ConfigError, match=r"http\.token: unknown key.*token_file") as raised:
        parse(with_table("[http]", 'token = "0123456789abcdef"'))
    assert "0123456789" not in str(raised.value)


def test_a_reference_makes_a_common_clock():
    text = MINIMAL.replace('source = { kind = "scene" }\n', "")
    assert not parse(text).has_common_clock
    assert parse(text + REFERENCE).has_common_clock
    assert not parse(text.replace("[station]", "[station]\ncommon_clock = false") + REFERENCE).has_common_clock


def test_a_reference_that_cannot_be_heard_is_refused():
    with pytest.raises(ConfigError, match=r"reference\.frequency_hz=100030000\.0.*at most 0\.45"):
        parse(MINIMAL + REFERENCE.replace("100010000.0", "100030000.0"))
    one = MINIMAL[: MINIMAL.index('[[receiver]]\nname = "south"')] + MINIMAL[MINIMAL.index("[area]") :]
    with pytest.raises(ConfigError, match="two receivers or more"):
        parse(one + REFERENCE)
    with pytest.raises(ConfigError, match="fitted"):
        parse(MINIMAL + REFERENCE + '[alignment]\nclocks = "fitted"\n')
