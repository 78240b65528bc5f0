"""Devices in graphs of their own: what reaches the station's graph, and what becomes of devices that die."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pmt
import pytest
import zmq
from gnuradio import blocks, gr
from gnuradio.localize import receivers, tags
from gnuradio.localize.radios.radio import Radio
from gnuradio.localize.receiver_source import receiver_source
from gnuradio.localize.receivers import Receivers
from gnuradio.localize.stream_outlet import stream_outlet
from localize_core.errors import ConfigError, RadioError
from localize_core.receivers import rate_watch
from localize_core.receivers.host_clock import WallClock
from localize_core.receivers.stream_buffer import StreamBuffer
from localize_core.station.config import Station, parse_station

WAIT_S = 30.0
RATE_HZ = 250e3
STATION = """
[station]
name = "live"
sample_rate_hz = 250e3
frequency_hz = 433.92e6
[area]
south = 45.0
west = 7.6
north = 45.14
east = 7.79
"""


def station_of(*addresses: str, extra: str = "") -> Station:
    receivers = "".join(
        f'[[receiver]]\nname = "r{k}"\nlatitude = 45.0{k + 1}\nlongitude = 7.7\n'
        f'source = {{ kind = "rtl-tcp", address = "{address}"{extra} }}\n'
        for k, address in enumerate(addresses)
    )
    return parse_station(STATION + receivers, folder=None)


def until(condition: Callable[[], Any], what: Any = "") -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)


class collector(gr.sync_block):
    """Keeps samples and tags of its inputs."""

    def __init__(self, inputs: int) -> None:
        gr.sync_block.__init__(self, "collector", [np.complex64] * inputs, None)
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.tags: list[tuple[int, str, Any]] = []
        self.samples: list[np.ndarray] = []

    def work(self, input_items: list[np.ndarray], output_items: Any) -> int:
        count = len(input_items[0])
        first = self.nitems_read(0)
        for tag in self.get_tags_in_range(0, first, first + count):
            self.tags.append((tag.offset, pmt.symbol_to_string(tag.key), tag.value))
        self.samples.append(input_items[0].copy())
        return count

    @property
    def count(self) -> int:
        return sum(map(len, self.samples))

    def values(self, key: str) -> list[tuple[int, Any]]:
        return [(offset, value) for offset, name, value in self.tags if name == key]


class Bench:
    """The receivers of a station, each read by a collector."""

    def __init__(self, receivers: Receivers) -> None:
        self.receivers = receivers
        self.graph = gr.top_block()
        self.sources = [receiver_source(buffer, RATE_HZ) for buffer in receivers.buffers]
        self.collectors = [collector(1) for _ in self.sources]
        for source, sink in zip(self.sources, self.collectors, strict=True):
            self.graph.connect(source, sink)

    def state(self, name: str) -> str:
        return self.receivers.report()[name]["state"]

    def await_state(self, name: str, state: str, **fields: Any) -> None:
        def there() -> bool:
            found = self.receivers.report()[name]
            return found["state"] == state and all(found[key] == value for key, value in fields.items())

        until(there, self.receivers.report)


@pytest.fixture
def run() -> Iterator[Callable[..., Bench]]:
    running: list[Bench] = []

    def start(station: Station, **options: Any) -> Bench:
        bench = Bench(Receivers(station, **options))
        running.append(bench)
        bench.receivers.start()
        bench.graph.start()
        return bench

    yield start
    for bench in running:
        bench.receivers.stop()
        bench.graph.stop()
        bench.graph.wait()


@pytest.fixture
def ramp() -> np.ndarray:
    """A signal whose samples rtl_tcp's eight bits can hold."""
    return np.exp(2j * np.pi * 0.01 * np.arange(25_000)).astype(np.complex64)


def test_samples_and_times_of_rtl_tcp(run, start_rtl_tcp, ramp):
    server = start_rtl_tcp(ramp)
    bench = run(station_of(server.address))
    until(lambda: bench.collectors[0].count > RATE_HZ)
    (sink,) = bench.collectors
    samples = np.concatenate(sink.samples)
    turned = samples[1:] * samples[:-1].conj()
    assert np.angle(turned) == pytest.approx(2 * np.pi * 0.01, abs=0.1)  # no sample is missing
    ((offset, started),) = sink.values("rx_time")
    assert offset == 0
    seconds, fraction = tags.time_from_pmt(started)
    assert seconds + fraction == pytest.approx(time.time() - sink.count / RATE_HZ, abs=2.0)
    assert [tags.time_source_from_pmt(value) for _, value in sink.values("localize_time_source")] == ["host"]
    assert [pmt.to_double(value) for _, value in sink.values("rx_rate")] == [pytest.approx(RATE_HZ, rel=1e-3)]
    assert [pmt.to_double(value) for _, value in sink.values("rx_freq")] == [433.92e6]
    assert sink.values("localize_restart") == []


def test_one_server_is_cut_and_comes_back(run, start_rtl_tcp, ramp):
    servers = [start_rtl_tcp(ramp), start_rtl_tcp(ramp)]
    bench = run(station_of(*(server.address for server in servers)))
    bench.await_state("r0", "streaming")
    bench.await_state("r1", "streaming")
    until(lambda: bench.collectors[1].count > 1000)
    servers[1].refuse()
    bench.await_state("r1", "absent")
    assert "r1 is absent: " in bench.receivers.lost()
    before = bench.collectors[0].count
    until(lambda: bench.collectors[0].count > before + RATE_HZ)  # the other goes on
    servers[1].restart()
    bench.await_state("r1", "streaming", restarts=1)
    assert bench.receivers.lost() == ""
    until(lambda: bench.collectors[1].values("localize_restart"))
    ((offset, lost),) = bench.collectors[1].values("localize_restart")
    assert tags.restart_from_pmt(lost) is None
    assert offset in [index for index, _ in bench.collectors[1].values("rx_time")]
    (began, first), *_, (at, second) = bench.collectors[1].values("rx_time")
    passed_s = pmt.to_python(second)[0] + pmt.to_python(second)[1] - sum(pmt.to_python(first))
    assert passed_s > (at - began) / RATE_HZ + 0.2
    assert bench.receivers.report()["r0"]["restarts"] == 0


def test_a_server_that_falls_silent(run, start_rtl_tcp, ramp):
    server = start_rtl_tcp(ramp)
    bench = run(station_of(server.address))
    bench.await_state("r0", "streaming")
    server.stall()
    bench.await_state("r0", "absent")
    server.resume()
    bench.await_state("r0", "streaming", restarts=1)


def test_a_server_that_goes_on_at_its_own_rate(run, start_rtl_tcp, ramp, monkeypatch):
    monkeypatch.setattr(rate_watch, "PIECE_S", 0.2)
    server = start_rtl_tcp(ramp, rate_hz=1e6)
    bench = run(station_of(server.address))
    bench.await_state("r0", "absent")
    said = re.fullmatch(r"sends (\d+) samples/s where 250000 are asked", bench.receivers.report()["r0"]["error"])
    assert said is not None
    assert int(said[1]) == pytest.approx(1e6, rel=0.1)


def test_a_server_that_is_not_there_yet(run, start_rtl_tcp, ramp):
    server = start_rtl_tcp(ramp)
    server.refuse()
    bench = run(station_of(server.address))
    bench.await_state("r0", "absent")
    assert "r0 is absent: rtl-tcp 127.0.0.1" in bench.receivers.lost()
    server.restart()
    bench.await_state("r0", "streaming", restarts=0)


def test_a_flowgraph_over_zmq_that_falls_silent(run):
    """A sender without tags: samples are stamped when they arrive."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        sending, ended = threading.Event(), threading.Event()

        def send() -> None:
            chunk = np.ones(5000, np.complex64).tobytes()
            while not ended.wait(0.02):
                if sending.is_set():
                    socket.send(chunk)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            sending.set()
            receiver = (
                '[[receiver]]\nname = "r0"\nlatitude = 45.01\nlongitude = 7.7\n'
                f'source = {{ kind = "zmq", address = "tcp://127.0.0.1:{port}", time_source = "host" }}\n'
            )
            bench = run(parse_station(STATION + receiver, folder=None))
            until(lambda: bench.collectors[0].count > 1000)
            sending.clear()
            bench.await_state("r0", "absent")
            sending.set()
            bench.await_state("r0", "streaming", restarts=1)
            until(lambda: bench.collectors[0].values("localize_restart"))
        finally:
            ended.set()
            thread.join()


# devices whose hardware tells the time


class timed_source(gr.sync_block):
    """As a UHD source: times at the start and after an overflow. Sample n has the value n, as far as it counts.

    `lost`: samples to lose, by the sample where it happens.
    """

    def __init__(self, lost: dict[int, int], breaks_at: int | None = None) -> None:
        gr.sync_block.__init__(self, "timed_source", None, [np.complex64])
        self._lost, self._breaks_at, self._taken, self._tells = dict(lost), breaks_at, 0, True

    def work(self, input_items: Any, output_items: list[np.ndarray]) -> int:
        time.sleep(0.005)
        count = min(len(output_items[0]), 2000)
        for at in [at for at in self._lost if at <= self._taken]:
            self._taken += self._lost.pop(at)
            self._tells = True
        if self._breaks_at is not None and self._taken > self._breaks_at:
            raise RuntimeError("the driver has broken")
        if self._tells:
            moment = divmod(1_700_000_000 + self._taken / RATE_HZ, 1.0)
            tags.write(self, 1, 0, tags.RX_TIME, tags.time_to_pmt(int(moment[0]), moment[1]))
            tags.write(self, 1, 0, tags.RX_RATE, pmt.from_double(RATE_HZ))
            tags.write(self, 1, 0, tags.RX_FREQ, pmt.from_double(1e8))
            self._tells = False
        output_items[0][:count] = np.arange(self._taken, self._taken + count)
        self._taken += count
        return count


def radio_of_source(make: Callable[[], Any]) -> Callable[..., Radio]:
    def radio_of(device: Any, table: Any) -> Radio:
        source = make()
        return Radio(device.name, ((source, 0),), (source,), "rx_time", RATE_HZ)

    return radio_of


def test_an_overflow_of_the_driver_is_a_jump_of_its_times(run):
    bench = run(station_of("h:1"), radio_of=radio_of_source(lambda: timed_source({50_000: 1234, 90_000: 5})))
    (sink,) = bench.collectors
    until(lambda: sink.count > 150_000)
    samples = np.concatenate(sink.samples).real.astype(int)
    jumps = np.flatnonzero(np.diff(samples) != 1) + 1
    assert np.diff(samples)[jumps - 1].tolist() == [1235, 6]
    times = sink.values("rx_time")
    assert [offset for offset, _ in times] == [0, *jumps]
    for offset, value in times:
        seconds, fraction = tags.time_from_pmt(value)
        assert (seconds - 1_700_000_000 + fraction) * RATE_HZ == pytest.approx(samples[offset], abs=0.1)
    assert [tags.time_source_from_pmt(value) for _, value in sink.values("localize_time_source")] == ["rx_time"]
    assert [pmt.to_double(value) for _, value in sink.values("rx_freq")][-1] == 1e8
    report = bench.receivers.report()["r0"]
    assert (report["lost"], report["gaps"], report["dropped"]) == (1239, 2, 0)


def test_a_frequency_that_is_told_before_there_are_times_counts():
    total = int(2 * RATE_HZ)
    tag = gr.tag_t()
    tag.offset, tag.key, tag.value = 100, tags.RX_FREQ, pmt.from_double(1e8)
    source = blocks.vector_source_c(np.zeros(total, np.complex64), False, 1, [tag])
    pace = blocks.throttle(gr.sizeof_gr_complex, RATE_HZ)
    buffer = StreamBuffer(total)
    outlet = stream_outlet([buffer], RATE_HZ, 433.92e6, "host", WallClock())
    graph = gr.top_block()
    graph.connect(source, pace, outlet)
    graph.run()
    assert outlet.failure is None
    count, (mark, *_) = buffer.pull(np.empty(total, np.complex64))
    assert 0 < count < total  # the first are without a time
    assert (mark.index, mark.frequency_hz, mark.time_source) == (0, 1e8, "host")


def test_a_driver_that_breaks_is_opened_anew(run):
    bench = run(station_of("h:1"), radio_of=radio_of_source(lambda: timed_source({}, breaks_at=30_000)))
    until(lambda: len(bench.collectors[0].values("localize_restart")) >= 2, bench.receivers.report)
    assert bench.receivers.report()["r0"]["restarts"] >= 1


class hung_source(gr.sync_block):
    """Its driver does not come back until it is told to."""

    def __init__(self, let_go: threading.Event) -> None:
        gr.sync_block.__init__(self, "hung_source", None, [np.complex64])
        self._let_go = let_go

    def work(self, input_items: Any, output_items: list[np.ndarray]) -> int:
        self._let_go.wait(WAIT_S)
        return -1


def test_a_driver_that_hangs_does_not_keep_the_station_from_ending(run):
    let_go = threading.Event()
    bench = run(station_of("h:1"), radio_of=radio_of_source(lambda: hung_source(let_go)))
    assert bench.state("r0") == "connecting"
    began_s = time.monotonic()
    bench.receivers.stop()
    assert time.monotonic() - began_s < receivers.END_S + 2.0
    let_go.set()
    until(lambda: not any(thread_of(bench, "h:1")))


def test_a_station_that_does_not_pull_loses_samples_and_no_memory(run):
    """The graph stands still: the buffer is full, and what has no room is counted."""
    station = station_of("h:1")
    receivers = Receivers(station, radio_of=radio_of_source(lambda: timed_source({})))
    (buffer,) = receivers.buffers
    receivers.start()
    until(lambda: buffer.count.dropped > 1000)
    assert buffer.count.waiting == buffer.capacity == 2 * RATE_HZ
    bench = Bench(receivers)
    bench.graph.start()
    until(lambda: bench.collectors[0].count > 50_000)
    receivers.stop()
    bench.graph.stop()
    bench.graph.wait()
    (sink,) = bench.collectors
    first = sink.samples[0][0].real
    seconds, fraction = tags.time_from_pmt(sink.values("rx_time")[0][1])
    assert (seconds - 1_700_000_000 + fraction) * RATE_HZ == pytest.approx(first, abs=0.1)
    count = buffer.count
    assert count.taken == count.delivered + count.dropped + count.waiting


def test_what_cannot_work_and_what_is_not_there(run):
    def radio_of(device: Any, table: Any) -> Radio:
        if device.receivers[0].name == "r0":
            raise ConfigError("gain_db=900: it has 0 to 50")
        raise RadioError("not plugged in")

    bench = run(station_of("h:1", "h:2"), radio_of=radio_of)
    until(lambda: bench.receivers.fatal is not None)
    assert str(bench.receivers.fatal) == "gain_db=900: it has 0 to 50"
    bench.await_state("r0", "failed")
    bench.await_state("r1", "absent")
    assert bench.receivers.lost() == "r0 is failed: gain_db=900: it has 0 to 50; r1 is absent: not plugged in"


def test_a_station_that_changes_keeps_the_devices_that_stay(run):
    radio_of = radio_of_source(lambda: timed_source({}))
    first = run(station_of("h:1", "h:2"), radio_of=radio_of)
    first.await_state("r0", "streaming")
    first.await_state("r1", "streaming")
    changed = station_of("h:3", "h:1")
    after = Receivers(changed, before=first.receivers, radio_of=radio_of)
    assert after.buffers[1] is first.receivers.buffers[0]
    assert after.buffers[0] not in first.receivers.buffers
    after.start()
    try:
        until(lambda: after.report()["r0"]["state"] == "streaming")
        assert after.report()["r1"]["state"] == "streaming"
        assert after.report()["r1"]["restarts"] == 0
        assert first.receivers.report()["r1"]["state"] == "streaming"  # as it was when it ended
        until(lambda: not any(thread_of(first, "h:2")))
    finally:
        after.stop()


def thread_of(bench: Bench, address: str) -> list[bool]:
    return [
        each.supervisor._thread.is_alive() for each in bench.receivers._watched if each.device.name.endswith(address)
    ]


def test_a_device_that_can_never_work_is_tried_anew_by_who_takes_its_place():
    """Its driver was installed meanwhile."""
    installed = []
    working = radio_of_source(lambda: timed_source({}))

    def radio_of(device: Any, table: Any) -> Radio:
        if not installed:
            raise ConfigError("no driver")
        return working(device, table)

    station = station_of("h:1")
    before = Receivers(station, radio_of=radio_of)
    before.start()
    until(lambda: before.fatal is not None)
    installed.append(True)
    after = Receivers(station, before=before, radio_of=radio_of)
    after.start()
    try:
        until(lambda: after.report()["r0"]["state"] == "streaming")
        assert after.fatal is None
    finally:
        after.stop()
