from __future__ import annotations

import time

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from localize_core.errors import ConfigError

RECEIVERS = [("west", 47.05, 8.20, 800.0), ("east", 47.04, 8.42)]
RATE_HZ = 12_000.5
SCENE = {
    "track": [(47.05, 8.31), (47.06, 8.32)],
    "speed_mps": 20.0,
    "bandwidth_hz": 5e3,
    "start_time": "2026-03-04T05:06:07.25Z",
}


def run(max_items=100_000_000, **parameters):
    source = localize.scene_source(RECEIVERS, RATE_HZ, 77.5e3, **({"duration_s": 2.5} | SCENE | parameters))
    sinks = [blocks.vector_sink_c() for _ in RECEIVERS]
    graph = gr.top_block()
    for port, sink in enumerate(sinks):
        graph.connect((source, port), sink)
    graph.run(max_items)
    assert source.failure is None
    return source, sinks


@pytest.mark.parametrize("max_items", [7, 1000, 100_000_000])
def test_the_scene_however_it_is_chopped(max_items):
    source, sinks = run(max_items)
    expected = source.scene.samples(0, round(2.5 * RATE_HZ))
    np.testing.assert_array_equal(np.array([sink.data() for sink in sinks], np.complex64), expected)
    assert np.abs(expected).min() > 0.0


@pytest.mark.parametrize("max_items", [997, 100_000_000])
def test_tags_at_the_start_and_each_second(max_items):
    _, sinks = run(max_items)
    for sink in sinks:
        tags = {(tag.offset, pmt.symbol_to_string(tag.key)): tag.value for tag in sink.tags()}
        assert pmt.to_uint64(tags.pop((0, "localize_length"))) == len(sink.data()) == round(2.5 * RATE_HZ)
        offsets = [0, 12_001, 24_001]
        assert set(tags) == {(offset, key) for offset in offsets for key in ("rx_time", "rx_rate", "rx_freq")}
        for offset in offsets:
            stamp = tags[offset, "rx_time"]
            elapsed_s = pmt.to_uint64(pmt.tuple_ref(stamp, 0)) - 1772600767 + pmt.to_double(pmt.tuple_ref(stamp, 1))
            assert elapsed_s - 0.25 == pytest.approx(offset / RATE_HZ, abs=1e-12)
            assert pmt.to_double(tags[offset, "rx_rate"]) == RATE_HZ
            assert pmt.to_double(tags[offset, "rx_freq"]) == 77.5e3


def test_throttle_keeps_real_time():
    started_s = time.monotonic()
    _, sinks = run(duration_s=0.6, throttle=True)
    assert 0.59 < time.monotonic() - started_s < 1.5
    assert len(sinks[0].data()) == round(0.6 * RATE_HZ)


def test_endless_until_stopped():
    source = localize.scene_source(RECEIVERS, RATE_HZ, 77.5e3, **SCENE)
    head, sink = blocks.head(gr.sizeof_gr_complex, 50_000), blocks.vector_sink_c()
    graph = gr.top_block()
    graph.connect((source, 0), head, sink)
    graph.connect((source, 1), blocks.null_sink(gr.sizeof_gr_complex))
    graph.start()
    deadline_s = time.monotonic() + 20.0
    while len(sink.data()) < 50_000 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    graph.stop()
    graph.wait()
    assert len(sink.data()) == 50_000


def test_places_of_a_channel_data_set(tmp_path):
    """What the file says is what comes out: two receivers, row after row, at the set's level over its noise."""
    rng = np.random.default_rng(3)
    np.savez(
        tmp_path / "set.npz",
        receivers_enu_m=np.array([[0.0, 0.0, 10.0], [500.0, 0.0, 10.0]]),
        transmitters_enu_m=rng.uniform(-200.0, 200.0, (5, 3)),
        tap_gain=np.full((5, 2, 1), 1.0, np.complex64) * np.array([[1.0], [10.0]], np.complex64),
        tap_delay_ns=rng.uniform(100.0, 900.0, (5, 2, 1)).astype(np.float32),
        noise_gain=0.1,
        frequency_hz=77.5e3,
        origin_wgs84=np.array([47.05, 8.2, 0.0]),
        receiver_names=np.array(["west", "east"]),
    )
    receivers = [("east", 47.05, 8.20658, 10.0), ("west", 47.05, 8.2, 10.0)]
    fields = {"channels": str(tmp_path / "set.npz"), "channel_rows": (4, 1), "dwell_s": 0.25, "bandwidth_hz": 5e3}
    source = localize.scene_source(receivers, RATE_HZ, 77.5e3, duration_s=1.0, **fields)
    sinks = [blocks.vector_sink_c() for _ in receivers]
    graph = gr.top_block()
    for port, sink in enumerate(sinks):
        graph.connect((source, port), sink)
    graph.run()
    assert source.failure is None
    received = np.array([sink.data() for sink in sinks], np.complex64)
    np.testing.assert_array_equal(received, source.scene.samples(0, round(RATE_HZ)))
    level_db = 10 * np.log10(np.mean(np.abs(received) ** 2, axis=1))
    np.testing.assert_allclose(level_db, 10 * np.log10([1e-2 + 1e-6, 1e-4 + 1e-6]), atol=0.5)  # noise at -60 dBFS


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"receivers": []}, "receivers"),
        ({"receivers": [("a", 47.0)]}, r"receiver \('a', 47.0\).*longitude"),
        ({"receivers": [("a", "north", 8.0)]}, "receiver"),
        ({"receivers": [("a", 97.0, 8.0)]}, "WGS84"),
        ({"duration_s": -1.0}, "duration_s=-1.0"),
        ({"sample_rate_hz": 0.0}, "sample_rate_hz=0.0"),
        ({"waveform": "lora"}, "scene.waveform='lora'"),
        ({"colour": "blue"}, "scene.colour='blue'"),
        ({"track": ()}, "scene.track=.*needs at least one point, or `channels`"),
        ({"channels": "set.npz"}, "scene: track=.*means nothing with a channel data set"),
    ],
)
def test_refused(parameters, match):
    with pytest.raises(ConfigError, match=match):
        localize.scene_source(
            **({"receivers": RECEIVERS, "sample_rate_hz": RATE_HZ, "frequency_hz": 77.5e3} | SCENE | parameters)
        )
