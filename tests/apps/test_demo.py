from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import zmq
from localize_apps.demo import demo_station, error_m, scene_of, summary_line, truth_track
from localize_apps.demo_picture import draw
from localize_apps.demo_view import DemoView, DotMap, sparkline
from localize_apps.main import main
from localize_core.errors import PublishError
from localize_core.score import score
from localize_core.types.fix import Fix, Position
from localize_core.wire.fix_json import fix_from_json
from rich.console import Console

FAST = ["demo", "--fast"]
COMMAND = [sys.executable, "-m", "localize_apps.main", *FAST]
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('zmq')}/fixes"


@pytest.fixture(scope="module")
def published() -> list[Fix]:
    """What a subscriber receives during the run."""
    return []


@pytest.fixture(scope="module")
def fixes(endpoint: str, published: list[Fix]) -> list[Fix]:
    """The fixes of six seconds, as `--json` prints them."""

    def listen() -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.RCVTIMEO, 60_000)
            socket.subscribe("fix")
            socket.connect(endpoint)
            published.append(fix_from_json(socket.recv_multipart()[-1]))

    subscriber = threading.Thread(target=listen)
    subscriber.start()
    command = [*COMMAND, "--duration", "6", "--json", "--no-picture", "--zmq", endpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subscriber.join(60.0)
    assert "fixes, median error" in done.stderr
    return [fix_from_json(line) for line in done.stdout.splitlines()]


def test_json_has_nothing_but_fixes_that_hold_what_they_promise(fixes: list[Fix]) -> None:
    assert len(fixes) == 30
    result = score(fixes, truth_track(scene_of(demo_station(None)), 6.0))
    assert result.scored == 30
    assert result.median_m is not None
    assert result.median_m < 80.0
    assert result.containment is not None
    assert result.containment["95"] > 0.8


def test_fixes_are_published_meanwhile(fixes: list[Fix], published: list[Fix]) -> None:
    assert published[0] in fixes


def test_tracks_come_with_the_fixes_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--duration", "5", "--track", "--json", "--no-picture", "--zmq", f"ipc://{tmp_path}/fixes"]
    assert main([*FAST, *arguments]) == 0
    printed = capsys.readouterr()
    fixes = [fix_from_json(line) for line in printed.out.splitlines()]
    assert [fix.sequence for fix in fixes] == list(range(25))
    assert {track.id for fix in fixes for track in fix.tracks} == {1}
    assert all(fix.tracks for fix in fixes[4:])
    assert all(0.4 <= track.lag_s < 0.61 for track in fixes[-1].tracks)
    assert "track " in printed.err
    assert not any(fix.tracks for fix in fixes[:2])


def test_lines_and_picture_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made" / "here"
    assert main([*FAST, "--duration", "3", "--output", str(folder), "--zmq", f"ipc://{tmp_path}/fixes"]) == 0
    *lines, summary, picture = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert all(" error " in line and "±" in line for line in lines)
    assert summary.startswith("15 fixes, median error")
    assert picture == f"picture: {folder}/gr-localize-demo.png"
    assert (folder / "gr-localize-demo.png").read_bytes().startswith(PNG)


def test_live_view_in_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--duration", "3", "--no-picture", "--no-map", "--zmq", f"ipc://{tmp_path}/fixes"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    for part in ("▲Waidberg", "●", "ellipse 95 %", "errors, up to", "15 fixes, median error"):
        assert part in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux makes of the other end's closing
        return b""


def test_an_endpoint_in_use_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        assert main([*FAST, "--duration", "3", "--no-picture", "--zmq", f"tcp://127.0.0.1:{port}"]) == 1
    assert str(port) in capsys.readouterr().err


def test_wrong_usage() -> None:
    assert main(["demo", "--duration", "2"]) == 2
    assert main(["demo", "--zmq", "nowhere"]) == 2


def test_view_without_a_position(fixes: list[Fix]) -> None:
    station = demo_station(None)
    view = DemoView(station, scene_of(station))
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(view.render())
    view.add(replace(fixes[0], status="no_fix", reason="silence", position=None, uncertainty=None), None)
    console.print(view.render())
    text = console.export_text()
    assert "starting the receivers" in text
    assert "none: silence" in text


def test_picture_needs_a_place_to_go(fixes: list[Fix], tmp_path: Path) -> None:
    station = demo_station(None)
    (tmp_path / "file").touch()
    with pytest.raises(PublishError, match="file"):
        draw(station, fixes, truth_track(scene_of(station), 6.0), "", tmp_path / "file" / "picture.png")


def test_picture_without_a_single_position(fixes: list[Fix], tmp_path: Path) -> None:
    station = demo_station(None)
    nowhere = [replace(fix, status="no_fix", reason="silence", position=None, uncertainty=None) for fix in fixes]
    truth = truth_track(scene_of(station), 6.0)
    draw(station, nowhere, truth, "", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)
    assert summary_line(score(nowhere, truth)) == "30 fixes, none with a position"


def test_without_matplotlib_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "localize_apps.demo_picture")  # which has it already
    assert main([*FAST, "--duration", "3", "--zmq", f"ipc://{tmp_path}/fixes"]) == 0
    assert "pip install 'gr-localize[plot]'" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_error_is_the_distance_from_the_truth_at_the_fix(fixes: list[Fix]) -> None:
    scene = scene_of(demo_station(None))
    exact = replace(fixes[3], position=Position(*scene.truth(fixes[3].timestamp.timestamp())))
    assert error_m(exact, scene) == pytest.approx(0.0, abs=1e-3)
    speed_mps = scene.config.speed_mps
    late = replace(exact, timestamp=exact.timestamp + timedelta(seconds=0.1))
    assert error_m(late, scene) == pytest.approx(0.1 * speed_mps, rel=0.01)
    assert error_m(replace(exact, status="no_fix", reason="silence", position=None, uncertainty=None), scene) is None


def test_dots_and_words_stand_where_they_belong() -> None:
    drawn = DotMap(np.array([[0.0, 0.0], [7.0, 7.0]]), columns=4, rows=2)
    drawn.dots(np.array([[0.0, 7.0], [7.0, 0.0], [100.0, 0.0]]), "red")
    blank = chr(0x2800)
    assert drawn.render().plain.split("\n") == ["⠁" + 3 * blank, 3 * blank + "⢀"]
    drawn.word(np.array([7.0, 7.0]), "abc", "bold")
    assert drawn.render().plain.split("\n")[0] == "⠁abc"


def test_sparkline() -> None:
    assert sparkline([0.0, 50.0, 99.0, 100.0], 100.0) == "▁▅██"
