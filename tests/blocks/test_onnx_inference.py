"""onnx_inference in flowgraphs: which frames make which fix, what tags say, and how a run fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pmt
import pytest
import spox.opset.ai.onnx.v17 as op
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from gnuradio.localize.pmt_codec import fix_from_pmt
from localize_core.engine.windows import frames_across
from localize_core.errors import ConfigError, EngineError, ModelError
from localize_core.features.quality import SampleFlag
from localize_core.model.contract import Contract
from localize_core.types.fix import Alignment, Fix

ROWS, HOP, RATE = 16, 64, 8000.0
BASE_S = 1_700_000_000
Tag = tuple[int, int, Any, Any]
"""Port, offset, key, value."""


class feature_source(gr.sync_block):
    """Frames on several outputs with tags, at most `chop[i % len(chop)]` of them in the i-th call."""

    def __init__(self, features: np.ndarray, found: Sequence[Tag], chop: Sequence[int]) -> None:
        gr.sync_block.__init__(self, "feature_source", None, [(np.float32, features.shape[2])] * len(features))
        self._features, self._tags, self._chop, self._calls = features, found, chop, 0

    def work(self, input_items: Any, output_items: Any) -> int:
        first = self.nitems_written(0)
        count = min(len(output_items[0]), self._features.shape[1] - first, self._chop[self._calls % len(self._chop)])
        self._calls += 1
        if count <= 0:
            return -1
        for output, frames in zip(output_items, self._features, strict=True):
            output[:count] = frames[first : first + count]
        for port, offset, key, value in self._tags:
            if first <= offset < first + count:
                self.add_item_tag(port, offset, key, value)
        return count


def numbered(contract: Contract, count: int) -> np.ndarray:
    """Frame number n of channel c holds n / 10 + c / 1000 in each row."""
    channels = len(contract.channels)
    values = np.arange(count)[None] / 10.0 + np.arange(channels)[:, None] / 1000.0
    return np.repeat(values[:, :, None], ROWS, axis=2).astype(np.float32)


def run(
    block: Any, features: np.ndarray, found: Sequence[Tag] = (), *, chop: Sequence[int] = (1000,), max_items: int = 4096
) -> tuple[list[Fix], list[dict[str, Any]]]:
    flowgraph = gr.top_block()
    fixes, statuses = blocks.message_debug(), blocks.message_debug()
    source = feature_source(features, found, chop)
    for port in range(len(features)):
        flowgraph.connect((source, port), (block, port))
    flowgraph.msg_connect(block, "fix", fixes, "store")
    flowgraph.msg_connect(block, "status", statuses, "store")
    flowgraph.run(max_items)
    return (
        [fix_from_pmt(fixes.get_message(k)) for k in range(fixes.num_messages())],
        [pmt.to_python(statuses.get_message(k)) for k in range(statuses.num_messages())],
    )


@pytest.fixture
def contract(make_contract) -> Contract:
    return make_contract(2)


@pytest.fixture
def model(contract, make_model) -> str:
    """Answers with the means of its first two channels as latitude and longitude."""
    return str(make_model(contract, position=means_of(0, 1)))


def means_of(*channels: int) -> Callable[[Any], Any]:
    return lambda means: op.gather(means, op.const(np.array(channels, np.int64)), axis=1)


def first_frames(fixes: Sequence[Fix], steps: int) -> list[int]:
    """Which frame each window begins with, by the model's answer."""
    return [round(fix.position.latitude * 10.0 - (steps - 1) / 2.0) for fix in fixes]


@pytest.mark.parametrize(
    ("hop", "starts"),
    [(0, [0, 5, 10, 15, 20]), (5, [0, 5, 10, 15, 20]), (2, list(range(0, 23, 2))), (7, [0, 7, 14, 21])],
)
def test_windows_in_order(model, contract, hop, starts):
    block = localize.onnx_inference(model, time_steps=5, window_hop=hop)
    fixes, _ = run(block, numbered(contract, 27))
    assert first_frames(fixes, 5) == starts
    assert [fix.sequence for fix in fixes] == list(range(len(starts)))
    assert len({fix.stream for fix in fixes}) == 1
    assert block.published == len(starts)
    assert block.failure is None


def feature_tags(contract: Contract, warmup: int = 0, **changes: Any) -> list[Tag]:
    """What feature blocks put on their first frame."""
    return [
        (
            port,
            0,
            tags.FEATURES,
            pmt.to_pmt({**contract.parameters[channel.feature], **changes, "warmup_frames": warmup}),
        )
        for port, channel in enumerate(contract.channels)
    ]


def test_warmup_frames_are_skipped(model, contract):
    start = (0, 0, tags.RX_TIME, tags.time_to_pmt(BASE_S, 0.0))
    for chop in ((1000,), (1,), (2,)):
        block = localize.onnx_inference(model, time_steps=4)
        fixes, _ = run(block, numbered(contract, 12), [*feature_tags(contract, warmup=3), start], chop=chop)
        assert first_frames(fixes, 4) == [3, 7]
        centre_s = (3 * HOP + (4 * HOP - 64) / 2) / RATE
        assert fixes[0].timestamp.timestamp() == pytest.approx(BASE_S + centre_s, abs=2e-6)


def test_features_of_another_configuration_end_the_run(model, contract):
    block = localize.onnx_inference(model, time_steps=4)
    fixes, _ = run(block, numbered(contract, 40), feature_tags(contract, sample_rate_hz=9000.0))
    assert fixes == []
    assert isinstance(block.failure, ModelError)
    assert "input 0" in str(block.failure)
    assert "tiny wants sample_rate_hz=8000.0 (input gives 9000.0)" in str(block.failure)


def test_a_swapped_feature_ends_the_run(model, contract):
    mel, *_, cross = feature_tags(contract)
    block = localize.onnx_inference(model, time_steps=4)
    run(block, numbered(contract, 40), [mel, (1, *cross[1:])])
    assert "input 1" in str(block.failure)
    assert "feature='log_mel' (input gives 'cross_correlation')" in str(block.failure)


def test_a_contract_that_leaves_out_defaults_still_checks_them(make_contract, make_model):
    contract = make_contract(1, correlation=False)
    short = {"sample_rate_hz": RATE, "n_fft": 128, "hop": HOP, "n_mels": ROWS}
    channel = contract.channels[0].model_copy(update={"parameters": short})
    path = make_model(contract.model_copy(update={"channels": (channel,)}), position=means_of(0, 0))
    block = localize.onnx_inference(str(path), time_steps=4)
    run(block, numbered(contract, 8), feature_tags(contract, mel_scale="slaney"))
    assert "mel_scale='htk' (input gives 'slaney')" in str(block.failure)


def test_time_of_a_window(model, contract):
    found = [(0, 0, tags.RX_TIME, tags.time_to_pmt(BASE_S, 0.5))]
    fixes, _ = run(localize.onnx_inference(model, time_steps=4), numbered(contract, 40), found)
    for k, fix in enumerate(fixes):
        centre_s = 0.5 + (4 * k * HOP + (4 * HOP - 64) / 2) / RATE
        assert fix.timestamp.timestamp() == pytest.approx(BASE_S + centre_s, abs=2e-6)
        assert fix.time_source == "rx_time"


def test_without_time_the_host_says_when(model, contract):
    before = time.time()
    fixes, _ = run(localize.onnx_inference(model, time_steps=4), numbered(contract, 8))
    for fix in fixes:
        assert fix.time_source == "host"
        assert before - 1.0 < fix.timestamp.timestamp() < time.time()


@pytest.mark.parametrize("chop", [(1000,), (1,), (5, 2)])
def test_no_window_spans_a_boundary_and_every_frame_is_accounted_for(model, contract, chop):
    """Frames 10 to 12 have seen both sides of one, 30 is the first after another."""
    found = [
        (1, 10, tags.BOUNDARY, tags.boundary_to_pmt("gap", 3)),
        (0, 10, tags.BOUNDARY, tags.boundary_to_pmt("gap", 2)),
        (0, 30, tags.BOUNDARY, tags.boundary_to_pmt("retune")),
        (0, 20, tags.BOUNDARY, pmt.intern("nothing")),
    ]
    block = localize.onnx_inference(model, time_steps=4)
    fixes, _ = run(block, numbered(contract, 40), [*feature_tags(contract, warmup=1), *found], chop=chop)
    assert first_frames(fixes, 4) == [1, 5, 13, 17, 21, 25, 30, 34]
    assert [fix.sequence for fix in fixes] == list(range(8))
    windows = block.windows
    assert (windows["offered"], windows["served"], windows["interrupted"]) == (8, 8, 2)
    assert windows["frames"] == {"taken": 40, "offered": 32, "interrupted": 2, "skipped": 4, "held": 2}


@pytest.mark.parametrize(
    "change",
    [
        [(0, 9, tags.RX_TIME, tags.time_to_pmt(BASE_S, 9 * HOP / RATE + 3.0 / RATE))],
        [(0, 9, tags.RX_TIME, tags.time_to_pmt(BASE_S - 7, 0.0))],
        [(0, 9, tags.RX_FREQ, pmt.from_double(2e6))],
        [(0, 9, tags.RESTART, tags.restart_to_pmt())],
    ],
)
def test_without_time_align_jumps_retunes_and_restarts_end_windows(model, contract, change):
    start = [(0, 0, tags.RX_TIME, tags.time_to_pmt(BASE_S, 0.0)), (0, 0, tags.RX_FREQ, pmt.from_double(1e6))]
    fixes, _ = run(localize.onnx_inference(model, time_steps=4), numbered(contract, 24), [*start, *change])
    assert first_frames(fixes, 4)[:3] == [0, 4, 9 + frames_across(HOP - 1, contract.n_fft, HOP)]
    # Where time_align has been, it says where windows end.
    aligned = [(0, 0, tags.ALIGNMENT, tags.alignment_to_pmt(Alignment(1.0)))]
    fixes, _ = run(localize.onnx_inference(model, time_steps=4), numbered(contract, 24), [*start, *aligned, *change])
    assert first_frames(fixes, 4) == [0, 4, 8, 12, 16, 20]


def test_times_at_the_streams_own_rate_and_the_same_frequency_end_nothing(model, contract):
    rate = RATE * (1 + 80e-6)
    found = [(0, 0, tags.RX_RATE, pmt.from_double(rate))]
    for frame in range(0, 400, 50):
        found.append((0, frame, tags.RX_TIME, tags.time_to_pmt(BASE_S, frame * HOP / rate)))
        found.append((0, frame, tags.RX_FREQ, pmt.from_double(1e6)))
    fixes, _ = run(localize.onnx_inference(model, time_steps=4), numbered(contract, 400), found)
    assert len(fixes) == 100


def test_whose_clock_it_was(model, contract):
    found = [
        (0, 0, tags.RX_TIME, tags.time_to_pmt(BASE_S, 0.5)),
        (0, 0, tags.TIME_SOURCE, tags.time_source_to_pmt("host")),
        (0, 8, tags.TIME_SOURCE, tags.time_source_to_pmt("rx_time")),
    ]
    fixes, _ = run(localize.onnx_inference(model, time_steps=4), numbered(contract, 12), found)
    assert [fix.time_source for fix in fixes] == ["host", "host", "rx_time"]
    assert {fix.timestamp.year for fix in fixes} == {2023}


def test_the_account_goes_on_in_a_block_that_takes_over(model, contract):
    first = localize.onnx_inference(model, time_steps=4)
    run(first, numbered(contract, 10))
    second = localize.onnx_inference(first.engine, time_steps=4)
    second.count_on(first)
    run(second, numbered(contract, 9))
    windows = second.windows
    assert windows["offered"] == 4
    assert windows["frames"] == {"taken": 19, "offered": 16, "interrupted": 2, "skipped": 0, "held": 1}


CHANGING: list[Tag] = [
    (0, 6, tags.RX_TIME, tags.time_to_pmt(BASE_S, 0.25)),
    (0, 0, tags.RX_FREQ, pmt.from_double(1e6)),
    (0, 17, tags.RX_FREQ, pmt.from_long(2_000_000)),
    (0, 21, tags.RX_TIME, tags.time_to_pmt(BASE_S + 1000, 0.75)),  # the stream has jumped
    (0, 3, tags.ALIGNMENT, tags.alignment_to_pmt(Alignment(50.0, 0, 0))),
    (0, 21, tags.ALIGNMENT, tags.alignment_to_pmt(Alignment(40.0, 0, 1))),
]


def stripped(fixes: Sequence[Fix]) -> list[Fix]:
    """Without what differs from run to run."""
    return [replace(fix, inference_time_ms=0.0, latency_ms=0.0, stream="", cache_hit=False) for fix in fixes]


def test_tags_hold_from_their_frame_on_however_the_stream_is_cut(model, contract):
    flags = (1, 13, tags.FLAGS, pmt.init_s32vector(1, [int(SampleFlag.GAP)]))
    runs = []
    for chop, max_items in (((1000,), 4096), ((1,), 4096), ((5, 2, 3), 7)):
        block = localize.onnx_inference(model, time_steps=4, window_hop=3)
        fixes, _ = run(block, numbered(contract, 34), [*CHANGING, flags], chop=chop, max_items=max_items)
        runs.append(fixes)
    assert len(runs[0]) == 11
    timed = [fix for fix in runs[0] if fix.time_source == "rx_time"]
    assert [fix.sequence for fix in timed] == list(range(1, 11))  # the first window ends before there is a time
    for first, *others in zip(*(stripped(fixes) for fixes in runs), strict=True):
        if first.time_source == "rx_time":
            assert all(other == first for other in others)
    half_s = (4 * HOP - 64) / 2 / RATE
    for fix in timed:
        frame = 3 * fix.sequence
        origin_s, since = (BASE_S + 0.25, 6) if frame < 21 else (BASE_S + 1000.75, 21)
        assert fix.timestamp.timestamp() == pytest.approx(origin_s + (frame - since) * HOP / RATE + half_s, abs=2e-6)
        assert fix.frequency_hz == (1e6 if frame < 17 else 2e6)
        assert fix.alignment.residual_ns == (50.0 if frame + 3 < 21 else 40.0)
        assert fix.receivers[1].flags == (("gap",) if frame <= 13 < frame + 4 else ())
    assert runs[0][0].alignment == Alignment(50.0)


def test_levels_and_flags_of_all_features(model, contract):
    """A mel block says it of its receiver, a correlation block of all."""
    steps = 4
    found: list[Tag] = []
    for n in range(steps):
        found.append((0, n, tags.LEVELS, pmt.init_f32vector(1, [-10.0])))
        found.append((2, n, tags.LEVELS, pmt.init_f32vector(2, [-11.0, -20.0])))
    found.append((2, 1, tags.FLAGS, pmt.init_s32vector(2, [int(SampleFlag.SATURATED), int(SampleFlag.INVALID)])))
    found.append((1, 2, tags.FLAGS, pmt.init_s32vector(1, [int(SampleFlag.GAP)])))
    (fix,), _ = run(localize.onnx_inference(model, time_steps=steps), numbered(contract, steps), found)
    assert [round(report.level_db, 3) for report in fix.receivers] == [-11.0, -20.0]
    assert [report.flags for report in fix.receivers] == [("saturated",), ("invalid", "gap")]


def test_an_unaligned_receiver_stays_so(make_contract, make_model):
    """time_align repeats that flag every 1024 samples: here that is every fourth window only."""
    contract = make_contract(3, mel=False)
    path = make_model(contract, position=means_of(0, 2))
    found = [(0, n, tags.FLAGS, pmt.init_s32vector(3, [0, int(SampleFlag.UNALIGNED), 0])) for n in range(0, 64, 16)]
    fixes, _ = run(localize.onnx_inference(str(path), time_steps=4), numbered(contract, 64), found)
    assert len(fixes) == 16
    for fix in fixes:
        assert [report.used for report in fix.receivers] == [True, False, True]
        assert fix.position.latitude == 0.0


GARBAGE = [
    pmt.PMT_NIL,
    pmt.intern("x"),
    pmt.from_double(float("nan")),
    pmt.from_complex(1.0, 2.0),
    pmt.from_long(-5),
    pmt.make_tuple(pmt.from_uint64(1), pmt.from_double(float("nan"))),
    pmt.make_tuple(pmt.from_uint64(2**63), pmt.from_double(0.0)),
    pmt.init_f32vector(5, [0.0] * 5),
    pmt.init_u8vector(7, [1] * 7),
    pmt.init_s32vector(0, []),
    pmt.to_pmt({"warmup_frames": "many"}),
    pmt.to_pmt({"gaps_filled": -1}),
]


def test_tags_that_mean_nothing_are_passed_over(model, contract):
    keys = (tags.RX_TIME, tags.RX_FREQ, tags.FEATURES, tags.LEVELS, tags.FLAGS, tags.ALIGNMENT, pmt.intern("other"))
    found = [
        (port, n % 20, key, value)
        for n, value in enumerate(GARBAGE)
        for key in keys
        for port in range(len(contract.channels))
    ]
    block = localize.onnx_inference(model, time_steps=4)
    fixes, _ = run(block, numbered(contract, 20), found)
    assert block.failure is None
    assert len(fixes) == 5
    assert all((fix.status, fix.time_source, fix.frequency_hz) == ("ok", "host", None) for fix in fixes)


def test_a_block_that_runs_again_begins_anew(model, contract):
    block = localize.onnx_inference(model, time_steps=4)
    start = (0, 0, tags.RX_TIME, tags.time_to_pmt(BASE_S, 0.0))
    found = [*feature_tags(contract, warmup=2), start]
    first, _ = run(block, numbered(contract, 21), found)
    second, statuses = run(block, numbered(contract, 21), found)
    assert len(first) == 4
    streams = {fix.stream for fix in first}, {fix.stream for fix in second}
    assert [len(each) for each in streams] == [1, 1]
    assert streams[0] != streams[1]  # or nobody could tell its fixes from those that are sent again
    assert stripped(second) == stripped(first)
    assert [fix.cache_hit for fix in first + second] == [False] * 4 + [True] * 4
    assert statuses[0]["state"] == "ready"


# when inference is slow


def hold(block: Any) -> threading.Event:
    """No window is answered before the event is set."""
    gate = threading.Event()
    begin = block.engine.begin

    def held(*args: Any) -> Callable[[], list[Fix]]:
        assert gate.wait(30.0)
        return begin(*args)

    block.engine.begin = held
    return gate


def release(block: Any, gate: threading.Event, offered: int) -> None:
    """Open the gate once so many windows have been offered."""

    def wait() -> None:
        while block.windows["offered"] < offered:
            time.sleep(0.01)
        gate.set()

    threading.Thread(target=wait, daemon=True).start()


def caught(block: Any) -> list[Fix]:
    """Fixes as they are published: a live stream that ends does not wait until its messages have been delivered."""
    found: list[Fix] = []
    publish = block._publish
    block._publish = lambda fix: (found.append(fix), publish(fix))
    return found


def test_a_live_stream_drops_windows_and_counts_them(model, contract):
    block = localize.onnx_inference(model, time_steps=4, live=True)
    gate = hold(block)
    ended = threading.Event()
    found = caught(block)

    def run_it() -> None:
        run(block, numbered(contract, 120))
        ended.set()

    runner = threading.Thread(target=run_it)
    runner.start()
    while block._frames < 120:  # the stream goes on while nothing is answered
        assert not ended.wait(0.01)
    gate.set()
    runner.join(30.0)
    assert ended.is_set()
    assert len(found) + block.dropped == 30
    assert block.dropped >= 14  # eight may be taken together, and eight wait
    assert sum(fix.dropped_windows for fix in found) == block.dropped
    assert [fix.sequence for fix in found] == sorted(fix.sequence for fix in found)
    assert found[-1].sequence == 29


def test_a_recording_waits_for_its_fixes(model, contract):
    block = localize.onnx_inference(model, time_steps=4)
    gate = hold(block)
    threading.Timer(0.2, gate.set).start()
    fixes, _ = run(block, numbered(contract, 120))
    assert [fix.sequence for fix in fixes] == list(range(30))
    assert block.dropped == 0


def test_drops_are_reported(model, contract):
    block = localize.onnx_inference(model, time_steps=1, live=True)
    gate = hold(block)
    release(block, gate, 60)
    _, statuses = run(block, numbered(contract, 60), chop=(10,))
    assert block.dropped > 0
    assert 0 < next(status["dropped"] for status in statuses if status["dropped"]) <= block.dropped
    assert block.windows["dropped"] == {"queue": block.dropped, "end": 0}
    assert block.windows["offered"] == 60 == block.windows["served"] + block.dropped
    assert block.engine.status()["windows"] == block.windows


def test_the_newest_may_be_what_is_dropped(model, contract):
    block = localize.onnx_inference(model, time_steps=1, live=True, drop="newest", queue_windows=5, max_batch=1)
    gate = hold(block)
    release(block, gate, 60)
    fixes = caught(block)
    run(block, numbered(contract, 60), chop=(60,))
    # One was being answered, two may wait to be published: what came first is there without a gap.
    sequences = [fix.sequence for fix in fixes]
    assert sequences[:5] == list(range(5))
    assert len(fixes) + block.dropped == 60
    assert all(fix.dropped_windows == 0 for fix in fixes[:5])


def test_windows_that_wait_are_answered_together(model, contract):
    block = localize.onnx_inference(model, time_steps=1, live=True, queue_windows=20, max_batch=4)
    sizes: list[int] = []
    gate = hold(block)
    begin = block.engine.begin
    block.engine.begin = lambda windows, contexts: (sizes.append(len(windows)), begin(windows, contexts))[1]
    release(block, gate, 20)
    fixes = caught(block)
    run(block, numbered(contract, 20), chop=(20,))
    assert [fix.sequence for fix in fixes] == list(range(20))
    assert max(sizes) == 4
    assert sum(sizes) == 20
    alone, _ = run(localize.onnx_inference(model, time_steps=1), numbered(contract, 20))
    assert [fix.position for fix in fixes] == [fix.position for fix in alone]


def test_queue_settings_out_of_range(model):
    with pytest.raises(ConfigError, match=r"queue.drop='random'"):
        localize.onnx_inference(model, time_steps=4, drop="random")
    with pytest.raises(ConfigError, match="no window can join another"):
        localize.onnx_inference(model, time_steps=4, max_batch=1, max_delay_ms=2.0)


def test_finish_answers_what_waits_and_takes_no_more(model, contract):
    block = localize.onnx_inference(model, time_steps=4, live=True)
    gate = hold(block)
    flowgraph = gr.top_block()
    source = blocks.null_source(ROWS * gr.sizeof_float)
    pace = [blocks.throttle(ROWS * gr.sizeof_float, 2000.0) for _ in contract.channels]
    for port, throttle in enumerate(pace):
        flowgraph.connect(source, throttle, (block, port))
    flowgraph.start()
    while block.dropped == 0:
        time.sleep(0.01)
    threading.Timer(0.1, gate.set).start()
    block.finish(20.0)
    lost = block.windows["dropped"]
    taken, frames = block.published + lost["queue"], block._frames
    assert block._sequence == taken
    while block._frames < frames + 100:
        time.sleep(0.01)
    after = block.windows
    assert block.published + after["dropped"]["queue"] == taken
    # What comes now is lost and counted too.
    assert after["dropped"]["end"] >= 25
    assert after["offered"] == after["served"] + block.dropped
    flowgraph.stop()
    flowgraph.wait()


# failures


def test_a_model_that_fails_is_degraded_and_recovers(contract, make_model):
    """The answer is not finite while channel 0 is between 0.5 and 1.5."""

    def root(means: Any) -> Any:
        apart = op.abs(op.sub(means_of(0, 1)(means), op.const(np.float32(1.0))))
        return op.sqrt(op.sub(apart, op.const(np.float32(0.5))))

    path = make_model(contract, position=root)
    fixes, statuses = run(localize.onnx_inference(str(path), time_steps=4), numbered(contract, 24))
    assert [fix.reason for fix in fixes] == [None, *["model_error"] * 3, None, None]
    assert [status["state"] for status in statuses if status["state"] != "stopped"] == ["ready", "degraded", "ready"]
    assert statuses[1]["reasons"][0]["reason"] == "model_error"


@pytest.mark.parametrize("live", [False, True])
def test_an_exception_in_the_worker_ends_the_run(model, contract, live):
    block = localize.onnx_inference(model, time_steps=4, live=live)

    def broken(*_: Any) -> Fix:
        raise EngineError("out of order")

    block.engine.begin = broken
    fixes, _ = run(block, numbered(contract, 400))
    assert fixes == []
    assert isinstance(block.failure, EngineError)


def test_status_names_the_model(model, contract):
    block = localize.onnx_inference(model, time_steps=4)
    _, statuses = run(block, numbered(contract, 8))
    assert statuses[0] == {
        "state": "ready",
        "live": True,
        "ready": True,
        "reasons": [],
        "model": "tiny",
        "version": "1",
        "sha256": block.engine.info()["arms"]["champion"]["serving"]["sha256"],
        "cache": {"hits": 0, "misses": 0, "net_benefit_ms": 0.0, "state": "ready"},
        "dropped": 0,
        "windows": {
            "offered": 0,
            "served": 0,
            "waiting": 0,
            "answering": 0,
            "age_ms": 0.0,
            "dropped": {"queue": 0, "end": 0},
            "interrupted": 0,
            "frames": {"taken": 0, "offered": 0, "interrupted": 0, "skipped": 0, "held": 0},
        },
    }


@pytest.mark.parametrize(
    ("live", "parameters", "hits"),
    [
        (False, {}, [False, True, True, True]),
        (False, {"cache": "off"}, [False] * 4),
        (True, {}, [False] * 4),
        (True, {"cache": "on"}, [False, True, True, True]),
    ],
)
def test_windows_that_come_again(model, contract, live, parameters, hits):
    block = localize.onnx_inference(model, time_steps=5, live=live, **parameters)
    again = np.tile(numbered(contract, 5), (1, 4, 1))
    fixes, _ = run(block, again)
    block.finish(10.0)
    assert [fix.cache_hit for fix in fixes] == hits[: len(fixes)]  # the end of a live stream cuts the last ones off
    assert len({fix.position for fix in fixes}) <= 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_channels": 2, "time_steps": 4}, r"n_channels=2: the model tiny wants 3 \(log_mel r0, log_mel r1, cross_"),
        ({"rows": 32, "time_steps": 4}, "rows=32: the model tiny wants 16"),
        ({}, "time_steps=0: the model tiny takes windows of 1 frames or more"),
        ({"time_steps": -4}, "time_steps=-4"),
        ({"time_steps": 4, "window_hop": -1}, "window_hop=-1"),
        ({"time_steps": 4, "min_confidence": 1.5}, r"min_confidence=1\.5"),
        ({"time_steps": 4, "probability": 0.0}, r"probability=0\.0"),
        ({"time_steps": 4, "cache": "maybe"}, "cache='maybe': must be one of off, auto, on"),
        ({"time_steps": 4, "cache_redis": "localhost"}, "cache_redis='localhost': wanted redis://"),
        ({"time_steps": 4, "station": ""}, "station: must not be empty"),
        ({"time_steps": 4, "contract": "/nowhere.json"}, r"contract=/nowhere\.json: cannot be read"),
    ],
)
def test_what_cannot_work_is_refused_before_it_runs(model, parameters, message):
    with pytest.raises(ConfigError, match=message):
        localize.onnx_inference(model, **parameters)


def test_a_model_with_a_length_of_its_own(make_contract, make_model):
    contract = make_contract(2, time_steps=6)
    path = str(make_model(contract, position=means_of(0, 1)))
    fixes, _ = run(localize.onnx_inference(path), numbered(contract, 13))
    assert first_frames(fixes, 6) == [0, 6]
    with pytest.raises(ConfigError, match="time_steps=5: the model tiny wants 6"):
        localize.onnx_inference(path, time_steps=5)


def test_a_contract_beside_the_model(contract, make_model, tmp_path):
    path = make_model(contract, position=means_of(0, 1), embed=False)
    with pytest.raises(ModelError, match=r"no 'localize\.contract'"):
        localize.onnx_inference(str(path), time_steps=4)
    sidecar = tmp_path / "contract.json"
    sidecar.write_text(contract.model_dump_json())
    fixes, _ = run(localize.onnx_inference(str(path), time_steps=4, contract=str(sidecar)), numbered(contract, 4))
    assert len(fixes) == 1
    sidecar.write_text("{")
    with pytest.raises(ModelError, match="contract is not usable"):
        localize.onnx_inference(str(path), time_steps=4, contract=str(sidecar))


def test_min_confidence_changes_while_it_runs(contract, make_model):
    block = localize.onnx_inference(str(make_model(contract, confidence=(0.6,))), time_steps=4)
    assert run(block, numbered(contract, 4))[0][0].status == "ok"
    block.set_min_confidence(0.7)
    assert run(block, numbered(contract, 4))[0][0].reason == "no_emitter"
    with pytest.raises(ConfigError, match="min_confidence"):
        block.set_min_confidence(-0.1)


def test_names_in_fixes(model, contract):
    block = localize.onnx_inference(model, time_steps=4, station="here", stream="a1b2")
    (fix,), _ = run(block, numbered(contract, 4))
    assert (fix.station, fix.stream) == ("here", "a1b2")
