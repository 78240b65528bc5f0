"""Sources of live receivers: their keys, which of them are one device, and whose clocks are one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from localize_core.errors import ConfigError
from localize_core.station.config import Station, parse_station
from localize_core.station.drivers import INSTALL, MODULES, drivers_of, soapy_install
from localize_core.station.plan import DISCIPLINED_SIGMA_NS, ONE_CLOCK_SIGMA_NS, plan_station
from localize_core.station.sources import LIVE_KINDS, SOURCE_TABLES, devices_of

LEAST: dict[str, dict[str, Any]] = {
    "soapy": {"args": "driver=rtlsdr"},
    "uhd": {"args": "serial=30AD123"},
    "osmosdr": {"args": "rtl=0"},
    "rtl-tcp": {"address": "127.0.0.1:1234"},
    "zmq": {"address": "tcp://127.0.0.1:5555"},
}
CHANNEL: tuple[list[Any], list[Any]] = ([0, 31], [-1, 32, 0.5])
GAIN: tuple[list[Any], list[Any]] = ([0.0, 49.6, -10], [-101.0, 201.0, "much"])
BANDWIDTH: tuple[list[Any], list[Any]] = ([200e3], [0.0, -1.0])
ADDRESSES = ["127.0.0.1", ":1234", "host:0", "host:65536", "host:port", "tcp://host:1", "a b:1", 1234]
ADDRESSES += ["[]:1", "[::1]", "[h]:1", "[::1]:0", "::1:1"]
MODES: tuple[list[Any], list[Any]] = (["off", "manual", "automatic"], ["on", True])

GOOD_AND_BAD: list[tuple[str, str, list[Any], list[Any]]] = [
    ("soapy", "args", ["driver=remote,remote=tcp://host:55132,remote:driver=rtlsdr"], ["", "rtlsdr", "=1", "a=1,,b=2"]),
    ("soapy", "channel", *CHANNEL),
    ("soapy", "antenna", ["RX"], ["", 5]),
    ("soapy", "agc", [True, False], ["maybe"]),
    ("soapy", "gain_db", *GAIN),
    ("soapy", "gains", [{"LNA": 20.0, "VGA": 3}], [{"LNA": "much"}, 5]),
    ("soapy", "bandwidth_hz", *BANDWIDTH),
    ("soapy", "ppm", [-3.5, 0, 40], [1001, -1001.0]),
    ("soapy", "dc_removal", [True, False], ["maybe"]),
    ("soapy", "clock_source", ["external"], ["", 5]),
    ("soapy", "time_source", ["gpsdo"], ["", 5]),
    ("soapy", "stream_args", ["remote:prot=tcp,bufflen=1"], ["tcp", ""]),
    ("soapy", "settings", [{"biastee": "true"}], [{"biastee": True}, 5]),
    ("uhd", "args", ["serial=30AD123,type=b200"], ["", "b200"]),
    ("uhd", "channel", *CHANNEL),
    ("uhd", "subdev", ["A:A A:B"], [""]),
    ("uhd", "antenna", ["RX2"], [""]),
    ("uhd", "agc", [True, False], ["maybe"]),
    ("uhd", "gain_db", *GAIN),
    ("uhd", "bandwidth_hz", *BANDWIDTH),
    ("uhd", "lo_offset_hz", [-2e6, 0.0], [2e9, "nan"]),
    ("uhd", "dc_removal", [True, False], ["maybe"]),
    ("uhd", "clock_source", ["internal", "external", "gpsdo", "mimo"], ["gps"]),
    ("uhd", "time_source", ["internal", "external", "gpsdo", "mimo"], ["none"]),
    ("uhd", "sync", ["host"], ["pps", "now"]),  # pps needs a source of pulses as well
    ("osmosdr", "args", ["hackrf=0,bias=1", "numchan=2 rtl=0 rtl=1"], ["", "rtl"]),
    ("osmosdr", "channel", *CHANNEL),
    ("osmosdr", "antenna", ["RX"], [""]),
    ("osmosdr", "agc", [True, False], ["maybe"]),
    ("osmosdr", "gain_db", *GAIN),
    ("osmosdr", "if_gain_db", *GAIN),
    ("osmosdr", "bb_gain_db", *GAIN),
    ("osmosdr", "bandwidth_hz", *BANDWIDTH),
    ("osmosdr", "ppm", [-3.5, 0], [1001]),
    ("osmosdr", "bias_tee", [True, False], ["maybe"]),
    ("osmosdr", "dc_offset_mode", *MODES),
    ("osmosdr", "iq_balance_mode", *MODES),
    ("rtl-tcp", "address", ["localhost:1234", "radio.example.org:65535", "[::1]:1234"], ADDRESSES),
    ("rtl-tcp", "agc", [True, False], ["maybe"]),
    ("rtl-tcp", "gain_db", *GAIN),
    ("rtl-tcp", "ppm", [-40, 0, 1000], [1001, 0.5]),
    ("rtl-tcp", "bias_tee", [True, False], ["maybe"]),
    ("rtl-tcp", "direct_sampling", ["i", "q"], ["both", 1]),
    ("rtl-tcp", "dc_removal", [True, False], ["maybe"]),
    (
        "zmq",
        "address",
        ["tcp://host:5555", "ipc:///tmp/iq"],
        ["tcp://*:5555", "host:5555", "udp://host:1", "ipc://", 5],
    ),
    ("zmq", "channel", [0], [-1, 1, 32]),
    ("zmq", "channels", [1, 5, 32], [0, 33]),
    ("zmq", "time_source", ["host", "rx_time"], ["gps"]),
]


def station(*sources: dict[str, Any], more: str = "", head: str = "", **tuning: float) -> Station:
    """A station with a receiver for each source; `more`: other tables, `head`: lines of [station]."""
    tuned = {"sample_rate_hz": 2e6, "frequency_hz": 100e6} | tuning
    text = "".join(f"{key} = {value}\n" for key, value in tuned.items())
    text = f'[station]\nname = "s"\n{text}{head}\n'
    for index, source in enumerate(sources):
        text += f'[[receiver]]\nname = "r{index}"\nlatitude = {47.0 + 0.01 * index}\nlongitude = 8.0\n'
        text += f"source = {toml(source)}\n"
    text += f"[area]\nsouth = 46.99\nwest = 7.99\nnorth = 47.02\neast = 8.02\n{more}"
    return parse_station(text, folder=Path("/somewhere"))


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + " }"
    return "nan" if value == "nan" else json.dumps(value)


def source(kind: str, **keys: Any) -> dict[str, Any]:
    return {"kind": kind, **LEAST[kind], **keys}


@pytest.mark.parametrize(
    ("kind", "key", "value"), [(kind, key, v) for kind, key, good, _ in GOOD_AND_BAD for v in good]
)
def test_values_in_range(kind, key, value):
    (receiver,) = station(source(kind, **{key: value})).receiver
    assert getattr(receiver.source, key) == value


@pytest.mark.parametrize(("kind", "key", "value"), [(kind, key, v) for kind, key, _, bad in GOOD_AND_BAD for v in bad])
def test_values_out_of_range_are_named(kind, key, value):
    with pytest.raises(ConfigError, match=rf"receiver r0\.source.*{key.split('_')[0]}"):
        station(source(kind, **{key: value}))


def test_every_key_has_a_range_and_a_default():
    for kind in LIVE_KINDS:
        keys = set(SOURCE_TABLES[kind].model_fields) - {"kind"}
        assert {key for tested, key, _, _ in GOOD_AND_BAD if tested == kind} == keys
        assert station(source(kind)).receiver[0].source.kind == kind


@pytest.mark.parametrize("kind", LIVE_KINDS)
def test_an_unknown_key_hints_at_the_one_that_was_meant(kind):
    key = "args" if "args" in LEAST[kind] else "address"
    with pytest.raises(
        ConfigError, match=rf"receiver r0\.source\.{key}x: unknown key, did you mean {key}\?; allowed: .*{key}"
    ):
        station(source(kind, **{f"{key}x": 1}))


@pytest.mark.parametrize("kind", ["soapy", "uhd", "osmosdr", "rtl-tcp"])
def test_gain_by_hand_or_by_the_device(kind):
    def automatic(**keys: Any) -> bool:
        return station(source(kind, **keys)).receiver[0].source.automatic_gain

    assert (automatic(), automatic(gain_db=0.0), automatic(agc=True), automatic(agc=False)) == (
        True,
        False,
        True,
        False,
    )
    with pytest.raises(ConfigError, match="agc sets the gain, and so does gain_db: leave one out"):
        station(source(kind, agc=True, gain_db=3.0))


def test_gains_of_stages():
    with pytest.raises(ConfigError, match="agc sets the gain, and so does gains"):
        station(source("soapy", agc=True, gains={"LNA": 1.0}))
    with pytest.raises(ConfigError, match="gain_db is shared out over the stages that gains sets"):
        station(source("soapy", gain_db=1.0, gains={"LNA": 1.0}))
    with pytest.raises(ConfigError, match="agc sets the gain, and so does bb_gain_db"):
        station(source("osmosdr", agc=True, bb_gain_db=1.0))


def test_pulses_need_a_source():
    with pytest.raises(ConfigError, match="sync='pps' needs a time_source with a pulse each second"):
        station(source("uhd", sync="pps"))
    assert station(source("uhd", sync="pps", time_source="external")).receiver[0].source.is_pulsed
    assert station(source("uhd", time_source="gpsdo")).receiver[0].source.is_pulsed
    assert not station(source("uhd", time_source="gpsdo", sync="host")).receiver[0].source.is_pulsed


def test_a_channel_that_a_sender_does_not_have():
    with pytest.raises(ConfigError, match="channel=2: channels=2, counted from 0"):
        station(source("zmq", channel=2, channels=2))


def test_receivers_with_the_same_device_are_its_channels():
    found = station(
        source("uhd", args="addr=a", channel=1),
        source("rtl-tcp"),
        source("uhd", args="addr=a", channel=0, gain_db=3.0),
        source("uhd", args="addr=b", channel=0),
    )
    devices = devices_of(found)
    assert [device.name for device in devices] == ["uhd addr=a", "rtl-tcp 127.0.0.1:1234", "uhd addr=b"]
    assert [device.kind for device in devices] == ["uhd", "rtl-tcp", "uhd"]
    assert [device.indices for device in devices] == [(0, 2), (1,), (3,)]
    assert [receiver.name for receiver in devices[0].receivers] == ["r0", "r2"]
    assert [each.channel for each in devices[0].sources] == [1, 0]
    assert devices[0].source is found.receiver[0].source
    assert found.source_kind == "live"
    assert found.is_live
    assert not found.is_recorded


def test_a_channel_is_one_receiver_s():
    with pytest.raises(ConfigError, match="receivers r0 and r1 have the same args='driver=rtlsdr' and channel=0"):
        station(source("soapy"), source("soapy"))
    alone = r"receivers r0 and r1 have the same address='127\.0\.0\.1:1234'; each wants a device of its own"
    with pytest.raises(ConfigError, match=alone):
        station(source("rtl-tcp"), source("rtl-tcp"))


def test_what_rtl_tcp_can_be_told():
    with pytest.raises(ConfigError, match=r"station\.frequency_hz=4\.29497e\+09: receiver r0 .* below 4294967296"):
        station(source("rtl-tcp"), frequency_hz=2.0**32)
    assert station(source("soapy"), frequency_hz=2.0**32).is_live


RTL_SDRS = [
    source("rtl-tcp"),
    source("soapy", args="serial=1, driver=rtlsdr"),
    source("soapy", args="driver=remote,remote=tcp://h:1,remote:driver=rtlsdr"),
    source("osmosdr", args="numchan=2 rtl=0 rtl=1"),
    source("osmosdr", args="rtl=0,nchan=1"),
]


@pytest.mark.parametrize("radio", RTL_SDRS)
def test_rates_of_an_rtl_sdr(radio):
    for rate_hz in (225_001.0, 250e3, 300e3, 900_001.0, 2.048e6, 3.2e6):
        assert station(radio, sample_rate_hz=rate_hz).is_live
    for rate_hz in (20e3, 225e3, 300_001.0, 500e3, 900e3, 3_200_001.0, 2.0**32):
        with pytest.raises(
            ConfigError,
            match=rf"station\.sample_rate_hz={rate_hz:.0f}: receiver r0 is an RTL-SDR, "
            "which does 225001 to 300000 or 900001 to 3200000",
        ):
            station(radio, sample_rate_hz=rate_hz)


@pytest.mark.parametrize(
    "radio",
    [source("soapy", args="driver=lime"), source("osmosdr", args="hackrf=0"), source("uhd"), source("zmq")],
)
def test_rates_of_other_radios_are_the_driver_s_to_judge(radio):
    assert station(radio, sample_rate_hz=500e3).is_live


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("rtl=0", "rtl=0,bias=1"),
        ("numchan=2 rtl=0 rtl=1", "numchan=2 rtl=0,bias=1 rtl=1,bias=1"),
        ("nchan=2 rtl=0,buffers=8  hackrf=0", "nchan=2 rtl=0,buffers=8,bias=1 hackrf=0,bias=1"),
        ("rtl=0,nchan=1 nchan=2,hackrf=0", "rtl=0,nchan=1,bias=1 nchan=2,hackrf=0,bias=1"),
        ("airspy=0,'label=on the roof'", "airspy=0,'label=on the roof',bias=1"),
    ],
)
def test_each_device_of_osmosdr_powers_its_amplifier(args, told):
    def asked(**keys: Any) -> str:
        return station(source("osmosdr", args=args, **keys)).receiver[0].source.driver_args

    assert (asked(bias_tee=True), asked()) == (told, args)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"args": "bladerf=0", "bias_tee": True},
            r"r0\.source: bias_tee is known for rtl, hackrf, airspy;.*'bladerf=0'",
        ),
        ({"args": "numchan=2 rtl=0 bladerf=0", "bias_tee": True}, "bias_tee is known for rtl, hackrf, airspy"),
        ({"args": "bladerf=0,nchan=2", "bias_tee": True}, "bias_tee is known for rtl, hackrf, airspy"),
        (
            {"args": "numchan=2", "bias_tee": True},
            r"bias_tee wants a device in args, such as rtl=0, found .*'numchan=2'",
        ),
        ({"args": "rtl_tcp=127.0.0.1:1234"}, 'r0.source: args: write kind = "rtl-tcp" and address = "HOST:PORT"'),
        ({"args": "numchan=2 rtl=0 buffers=8,rtl_tcp=h:1"}, 'args: write kind = "rtl-tcp"'),
    ],
)
def test_what_is_not_for_osmosdr(keys, message):
    with pytest.raises(ConfigError, match=message):
        station(source("osmosdr", **keys))


def test_a_file_of_osmosdr_may_have_any_name():
    assert station(source("osmosdr", args="file=/tmp/rtl_tcp=rtl.bin,rate=5e5"), sample_rate_hz=500e3).is_live


@pytest.mark.parametrize(
    ("kind", "key", "values"),
    [
        ("soapy", "stream_args", ("a=1", "a=2")),
        ("soapy", "clock_source", ("internal", "external")),
        ("soapy", "time_source", ("internal", "external")),
        ("uhd", "subdev", ("A:0", "A:1")),
        ("uhd", "clock_source", ("internal", "external")),
        ("uhd", "time_source", ("internal", "external")),
        ("uhd", "sync", ("host", None)),
        ("osmosdr", "bias_tee", (True, False)),
        ("zmq", "channels", (5, 4)),
        ("zmq", "time_source", ("host", "rx_time")),
    ],
)
def test_what_concerns_the_whole_device_is_said_alike(kind, key, values):
    base = {"channels": 5} if kind == "zmq" else {}
    one, other = ({} if value is None else {key: value} for value in values)
    with pytest.raises(ConfigError, match=rf"receivers r0 and r1 share .*, so {key} must be the same, found .* and .*"):
        station(source(kind, **{**base, **one}), source(kind, channel=1, **{**base, **other}))
    station(source(kind, **{**base, **one}), source(kind, channel=1, **{**base, **one}))


def test_live_kinds_mix_with_each_other_alone():
    assert len(devices_of(station(*(source(kind) for kind in LIVE_KINDS)))) == len(LIVE_KINDS)
    with pytest.raises(ConfigError, match=r"one kind of source, or any of soapy, uhd, .*\['scene', 'uhd'\]"):
        station(source("uhd"), {"kind": "scene"})
    with pytest.raises(ConfigError, match=r"found \['rtl-tcp', 'sigmf'\]"):
        station(source("rtl-tcp"), {"kind": "sigmf", "path": "a.sigmf-meta"})


def test_other_sources_are_no_devices():
    assert devices_of(station({"kind": "sigmf", "path": "a.sigmf-meta"})) == ()
    assert not station({"kind": "sigmf", "path": "a.sigmf-meta"}).is_live


TWO_USRPS = "addr0=192.168.10.2,addr1=192.168.10.3"


def test_several_usrps_need_a_pulse():
    with pytest.raises(ConfigError, match=r"r0\.source: args='addr0=.*': several USRPs share .* pulse: give time_"):
        station(source("uhd", args=TWO_USRPS))
    with pytest.raises(ConfigError, match="several USRPs share their time at a pulse: leave out sync='host'"):
        station(source("uhd", args=TWO_USRPS, time_source="external", sync="host"))


@pytest.mark.parametrize(
    ("sources", "shared", "sigma_ns"),
    [
        ([source("uhd"), source("uhd", channel=1)], True, ONE_CLOCK_SIGMA_NS),
        ([source("soapy"), source("soapy", channel=1)], True, ONE_CLOCK_SIGMA_NS),
        ([source("zmq", channels=5, channel=n) for n in range(5)], True, ONE_CLOCK_SIGMA_NS),
        ([source("uhd"), source("uhd", args="serial=2")], False, None),
        (
            [source("uhd", args=TWO_USRPS, channel=n, time_source="external") for n in range(2)],
            True,
            DISCIPLINED_SIGMA_NS,
        ),
        ([source("uhd", args=f"serial={n}", time_source="gpsdo") for n in range(2)], True, DISCIPLINED_SIGMA_NS),
        (
            [source("uhd", time_source="gpsdo", sync="host"), source("uhd", args="a=1", time_source="gpsdo")],
            False,
            None,
        ),
        ([source("uhd", time_source="gpsdo"), source("soapy", time_source="gpsdo")], True, DISCIPLINED_SIGMA_NS),
        ([source("soapy", clock_source="external"), source("uhd", time_source="gpsdo")], False, None),
        ([source("rtl-tcp"), source("rtl-tcp", address="b:1")], False, None),
        ([source("osmosdr"), source("osmosdr", channel=1)], False, None),
        ([source("zmq"), source("zmq", address="tcp://b:1")], False, None),
        (
            [source("zmq", time_source="rx_time"), source("zmq", address="tcp://b:1", time_source="rx_time")],
            True,
            100.0,
        ),
    ],
)
def test_whose_clocks_are_one(sources, shared, sigma_ns):
    found = station(*sources)
    assert found.has_common_clock == shared
    told = station(*sources, head=f"common_clock = {str(not shared).lower()}")
    assert told.has_common_clock != shared
    timing = plan_station(found).spec.timing
    assert (timing is not None) == shared
    if timing is not None:
        sigma_s = timing.receiver_sigma_m[0] / 299_792_458.0
        assert sigma_s * 1e9 == pytest.approx(sigma_ns, rel=0.02)  # with what interpolation adds


def test_drivers_are_named_with_their_packages():
    devices = devices_of(station(source("soapy"), source("soapy", args="serial=1"), source("rtl-tcp"), source("zmq")))
    assert drivers_of(devices) == ({"gnuradio.soapy", "osmosdr", "gnuradio.zeromq"}, {"rtlsdr"})
    assert set(MODULES) == set(LIVE_KINDS)
    assert set(INSTALL) == set(MODULES.values())
    assert soapy_install("lime") == (
        "apt-get install soapysdr-module-lms7, or conda install -c conda-forge soapysdr-module-lms7"
    )
    assert soapy_install("plutosdr") == "conda install -c conda-forge soapysdr-module-plutosdr"
    assert soapy_install("some").startswith("apt-get install soapysdr-module-some, or conda")
