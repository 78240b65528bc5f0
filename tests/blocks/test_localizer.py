"""localizer in flowgraphs: streams in, fixes out, and what becomes of streams that something is wrong with."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from gnuradio.localize.pmt_codec import fix_from_pmt
from localize_core.errors import ConfigError, ModelError, SourceError
from localize_core.geodesy import GEOD
from localize_core.model.compiled.compile import compile_model
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station, parse_station
from localize_core.station.plan import plan_station
from localize_core.types.fix import REASONS, Fix
from localize_core.wire.fix_json import fix_to_dict

STATION = """
[station]
name = "four"
sample_rate_hz = 100e3
frequency_hz = 433.92e6
[[receiver]]
name = "east"
latitude = 45.0808
longitude = 7.7672
source = { kind = "scene" }
[[receiver]]
name = "south"
latitude = 44.9953
longitude = 7.6043
source = { kind = "scene" }
[[receiver]]
name = "west"
latitude = 45.0703
longitude = 7.5100
source = { kind = "scene" }
[[receiver]]
name = "north"
latitude = 45.1360
longitude = 7.6230
source = { kind = "scene" }
[area]
south = 45.02
west = 7.58
north = 45.12
east = 7.74
[features]
n_fft = 256
hop = 256
window_s = 0.1
[scene]
bandwidth_hz = 50e3
level_dbfs_at_1km = -20.0
path_loss_exponent = 2.7
noise_dbfs = -60.0
track = [[45.07, 7.68]]
"""
COUNT = 28_000
"""Samples in a test's streams: two windows, and a third that is cut short."""


@pytest.fixture(scope="module")
def station(model_cache) -> Station:
    return parse_station(STATION, folder=Path())


@pytest.fixture(scope="module")
def level_station(model_cache) -> Station:
    text = STATION.replace("n_fft = 256", 'channels = ["log_mel"]\nrows = 32\nn_fft = 256')
    return parse_station(text, folder=Path())


def scene_of(station: Station) -> Scene:
    assert station.scene is not None
    rate, frequency = station.station.sample_rate_hz, station.station.frequency_hz
    return Scene(station.scene, station.receiver, sample_rate_hz=rate, frequency_hz=frequency)


@pytest.fixture(scope="module")
def received(station) -> np.ndarray:
    return scene_of(station).samples(0, COUNT)


def test_what_the_station_file_says_of_fixes_holds_in_flowgraphs_too(model_cache) -> None:
    text = STATION.replace("[scene]", "[model]\nmin_confidence = 0.8\nprobability = 0.5\n[scene]")
    station = parse_station(text, folder=Path())
    engine = localize.localizer(station, n_receivers=4).engine
    assert (engine.min_confidence, engine.probability) == (0.8, 0.5)
    assert engine.contract.provenance["probability"] == 0.5
    own = localize.localizer(station, n_receivers=4, min_confidence=0.1, probability=0.9)
    assert (own.engine.min_confidence, own.engine.probability) == (0.1, 0.9)
    assert own.engine.contract.provenance["probability"] == 0.9  # it is compiled for it
    own.set_min_confidence(None)
    assert own.engine.min_confidence == 0.8


@pytest.mark.parametrize(
    ("table", "parameters", "serves", "redis"),
    [
        ("", {}, (False, True, True), None),
        ("live = true\nreplay = false", {}, (True, False, True), None),
        ("live = true\nreplay = false", {"cache": "auto"}, (False, True, True), None),
        ('redis = "redis://there"', {"cache": "on"}, (True, True, True), "redis://there"),
        ("requests = false", {"cache_redis": "redis://here"}, (False, True, False), "redis://here"),
    ],
)
def test_whose_word_on_the_cache_counts(table, parameters, serves, redis, model_cache):
    station = parse_station(STATION.replace("[scene]", f"[cache]\n{table}\n[scene]"), folder=Path())
    engine = localize.localizer(station, n_receivers=4, **parameters).engine
    settings = engine._cache_settings
    assert (settings.live, settings.replay, settings.requests) == serves
    assert settings.redis == redis
    assert localize.localizer(station, n_receivers=4, cache="off").engine.info()["cache"] is None


class tagged_source(gr.sync_block):
    """Samples with `rx_time` twice a second unless `timed` is False, and their number."""

    def __init__(self, samples: np.ndarray, scene: Scene, timed: bool) -> None:
        gr.sync_block.__init__(self, "tagged_source", None, [np.complex64])
        self._samples, self._scene, self._timed = samples, scene, timed

    def work(self, input_items: Any, output_items: Any) -> int:
        first = self.nitems_written(0)
        count = min(len(output_items[0]), len(self._samples) - first)
        if count <= 0:
            return -1
        output_items[0][:count] = self._samples[first : first + count]
        if first == 0:
            self.add_item_tag(0, 0, tags.LENGTH, pmt.from_uint64(len(self._samples)))
        for offset in range(-(-first // 5000) * 5000, first + count, 5000) if self._timed else ():
            self.add_item_tag(0, offset, tags.RX_TIME, tags.time_to_pmt(*self._scene.time(offset)))
        return count


def locate(
    station: Station,
    streams: Sequence[np.ndarray],
    *,
    timed: Sequence[bool] = (True,) * 4,
    max_items: int = 100_000,
    **parameters: Any,
) -> list[Fix]:
    localizer = localize.localizer(station, n_receivers=len(streams), **parameters)
    flowgraph, found = gr.top_block(), blocks.message_debug()
    scene = scene_of(station)
    sources = [tagged_source(samples, scene, has_time) for samples, has_time in zip(streams, timed, strict=True)]
    for index, source in enumerate(sources):
        flowgraph.connect(source, (localizer, index))
    flowgraph.msg_connect(localizer, "fix", found, "store")
    flowgraph.run(max_items)
    assert localizer.failure is None
    return [fix_from_pmt(found.get_message(k)) for k in range(found.num_messages())]


def distance_in_sigmas(fix: Fix, station: Station) -> float:
    """Mahalanobis distance of the truth from a fix."""
    latitude, longitude = scene_of(station).truth(fix.timestamp.timestamp())
    azimuth, _, distance_m = GEOD.inv(fix.position.longitude, fix.position.latitude, longitude, latitude)
    offset = distance_m * np.array([math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))])
    return math.sqrt(offset @ np.linalg.solve(fix.uncertainty.covariance_m2, offset))


def assert_honest(fixes: Sequence[Fix], station: Station) -> None:
    """Every fix says why it has no position, or its ellipse does not miss the truth grossly: 99.9 %, one in 1000."""
    assert fixes
    for fix in fixes:
        if fix.status == "no_fix":
            assert fix.reason in REASONS
            assert fix.position is None
        else:
            assert distance_in_sigmas(fix, station) < math.sqrt(-2.0 * math.log(1e-3))


def test_streams_become_fixes(station, received):
    fixes = locate(station, received)
    assert [fix.sequence for fix in fixes] == [0, 1]
    for fix in fixes:
        assert fix.status == "ok"
        assert fix.station == "four"
        assert fix.time_source == "rx_time"
        assert fix.uncertainty.semi_major_m < 200.0
        assert all(report.used and report.flags == () for report in fix.receivers)
        assert fix.alignment.gaps_skipped == 0
    assert_honest(fixes, station)
    first_centre_s = scene_of(station).time(0)[0] + 39 * 256 / 2 / 100e3
    assert fixes[0].timestamp.timestamp() == pytest.approx(first_centre_s, abs=1e-5)


def test_a_live_station_hands_on_frames_in_groups_and_answers_the_same(station, received):
    localizer = localize.localizer(station, n_receivers=4, live=True)
    assert localizer.inference.output_multiple() > 1
    published: list[Fix] = []
    publish = localizer.inference._publish
    localizer.inference._publish = lambda fix: (published.append(fix), publish(fix))
    flowgraph = gr.top_block()
    sources = [tagged_source(samples, scene_of(station), True) for samples in received]
    for index, source in enumerate(sources):
        flowgraph.connect(source, (localizer, index))
    flowgraph.run()
    waited = locate(station, received)
    assert [fix.sequence for fix in published] == [fix.sequence for fix in waited] == [0, 1]
    for ours, theirs in zip(published, waited, strict=True):
        assert ours.timestamp == theirs.timestamp
        assert ours.position == theirs.position
        assert [report.level_db for report in ours.receivers] == [report.level_db for report in theirs.receivers]


def comparable(fixes: Sequence[Fix]) -> list[dict[str, Any]]:
    """What must not differ between two runs."""
    own = ("stream", "inference_time_ms", "latency_ms")
    return [{key: value for key, value in fix_to_dict(fix).items() if key not in own} for fix in fixes]


def test_the_same_streams_give_the_same_fixes_to_the_last_bit(station, received):
    assert comparable(locate(station, received)) == comparable(locate(station, received, max_items=300))


def with_bad(index: int, spoil: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], list[np.ndarray]]:
    def make(received: np.ndarray) -> list[np.ndarray]:
        return [spoil(samples.copy()) if k == index else samples for k, samples in enumerate(received)]

    return make


def every(step: int, value: complex) -> Callable[[np.ndarray], np.ndarray]:
    def spoil(samples: np.ndarray) -> np.ndarray:
        samples[::step] = value
        return samples

    return spoil


def noise(samples: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (1e-3 * (rng.standard_normal(len(samples)) + 1j * rng.standard_normal(len(samples)))).astype(np.complex64)


@pytest.mark.parametrize(
    ("index", "spoil", "flag"),
    [
        (0, every(1, complex("nan")), "invalid"),
        (1, every(100, complex("inf")), "invalid"),
        (2, every(1, 0.0), "silent"),
        (3, lambda samples: np.concatenate([0.0 * samples[:22_000], samples[22_000:]]), "silent"),
    ],
    ids=["nan", "inf in every frame", "silent", "silent at first"],
)
def test_one_bad_receiver_is_left_out(station, received, index, spoil, flag):
    fixes = locate(station, with_bad(index, spoil)(received))
    assert_honest(fixes, station)
    reports = fixes[0].receivers
    assert fixes[0].status == "ok"
    assert [report.used for report in reports] == [k != index for k in range(4)]
    assert reports[index].flags == (flag,)


def test_a_few_bad_samples_cost_nothing_but_a_flag(station, received):
    fixes = locate(station, with_bad(2, every(4000, complex("nan")))(received))
    assert_honest(fixes, station)
    assert all(fix.status == "ok" and fix.receivers[2].used for fix in fixes)
    assert fixes[0].receivers[2].flags == ("invalid",)


@pytest.fixture(scope="module")
def long_and_other(station) -> tuple[np.ndarray, np.ndarray]:
    """A second of all receivers, and another second of them, which has nothing in common with it."""
    scene = scene_of(station)
    return scene.samples(0, 100_000), scene.samples(1_000_000, 100_000)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("hears", ["noise", "something else"])
def test_a_receiver_that_does_not_hear_the_emitter_does_not_mislead(station, long_and_other, index, hears):
    streams = list(long_and_other[0])
    streams[index] = noise(streams[index]) if hears == "noise" else long_and_other[1][index]
    fixes = locate(station, streams)
    assert len(fixes) == 10
    assert_honest(fixes, station)


def test_saturated_receivers_are_flagged(station, received):
    loud = [np.clip(300 * s.real, -1, 1) + 1j * np.clip(300 * s.imag, -1, 1) for s in received]
    fixes = locate(station, [samples.astype(np.complex64) for samples in loud])
    assert_honest(fixes, station)
    assert all(report.flags == ("saturated",) for fix in fixes for report in fix.receivers)


@pytest.mark.parametrize(
    ("streams", "reason"),
    [
        (lambda received: list(received * np.float32("nan")), "invalid_samples"),
        (lambda received: list(received * 0.0), "silence"),
        (lambda received: [received[0], received[1], 0.0 * received[2], 0.0 * received[3]], "too_few_receivers"),
    ],
    ids=["all nan", "all silent", "two silent"],
)
def test_no_position_and_why(station, received, streams, reason):
    fixes = locate(station, streams(received))
    assert [fix.reason for fix in fixes] == [reason] * 2
    assert all(fix.status == "no_fix" for fix in fixes)


def test_noise_without_emitter(station, model_cache):
    quiet = parse_station(STATION.replace("[scene]", '[scene]\nwaveform = "none"'), folder=Path())
    fixes = locate(quiet, scene_of(quiet).samples(0, 500_000))
    reasons = Counter(fix.reason for fix in fixes)
    assert len(fixes) >= 49
    assert reasons["no_emitter"] >= 0.95 * len(fixes)


def test_streams_of_unequal_length_end_with_the_shortest(station, received):
    fixes = locate(station, [received[0], received[1][:15_000], received[2], received[3][:25_000]])
    assert len(fixes) == 1
    assert_honest(fixes, station)


def test_a_stream_that_ends_before_a_window(station, received):
    assert locate(station, [received[0], received[1][:5000], *received[2:]]) == []


@pytest.mark.parametrize("shift", [0, 3])
def test_a_receiver_without_time_is_flagged_and_left_out(station, received, shift):
    streams = list(received)
    streams[1] = np.roll(streams[1], shift)
    fixes = locate(station, streams, timed=(True, False, True, True))
    assert_honest(fixes, station)
    for fix in fixes:
        assert [report.used for report in fix.receivers] == [True, False, True, True]
        assert fix.receivers[1].flags == ("unaligned",)


def test_streams_without_any_time_stand_as_delivered(station, received):
    fixes = locate(station, received, timed=(False,) * 4)
    assert_honest(fixes, station)
    for fix in fixes:
        assert (fix.status, fix.time_source) == ("ok", "host")
        assert all(report.used and report.flags == ("unaligned",) for report in fix.receivers)
        assert fix.alignment.residual_ns is None
    (first, *_) = locate(station, received, timed=(False,) * 4, align=False)
    assert first.status == "ok"
    assert all(report.flags == () for report in first.receivers)
    assert first.alignment is None


def test_levels_alone(level_station, received):
    fixes = locate(level_station, received, timed=(True, False, True, True))
    assert_honest(fixes, level_station)
    for fix in fixes:
        assert fix.status == "ok"
        assert all(report.used for report in fix.receivers)  # a level needs no time
        assert fix.receivers[1].flags == ("unaligned",)
        assert 500.0 < fix.uncertainty.semi_major_m < 20e3


def test_a_silent_receiver_is_no_evidence_against_places_near_it(level_station, received):
    """A level that is not there because the receiver is dead says nothing; one below the noise does."""
    fixes = locate(level_station, [0.0 * received[0], *received[1:]])
    assert_honest(fixes, level_station)
    assert [report.used for report in fixes[0].receivers] == [False, True, True, True]


def test_both_features(received, model_cache):
    text = STATION.replace("n_fft = 256", 'channels = ["log_mel", "cross_correlation"]\nrows = 32\nn_fft = 256')
    both = parse_station(text, folder=Path())
    streams = [*received[:3], 0.0 * received[3]]
    fixes = locate(both, streams)
    assert_honest(fixes, both)
    assert [report.used for report in fixes[0].receivers] == [True, True, True, False]
    assert [channel.feature for channel in localize.localizer(both, 4).inference.contract.channels] == (
        ["log_mel"] * 4 + ["cross_correlation"] * 6
    )


# where models and stations come from


def test_a_model_file_in_place_of_a_station(station, received, tmp_path):
    plan = plan_station(station)
    compile_model(plan.spec, tmp_path / "four.onnx")
    path = str(tmp_path / "four.onnx")
    from_station = locate(station, received)
    localizer_alone = locate_file(path, station, received, time_steps=plan.time_steps)
    assert [fix.position for fix in localizer_alone] == [fix.position for fix in from_station]
    assert localizer_alone[0].station == "compiled-four"
    named = parse_station(STATION + f'\n[model]\nuri = "{path}"\n', folder=tmp_path)
    assert [fix.position for fix in locate(named, received)] == [fix.position for fix in from_station]
    with pytest.raises(ConfigError, match="time_steps=0: the model compiled-four takes windows of 8 frames or more"):
        localize.localizer(path, 4)
    with pytest.raises(
        ConfigError, match=r"n_receivers=3: the model compiled-four wants 4 \(east, south, west, north\)"
    ):
        localize.localizer(path, 3, time_steps=plan.time_steps)
    moved = STATION.replace("45.1360", "45.1460") + f'\n[model]\nuri = "{path}"\n'
    with pytest.raises(ConfigError, match=r"receiver north at 45\.146"):
        localize.localizer(parse_station(moved, folder=tmp_path), 4)


def locate_file(path: str, station: Station, received: np.ndarray, **parameters: Any) -> list[Fix]:
    scene, flowgraph, found = scene_of(station), gr.top_block(), blocks.message_debug()
    localizer = localize.localizer(path, len(received), **parameters)
    sources = [tagged_source(samples, scene, True) for samples in received]
    for index, source in enumerate(sources):
        flowgraph.connect(source, (localizer, index))
    flowgraph.msg_connect(localizer, "fix", found, "store")
    flowgraph.run()
    return [fix_from_pmt(found.get_message(k)) for k in range(found.num_messages())]


def test_a_model_with_a_length_of_its_own_refuses_another(make_contract, make_model):
    path = str(make_model(make_contract(1, correlation=False, time_steps=6)))
    assert localize.localizer(path, 1).inference._steps == 6
    with pytest.raises(ConfigError, match="time_steps=7: the model tiny wants 6"):
        localize.localizer(path, 1, time_steps=7)


@pytest.mark.parametrize(
    ("source", "parameters", "error", "message"),
    [
        ("nowhere.toml", {}, ConfigError, r"nowhere\.toml: cannot be read"),
        ("nowhere.onnx", {}, ModelError, r"nowhere\.onnx: cannot be read"),
        ("", {}, ConfigError, "uri=''"),
        (None, {"n_receivers": 3}, ConfigError, r"n_receivers=3: the model compiled-four wants 4"),
        (None, {"time_steps": -1}, ConfigError, "time_steps=-1"),
        (None, {"window_hop": -1}, ConfigError, "window_hop=-1"),
        (None, {"min_confidence": 2.0}, ConfigError, "min_confidence"),
        (None, {"probability": 1.0}, ConfigError, "probability"),
    ],
)
def test_what_cannot_work_is_refused(station, source, parameters, error, message):
    with pytest.raises(error, match=message):
        localize.localizer(station if source is None else source, **({"n_receivers": 4} | parameters))


def test_parameters_reach_the_inference(station):
    localizer = localize.localizer(station, 4, time_steps=50, window_hop=10, min_confidence=0.9, live=True, name="here")
    inference = localizer.inference
    assert (inference._steps, inference._assembler.window_hop) == (50, 10)
    assert (inference._station, inference._live) == ("here", True)
    localizer.set_min_confidence(0.2)
    assert localizer.engine.min_confidence == 0.2


def test_a_failure_inside_is_seen_outside(station, received):
    """A source at quite another rate: time_align refuses it while running."""

    class wrong_rate(tagged_source):
        def work(self, input_items: Any, output_items: Any) -> int:
            if self.nitems_written(0) == 0:
                self.add_item_tag(0, 0, tags.RX_RATE, pmt.from_double(200e3))
            return super().work(input_items, output_items)

    localizer = localize.localizer(station, 4)
    flowgraph = gr.top_block()
    sources = [wrong_rate(samples, scene_of(station), True) for samples in received]
    for index, source in enumerate(sources):
        flowgraph.connect(source, (localizer, index))
    flowgraph.run()
    assert isinstance(localizer.failure, SourceError)
    assert "200000 Hz" in str(localizer.failure)


def test_inner_blocks_outlive_garbage_collection(station, received):
    """GNU Radio alone does not keep a Python block alive."""
    flowgraph, found = gr.top_block(), blocks.message_debug()
    scene = scene_of(station)
    sources = [tagged_source(samples, scene, True) for samples in received]
    localizer = localize.localizer(station, 4)
    for index, source in enumerate(sources):
        flowgraph.connect(source, (localizer, index))
    flowgraph.msg_connect(localizer, "fix", found, "store")
    gc.collect()
    flowgraph.run()
    assert found.num_messages() == 2


def test_a_replay_of_radios_goes_on_with_three_and_says_who_is_absent(model_cache, received):
    """The third receiver's recording ends after the first window."""
    text = STATION.replace("[scene]", "[alignment]\nmax_wait_s = 0.1\n[scene]")
    station = parse_station(text, folder=Path())
    streams = [*received]
    streams[2] = received[2, :13_000]
    localizer = localize.localizer(station, 4)
    flowgraph, found = gr.top_block(), blocks.message_debug()
    sources = [tagged_source(samples, scene_of(station), True) for samples in streams]
    for index, source in enumerate(sources):
        flowgraph.connect(source, (localizer, index))
    flowgraph.msg_connect(localizer, "fix", found, "store")
    flowgraph.run()
    assert localizer.failure is None
    fixes = [fix_from_pmt(found.get_message(k)) for k in range(found.num_messages())]
    assert [[report.used for report in fix.receivers] for fix in fixes] == [[True] * 4, [True, True, False, True]]
    gone = fixes[1].receivers[2]
    assert (gone.flags, gone.level_db) == (("absent",), None)
    # The second window begins after the recording's end.
    assert (fixes[1].timestamp - fixes[0].timestamp).total_seconds() > 0.1
    assert fixes[1].status == "ok"
    assert_honest(fixes, station)
    told = localizer.engine.status()["alignment"]
    assert [(each["receiver"], each["present"]) for each in told] == [
        ("east", True),
        ("south", True),
        ("west", False),
        ("north", True),
    ]
    assert localizer.inference.windows["interrupted"] >= 1


def test_one_live_receiver_is_aligned_for_its_gaps(level_station):
    one = level_station.model_copy(update={"receiver": [level_station.receiver[0].model_copy(update={"source": None})]})
    assert [block.name() for block in localize.localizer(one, 1, live=True).blocks].count("time_align") == 1
    assert [block.name() for block in localize.localizer(one, 1).blocks].count("time_align") == 0
