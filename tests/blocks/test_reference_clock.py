"""Receivers without a common clock in flowgraphs: what the reference's block says, and what a station makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize import tags
from localize_core.errors import ConfigError
from localize_core.station.config import Station, load_station

from benchmarks import reference as bench

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "reference_emitter.toml"
RATE_HZ = 250e3


@pytest.fixture(scope="module")
def station() -> Station:
    return load_station(EXAMPLE)


def block(station: Station, **values: Any) -> Any:
    reference = station.reference
    assert reference is not None
    fields = {"bandwidth_hz": reference.bandwidth_hz, "reference_hz": reference.frequency_hz, "max_ppm": 80.0}
    fields |= {"latitude": reference.latitude, "longitude": reference.longitude, "altitude_m": reference.altitude_m}
    receivers = [(r.name, r.latitude, r.longitude, r.altitude_m) for r in station.receiver]
    return localize.reference_clock(receivers, RATE_HZ, station.station.frequency_hz, **(fields | values))


@pytest.fixture(scope="module")
def heard(station) -> np.ndarray:
    """A second of what the example's receivers hear."""
    source = localize.scene_source(
        [(r.name, r.latitude, r.longitude) for r in station.receiver],
        RATE_HZ,
        station.station.frequency_hz,
        **station.scene.model_dump(),
    )
    return source.scene.samples(0, round(1.2 * RATE_HZ))


def run(clock: Any, heard: np.ndarray, stamps: list[tuple[int, int, Any, Any]]) -> tuple[list[Any], Any]:
    """`stamps`: (stream, sample, key, value)."""
    graph, sinks = gr.top_block(), []
    store = blocks.message_debug()
    for stream, samples in enumerate(heard):
        found = [(at, key, value) for own, at, key, value in stamps if own == stream]
        made = [gr.python_to_tag((at, key, value, pmt.PMT_F)) for at, key, value in found]
        source, sink = blocks.vector_source_c(samples.tolist(), False, 1, made), blocks.vector_sink_c()
        graph.connect(source, (clock, stream))
        graph.connect((clock, stream), sink)
        sinks.append(sink)
    graph.msg_connect(clock, "status", store, "store")
    graph.run()
    assert clock.failure is None
    return sinks, store


def test_the_streams_carry_time_rate_and_what_they_brought(station, heard):
    clock = block(station)
    start = [(stream, 0, tags.RX_TIME, tags.time_to_pmt(1_700_000_000, 0.25)) for stream in range(4)]
    start += [(stream, 7, tags.RX_FREQ, pmt.from_double(144.5e6)) for stream in range(4)]
    sinks, store = run(clock, heard, start)
    told = pmt.to_python(store.get_message(store.num_messages() - 1))
    assert set(told) == {receiver.name for receiver in station.receiver}
    assert all(one["locked"] for one in told.values())
    assert sum(one["base"] for one in told.values()) == 1
    assert [status.locked for status in clock.clock.status] == [True] * 4
    rates = []
    for sink in sinks:
        found = {}
        for tag in sink.tags():
            found.setdefault(pmt.symbol_to_string(tag.key), []).append((tag.offset, tag.value))
        assert len(sink.data()) > 0.5 * RATE_HZ
        assert found["rx_time"][0][0] == 0
        seconds, fraction = tags.time_from_pmt(found["rx_time"][0][1])
        assert 0.25 < seconds - 1_700_000_000 + fraction < 0.9
        assert len(found["rx_rate"]) == len(found["rx_time"])
        assert pmt.to_double(found["rx_freq"][0][1]) == 144.5e6
        assert "localize_time_error" in found
        rates.append(pmt.to_double(found["rx_rate"][-1][1]))
    assert np.ptp(rates) > 1e-6 * RATE_HZ  # clocks differ, and it shows


def test_streams_without_any_time_take_the_computers(station, heard):
    clock = block(station)
    sinks, _ = run(clock, heard, [])
    for sink in sinks:
        sources = [tag for tag in sink.tags() if pmt.eq(tag.key, tags.TIME_SOURCE)]
        assert [tags.time_source_from_pmt(tag.value) for tag in sources] == ["host"]


def test_a_flowgraph_that_starts_again_begins_anew(station, heard):
    clock, lost = block(station), []
    clock.on_lost = lost.append
    clock.count_on({station.receiver[1].name: {"losses": 2}})
    start = [(stream, 0, tags.RX_TIME, tags.time_to_pmt(1_700_000_000, 0.25)) for stream in range(4)]
    once, again = (run(clock, heard, start)[0] for _ in range(2))
    for one, other in zip(once, again, strict=True):
        count = min(len(one.data()), len(other.data()))
        assert count > 0.5 * RATE_HZ
        assert one.data()[:count] == other.data()[:count]
    assert lost == [[], []]  # what an earlier run had to say is over
    assert all(one["locked"] for one in clock.report().values())
    assert [one["losses"] for one in clock.report().values()] == [0, 2, 0, 0]


def test_what_cannot_work_is_refused(station):
    with pytest.raises(ConfigError, match="bandwidth_hz"):
        block(station, bandwidth_hz=0.0)
    with pytest.raises(ConfigError, match="carrier"):
        block(station, carrier="none")
    with pytest.raises(ConfigError, match=r"at most 0\.45"):
        block(station, reference_hz=144.6e6)


def test_a_station_without_a_common_clock_locates_as_one_with(station, model_cache):
    """Clocks and oscillators 20 ppm off, starts microseconds apart: within half as much again of perfect clocks."""
    features = station.features.model_copy(update={"window_s": 0.05})
    quick = station.model_copy(update={"features": features})
    perfect = [bench.located(bench.variant(quick, seed, bench.PERFECT, None), 3.0) for seed in (1, 2)]
    told = [bench.located(bench.variant(quick, seed, {}, {}), 3.0) for seed in (1, 2)]
    ideal, own = bench.together(perfect), bench.together(told)
    assert len(own.errors_m) > 90
    assert len(own.errors_m) > 0.75 * len(ideal.errors_m)
    assert own.rms_m < 1.5 * ideal.rms_m
    assert own.contained > 0.88
    assert ideal.contained > 0.88


def test_the_station_says_how_its_clocks_fare(station, model_cache):
    localizer = localize.localizer(station, n_receivers=4)
    status = localizer.engine.observed("reference")
    assert set(status) == {receiver.name for receiver in station.receiver}
    assert not any(one["locked"] for one in status.values())
    reference = next(one for one in localizer.blocks if isinstance(one, localize.reference_clock))
    reference.on_lost(["west"])
    assert [condition.name for condition in localizer.engine.health.conditions] == ["reference_lost"]
    reference.on_lost([])
    assert localizer.engine.health.conditions == ()
    reference.count_on({"west": {"losses": 2}})
    after = localize.localizer(localizer, n_receivers=4).engine.observed("reference")
    assert {name: one["losses"] for name, one in after.items()} == {name: 2 * (name == "west") for name in status}
