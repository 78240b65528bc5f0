"""onnx_inference while models change: commands, requests, shadow, and two hundred swaps under a live stream."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pmt
import pytest
from gnuradio import gr, localize
from gnuradio.localize import tags
from gnuradio.localize.messages import command_from_pmt, requests_from_pmt
from gnuradio.localize.pmt_codec import fix_from_pmt
from localize_core.errors import ConfigError
from localize_core.serving.experiment import bucket_percent
from localize_core.types.fix import Fix

ROWS, STEPS, WAIT_S = 16, 4, 30.0


class listener(gr.sync_block):
    """Keeps what it hears on fix, shadow and status."""

    def __init__(self) -> None:
        gr.sync_block.__init__(self, "listener", None, None)
        self.fixes: list[Fix] = []
        self.shadows: list[Fix] = []
        self.statuses: list[dict[str, Any]] = []
        self.came_s: list[float] = []
        for port, handler in (("fix", self._fix), ("shadow", self._shadow), ("status", self._status)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)

    def _fix(self, message: Any) -> None:
        self.came_s.append(time.monotonic())
        self.fixes.append(fix_from_pmt(message))

    def _shadow(self, message: Any) -> None:
        self.shadows.append(fix_from_pmt(message))

    def _status(self, message: Any) -> None:
        self.statuses.append(pmt.to_python(message))


class paced_source(gr.sync_block):
    """A frame of zeros on every output, `rate` times a second, as a radio delivers them: never many at once."""

    def __init__(self, channels: int, rate: float) -> None:
        gr.sync_block.__init__(self, "paced_source", None, [(np.float32, ROWS)] * channels)
        self._period_s = 1.0 / rate

    def start(self) -> bool:
        self._due_s = time.monotonic()
        return True

    def work(self, input_items: Any, output_items: Any) -> int:
        self._due_s = max(self._due_s + self._period_s, time.monotonic() - 4 * self._period_s)
        time.sleep(max(self._due_s - time.monotonic(), 0.0))
        for output in output_items:
            output[0] = 0.0
        return 1


class Running:
    """A flowgraph with an inference block on an endless stream of `rate` frames a second."""

    def __init__(self, block: Any, rate: float) -> None:
        self.block, self.heard = block, listener()
        self.graph = gr.top_block()
        channels = len(block.contract.channels)
        self._source = source = paced_source(channels, rate)  # GNU Radio does not keep Python blocks
        for port in range(channels):
            self.graph.connect((source, port), (block, port))
        for port in ("fix", "shadow", "status"):
            self.graph.msg_connect(block, port, self.heard, port)
        self.graph.start()

    def control(self, message: Any) -> None:
        self.block.to_basic_block()._post(pmt.intern("control"), message)

    def ask(self, message: Any) -> None:
        self.block.to_basic_block()._post(pmt.intern("pdus"), message)

    def command(self, message: Any) -> dict[str, Any]:
        """The answer to a command."""
        seen = len(self.heard.statuses)
        self.control(message)
        wait_until(lambda: any("command" in status for status in self.heard.statuses[seen:]))
        return next(status for status in self.heard.statuses[seen:] if "command" in status)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.005)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(block: Any, rate: float = 800.0) -> Running:
        started.append(Running(block, rate))
        return started[-1]

    yield start
    for running in started:
        running.graph.stop()
        running.graph.wait()


@pytest.fixture
def make_version(make_contract, make_model) -> Callable[..., Path]:
    """A writer of models of version n, which answer with latitude n."""

    def make(version: int, *, receivers: int = 2, name: str = "model.onnx", **changes: Any) -> Path:
        contract = make_contract(receivers, model_version=str(version))
        return make_model(contract, **{"position": (float(version), 8.0), "name": name, **changes})

    return make


def served(fix: Fix) -> int:
    assert fix.position is not None
    version = round(fix.position.latitude)
    assert fix.model.version == str(version)
    return version


def inference(path: Path, **parameters: Any) -> Any:
    return localize.onnx_inference(str(path), **{"time_steps": STEPS, "poll_s": 0.0, "live": True} | parameters)


# commands


def test_commands(make_version, run):
    running = run(inference(make_version(1)))
    info = running.command(pmt.intern("info"))
    assert (info["command"], info["ok"]) == ("info", True)
    assert info["arms"]["champion"]["serving"]["version"] == "1"
    make_version(2)
    assert running.command(pmt.intern("reload"))["version"] == "2"
    assert running.command(pmt.to_pmt({"command": "rollback", "arm": "champion"}))["version"] == "1"
    refused = running.command(pmt.cons(pmt.intern("activate"), pmt.intern("7")))
    assert refused["ok"] is False
    assert "a file has no versions" in refused["error"]
    refused = running.command(pmt.from_long(7))
    assert refused["ok"] is False
    assert "not a command" in refused["error"]
    wait_until(lambda: len(running.heard.fixes) > 3)
    assert running.block.failure is None
    assert running.command(pmt.intern("health"))["state"] == "ready"


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (pmt.intern("info"), ("info", {})),
        (pmt.cons(pmt.intern("activate"), pmt.from_long(7)), ("activate", {"version": "7"})),
        (pmt.cons(pmt.intern("share"), pmt.from_double(2.5)), ("share", {"percent": 2.5})),
        (pmt.cons(pmt.intern("rollback"), pmt.PMT_T), ("rollback", {})),
        (pmt.to_pmt({"command": "share", "percent": 5}), ("share", {"percent": 5.0})),
    ],
)
def test_forms_of_a_command(message, command):
    assert command_from_pmt(message) == command


@pytest.mark.parametrize(
    "message",
    [
        pmt.PMT_NIL,
        pmt.PMT_T,
        pmt.from_double(1.0),
        pmt.to_pmt({"percent": 5}),
        pmt.to_pmt({"command": 5}),
        pmt.to_pmt({"command": "share", "percent": "many"}),
        pmt.to_pmt({"command": "share", "colour": 1}),
        pmt.dict_add(pmt.to_pmt({"command": "info"}), pmt.from_long(7), pmt.from_long(8)),
        pmt.cons(pmt.from_long(1), pmt.from_long(2)),
        pmt.make_vector(3, pmt.PMT_NIL),
    ],
)
def test_what_is_no_command(message):
    with pytest.raises(ConfigError):
        command_from_pmt(message)


# requests


def features(value: float = 0.5, channels: int = 3, steps: int = STEPS) -> Any:
    return pmt.init_f32vector(channels * ROWS * steps, [value] * (channels * ROWS * steps))


def pdu(data: Any, **meta: Any) -> Any:
    return pmt.cons(pmt.to_pmt(meta) if meta else pmt.make_dict(), data)


def answers(running: Running, count: int) -> dict[str | None, Fix]:
    wait_until(lambda: sum(fix.id is not None for fix in list(running.heard.fixes)) >= count)
    return {fix.id: fix for fix in list(running.heard.fixes) if fix.id is not None}


def test_requests_beside_a_stream(make_version, run):
    running = run(inference(make_version(1)), rate=100.0)
    rng = np.random.default_rng(3)
    samples = (rng.standard_normal(2 * 64 * 8) + 1j * rng.standard_normal(2 * 64 * 8)).astype(np.complex64)
    running.ask(pdu(features(), id="one", stream="s"))
    running.ask(pdu(pmt.init_c32vector(len(samples), samples.tolist()), id=7, rx_freq=1e6))
    running.ask(pdu(features(), id="who", receivers=["r0", "nobody"]))
    running.ask(pdu(pmt.init_u8vector(3, [1, 2, 3]), id="bytes"))
    batch = [pdu(features(steps=STEPS + n % 2), id=f"b{n}") for n in range(100)]
    running.ask(vector(batch))
    found = answers(running, 104)
    assert served(found["one"]) == served(found["7"]) == 1
    assert (found["one"].stream, found["7"].frequency_hz) == ("s", 1e6)
    assert found["who"].reason == found["bytes"].reason == "invalid_request"
    assert all(served(found[f"b{n}"]) == 1 for n in range(100))
    streamed = [fix for fix in running.heard.fixes if fix.id is None]
    assert [fix.sequence for fix in streamed] == list(range(len(streamed)))
    assert running.block.failure is None


def vector(items: list[Any]) -> Any:
    made = pmt.make_vector(len(items), pmt.PMT_NIL)
    for index, item in enumerate(items):
        pmt.vector_set(made, index, item)
    return made


def test_messages_that_are_no_requests_are_counted(make_version, run):
    running = run(inference(make_version(1)))
    for message in (
        pmt.PMT_NIL,
        pmt.intern("x"),
        pmt.cons(pmt.intern("x"), features()),
        vector([]),
        vector([pmt.PMT_T]),
    ):
        running.ask(message)
    running.ask(vector([pdu(features(), id=str(n)) for n in range(101)]))
    running.ask(pdu(features(), id="good", rx_freq=float("nan")))
    assert set(answers(running, 1)) == {"good"}
    assert running.block.malformed == 6
    assert running.block.failure is None


def test_more_requests_than_can_be_answered_are_refused(make_version, run):
    block = inference(make_version(1))
    running, begun, gate, predict = run(block), threading.Event(), threading.Event(), block.engine.predict

    def held(requests: Any) -> Any:
        begun.set()
        assert gate.wait(WAIT_S)
        return predict(requests)

    block.engine.predict = held
    running.ask(pdu(features(), id="0"))
    assert begun.wait(WAIT_S)
    for n in range(1, 30):
        running.ask(pdu(features(), id=str(n)))
    wait_until(lambda: sum(fix.reason == "overloaded" for fix in list(running.heard.fixes)) >= 13)
    gate.set()
    found = answers(running, 30)
    assert Counter(fix.reason for fix in found.values()) == {None: 17, "overloaded": 13}


def test_time_of_a_request():
    meta = pmt.dict_add(pmt.make_dict(), tags.RX_TIME, tags.time_to_pmt(17, 0.25))
    (request,) = requests_from_pmt(pmt.cons(meta, features()))
    assert request.start == (17, 0.25)
    assert (request.id, request.receivers, request.stream) == ("", None, "requests")


def test_a_clock_that_starts_at_0_is_no_reason_to_end(make_version, run):
    """Frames reach before a request's start: there, before 1970."""
    running = run(inference(make_version(1)), rate=100.0)
    meta = pmt.dict_add(pmt.to_pmt({"id": "early", "receivers": ["nobody"]}), tags.RX_TIME, tags.time_to_pmt(0, 0.0))
    running.ask(pmt.cons(meta, features()))
    running.ask(pdu(features(), id="next"))
    found = answers(running, 2)
    assert (found["early"].reason, found["early"].timestamp.year) == ("invalid_request", 1970)
    assert served(found["next"]) == 1
    assert running.block.failure is None


def test_requests_that_want_no_answer_from_before(make_version, run):
    running = run(inference(make_version(1), live=True))
    for n, wanted in enumerate((True, True, False)):
        meta = pmt.dict_add(pmt.make_dict(), pmt.intern("id"), pmt.intern(str(n)))
        meta = meta if wanted else pmt.dict_add(meta, pmt.intern("cache"), pmt.PMT_F)
        running.ask(pmt.cons(meta, features()))
    found = answers(running, 3)
    assert [found[str(n)].cache_hit for n in range(3)] == [False, True, False]


# a challenger


def test_shadow_port(make_version, run):
    block = inference(make_version(1), challenger=str(make_version(2, name="b.onnx")), challenger_mode="shadow")
    running = run(block)
    wait_until(lambda: len(running.heard.shadows) >= 20)
    assert {served(fix) for fix in running.heard.shadows} == {2}
    assert {fix.model.arm for fix in running.heard.shadows} == {"shadow"}
    assert {served(fix) for fix in list(running.heard.fixes)} == {1}
    experiment = running.command(pmt.intern("info"))["experiment"]
    assert experiment["comparison"]["windows"] >= 20


def test_a_stream_belongs_to_one_arm(make_version, run):
    share = {"challenger_mode": "split", "share_percent": 50.0, "experiment": "e"}
    names = [f"s{n}" for n in range(20)]
    chosen = {name: "challenger" if bucket_percent(name, "e") < 50.0 else "champion" for name in names}
    one_of_each = {arm: name for name, arm in chosen.items()}
    assert len(one_of_each) == 2
    for arm, name in one_of_each.items():
        challenger = str(make_version(2, name="b.onnx"))
        running = run(inference(make_version(1), challenger=challenger, stream=name, **share))
        wait_until(lambda running=running: len(running.heard.fixes) >= 5)
        assert {(fix.model.arm, fix.stream) for fix in list(running.heard.fixes)} == {(arm, name)}


def test_a_station_keeps_its_arm_over_restarts(make_version, run):
    """The stream's name is another one at each start, the station's is not."""
    share = {"challenger_mode": "split", "share_percent": 50.0, "station": "here"}
    arms, streams = set(), set()
    for _ in range(3):
        running = run(inference(make_version(1), challenger=str(make_version(2, name="b.onnx")), **share))
        wait_until(lambda running=running: len(running.heard.fixes) >= 1)
        arms.add(running.heard.fixes[0].model.arm)
        streams.add(running.heard.fixes[0].stream)
    assert len(arms) == 1
    assert len(streams) == 3


# two hundred swaps


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_two_hundred_swaps_under_a_live_stream(make_version, run):
    """Nothing is lost, doubled, out of order or of two versions; memory stays what it was after twenty."""
    versions = [make_version(version, receivers=4).read_bytes() for version in range(2, 10)]
    path = make_version(1, receivers=4)
    block = inference(path, window_hop=STEPS)
    running = run(block, rate=200.0)  # a window every 20 ms
    wait_until(lambda: len(running.heard.fixes) >= 20)
    memory_kib = []
    for swap in range(200):
        path.with_suffix(".draft").write_bytes(versions[swap % len(versions)])
        path.with_suffix(".draft").replace(path)
        assert running.command(pmt.intern("reload"))["ok"]
        running.heard.statuses.clear()
        if swap >= 20:
            memory_kib.append(resident_kib())
        else:
            gc.collect()
    last = running.heard.fixes[-1].sequence
    wait_until(lambda: running.heard.fixes[-1].sequence > last + 5)
    fixes = list(running.heard.fixes)
    assert [fix.sequence for fix in fixes] == list(range(len(fixes)))
    assert block.dropped == 0
    assert all(fix.status == "ok" for fix in fixes)
    order = [served(fix) for fix in fixes]
    # Several swaps may come between the same two windows.
    assert 50 <= sum(one != other for one, other in itertools.pairwise(order)) <= 200
    assert np.median(memory_kib[-20:]) <= 1.02 * np.median(memory_kib[:20])
