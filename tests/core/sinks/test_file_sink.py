from __future__ import annotations

import json
import logging
import random
import signal
import subprocess
import sys
import time

import geojson
import pytest
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.file_sink import FileFixSink
from localize_core.wire.fix_json import fix_from_json, fix_to_json
from localize_core.wire.geojson import fix_to_geojson


@pytest.fixture
def open_sink():
    sinks = []

    def open_one(path, **options):
        sink = FileFixSink(path, **options)
        sink.open()
        sinks.append(sink)
        return sink

    yield open_one
    for sink in sinks:
        sink.close()


def sequences(path):
    """The sequence numbers in a file of complete lines."""
    content = path.read_bytes()
    assert content.endswith(b"\n") or not content
    return [fix_from_json(line).sequence for line in content.splitlines()]


def features(path):
    """The texts of a GeoJSON sequence, read as RFC 8142 says."""
    first, *records = path.read_bytes().split(b"\x1e")
    assert first == b""
    assert all(record.endswith(b"\n") for record in records)
    return [json.loads(record) for record in records]


def test_one_line_a_fix_across_reopening(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    for start in (0, 3):
        sink = open_sink(path)
        assert all(sink.publish(make_fix(sequence=start + n)) for n in range(3))
        assert (sink.sent, sink.dropped) == (3, 0)
        sink.close()
        sink.close()
    assert sequences(path) == [0, 1, 2, 3, 4, 5]
    assert fix_from_json(path.read_text().splitlines()[0]) == make_fix(sequence=0)


def test_rotation_never_splits_a_line_and_keeps_order(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    length = len(fix_to_json(make_fix(sequence=10))) + 1
    sink = open_sink(path, max_bytes=3 * length + length // 2, max_files=3)
    for sequence in range(10, 31):
        assert sink.publish(make_fix(sequence=sequence))
    assert sequences(tmp_path / "fixes.jsonl.2") == [22, 23, 24]
    assert sequences(tmp_path / "fixes.jsonl.1") == [25, 26, 27]
    assert sequences(path) == [28, 29, 30]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_is_filled_to_the_byte(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    length = len(fix_to_json(make_fix(sequence=10))) + 1
    sink = open_sink(path, max_bytes=2 * length)
    for sequence in range(10, 13):
        sink.publish(make_fix(sequence=sequence))
    assert sequences(tmp_path / "fixes.jsonl.1") == [10, 11]
    assert sequences(path) == [12]


def test_a_single_file_starts_over(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    sink = open_sink(path, max_bytes=1, max_files=1)
    for sequence in range(3):
        assert sink.publish(make_fix(sequence=sequence))
    assert sequences(path) == [2]
    assert list(tmp_path.iterdir()) == [path]


def test_rotation_that_fails_is_counted_and_mended(open_sink, make_fix, tmp_path, caplog):
    path = tmp_path / "fixes.jsonl"
    obstacle = tmp_path / "fixes.jsonl.1" / "in the way"
    obstacle.mkdir(parents=True)
    sink = open_sink(path, max_bytes=1, max_files=2)
    assert [sink.publish(make_fix(sequence=n)) for n in range(3)] == [True, False, False]
    assert sink.dropped == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    obstacle.rmdir()
    obstacle.parent.rmdir()
    assert sink.publish(make_fix(sequence=3))
    assert (sequences(tmp_path / "fixes.jsonl.1"), sequences(path)) == ([0], [3])


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0" * 70_000])
@pytest.mark.parametrize("kept", [1, 10, 200, None])
def test_an_unfinished_line_is_removed(open_sink, make_fix, tmp_path, caplog, kept, tail):
    path = tmp_path / "fixes.jsonl"
    line = fix_to_json(make_fix(sequence=1)).encode()
    path.write_bytes(line + b"\n" + line[:kept] + tail)
    sink = open_sink(path)
    assert "cut short" in caplog.text
    sink.publish(make_fix(sequence=2))
    assert sequences(path) == [1, 2]


def test_a_geojson_sequence(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.geojsons"
    fixes = [make_fix(sequence=0), make_fix(sequence=1, reason="silence")]
    for fix in fixes:
        sink = open_sink(path, format="geojson-seq")
        assert sink.publish(fix)
        sink.close()
    assert features(path) == [fix_to_geojson(fix) for fix in fixes]
    assert all(geojson.loads(json.dumps(feature)).is_valid for feature in features(path))


def test_a_geojson_sequence_is_rotated(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.geojsons"
    sink = open_sink(path, format="geojson-seq")
    sink.publish(make_fix())
    sink.close()
    sink = open_sink(path, format="geojson-seq", max_bytes=path.stat().st_size + 10)
    sink.publish(make_fix())
    assert features(path) == features(tmp_path / "fixes.geojsons.1") == [fix_to_geojson(make_fix())]


@pytest.mark.parametrize("whole", [0, 1])
@pytest.mark.parametrize("kept", [1, 2, 10, 200])
def test_an_unfinished_feature_is_removed(open_sink, make_fix, tmp_path, caplog, kept, whole):
    path = tmp_path / "fixes.geojsons"
    sink = open_sink(path, format="geojson-seq")
    sink.publish(make_fix())
    sink.close()
    record = path.read_bytes()
    path.write_bytes(whole * record + record[:kept] + b"\0\0")
    sink = open_sink(path, format="geojson-seq")
    assert "cut short" in caplog.text
    sink.publish(make_fix())
    assert len(features(path)) == whole + 1


@pytest.mark.parametrize("cut_short", [False, True])
@pytest.mark.parametrize(("before", "now"), [("jsonl", "geojson-seq"), ("geojson-seq", "jsonl")])
def test_a_file_keeps_its_format(open_sink, make_fix, tmp_path, before, now, cut_short):
    path = tmp_path / "fixes"
    sink = open_sink(path, format=before)
    sink.publish(make_fix())
    sink.close()
    if cut_short:
        path.write_bytes(path.read_bytes()[:100])
    content = path.read_bytes()
    with pytest.raises(PublishError, match=f"fixes: it is {before}, not {now}"):
        open_sink(path, format=now)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"precious\n", b"precious", b"precious\nnotes", b'{"other": "json"}', b"\nx\0"])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(PublishError, match=r"notes\.txt.*no part of a fix"):
        FileFixSink(path).open()
    assert path.read_bytes() == content


def test_a_second_writer_is_refused_until_the_first_closes(open_sink, make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    first = open_sink(path, max_bytes=1)
    with pytest.raises(PublishError, match="another sink"):
        FileFixSink(path).open()
    first.publish(make_fix())
    first.publish(make_fix())  # now in a new file, which is locked too
    with pytest.raises(PublishError, match="another sink"):
        FileFixSink(path).open()
    first.close()
    open_sink(path)


@pytest.mark.parametrize("path", [".", "missing/fixes.jsonl"])
def test_what_cannot_be_written_is_named(tmp_path, path):
    with pytest.raises(PublishError, match=str(tmp_path / path)):
        FileFixSink(tmp_path / path).open()


def test_publishing_while_closed_is_a_drop(make_fix, tmp_path):
    sink = FileFixSink(tmp_path / "fixes.jsonl")
    assert not sink.publish(make_fix())
    assert (sink.sent, sink.dropped) == (0, 1)
    assert not sink.path.exists()


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_files": 0}, {"path": ""}, {"format": "csv"}])
def test_bad_parameter_is_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        FileFixSink(**({"path": "fixes.jsonl"} | options))


WRITER = """
import dataclasses, itertools, sys
from localize_core.sinks.file_sink import FileFixSink
from localize_core.wire.fix_json import fix_from_json
fix = fix_from_json(sys.argv[2])
sink = FileFixSink(sys.argv[1], max_bytes=200_000, max_files=1000)
sink.open()
for sequence in itertools.count():
    sink.publish(dataclasses.replace(fix, sequence=sequence))
"""


def test_kill_9_leaves_complete_lines_without_gaps(open_sink, make_fix, tmp_path):
    choose = random.Random(1)
    line = fix_to_json(make_fix(station="x" * 20_000))
    for attempt in range(4):
        path = tmp_path / str(attempt) / "fixes.jsonl"
        path.parent.mkdir()
        with subprocess.Popen([sys.executable, "-c", WRITER, path, line]) as process:
            wanted = choose.randrange(2, 30)
            while len(list(path.parent.iterdir())) < wanted:  # that many rotations
                assert process.poll() is None
                time.sleep(choose.uniform(0.0, 0.002))
            process.send_signal(signal.SIGKILL)
        sink = open_sink(path)
        sink.publish(make_fix(sequence=10**9))
        sink.close()
        files = sorted(path.parent.iterdir(), key=lambda file: int(file.suffix[1:]) if file.suffix[1:].isdigit() else 0)
        written = [sequence for file in reversed(files) for sequence in sequences(file)]
        assert written == [*range(len(written) - 1), 10**9]


DISK_FULL = """
import dataclasses, logging, resource, sys
from localize_core.sinks.file_sink import FileFixSink
from localize_core.wire.fix_json import fix_from_json
logging.basicConfig(stream=sys.stderr, format="%(message)s")
fix = fix_from_json(sys.argv[2])
sink = FileFixSink(sys.argv[1])
sink.open()
def publish(count):
    for _ in range(count):
        sink.publish(fix)
        with open(sys.argv[1], "rb") as file:
            assert file.read()[-1:] in (b"", b"\\n"), "part of a line stayed"
    print(sink.sent, sink.dropped)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # two fixes and a part of the third
publish(5)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
publish(1)
"""


def test_a_full_disk_drops_whole_lines_and_recovers(make_fix, tmp_path):
    path = tmp_path / "fixes.jsonl"
    line = fix_to_json(make_fix())
    assert 2 * (len(line) + 1) < 2000 < 3 * len(line)
    done = subprocess.run([sys.executable, "-c", DISK_FULL, path, line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["2 3", "3 3"]
    assert done.stderr.count("dropping fixes") == 1
    assert [json.loads(text)["sequence"] for text in path.read_text().splitlines()] == [412] * 3


def test_no_space_left_is_logged_once(open_sink, make_fix, caplog):
    sink = open_sink("/dev/full")
    assert not any(sink.publish(make_fix()) for _ in range(3))
    assert (sink.sent, sink.dropped) == (0, 3)
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
