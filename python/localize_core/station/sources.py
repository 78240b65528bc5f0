"""Where a receiver's IQ comes from: a table of the station file for each kind of source, and the devices they open."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from localize_core.station.config import ReceiverTable, Station, StationTable

MAX_CHANNELS = 32
RTL_TCP_HZ = 2**32
RTL_SDR_RATES_HZ = ((225_001.0, 300_000.0), (900_001.0, 3_200_000.0))
"""What an RTL2832 can do, both ends included; asked for another, it goes on at the rate before."""
BIAS_DRIVERS = ("rtl", "hackrf", "airspy")
"""Of gr-osmosdr, those with the argument `bias`."""


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def split_address(value: str) -> tuple[str, str]:
    """HOST and PORT of HOST:PORT. An IPv6 address is in brackets there, and without them here."""
    host, _, port = value.rpartition(":")
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host, port


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or "/" in value or ":" in host or any(letter.isspace() for letter in value):
        raise ValueError("wanted HOST:PORT, such as 127.0.0.1:1234")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"the port is a number from 1 to 65535, found {port!r}")
    return value


def _tcp_address(value: str) -> str:
    host, port = split_address(value)
    if not value.startswith("["):
        return _host_and_port(value)
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise ValueError("wanted an IPv6 address in the brackets, such as [::1]:1234") from None
    _host_and_port(f"host:{port}")
    return value


def _zmq_address(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if scheme == "tcp":
        _host_and_port(rest)
        if rest.startswith("*"):
            raise ValueError("this end connects: wanted the sender's host, not *")
    elif scheme != "ipc" or not rest:
        raise ValueError("wanted tcp://HOST:PORT or ipc://PATH")
    return value


def _key_value_pairs(value: str) -> str:
    for part in value.split(","):
        key, equals, _ = part.partition("=")
        if not key.strip() or not equals:
            raise ValueError(f"wanted key=value,key=value, found {part!r}")
    return value


Arguments = Annotated[str, AfterValidator(_key_value_pairs)]
Channel = Annotated[int, Field(ge=0, lt=MAX_CHANNELS, description="which of the device's receive channels")]
BandwidthHz = Annotated[float | None, Field(gt=0.0, le=1e10, description="of the analogue filter; by rate if left out")]
GainDb = Annotated[float | None, Field(ge=-100.0, le=200.0)]
Ppm = Annotated[
    float, Field(ge=-1000.0, le=1000.0, description="frequency correction, of the sign that the driver has")
]


class KiwiWavSource(_Source):
    """A KiwiSDR IQ recording with GNSS time stamps."""

    kind: Literal["kiwi-wav"]
    path: Path = Field(description="WAV file, relative to the station file")


class SigmfSource(_Source):
    """A SigMF recording, whose captures say when it was made."""

    kind: Literal["sigmf"]
    path: Path = Field(
        description="either file of the recording, an archive, a pattern for its parts, or a collection; "
        "relative to the station file"
    )
    channel: int = Field(0, ge=0, description="which of the recording's interleaved streams")
    stream: str = Field("", description="which recording of a collection, by its name without the part's number")


class SceneSource(_Source):
    """A simulated receiver; the emitter is described once in the `[scene]` table."""

    kind: Literal["scene"]


class RadioSource(_Source):
    """What the live kinds share.

    Receivers whose tables have the same `DEVICE` key are channels of one device, and then agree in `SHARED` keys.
    """

    DEVICE: ClassVar[str]
    SHARED: ClassVar[tuple[str, ...]] = ()

    kind: str

    @property
    def device_key(self) -> str:
        """What tells this source's device from others of its kind."""
        return str(getattr(self, self.DEVICE))

    @property
    def output(self) -> int:
        """Channel of the device."""
        return int(getattr(self, "channel", 0))

    @property
    def is_disciplined(self) -> bool:
        """Whether the device's clock is set by something that several devices can share."""
        return False

    @property
    def has_one_clock(self) -> bool:
        """Whether one oscillator samples all of the device's channels."""
        return True

    @property
    def is_rtl_sdr(self) -> bool:
        """Whether it is known to be an RTL-SDR."""
        return False


class _AnalogueSource(RadioSource):
    """A device whose gain is set by hand or, without a number, by itself."""

    agc: bool | None = Field(None, description="gain set by the device itself; true where no gain is given")

    @property
    def given_gains(self) -> list[str]:
        return [key for key in type(self).model_fields if "gain" in key and getattr(self, key) not in (None, {})]

    @property
    def automatic_gain(self) -> bool:
        """Whether the device is to set its gain."""
        return not self.given_gains if self.agc is None else self.agc

    @model_validator(mode="after")
    def _one_gain(self) -> _AnalogueSource:
        if self.agc and self.given_gains:
            raise ValueError(f"agc sets the gain, and so does {self.given_gains[0]}: leave one out")
        return self


ClockSource = Annotated[str, Field(min_length=1, max_length=64, description="what the sample clock follows")]


class SoapySource(_AnalogueSource):
    """A radio with a SoapySDR driver."""

    DEVICE: ClassVar[str] = "args"
    SHARED: ClassVar[tuple[str, ...]] = ("stream_args", "clock_source", "time_source")

    kind: Literal["soapy"]
    args: Arguments = Field(description="which device, such as driver=rtlsdr,serial=1")
    channel: Channel = 0
    antenna: str | None = Field(None, min_length=1)
    gain_db: GainDb = Field(None, description="of all stages together")
    gains: dict[str, float] = Field({}, description="of each stage by its name, dB")
    bandwidth_hz: BandwidthHz = None
    ppm: Ppm = 0.0
    dc_removal: bool | None = Field(None, description="the driver's own default if left out")
    clock_source: ClockSource | None = None
    time_source: ClockSource | None = Field(None, description="where the device's time comes from")
    stream_args: Arguments | None = Field(None, description="of the stream, such as remote:prot=tcp")
    settings: dict[str, str] = Field({}, description="of the device, as the driver names them")

    @model_validator(mode="after")
    def _gain_once(self) -> SoapySource:
        if self.gain_db is not None and self.gains:
            raise ValueError("gain_db is shared out over the stages that gains sets: leave one out")
        return self

    @property
    def is_disciplined(self) -> bool:
        return self.time_source is not None and self.time_source.lower() not in ("none", "internal", "sw_ticks")

    @property
    def has_one_clock(self) -> bool:
        return not _names_several(self.args)

    @property
    def is_rtl_sdr(self) -> bool:
        pairs = [part.partition("=")[::2] for part in self.args.split(",")]
        return any(key.strip() in ("driver", "remote:driver") and value.strip() == "rtlsdr" for key, value in pairs)


UhdClock = Literal["internal", "external", "gpsdo", "mimo"]


class UhdSource(_AnalogueSource):
    """One USRP, or several whose clocks are one."""

    DEVICE: ClassVar[str] = "args"
    SHARED: ClassVar[tuple[str, ...]] = ("subdev", "clock_source", "time_source", "sync")

    kind: Literal["uhd"]
    args: Arguments = Field(description="which USRPs, such as serial=30AD123 or addr0=192.168.10.2,addr1=192.168.10.3")
    channel: Channel = 0
    subdev: str | None = Field(None, min_length=1, description="frontends in the order of channels, such as A:A A:B")
    antenna: str | None = Field(None, min_length=1)
    gain_db: GainDb = None
    bandwidth_hz: BandwidthHz = None
    lo_offset_hz: float = Field(0.0, ge=-1e9, le=1e9, description="how far above the centre the oscillator is tuned")
    dc_removal: bool | None = Field(None, description="the driver's own default if left out")
    clock_source: UhdClock = "internal"
    time_source: UhdClock = "internal"
    sync: Literal["host", "pps"] | None = Field(
        None, description="what sets the devices' time: a pulse each second, or this computer; by time_source"
    )

    @model_validator(mode="after")
    def _pulses(self) -> UhdSource:
        if self.sync == "pps" and self.time_source == "internal":
            raise ValueError("sync='pps' needs a time_source with a pulse each second: external, gpsdo or mimo")
        if not self.has_one_clock and not self.is_pulsed:
            raise ValueError(
                f"args={self.args!r}: several USRPs share their time at a pulse: "
                + ("leave out sync='host'" if self.sync == "host" else "give time_source, or args of one USRP each")
            )
        return self

    @property
    def is_pulsed(self) -> bool:
        """Whether the devices' time is set at a pulse."""
        return self.time_source != "internal" if self.sync is None else self.sync == "pps"

    @property
    def is_disciplined(self) -> bool:
        return self.is_pulsed

    @property
    def has_one_clock(self) -> bool:
        return not _names_several(self.args)


class OsmosdrSource(_AnalogueSource):
    """A radio with a driver in gr-osmosdr."""

    DEVICE: ClassVar[str] = "args"
    SHARED: ClassVar[tuple[str, ...]] = ("bias_tee",)

    kind: Literal["osmosdr"]
    args: Arguments = Field(description="which device, such as rtl=0 or hackrf=0,bias=1")
    channel: Channel = 0
    antenna: str | None = Field(None, min_length=1)
    gain_db: GainDb = None
    if_gain_db: GainDb = None
    bb_gain_db: GainDb = None
    bandwidth_hz: BandwidthHz = None
    ppm: Ppm = 0.0
    bias_tee: bool = Field(False, description="power for an amplifier at the antenna")
    dc_offset_mode: Literal["off", "manual", "automatic"] | None = None
    iq_balance_mode: Literal["off", "manual", "automatic"] | None = None

    @model_validator(mode="after")
    def _known_devices(self) -> OsmosdrSource:
        if self.bias_tee and not self._devices:
            raise ValueError(f"bias_tee wants a device in args, such as rtl=0, found args={self.args!r}")
        for keys in self._devices:
            if "rtl_tcp" in keys:
                raise ValueError('args: write kind = "rtl-tcp" and address = "HOST:PORT", which outlive the server')
            if self.bias_tee and not keys & set(BIAS_DRIVERS):
                raise ValueError(
                    f"bias_tee is known for {', '.join(BIAS_DRIVERS)}; of others it is one of the driver's args, "
                    f"found args={self.args!r}"
                )
        return self

    @property
    def _devices(self) -> list[set[str]]:
        """Keys of each device that `args` name."""
        return [keys for keys, _ in _osmosdr_parts(self.args) if not keys <= _OSMOSDR_COUNTS]

    @property
    def driver_args(self) -> str:
        """`args`, with the power for an amplifier at each device where it is wanted."""
        if not self.bias_tee:
            return self.args
        return " ".join(
            part if keys <= _OSMOSDR_COUNTS else f"{part},bias=1" for keys, part in _osmosdr_parts(self.args)
        )

    @property
    def has_one_clock(self) -> bool:
        return False  # several dongles make one device as well

    @property
    def is_rtl_sdr(self) -> bool:
        return any("rtl" in keys for keys in self._devices)


class RtlTcpSource(_AnalogueSource):
    """An RTL-SDR at another host, served by rtl_tcp."""

    DEVICE: ClassVar[str] = "address"

    kind: Literal["rtl-tcp"]
    address: Annotated[str, AfterValidator(_tcp_address)] = Field(description="HOST:PORT of rtl_tcp")
    gain_db: GainDb = Field(None, description="the nearest that the tuner has")
    ppm: int = Field(0, ge=-1000, le=1000, description="how much too fast the device's oscillator runs")
    bias_tee: bool = Field(False, description="power for an amplifier at the antenna")
    direct_sampling: Literal["i", "q"] | None = Field(None, description="input that goes past the tuner")
    dc_removal: bool = False

    @property
    def is_rtl_sdr(self) -> bool:
        return True


class ZmqSource(RadioSource):
    """IQ that another flowgraph sends with a ZMQ PUB sink."""

    DEVICE: ClassVar[str] = "address"
    SHARED: ClassVar[tuple[str, ...]] = ("channels", "time_source")

    kind: Literal["zmq"]
    address: Annotated[str, AfterValidator(_zmq_address)] = Field(description="tcp://HOST:PORT or ipc://PATH")
    channel: Channel = 0
    channels: int = Field(1, ge=1, le=MAX_CHANNELS, description="streams in each item, interleaved and of one clock")
    time_source: Literal["host", "rx_time"] = Field(
        "host", description="whose times count: this computer's, or those of tags rx_time that the sender repeats"
    )

    @model_validator(mode="after")
    def _channel_there(self) -> ZmqSource:
        if self.channel >= self.channels:
            raise ValueError(f"channel={self.channel}: channels={self.channels}, counted from 0")
        return self

    @property
    def is_disciplined(self) -> bool:
        return self.time_source == "rx_time"


Source = Annotated[
    KiwiWavSource | SigmfSource | SceneSource | SoapySource | UhdSource | OsmosdrSource | RtlTcpSource | ZmqSource,
    Field(discriminator="kind"),
]
SOURCE_TABLES: dict[str, type[BaseModel]] = {
    "kiwi-wav": KiwiWavSource,
    "sigmf": SigmfSource,
    "scene": SceneSource,
    "soapy": SoapySource,
    "uhd": UhdSource,
    "osmosdr": OsmosdrSource,
    "rtl-tcp": RtlTcpSource,
    "zmq": ZmqSource,
}
LIVE_KINDS = tuple(kind for kind, table in SOURCE_TABLES.items() if issubclass(table, RadioSource))


def _names_several(args: str) -> bool:
    """Whether numbered keys name more than one device."""
    return any(part.partition("=")[0].strip().endswith("1") for part in args.split(","))


_OSMOSDR_COUNTS = {"numchan", "nchan"}
"""Keys that say how many channels there are, of all devices or of one. A part with nothing else is no device."""


def _osmosdr_parts(args: str) -> list[tuple[set[str], str]]:
    """gr-osmosdr's arguments, a part for each device and what else stands between spaces: its keys, and itself."""
    parts = re.findall(r"(?:'[^']*'|[^ '])+", args)
    return [({pair.partition("=")[0].strip("' ") for pair in part.split(",")}, part) for part in parts]


@dataclass(frozen=True)
class Device:
    """What is opened at once: a radio, and those receivers of the station that are its channels, in their order."""

    name: str  # for people, of one station each its own: the kind and the address
    kind: str
    indices: tuple[int, ...]  # places of the receivers in the station file
    receivers: tuple[ReceiverTable, ...]

    @property
    def sources(self) -> tuple[Any, ...]:
        """The receivers' source tables."""
        return tuple(receiver.source for receiver in self.receivers)

    @property
    def source(self) -> Any:
        """The first receiver's; keys that concern the whole device are alike in all."""
        return self.receivers[0].source


def devices_of(station: Station) -> tuple[Device, ...]:
    """The devices of a station's live receivers, in the order in which they first occur; none of other kinds."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, receiver in enumerate(station.receiver):
        if isinstance(receiver.source, RadioSource):
            groups.setdefault((receiver.source.kind, receiver.source.device_key), []).append(index)
    return tuple(
        Device(f"{kind} {key}", kind, tuple(indices), tuple(station.receiver[index] for index in indices))
        for (kind, key), indices in groups.items()
    )


def check_sources(station: StationTable, receivers: Sequence[ReceiverTable]) -> None:
    """Raise ValueError where the receivers' sources do not go together, or with the station's rate and frequency."""
    kinds = {"none" if r.source is None else r.source.kind for r in receivers}
    if len(kinds) > 1 and not kinds <= set(LIVE_KINDS):
        raise ValueError(
            f"all receivers of a station need one kind of source, or any of {', '.join(LIVE_KINDS)}; "
            f"found {sorted(kinds)}"
        )
    recorded = [r.source for r in receivers if isinstance(r.source, SigmfSource)]
    if any(source in recorded[:index] for index, source in enumerate(recorded)):
        raise ValueError("two receivers have the same recording and channel as their source")
    seen: dict[tuple[str, str], list[tuple[str, RadioSource]]] = {}
    for receiver in receivers:
        source = receiver.source
        if not isinstance(source, RadioSource):
            continue
        if isinstance(source, RtlTcpSource) and station.frequency_hz >= RTL_TCP_HZ:
            raise ValueError(
                f"station.frequency_hz={station.frequency_hz:g}: receiver {receiver.name} has source.kind='rtl-tcp', "
                f"whose protocol has whole numbers below {RTL_TCP_HZ}"
            )
        if source.is_rtl_sdr and not any(low <= station.sample_rate_hz <= high for low, high in RTL_SDR_RATES_HZ):
            ranges = " or ".join(f"{low:.0f} to {high:.0f}" for low, high in RTL_SDR_RATES_HZ)
            raise ValueError(
                f"station.sample_rate_hz={station.sample_rate_hz:.12g}: receiver {receiver.name} is an RTL-SDR, "
                f"which does {ranges}"
            )
        device = f"{source.DEVICE}={source.device_key!r}"
        others = seen.setdefault((source.kind, source.device_key), [])
        for name, other in others:
            if other.output == source.output:
                has_channels = "channel" in type(source).model_fields
                same = f"{device} and channel={source.output}" if has_channels else device
                wants = "a channel of its own" if has_channels else "a device of its own: this kind has one channel"
                raise ValueError(f"receivers {name} and {receiver.name} have the same {same}; each wants {wants}")
            for key in source.SHARED:
                theirs, own = getattr(other, key), getattr(source, key)
                if theirs != own:
                    raise ValueError(
                        f"receivers {name} and {receiver.name} share {device}, so {key} must be the same, "
                        f"found {theirs!r} and {own!r}"
                    )
        others.append((receiver.name, source))


def share_clock(station: Station) -> bool:
    """Whether live receivers are known to share a clock: channels of one device, or all disciplined from outside."""
    devices = devices_of(station)
    if len(devices) == 1 and devices[0].source.has_one_clock:
        return True
    return bool(devices) and all(device.source.is_disciplined for device in devices)
