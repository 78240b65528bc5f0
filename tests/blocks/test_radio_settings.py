"""What drivers are told of radios that no test has: stand-ins of their source blocks keep what is called of them.

A stand-in knows the methods that the real block has, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gnuradio.localize.radios import open_radio, soapy, uhd
from localize_core.errors import ConfigError, RadioError
from localize_core.station.config import ReceiverTable, StationTable
from localize_core.station.sources import SOURCE_TABLES, Device

gr_soapy = pytest.importorskip("gnuradio.soapy")
gr_uhd = pytest.importorskip("gnuradio.uhd")
TABLE = StationTable(name="test", sample_rate_hz=2e6, frequency_hz=100e6)


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


class StandIn:
    """Keeps `calls` of methods that `real` has. `answers`: of each method a value, or a function of its arguments."""

    def __init__(self, real: type, answers: dict[str, Any]) -> None:
        self._real, self._answers = real, answers
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        assert hasattr(self._real, name), name

        def call(*args: Any) -> Any:
            self.calls.append((name, *args))
            answer = self._answers.get(name)
            return answer(*args) if callable(answer) else answer

        return call

    def settings(self) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0].startswith(("set_", "write_"))]


class Clock:
    """Time that passes by sleeping."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        assert duration_s >= 0.0
        self.now_s += duration_s


SOAPY_DEVICE = {
    "has_frequency_correction": True,
    "has_gain_mode": True,
    "has_dc_offset_mode": True,
    "has_hardware_time": True,
    "list_antennas": ["RX", "TX/RX"],
    "list_gains": ["LNA", "VGA"],
    "list_clock_sources": ["internal", "external"],
    "list_time_sources": ["internal", "gpsdo"],
    "get_gain_range": lambda *_: SimpleNamespace(minimum=lambda: 0.0, maximum=lambda: 60.0),
    "get_setting_info": lambda *channel: [SimpleNamespace(key="agc_level" if channel else "biastee")],
    "get_sample_rate": 2e6,
    "get_frequency": 100e6,
}


@pytest.fixture
def open_soapy(monkeypatch) -> Callable[..., tuple[StandIn, Any]]:
    """An opener of SoapySDR receivers, which are a device with everything unless told otherwise."""

    def start(device: Device, **answers: Any) -> tuple[StandIn, Any]:
        source = StandIn(gr_soapy.source, {**SOAPY_DEVICE, **answers})

        def make(*args: Any) -> StandIn:
            source.made = args
            return source

        monkeypatch.setattr(soapy, "import_driver", lambda *_: SimpleNamespace(source=make))
        monkeypatch.setattr(soapy, "chosen_outputs", lambda block, count, channels: tuple((block, c) for c in channels))
        return source, open_radio(device, TABLE)

    return start


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, ("set_gain_mode", 0, True)),
        ({"agc": False}, ("set_gain_mode", 0, False)),
        ({"gain_db": 30.0}, ("set_gain_mode", 0, False)),
        ({"gain_db": 30.0}, ("set_gain", 0, 30.0)),
        ({"gains": {"LNA": 20.0, "VGA": 3.0}}, ("set_gain", 0, "LNA", 20.0)),
        ({"gains": {"LNA": 20.0, "VGA": 3.0}}, ("set_gain", 0, "VGA", 3.0)),
        ({"gains": {"LNA": 20.0}}, ("set_gain_mode", 0, False)),
        ({"bandwidth_hz": 1e6}, ("set_bandwidth", 0, 1e6)),
        ({"antenna": "TX/RX"}, ("set_antenna", 0, "TX/RX")),
        ({"ppm": -2.5}, ("set_frequency_correction", 0, -2.5)),
        ({"dc_removal": True}, ("set_dc_offset_mode", 0, True)),
        ({"dc_removal": False}, ("set_dc_offset_mode", 0, False)),
        ({"clock_source": "external"}, ("set_clock_source", "external")),
        ({"time_source": "internal"}, ("set_time_source", "internal")),
        ({"settings": {"biastee": "true"}}, ("write_setting", "biastee", "true")),
        ({"settings": {"agc_level": "3"}}, ("write_setting", 0, "agc_level", "3")),
        ({}, ("set_sample_rate", 0, 2e6)),
        ({}, ("set_frequency", 0, 100e6)),
    ],
)
def test_what_a_soapy_device_is_told(open_soapy, keys, wanted):
    source, radio = open_soapy(device_of("soapy", args="driver=some,serial=1", **keys))
    assert wanted in source.calls
    assert source.made == ("driver=some,serial=1", "fc32", 1, "", "", [""], [""])
    assert radio.time_source == "host"


def test_nothing_is_told_that_is_not_asked_for(open_soapy):
    source, _ = open_soapy(device_of("soapy", args="driver=some"))
    assert source.settings() == [
        ("set_sample_rate", 0, 2e6),
        ("set_frequency", 0, 100e6),
        ("set_gain_mode", 0, True),
    ]
    without, _ = open_soapy(device_of("soapy", args="driver=some"), has_gain_mode=False)
    assert ("set_gain_mode", 0, True) not in without.calls


def test_channels_of_a_soapy_device(open_soapy):
    device = device_of(
        "soapy", {"channel": 1, "gain_db": 1.0}, {"channel": 0, "gain_db": 2.0}, args="driver=some", stream_args="a=1"
    )
    source, radio = open_soapy(device)
    assert source.made == ("driver=some", "fc32", 2, "", "a=1", [""], [""])
    assert radio.outputs == ((source, 1), (source, 0))
    assert [call for call in source.calls if call[0] == "set_gain"] == [("set_gain", 1, 1.0), ("set_gain", 0, 2.0)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"antenna": "X"}, "antenna: 'X' is none of the device's, which are: RX, TX/RX"),
        ({"gains": {"IF": 1.0}}, "gains: 'IF' is none of the device's, which are: LNA, VGA"),
        ({"gains": {"LNA": 61.0}}, r"gains\.LNA=61: the device has 0 to 60 dB"),
        ({"gain_db": -1.0}, "gain_db=-1: the device has 0 to 60 dB"),
        ({"clock_source": "x"}, "clock_source: 'x' is none of the device's, which are: internal, external"),
        ({"settings": {"x": "1"}}, "settings: 'x' is none of the device's, which are: biastee, agc_level"),
    ],
)
def test_what_a_soapy_device_does_not_know(open_soapy, keys, message):
    with pytest.raises(ConfigError, match=message):
        open_soapy(device_of("soapy", args="driver=some", **keys))


def test_a_soapy_clock_is_set_at_a_pulse(monkeypatch, open_soapy):
    clock = Clock(1000.8)
    monkeypatch.setattr(soapy, "time", clock)
    device = device_of("soapy", args="driver=some", time_source="gpsdo")
    source, radio = open_soapy(device, get_hardware_time=lambda _: int((clock.now_s + 0.02) * 1e9))
    assert ("set_hardware_time", 1002 * 10**9, "PPS") in source.calls  # the pulse after 1001.5
    assert radio.time_source == "rx_time"
    with pytest.raises(RadioError, match=r"its time is -1 s off after a pulse; does one come each second\?"):
        open_soapy(device, get_hardware_time=lambda _: round((clock.now_s - 1.0) * 1e9))
    with pytest.raises(ConfigError, match="time_source: the device tells no time"):
        open_soapy(device, has_hardware_time=False)


class Usrp(StandIn):
    """USRPs with a GPSDO each. `pulses`: of each motherboard, where in a second its pulses come; None for none."""

    def __init__(self, clock: Clock, pulses: tuple[float | None, ...] = (0.0,), **answers: Any) -> None:
        self._clock, self._pulses = clock, pulses
        self._times: dict[int, tuple[int, float]] = {}
        self._next: tuple[float, float] | None = None
        super().__init__(
            gr_uhd.usrp_source,
            {
                "get_num_mboards": len(pulses),
                "get_antennas": ("TX/RX", "RX2"),
                "get_time_sources": ("none", "internal", "external", "gpsdo"),
                "get_subdev_spec": "A:A A:B",
                "get_samp_rate": 2e6,
                "get_center_freq": 100e6,
                "get_mboard_sensor_names": ("ref_locked", "gps_locked", "gps_time"),
                "get_mboard_sensor": lambda name, board: SimpleNamespace(
                    to_bool=lambda: True, to_int=lambda: int(clock.now_s)
                ),
                "get_time_now": lambda board: gr_uhd.time_spec(clock.now_s),
                "get_time_last_pps": self._last_pulse,
                "set_time_next_pps": self._set_next,
                **answers,
            },
        )

    def _set_next(self, time_spec: Any) -> None:
        self._next = (self._clock.now_s, time_spec.get_real_secs())

    def _last_pulse(self, board: int) -> Any:
        phase = self._pulses[board]
        if phase is None:
            return gr_uhd.time_spec(0.0)
        last = int(self._clock.now_s - phase) + phase
        if self._next is None:
            return gr_uhd.time_spec(last - 500.0)  # since it was switched on
        set_s, value_s = self._next
        first = int(set_s - phase) + 1 + phase
        return gr_uhd.time_spec(last - 500.0 if last < first else value_s + last - first)


@pytest.fixture
def open_uhd(monkeypatch) -> Iterator[Callable[..., tuple[Usrp, Any]]]:
    """An opener of USRPs, at 1000.3 s."""
    monkeypatch.setattr(uhd, "_look", lambda device: None)

    def start(device: Device, *args: Any, **answers: Any) -> tuple[Usrp, Any]:
        clock = Clock(1000.3)
        monkeypatch.setattr(uhd, "time", clock)
        source = Usrp(clock, *args, **answers)

        def make(args: str, stream_args: Any) -> Usrp:
            source.made = (args, list(stream_args.channels))
            return source

        driver = SimpleNamespace(
            usrp_source=make,
            stream_args=gr_uhd.stream_args,
            time_spec=gr_uhd.time_spec,
            tune_request=gr_uhd.tune_request,
        )
        monkeypatch.setattr(uhd, "import_driver", lambda *_: driver)
        return source, open_radio(device, TABLE)

    return start


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"subdev": "A:A A:B"}, ("set_subdev_spec", "A:A A:B", 0)),
        ({"antenna": "RX2"}, ("set_antenna", "RX2", 0)),
        ({"gain_db": 30.0}, ("set_gain", 30.0, 0)),
        ({"agc": True}, ("set_rx_agc", True, 0)),
        ({"bandwidth_hz": 1e6}, ("set_bandwidth", 1e6, 0)),
        ({"dc_removal": True}, ("set_auto_dc_offset", True, 0)),
        ({"dc_removal": False}, ("set_auto_dc_offset", False, 0)),
        ({"clock_source": "external"}, ("set_clock_source", "external", 0)),
        ({}, ("set_clock_source", "internal", 0)),
        ({"time_source": "gpsdo"}, ("set_time_source", "gpsdo", 0)),
        ({}, ("set_samp_rate", 2e6)),
    ],
)
def test_what_a_usrp_is_told(open_uhd, keys, wanted):
    source, _ = open_uhd(device_of("uhd", args="serial=1", **keys))
    assert source.made == ("serial=1", [0])
    assert wanted in source.calls


@pytest.mark.parametrize(
    ("known", "name"), [(["internal", "external", "sfp0"], "internal"), (["none", "mimo"], "none")]
)
def test_a_usrp_s_own_time_has_the_name_that_it_knows(open_uhd, known, name):
    source, _ = open_uhd(device_of("uhd", args="serial=1"), get_time_sources=lambda board: known)
    assert ("set_time_source", name, 0) in source.calls


def test_a_usrp_without_pulses_has_this_computer_s_time(open_uhd):
    source, radio = open_uhd(device_of("uhd", args="serial=1", lo_offset_hz=1e6))
    ((_, time_spec),) = [call for call in source.calls if call[0] == "set_time_now"]
    assert time_spec.get_real_secs() == pytest.approx(1000.3)
    assert radio.time_source == "host"
    assert not any(call[0] in ("set_rx_agc", "set_gain", "set_time_next_pps") for call in source.calls)
    ((_, request, port),) = [call for call in source.calls if call[0] == "set_center_freq"]
    assert (request.target_freq, request.rf_freq, port) == (100e6, 101e6, 0)


def test_channels_of_a_usrp_are_tuned_at_one_moment(open_uhd):
    device = device_of("uhd", {"channel": 3}, {"channel": 0}, args="addr0=a,addr1=b", time_source="gpsdo")
    source, radio = open_uhd(device, (0.0, 0.0))
    assert source.made == ("addr0=a,addr1=b", [3, 0])
    assert radio.outputs == ((source, 0), (source, 1))
    assert radio.time_source == "rx_time"
    names = [call[0] for call in source.calls]
    tunes = [index for index, name in enumerate(names) if name == "set_center_freq"]
    assert names[tunes[0] - 1] == "set_command_time"
    assert names[tunes[-1] + 1] == "clear_command_time"
    assert [call[2] for call in source.calls if call[0] == "set_command_time"] == [0, 1]
    assert [call[1] for call in source.calls if call[0] == "clear_command_time"] == [0, 1]


@pytest.mark.parametrize("time_source", ["gpsdo", "external"])
def test_the_time_is_set_at_a_pulse(open_uhd, time_source):
    source, radio = open_uhd(device_of("uhd", args="serial=1", time_source=time_source))
    ((_, time_spec),) = [call for call in source.calls if call[0] == "set_time_next_pps"]
    assert time_spec.get_real_secs() == 1002.0  # after the pulse at 1001
    assert radio.time_source == "rx_time"


def test_a_computer_s_clock_may_be_off_by_less_than_half_a_second(open_uhd):
    device = device_of("uhd", args="serial=1", time_source="external")
    for phase, second in ((0.4, 1001.0), (0.9, 1002.0)):  # by its clock, the pulse comes so late
        source, _ = open_uhd(device, (phase,))
        ((_, time_spec),) = [call for call in source.calls if call[0] == "set_time_next_pps"]
        assert time_spec.get_real_secs() == second


def test_pulses_that_are_none(open_uhd):
    device = device_of("uhd", args="addr0=a,addr1=b", time_source="external")
    with pytest.raises(RadioError, match="no pulse each second at its time_source"):
        open_uhd(device, (None, None))
    with pytest.raises(
        RadioError, match=r"motherboards took the times \[1002\.0, .*\] at a pulse, wanted 1002: is it the same"
    ):
        open_uhd(device, (0.0, None))


@pytest.mark.parametrize(
    ("keys", "sensor"), [({"clock_source": "external"}, "ref_locked"), ({"time_source": "gpsdo"}, "gps_locked")]
)
def test_locks_are_waited_for(open_uhd, keys, sensor):
    device = device_of("uhd", args="serial=1", **keys)
    ready_s = 1010.0

    def answer(name: str, board: int) -> Any:
        return SimpleNamespace(to_bool=lambda: uhd.time.now_s >= ready_s, to_int=lambda: int(uhd.time.now_s))

    open_uhd(device, get_mboard_sensor=answer)
    assert uhd.time.now_s >= ready_s
    ready_s = 2000.0
    with pytest.raises(RadioError, match=f"no {sensor} at motherboard 0 within 30 s"):
        open_uhd(device, get_mboard_sensor=answer)
    open_uhd(
        device,
        get_mboard_sensor=lambda *_: SimpleNamespace(to_int=lambda: int(uhd.time.now_s)),
        get_mboard_sensor_names=(),
    )


def test_a_usrp_that_is_set_otherwise(open_uhd):
    with pytest.raises(ConfigError, match=r"station\.sample_rate_hz=2e\+06: uhd serial=1 gives 1\.9e\+06"):
        open_uhd(device_of("uhd", args="serial=1"), get_samp_rate=1.9e6)
    with pytest.raises(ConfigError, match=r"station\.frequency_hz=1e\+08: uhd serial=1 is at 1\.01e\+08 for r0"):
        open_uhd(device_of("uhd", args="serial=1"), get_center_freq=101e6)
    with pytest.raises(ConfigError, match="antenna: 'X' is none of the device's, which are: TX/RX, RX2"):
        open_uhd(device_of("uhd", args="serial=1", antenna="X"))


def refused(error: Exception) -> Any:
    def refuse(*_: Any) -> None:
        raise error

    return refuse


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"get_subdev_spec": refused(RuntimeError("LookupError: IndexError: RX channel 2 out of range: it has 2"))},
        {"get_subdev_spec": refused(IndexError("channel=2: it has 2"))},
    ],
)
def test_a_channel_that_a_usrp_does_not_have_is_the_file_s_fault(open_uhd, answers):
    with pytest.raises(ConfigError, match=r"^uhd serial=1: channel=2.* it has 2"):
        open_uhd(device_of("uhd", args="serial=1", channel=2), **answers)


def test_what_else_a_usrp_says_may_pass(open_uhd):
    with pytest.raises(RadioError, match=r"^uhd serial=1: RuntimeError: no control response$"):
        open_uhd(
            device_of("uhd", args="serial=1"), set_samp_rate=refused(RuntimeError("RuntimeError: no control response"))
        )
