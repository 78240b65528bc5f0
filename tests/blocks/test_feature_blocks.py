from __future__ import annotations

import itertools

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from gnuradio.localize.station_features import station_features
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from localize_core.errors import ConfigError
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
from localize_core.features.mel import MelConfig, MelSpectrogram
from localize_core.features.quality import SampleFlag, sample_quality
from localize_core.types.fix import Alignment

RATE_HZ = 1e5
START_S = 1_700_000_000
FREQ_HZ = 433.92e6


class chopped_source(gr.sync_block):
    """Samples in pieces of the given sizes, over and over, with tags at the given samples."""

    def __init__(self, samples, sizes=(8191,), tags_at=(), at_sample=None, action=None):
        gr.sync_block.__init__(self, "chopped_source", [], [np.complex64])
        self.samples, self.sizes, self.done = samples, itertools.cycle(sizes), 0
        self.at_sample, self.action, self.tags_at = at_sample, action, tags_at

    def work(self, input_items, output_items):
        if self.at_sample is not None and self.done >= self.at_sample:
            self.at_sample = None
            self.action()
        count = min(next(self.sizes), len(output_items[0]), len(self.samples) - self.done)
        if count == 0:
            return -1
        for offset, key, value in self.tags_at:
            if self.done <= offset < self.done + count:
                self.add_item_tag(0, offset, key, value)
        output_items[0][:count] = self.samples[self.done : self.done + count]
        self.done += count
        return count


def run(block, sources, max_items=100_000_000):
    """Frames of every output, and their tags as {key: [(item, value)]}."""
    graph = gr.top_block()
    for port, source in enumerate(sources):
        graph.connect(source, (block, port))
    n_outputs = block.output_signature().min_streams()
    rows = block.output_signature().sizeof_stream_item(0) // 4
    sinks = [blocks.vector_sink_f(rows) for _ in range(n_outputs)]
    for port, sink in enumerate(sinks):
        graph.connect((block, port), sink)
    graph.run(max_items)
    assert block.failure is None
    frames = [np.array(sink.data(), np.float32).reshape(-1, rows) for sink in sinks]
    found = []
    for sink in sinks:
        by_key = {}
        for tag in sorted(sink.tags(), key=lambda tag: tag.offset):
            by_key.setdefault(str(tag.key), []).append((tag.offset, pmt.to_python(tag.value)))
        found.append(by_key)
    return frames, found


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]


def framed(feature, samples):
    """What the block should give: frame i covers the `n_fft` samples before (i + 1) * hop, zeros before the first."""
    n_fft, hop = feature.config.n_fft, feature.config.hop
    padded = np.concatenate([np.zeros((len(samples), n_fft), np.complex64), samples], axis=-1)
    ends = range(hop + n_fft, padded.shape[-1] + 1, hop)
    rows = [
        feature(padded[0, end - n_fft : end] if len(samples) == 1 else padded[:, end - n_fft : end]) for end in ends
    ]
    return [np.concatenate(rows)] if len(samples) == 1 else list(np.concatenate(rows, axis=1))


def spoilt(samples):
    """`samples` with every receiver in some trouble, each of another kind and place."""
    samples[0, 700] = complex(np.nan, 0.0)
    samples[-1, 300:600] = 0.0
    samples[-1, 900:950] = 1.0
    return samples


def sample_tags(offsets):
    """rx_time, rx_rate and rx_freq at samples, and what a reader should find of the times: {sample: seconds}."""
    written, times = [], {}
    for offset in offsets:
        times[offset] = 0.25 + offset / RATE_HZ
        seconds, fraction = divmod(times[offset], 1.0)
        written.append((offset, tags.RX_TIME, tags.time_to_pmt(START_S + int(seconds), fraction)))
        written.append((offset, tags.RX_RATE, pmt.from_double(RATE_HZ)))
        written.append((offset, tags.RX_FREQ, pmt.from_double(FREQ_HZ)))
    return written, times


def told(found, values):
    """What tags say of all frames: each of as many as it has values for."""
    for item, said in found:
        rows = np.reshape(said, (-1, values.shape[1]))
        values[item : item + len(rows)] = rows
    return values


def check_tags(found, config, samples, times, extra_flags=()):
    hop = config.hop
    n_frames = samples.shape[1] // hop
    assert found["localize_features"] == [(0, {**config.as_dict(), "warmup_frames": config.warmup_frames})]
    levels, flags = sample_quality(samples[:, : n_frames * hop].reshape(len(samples), n_frames, hop))
    for receiver, sample, flag in extra_flags:
        flags[sample // hop, receiver] |= flag
    np.testing.assert_array_equal(told(found["localize_levels"], np.full(levels.shape, np.nan)), levels)
    np.testing.assert_array_equal(told(found.get("localize_flags", []), np.zeros(flags.shape)), flags)
    inside = [sample for sample in times if sample < n_frames * hop]
    assert [item for item, _ in found.get("rx_time", [])] == [sample // hop for sample in inside]
    for (item, (seconds, fraction)), sample in zip(found.get("rx_time", []), inside, strict=True):
        assert 0.0 <= fraction < 1.0
        start = times[sample] - (sample - item * hop) / RATE_HZ
        assert (seconds - START_S) + fraction == pytest.approx(start, abs=1e-9)
    assert found.get("rx_rate", []) == [(sample // hop, RATE_HZ) for sample in inside]
    assert found.get("rx_freq", []) == [(sample // hop, FREQ_HZ) for sample in inside]


chopping = {
    "sizes": st.lists(st.integers(1, 500), min_size=1, max_size=6),
    "max_items": st.sampled_from([1, 2, 7, 100, 8192]),
    "frame": st.sampled_from([(64, 16), (64, 64), (100, 30), (64, 100)]),
    "offsets": st.lists(st.integers(0, 1999), max_size=5, unique=True).map(sorted),
}
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@few
@given(**chopping)
def test_mel_is_the_same_however_the_stream_is_chopped(sizes, max_items, frame, offsets):
    block = localize.mel_spectrogram(RATE_HZ, n_fft=frame[0], hop=frame[1], n_mels=16)
    samples = spoilt(noise(1, 2000))
    written, times = sample_tags(offsets)
    frames, found = run(block, [chopped_source(samples[0], sizes, written)], max_items)
    np.testing.assert_array_equal(frames[0], framed(MelSpectrogram(block.config), samples)[0])
    check_tags(found[0], block.config, samples, times)


@few
@given(
    **chopping,
    signal=st.sampled_from(["iq", "envelope", "phase"]),
    weighting=st.sampled_from(["plain", "phat"]),
    lag_step=st.sampled_from([1.0, 0.4]),
)
def test_correlation_is_the_same_however_the_streams_are_chopped(
    sizes, max_items, frame, offsets, signal, weighting, lag_step
):
    block = localize.cross_correlation(RATE_HZ, 3, frame[0], frame[1], 20, lag_step, weighting, signal)
    samples = spoilt(noise(3, 2000))
    written, times = sample_tags(offsets)
    gaps = [(1, 450, SampleFlag.GAP), (2, 451, SampleFlag.UNALIGNED | SampleFlag.GAP), (2, 300, SampleFlag.GAP)]
    sources = []
    for receiver in range(3):
        own = [(at, tags.FLAGS, pmt.init_s32vector(1, [int(flag)])) for r, at, flag in gaps if r == receiver]
        rotated = sizes[receiver % len(sizes) :] + sizes[: receiver % len(sizes)]
        sources.append(chopped_source(samples[receiver], rotated, own + (written if receiver == 0 else [])))
    frames, found = run(block, sources, max_items)
    expected = framed(CrossCorrelation(block.config), samples)
    assert len(frames) == 3
    for ours, theirs, port_tags in zip(frames, expected, found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        check_tags(port_tags, block.config, samples, times, gaps)


def test_defaults_are_those_of_core():
    assert localize.mel_spectrogram(RATE_HZ).config == MelConfig(RATE_HZ)
    assert localize.cross_correlation(RATE_HZ, 3).config == CorrelationConfig(RATE_HZ, 3)


def test_the_features_tag_gives_the_configuration_back():
    for block, config_class in (
        (localize.mel_spectrogram(RATE_HZ, norm="slaney"), MelConfig),
        (localize.cross_correlation(RATE_HZ, 2, lag_step=0.5), CorrelationConfig),
    ):
        configuration, warmup_frames = tags.features_from_pmt(tags.features_to_pmt(block.config))
        assert config_class.from_dict(configuration) == block.config
        assert warmup_frames == block.config.warmup_frames


@pytest.mark.parametrize("lag", [7, -7])
def test_the_block_keeps_the_sign_of_the_lag(lag):
    source = noise(9000)
    late = np.roll(source, lag)  # port 0 hears the signal `lag` samples after port 1
    block = localize.cross_correlation(RATE_HZ, 2, 1024, n_lags=64)
    frames, _ = run(block, [chopped_source(late), chopped_source(source)])
    assert (block.config.lags_s[frames[0][3].argmax()] * RATE_HZ) == pytest.approx(lag)


def test_a_live_change_begins_with_a_tagged_frame():
    block = localize.mel_spectrogram(RATE_HZ, 64, 64, 16)
    samples = noise(1, 64 * 400)
    before = MelSpectrogram(block.config)
    source = chopped_source(samples[0], (64,), at_sample=64 * 300, action=lambda: block.set_log_offset(0.5))
    frames, found = run(block, [source], 64)
    after = MelSpectrogram(block.config)
    assert after.config.log_offset == 0.5
    (first, old), (switch, new) = found[0]["localize_features"]
    assert (first, old["log_offset"], new["log_offset"]) == (0, 1e-10, 0.5)
    assert 0 < switch <= 300
    np.testing.assert_array_equal(frames[0][:switch], framed(before, samples)[0][:switch])
    np.testing.assert_array_equal(frames[0][switch:], framed(after, samples)[0][switch:])


def test_a_second_run_is_tagged_as_the_first():
    block, samples = localize.mel_spectrogram(RATE_HZ, 64, 16, 16), noise(1, 640)
    first = run(block, [chopped_source(samples[0])])
    second = run(block, [chopped_source(samples[0])])
    assert "localize_features" in second[1][0]
    assert repr(second) == repr(first)


def test_weighting_and_signal_can_be_set():
    block = localize.cross_correlation(RATE_HZ, 2, 64, n_lags=16)
    block.set_weighting("phat")
    block.set_signal("envelope")
    samples = noise(2, 640)
    frames, found = run(block, [chopped_source(each) for each in samples])
    expected = CorrelationConfig(RATE_HZ, 2, 64, n_lags=16, weighting="phat", signal="envelope")
    assert block.config == expected
    assert found[0]["localize_features"][0][1]["weighting"] == "phat"
    np.testing.assert_array_equal(frames[0], framed(CrossCorrelation(expected), samples)[0])


def test_bad_parameters_are_refused_and_change_nothing():
    with pytest.raises(ConfigError, match="n_mels=127"):
        localize.mel_spectrogram(RATE_HZ, n_mels=127)
    with pytest.raises(ConfigError, match="n_receivers=1"):
        localize.cross_correlation(RATE_HZ, 1)
    mel, correlation = localize.mel_spectrogram(RATE_HZ), localize.cross_correlation(RATE_HZ)
    for setter, value in (
        (mel.set_log_offset, -1.0),
        (correlation.set_weighting, "loud"),
        (correlation.set_signal, "sum"),
    ):
        with pytest.raises(ConfigError, match=repr(value)):
            setter(value)
    assert mel.config == MelConfig(RATE_HZ)
    assert correlation.config == CorrelationConfig(RATE_HZ, 2)


def test_alignment_and_foreign_tags_go_along_and_malformed_ones_do_no_harm():
    alignment = tags.alignment_to_pmt(Alignment(12.5, 3, 4))
    written = [
        (0, tags.ALIGNMENT, alignment),
        (70, pmt.intern("burst"), pmt.from_long(5)),
        (71, tags.RX_TIME, pmt.from_double(1.0)),
        (72, tags.FLAGS, pmt.intern("gap")),
        (73, tags.LEVELS, pmt.PMT_NIL),
    ]
    block = localize.cross_correlation(RATE_HZ, 3, 64, n_lags=16)
    samples = noise(3, 640)
    _, found = run(block, [chopped_source(samples[0], tags_at=written), *map(chopped_source, samples[1:])])
    for port_tags in found:
        check_tags(port_tags, block.config, samples, {})
        assert port_tags["localize_alignment"] == [(0, pmt.to_python(alignment))]
        assert port_tags["burst"] == [(1, 5)]


@pytest.mark.parametrize("sizes", [(8191,), (100, 37)])
def test_boundaries_say_which_frames_have_seen_both_sides(sizes):
    n_fft, hop = 64, 24
    at = [240, 301, 500]
    written = [(k, tags.BOUNDARY, tags.boundary_to_pmt("gap")) for k in at]
    block = localize.mel_spectrogram(RATE_HZ, n_fft, hop, 8)
    _, (found,) = run(block, [chopped_source(noise(960), sizes, [*written, (700, tags.BOUNDARY, pmt.PMT_NIL)])])
    spans = [((k + 1) * hop - n_fft, (k + 1) * hop) for k in range(40)]
    for (frame, told_), sample in zip(found["localize_boundary"], at, strict=True):
        reason, reaching = told_
        across = [k for k, (first, end) in enumerate(spans) if first < sample < end]
        assert reason == "gap"
        assert list(range(frame, frame + reaching)) == across


def test_tags_of_other_inputs_do_not_go_along():
    written, _ = sample_tags([0])
    block = localize.cross_correlation(RATE_HZ, 2, 64, n_lags=16)
    samples = noise(2, 640)
    _, found = run(block, [chopped_source(samples[0]), chopped_source(samples[1], tags_at=written)])
    assert "rx_time" not in found[0]


def test_a_failure_ends_the_stream_and_stays_readable(monkeypatch):
    block = localize.mel_spectrogram(RATE_HZ)

    def fail(*_):
        raise ValueError("broken on purpose")

    monkeypatch.setattr(type(block), "_frames", fail)
    graph, source, sink = gr.top_block(), chopped_source(noise(100_000)), blocks.null_sink(128 * 4)
    graph.connect(source, block, sink)
    graph.run()
    assert str(block.failure) == "broken on purpose"


@few
@given(sizes=chopping["sizes"], max_items=chopping["max_items"], offsets=chopping["offsets"])
def test_one_block_for_a_station_gives_what_the_single_blocks_do(sizes, max_items, offsets, make_contract):
    mel = MelConfig(RATE_HZ, n_fft=64, hop=32, n_mels=16)
    correlation = CorrelationConfig(RATE_HZ, 3, n_fft=96, hop=32, n_lags=16)
    contract = make_contract(3)
    channels = tuple(
        each.model_copy(update={"parameters": (mel if each.feature == "log_mel" else correlation).as_dict()})
        for each in contract.channels
    )
    contract = contract.model_copy(update={"channels": channels, "sample_rate_hz": RATE_HZ})
    samples = spoilt(noise(3, 2000))
    written, times = sample_tags(offsets)
    sources = [chopped_source(stream, sizes, written if port == 0 else ()) for port, stream in enumerate(samples)]
    frames, found = run(station_features(contract), sources, max_items)
    for receiver, stream in enumerate(samples):
        np.testing.assert_array_equal(frames[receiver], framed(MelSpectrogram(mel), stream[None])[0])
        levels, flags = sample_quality(stream[: len(frames[0]) * 32].reshape(1, -1, 32))
        np.testing.assert_array_equal(told(found[receiver]["localize_levels"], np.full(levels.shape, np.nan)), levels)
        np.testing.assert_array_equal(told(found[receiver].get("localize_flags", []), np.zeros(flags.shape)), flags)
    for pair, expected in enumerate(framed(CrossCorrelation(correlation), samples)):
        np.testing.assert_array_equal(frames[3 + pair], expected)
    for config, outputs in ((mel, found[:3]), (correlation, found[3:])):
        wanted = [(0, {**config.as_dict(), "warmup_frames": config.warmup_frames})]
        assert all(each["localize_features"] == wanted for each in outputs)
    assert [item for item, _ in found[0].get("rx_time", [])] == [sample // 32 for sample in times if sample < 1984]
