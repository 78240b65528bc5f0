"""Radios: what the station file says arrives at the real drivers, and what they do not do is one clear line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr, localize
from gnuradio.localize.radios import OPENERS, open_radio, rtl_tcp, uhd, zmq
from gnuradio.localize.radios.radio import Radio
from localize_core.errors import ConfigError, MissingDriver, RadioError
from localize_core.station.config import ReceiverTable, StationTable
from localize_core.station.sources import LIVE_KINDS, SOURCE_TABLES, Device

WAIT_S = 30.0
RATE_HZ, FREQUENCY_HZ = 2e6, 1090e6


def device_of(kind: str, *channels: dict[str, Any], **common: Any) -> Device:
    """A device with a receiver for each of `channels`, whose other keys are `common`."""
    receivers = tuple(
        ReceiverTable(
            name=f"r{index}",
            latitude=47.0,
            longitude=8.0,
            source=SOURCE_TABLES[kind](kind=kind, **{**common, **channel}),
        )
        for index, channel in enumerate(channels or ({},))
    )
    return Device(f"{kind} {receivers[0].source.device_key}", kind, tuple(range(len(receivers))), receivers)


def table(rate_hz: float = RATE_HZ, frequency_hz: float = FREQUENCY_HZ) -> StationTable:
    return StationTable(name="test", sample_rate_hz=rate_hz, frequency_hz=frequency_hz)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Listener:
    """A running flowgraph that keeps the first `count` samples of each of a radio's streams, and their tags."""

    def __init__(self, radio: Radio, count: int) -> None:
        self.radio = radio
        self.graph = gr.top_block()
        self.sinks = [blocks.vector_sink_c() for _ in radio.outputs]
        self._heads = [blocks.head(gr.sizeof_gr_complex, count) for _ in radio.outputs]
        self._count = count
        for output, head, sink in zip(radio.outputs, self._heads, self.sinks, strict=True):
            self.graph.connect(output, head, sink)
        self.graph.start()

    def samples(self) -> list[np.ndarray]:
        wait_until(lambda: all(len(sink.data()) >= self._count for sink in self.sinks))
        return [np.array(sink.data(), dtype=np.complex64) for sink in self.sinks]

    def stop(self) -> None:
        self.graph.stop()
        self.radio.close()
        self.graph.wait()

    def ended_within_s(self) -> float:
        """How long the graph takes to end by itself."""
        begun = time.monotonic()
        waiter = threading.Thread(target=self.graph.wait, daemon=True)
        waiter.start()
        waiter.join(WAIT_S)
        assert not waiter.is_alive()
        return time.monotonic() - begun


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """A starter of listeners, stopped at the end."""
    listeners: list[Listener] = []

    def start(radio: Radio, count: int) -> Listener:
        listeners.append(Listener(radio, count))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.stop()


def test_every_live_kind_can_be_opened():
    assert set(OPENERS) == set(LIVE_KINDS)


@pytest.mark.parametrize(("kind", "keys"), [("osmosdr", {"args": "rtl=0"}), ("rtl-tcp", {"address": "127.0.0.1:9"})])
def test_a_driver_that_is_not_installed(monkeypatch, kind, keys):
    monkeypatch.setitem(sys.modules, "osmosdr", None)
    with pytest.raises(
        MissingDriver, match=rf"^{kind} .*: cannot load osmosdr .*: apt-get install gr-osmosdr, or conda"
    ):
        open_radio(device_of(kind, **keys), table())


@pytest.fixture
def modes(data_dir):
    return data_dir / "adsb-rtlsdr" / "modes1.cu8"


def test_samples_of_rtl_tcp_are_the_server_s(rtl_tcp, start_rtl_tcp, listen, modes):
    server = start_rtl_tcp(modes, paced=False)
    radio = open_radio(device_of("rtl-tcp", address=server.address), table())
    assert (radio.name, radio.time_source, radio.sample_rate_hz) == (f"rtl-tcp {server.address}", "host", RATE_HZ)
    (heard,) = listen(radio, 1_000_000).samples()
    sent = rtl_tcp.from_cu8(np.fromfile(modes, dtype=np.uint8))
    np.testing.assert_array_equal(heard, np.resize(sent, len(heard)))


def test_features_of_rtl_tcp_are_the_file_s(rtl_tcp, start_rtl_tcp, modes):
    """Of a station with one receiver: the file's through the real client, and straight from the file."""
    count, size = 300_000, gr.sizeof_float * 128

    def mel_of(source: Any, *, wait: bool) -> np.ndarray:
        graph, sink = gr.top_block(), blocks.vector_sink_f(128)
        features = localize.mel_spectrogram(RATE_HZ, n_mels=128, n_fft=512, hop=128)
        head = blocks.head(size, count // 128 - 4)
        graph.connect(source, features, head, sink)
        graph.start()
        if wait:
            graph.wait()
        wait_until(lambda: len(sink.data()) == 128 * (count // 128 - 4))
        graph.stop()
        if not wait:
            radio.close()
        graph.wait()
        return np.array(sink.data(), dtype=np.float32)

    server = start_rtl_tcp(modes, paced=False)
    radio = open_radio(device_of("rtl-tcp", address=server.address), table())
    ((client, _),) = radio.outputs
    sent = rtl_tcp.from_cu8(np.fromfile(modes, dtype=np.uint8))[:count]
    np.testing.assert_array_equal(mel_of(client, wait=False), mel_of(blocks.vector_source_c(sent.tolist()), wait=True))


@pytest.mark.parametrize(
    ("keys", "command", "value"),
    [
        ({}, "RATE", 2_000_000),
        ({}, "FREQUENCY", 1_090_000_000),
        ({}, "GAIN_MODE", 0),
        ({}, "AGC", 1),
        ({"agc": False}, "GAIN_MODE", 1),
        ({"agc": False}, "AGC", 0),
        ({"gain_db": 20.0}, "GAIN_MODE", 1),
        ({"gain_db": 20.0}, "GAIN", 197),  # the tuner's nearest, in tenths
        ({"ppm": 31}, "PPM", 31),
        ({"ppm": -31}, "PPM", 2**32 - 31),
        ({"bias_tee": True}, "BIAS_TEE", 1),
        ({}, "BIAS_TEE", 0),
        ({"direct_sampling": "i"}, "DIRECT_SAMPLING", 1),
        ({"direct_sampling": "q"}, "DIRECT_SAMPLING", 2),
        ({}, "DIRECT_SAMPLING", 0),
    ],
)
def test_what_rtl_tcp_is_told(rtl_tcp, start_rtl_tcp, keys, command, value):
    server = start_rtl_tcp(np.zeros(1000, dtype=np.complex64))
    radio = open_radio(device_of("rtl-tcp", address=server.address, **keys), table())
    last = rtl_tcp.GAIN if "gain_db" in keys else rtl_tcp.AGC
    sent = {"GAIN": rtl_tcp.GAIN, "GAIN_MODE": rtl_tcp.GAIN_MODE}.get(command, last)
    server.wait_for(rtl_tcp.RATE)
    server.wait_for(sent)
    wait_until(lambda: server.value(getattr(rtl_tcp, command)) == value)
    radio.close()


def test_dc_is_removed(start_rtl_tcp, listen):
    rng = np.random.default_rng(1)
    noise = 0.1 * (rng.standard_normal(200_000) + 1j * rng.standard_normal(200_000)) + (0.3 - 0.2j)
    server = start_rtl_tcp(noise.astype(np.complex64), paced=False)
    radio = open_radio(device_of("rtl-tcp", address=server.address, dc_removal=True), table())
    (heard,) = listen(radio, 2_000_000).samples()
    assert abs(heard[:1000].mean()) > 0.2
    assert abs(heard[-200_000:].mean()) < 0.02


@pytest.mark.parametrize("how", ["cut", "reset", "refuse", "stall"])
def test_a_stream_of_rtl_tcp_ends_with_its_server(start_rtl_tcp, listen, how):
    server = start_rtl_tcp(np.zeros(10_000, dtype=np.complex64))
    listener = listen(open_radio(device_of("rtl-tcp", address=server.address), table()), 1 << 40)
    wait_until(lambda: len(listener.sinks[0].data()) > 100_000)
    {"cut": server.cut, "reset": lambda: server.cut(reset=True), "refuse": server.refuse, "stall": server.stall}[how]()
    assert listener.ended_within_s() < rtl_tcp.STALL_S + 3.0


def test_a_stream_of_rtl_tcp_ends_while_it_waits(start_rtl_tcp, listen):
    server = start_rtl_tcp(np.zeros(10_000, dtype=np.complex64))
    listener = listen(open_radio(device_of("rtl-tcp", address=server.address), table()), 1 << 40)
    wait_until(lambda: len(listener.sinks[0].data()) > 100_000)
    server.stall()
    listener.stop()
    wait_until(lambda: server._client is None)


def test_a_server_is_let_go_when_its_process_is_killed(start_rtl_tcp):
    server = start_rtl_tcp(np.zeros(10_000, dtype=np.complex64))
    program = f"""
import time
from gnuradio.localize.radios import open_radio
from localize_core.station.config import ReceiverTable, StationTable
from localize_core.station.sources import Device, RtlTcpSource

source = RtlTcpSource(kind="rtl-tcp", address="{server.address}")
receivers = (ReceiverTable(name="r", latitude=47.0, longitude=8.0, source=source),)
radio = open_radio(
    Device("rtl-tcp", "rtl-tcp", (0,), receivers), StationTable(name="s", sample_rate_hz=1e6, frequency_hz=1e9)
)
print("open", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert server._client is not None
        process.kill()
    wait_until(lambda: server._client is None)


def test_rtl_tcp_comes_back(rtl_tcp, start_rtl_tcp, listen):
    ramp = np.linspace(-0.9, 0.9, 5000).astype(np.complex64)
    server = start_rtl_tcp(ramp, paced=False)
    device = device_of("rtl-tcp", address=server.address)
    for turn in range(1, 4):
        listener = listen(open_radio(device, table()), 5000)
        (heard,) = listener.samples()
        np.testing.assert_array_equal(heard, rtl_tcp.from_cu8(rtl_tcp.to_cu8(ramp)))
        listener.stop()
        server.refuse()
        with pytest.raises(RadioError, match=r"connection refused; is rtl_tcp running there\?"):
            open_radio(device, table())
        server.restart()
        assert server.clients == turn


def test_rtl_tcp_over_ipv6():
    """As far as its greeting: gr-osmosdr's client talks to the relay, whose own address is another."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        address = f"[::1]:{listener.getsockname()[1]}"

        def answer() -> None:
            with listener.accept()[0] as client:
                client.sendall(b"HTTP/1.1 200 OK")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        with pytest.raises(RadioError, match=r"what answers there is no rtl_tcp: it begins with b'HTTP/1\.1 200'"):
            open_radio(device_of("rtl-tcp", address=address), table())
        answering.join()


def test_servers_that_are_no_rtl_tcp(monkeypatch, start_rtl_tcp):
    monkeypatch.setattr(rtl_tcp, "CONNECT_S", 0.3)
    samples = np.zeros(1000, dtype=np.complex64)
    web = start_rtl_tcp(samples, greeting=b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(RadioError, match=r"what answers there is no rtl_tcp: it begins with b'HTTP/1\.1 200'"):
        open_radio(device_of("rtl-tcp", address=web.address), table())
    silent = start_rtl_tcp(samples, greeting=None)
    with pytest.raises(RadioError, match=r"no answer within 0\.3 s; does it have another client\?"):
        open_radio(device_of("rtl-tcp", address=silent.address), table())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closer = threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True)
        closer.start()
        with pytest.raises(RadioError, match="the server closed the connection; is its radio plugged in"):
            open_radio(device_of("rtl-tcp", address=f"127.0.0.1:{listener.getsockname()[1]}"), table())
    with pytest.raises(RadioError, match=r"rtl-tcp nowhere\.invalid:1: name or service not known"):
        open_radio(device_of("rtl-tcp", address="nowhere.invalid:1"), table())


def test_a_file_through_osmosdr(rtl_tcp, listen, modes):
    args = f"file={modes},rate=2e6,freq=1090e6,throttle=false,repeat=false"
    with pytest.raises(ConfigError, match=r"channel=1: it has 1, counted from 0"):
        open_radio(device_of("osmosdr", args=args, channel=1), table())
    with pytest.raises(ConfigError, match=r"station\.frequency_hz=1e\+08: osmosdr .* is at 1\.09e\+09 for r0"):
        open_radio(device_of("osmosdr", args=args), table(frequency_hz=100e6))
    radio = open_radio(device_of("osmosdr", args=args), table())
    assert (radio.time_source, radio.sample_rate_hz) == ("host", RATE_HZ)
    (heard,) = listen(radio, 1000).samples()
    # it takes the file for pairs of floats
    np.testing.assert_array_equal(heard, np.fromfile(modes, dtype=np.complex64)[: len(heard)])


def test_two_files_through_osmosdr_are_two_channels(listen, tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        np.full(1000, value, dtype=np.complex64).tofile(tmp_path / name)
    one = "rate=2e6,freq=1090e6,throttle=false,repeat=true"
    args = f"numchan=2 file={tmp_path / 'a'},{one} file={tmp_path / 'b'},{one}"
    both = open_radio(device_of("osmosdr", {"channel": 1}, {"channel": 0}, args=args), table())
    assert [samples[0] for samples in listen(both, 1000).samples()] == [2.0, 1.0]
    second = open_radio(device_of("osmosdr", channel=1, args=args), table())
    assert [samples[0] for samples in listen(second, 1000).samples()] == [2.0]


@pytest.mark.usefixtures("rtl_tcp")
def test_what_osmosdr_does_not_have():
    with pytest.raises(RadioError, match=r"^osmosdr rtl=0: Wrong rtlsdr device index given\.$"):
        open_radio(device_of("osmosdr", args="rtl=0"), table())
    with pytest.raises(RadioError, match=r"^osmosdr some=1: No devices specified via device arguments\.$"):
        open_radio(device_of("osmosdr", args="some=1"), table())
    with pytest.raises(RadioError, match=r"^osmosdr numchan=2 rtl=0 rtl=1: Wrong rtlsdr device index given\.$"):
        open_radio(device_of("osmosdr", args="numchan=2 rtl=0 rtl=1", bias_tee=True), table())


def test_no_usrp():
    if shutil.which(uhd.FIND) is None:
        pytest.skip(f"no {uhd.FIND} here: apt-get install uhd-host")
    with pytest.raises(
        RadioError, match=r"^uhd addr=127\.0\.0\.1: no such USRP; is it powered .*uhd_images_downloader\)"
    ):
        open_radio(device_of("uhd", args="addr=127.0.0.1"), table())


def test_no_usrp_says_gnuradio_too(monkeypatch):
    monkeypatch.setattr(uhd, "FIND", "no-such-finder")
    with pytest.raises(
        RadioError, match=r"^uhd addr=127\.0\.0\.1: LookupError: KeyError: No devices found for [^\n]*$"
    ):
        open_radio(device_of("uhd", args="addr=127.0.0.1"), table())


class RedPitaya:
    """A Red Pitaya's receiver: of two connections that say 0 and 1, one brings numbers and the other takes samples."""

    def __init__(self, samples: np.ndarray) -> None:
        self.numbers: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._samples = samples.astype(np.complex64).tobytes()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if client.recv(4, socket.MSG_WAITALL) == struct.pack("<I", 1):
                while True:
                    client.sendall(self._samples)
            while number := client.recv(4, socket.MSG_WAITALL):
                self.numbers += struct.unpack("<I", number)
        except OSError:
            pass  # the driver closed the connection

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._open):
            each.close()


RAMP = (np.arange(4096) + 1j).astype(np.complex64)


@pytest.fixture
def red_pitaya() -> Iterator[RedPitaya]:
    if "redpitaya" not in soapy_factories():
        pytest.skip("no SoapySDR driver to test with here: apt-get install soapysdr-module-redpitaya soapysdr-tools")
    server = RedPitaya(RAMP)
    yield server
    server.close()


def soapy_factories() -> str:
    tool = shutil.which("SoapySDRUtil")
    if tool is None or importlib.util.find_spec("gnuradio.soapy") is None:
        return ""
    text = subprocess.run([tool, "--info"], capture_output=True, text=True, check=False).stdout
    return next(line for line in text.splitlines() if line.startswith("Available factories"))


def test_a_soapy_device(red_pitaya, listen):
    args = f"driver=redpitaya,addr=127.0.0.1,port={red_pitaya.port}"
    radio = open_radio(device_of("soapy", args=args), table(250e3, 7.1e6))
    assert (radio.time_source, radio.sample_rate_hz) == ("host", 250e3)
    listener = listen(radio, 10_000)
    (heard,) = listener.samples()
    np.testing.assert_array_equal(heard, np.resize(RAMP, len(heard)))
    assert red_pitaya.numbers[:2] == [7_100_000, 1 << 28 | 3]
    told = {pmt.symbol_to_string(tag.key): pmt.to_python(tag.value) for tag in listener.sinks[0].tags()}
    assert told == {"rx_rate": 250e3, "rx_freq": 7.1e6}


def answers(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


AVAHI = """
[server]
allow-interfaces=lo
use-ipv6=no
[publish]
publish-addresses=no
[wide-area]
enable-wide-area=no
"""


@pytest.fixture
def announced(tmp_path) -> Iterator[dict[str, str]]:
    """The environment with an Avahi daemon on a bus of its own, on loopback alone: SoapyRemote's server ends without.

    Where the machine has one already, it is that one.
    """
    bus, avahi = shutil.which("dbus-daemon"), shutil.which("avahi-daemon", path="/usr/sbin:/usr/bin")
    if bus is None or avahi is None:
        pytest.skip("no Avahi here: apt-get install avahi-daemon dbus")
    if subprocess.run([avahi, "--check"], check=False).returncode == 0:
        yield dict(os.environ)
        return
    (tmp_path / "avahi.conf").write_text(AVAHI)
    address = f"unix:path={tmp_path}/bus"
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address}
    with contextlib.ExitStack() as started:

        def start(*command: str, until: str) -> None:
            """Until it says that it has begun."""
            log = tmp_path / f"{Path(command[0]).name}.log"
            with log.open("w") as output:
                process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            started.callback(process.wait)
            started.callback(process.terminate)
            wait_until(lambda: until in log.read_text() or process.poll() is not None)
            if process.poll() is not None:
                pytest.skip(f"{command[0]} does not run here: {log.read_text()}")

        start(bus, "--session", "--nofork", f"--address={address}", "--print-address=1", until="unix:path")
        options = ["--no-drop-root", "--no-chroot", "--no-rlimits", "-f", str(tmp_path / "avahi.conf")]
        start(avahi, *options, until="startup complete")
        yield environment


def test_a_soapy_device_of_another_computer(red_pitaya, listen, announced, tmp_path):
    server = shutil.which("SoapySDRServer")
    if server is None or "remote" not in soapy_factories():
        pytest.skip("no SoapyRemote here: apt-get install soapyremote-server soapysdr-module-remote avahi-daemon")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    args = f"driver=remote,remote=tcp://127.0.0.1:{port},remote:driver=redpitaya,addr=127.0.0.1,port={red_pitaya.port}"
    with pytest.raises(RadioError, match=r"^soapy driver=remote.*connect FAIL.*Connection refused"):
        open_radio(device_of("soapy", args=args), table(250e3, 7.1e6))
    command, log = [server, f"--bind=tcp://127.0.0.1:{port}"], tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=announced)
    try:
        wait_until(lambda: answers(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        radio = open_radio(device_of("soapy", args=args, stream_args="remote:prot=tcp"), table(250e3, 7.1e6))
        listener = listen(radio, 10_000)
        (heard,) = listener.samples()
        np.testing.assert_array_equal(heard, np.resize(RAMP, len(heard)))
        assert red_pitaya.numbers[:2] == [7_100_000, 1 << 28 | 3]
        listener.stop()
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("keys", "rate_hz", "frequency_hz", "message"),
    [
        ({}, 260e3, 7e6, r"Unsupported sample rate \(260000.*250000\.0"),
        ({}, 250e3, 1e9, r"station\.frequency_hz=1e\+09: soapy .* is at 600000 for r0"),
        ({"channel": 1}, 250e3, 7e6, "channel=1: it has 1, counted from 0"),
        ({"antenna": "RX"}, 250e3, 7e6, "antenna: 'RX' is none of the device's, which are: none"),
        ({"ppm": 3}, 250e3, 7e6, "ppm=3: the driver does not correct frequencies"),
        ({"gain_db": 10}, 250e3, 7e6, "gain_db=10: the device has 0 to 0 dB"),
        ({"gains": {"LNA": 1}}, 250e3, 7e6, "gains: 'LNA' is none of the device's"),
        ({"agc": True}, 250e3, 7e6, "agc: the device does not set its gain by itself; give gain_db or gains"),
        ({"dc_removal": True}, 250e3, 7e6, "dc_removal: the driver has none"),
        ({"settings": {"biastee": "true"}}, 250e3, 7e6, "settings: 'biastee' is none of the device's"),
        ({"clock_source": "external"}, 250e3, 7e6, "clock_source: 'external' is none of the device's"),
        ({"time_source": "gpsdo"}, 250e3, 7e6, "time_source: 'gpsdo' is none of the device's"),
        ({"stream_args": "a=b"}, 250e3, 7e6, "Unsupported stream argument a"),
    ],
)
def test_what_a_soapy_device_does_not_have(red_pitaya, keys, rate_hz, frequency_hz, message):
    args = f"driver=redpitaya,addr=127.0.0.1,port={red_pitaya.port}"
    with pytest.raises(ConfigError, match=message):
        open_radio(device_of("soapy", args=args, **keys), table(rate_hz, frequency_hz))


def test_no_soapy_device():
    pytest.importorskip("gnuradio.soapy")
    with pytest.raises(ConfigError, match=r"^soapy driver=null: channel=0: it has none, counted from 0$"):
        open_radio(device_of("soapy", args="driver=null"), table())
    with pytest.raises(
        RadioError, match="no such device, or no driver 'some', which is apt-get install soapysdr-module-some"
    ):
        open_radio(device_of("soapy", args="driver=some"), table())


class Sender:
    """A flowgraph that sends `channels` interleaved ramps, told apart by their imaginary parts."""

    def __init__(self, channels: int, *, tags: bool, address: str = "tcp://127.0.0.1:*") -> None:
        from gnuradio import zeromq

        self.graph = gr.top_block()
        ramp = np.arange(1000)[:, None] + 1j * np.arange(1, channels + 1)[None, :]
        time_tag = gr.python_to_tag(
            {
                "offset": 0,
                "key": pmt.intern("rx_time"),
                "value": pmt.make_tuple(pmt.from_uint64(7), pmt.from_double(0.5)),
            }
        )
        source = blocks.vector_source_c(ramp.reshape(-1).tolist(), True, channels, [time_tag])
        throttle = blocks.throttle(gr.sizeof_gr_complex * channels, 100e3)
        self.sink = zeromq.pub_sink(gr.sizeof_gr_complex, channels, address, 100, tags, -1, "")
        self.graph.connect(source, throttle, self.sink)
        self.address = self.sink.last_endpoint()
        self.graph.start()

    def stop(self) -> None:
        self.graph.stop()
        self.graph.wait()


@pytest.fixture
def send() -> Iterator[Callable[..., Sender]]:
    """A starter of senders, stopped at the end."""
    pytest.importorskip("gnuradio.zeromq")
    senders: list[Sender] = []

    def start(*args: Any, **kwargs: Any) -> Sender:
        senders.append(Sender(*args, **kwargs))
        return senders[-1]

    yield start
    for sender in senders:
        sender.stop()


@pytest.mark.parametrize("tags", [True, False])
def test_one_stream_over_zmq(send, listen, tags):
    sender = send(1, tags=tags)
    radio = open_radio(device_of("zmq", address=sender.address), table(100e3))
    assert (radio.time_source, radio.sample_rate_hz) == ("host", 100e3)
    listener = listen(radio, 5000)
    (heard,) = listener.samples()
    np.testing.assert_array_equal(heard.imag, 1.0)
    np.testing.assert_array_equal(np.diff(heard.real) % 1000, 1.0)
    offsets = [tag.offset for tag in listener.sinks[0].tags() if pmt.symbol_to_string(tag.key) == "rx_time"]
    assert [heard.real[offset] for offset in offsets] == [0.0] * len(offsets)
    assert bool(offsets) == tags


def test_coherent_streams_over_zmq(send, listen):
    sender = send(5, tags=True)
    keys = {"address": sender.address, "channels": 5, "time_source": "rx_time"}
    radio = open_radio(device_of("zmq", {"channel": 4}, {"channel": 0}, {"channel": 2}, **keys), table(100e3))
    assert radio.time_source == "rx_time"
    listener = listen(radio, 5000)
    heard = listener.samples()
    assert [samples.imag[0] for samples in heard] == [5.0, 1.0, 3.0]
    np.testing.assert_array_equal(heard[0].real, heard[1].real)
    np.testing.assert_array_equal(heard[0].real, heard[2].real)
    tagged = [{tag.offset for tag in sink.tags()} for sink in listener.sinks]
    assert tagged[0]
    assert tagged[0] == tagged[1] == tagged[2]


def test_nobody_sends(monkeypatch, send):
    monkeypatch.setattr(zmq, "FIRST_S", 0.3)
    with pytest.raises(
        RadioError, match=r"^zmq tcp://127\.0\.0\.1:1: nothing came within 0\.3 s; does a flowgraph send"
    ):
        open_radio(device_of("zmq", address="tcp://127.0.0.1:1"), table())
    sender = send(2, tags=False)
    with pytest.raises(ConfigError, match=r"messages of \d+ bytes are no items of channels=31 complex samples"):
        open_radio(device_of("zmq", address=sender.address, channels=31), table())
