"""The station file: receivers, area, features, model and publishing, read from TOML and checked at once."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from localize_core.addresses import checked_redis_url, without_password
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.alignment.settings import AlignmentSettings
from localize_core.cache.settings import CacheSettings, SimilaritySettings
from localize_core.errors import ConfigError
from localize_core.model.session import SessionSettings
from localize_core.model.source import FileUri, parse_model_uri
from localize_core.service.settings import HttpOptions, HttpSettings, http_settings, read_token
from localize_core.serving.settings import ChallengerSettings, GateSettings, QueueSettings, ServingSettings
from localize_core.simulation.config import AlsoConfig, SceneConfig
from localize_core.sinks.mqtt_sink import mqtt_address
from localize_core.sinks.outbox import CAPACITY
from localize_core.station.sources import (
    LIVE_KINDS,
    SOURCE_TABLES,
    KiwiWavSource,
    SigmfSource,
    Source,
    check_sources,
    share_clock,
)
from localize_core.tracking.settings import TrackerSettings
from localize_core.wire.endpoint import check_endpoint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_AnyTable = TypeVar("_AnyTable", bound=_Table)


class ReceiverTable(_Table):
    """One IQ stream at a known place."""

    name: str = Field(min_length=1)
    latitude: float = Field(ge=-90.0, le=90.0, description="WGS84 degrees")
    longitude: float = Field(ge=-180.0, le=180.0, description="WGS84 degrees")
    altitude_m: float = Field(0.0, ge=-500.0, le=50_000.0)
    source: Source | None = Field(None, description="where IQ comes from; left out where a flowgraph brings the stream")
    timing_sigma_ns: float | None = Field(
        None,
        gt=0.0,
        le=1e9,
        description="standard deviation of this receiver's clock against the others; by kind of source",
    )
    gain_sigma_db: float = Field(
        1.0, ge=0.0, le=100.0, description="standard deviation of the receiver's level calibration"
    )
    noise_dbfs: float | None = Field(
        None,
        ge=-300.0,
        le=0.0,
        description="receiver noise in the whole sample rate; estimated from quiet bands when left out",
    )


class StationTable(_Table):
    name: str = Field(min_length=1)
    sample_rate_hz: float = Field(gt=0.0, le=1e10)
    frequency_hz: float = Field(gt=0.0, le=1e12)
    common_clock: bool | None = Field(
        None, description="whether arrival times of different receivers compare; by kind of source when left out"
    )


class AreaTable(_Table):
    """Where an emitter may be: a box in WGS84 degrees."""

    south: float = Field(ge=-90.0, le=90.0)
    west: float = Field(ge=-180.0, le=180.0)
    north: float = Field(ge=-90.0, le=90.0)
    east: float = Field(ge=-180.0, le=360.0, description="above 180 where the box crosses the antimeridian")
    altitude_m: float = Field(0.0, ge=-500.0, le=50_000.0, description="height of emitters above the ellipsoid")

    @model_validator(mode="after")
    def _ordered(self) -> AreaTable:
        if self.south >= self.north:
            raise ValueError(f"south={self.south} must be less than north={self.north}")
        if self.west >= self.east:
            raise ValueError(f"west={self.west} must be less than east={self.east} (add 360 across the antimeridian)")
        if self.north - self.south > 60.0 or self.east - self.west > 90.0:
            raise ValueError(
                f"from south={self.south}, west={self.west} to north={self.north}, east={self.east} are more than 60 "
                "degrees of latitude or 90 of longitude: beyond a tangent frame"
            )
        return self


FeatureName = Literal["log_mel", "cross_correlation"]


class FeaturesTable(_Table):
    """Which features the model sees. Everything left out is chosen from rate, geometry and sources."""

    channels: list[FeatureName] | None = Field(None, min_length=1)
    rows: int | None = Field(None, ge=8, le=4096, description="mel bands and lags alike")
    n_fft: int | None = Field(None, ge=16, le=1 << 20)
    hop: int | None = Field(None, ge=1, le=1 << 20)
    lag_step: float | None = Field(None, ge=0.001, le=64.0, description="samples between two lags")
    signal: Literal["iq", "envelope", "phase"] = "iq"
    weighting: Literal["plain", "phat"] = "plain"
    window_s: float | None = Field(
        None, gt=0.0, le=86_400.0, description="span of one fix; the whole recording for files when left out"
    )
    window_hop_s: float | None = Field(
        None, gt=0.0, le=86_400.0, description="from one window's start to the next; window_s"
    )

    @field_validator("channels")
    @classmethod
    def _each_once(cls, value: list[FeatureName] | None) -> list[FeatureName] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"each feature once, found {value}")
        return value


class PropagationTable(_Table):
    """What the path does to time and level, beyond straight-line travel."""

    timing_sigma_ns: float | None = Field(
        None,
        ge=0.0,
        le=1e9,
        description="standard deviation of a path's excess delay; by frequency and distance when left out",
    )
    max_speed_mps: float = Field(
        50.0, gt=0.0, le=10_000.0, description="of emitters; frames are kept short enough for its Doppler shift"
    )
    path_loss_exponent: float = Field(2.7, ge=1.0, le=8.0)
    path_loss_exponent_sigma: float = Field(0.3, ge=0.0, le=2.0)
    shadowing_db: float = Field(6.0, ge=0.0, le=30.0)
    level_dbfs_at_1km: float | None = Field(
        None,
        ge=-300.0,
        le=300.0,
        description="received level at 1 km where the emitter's power is known; unknown when left out",
    )
    level_sigma_db: float = Field(6.0, gt=0.0, le=100.0, description="standard deviation of level_dbfs_at_1km")


class ModelTable(ServingSettings):
    """Which model answers, what is tried beside it, and what a fix is."""

    min_confidence: float = Field(0.5, ge=0.0, le=1.0, description="below it the answer is no_fix")
    probability: float = Field(0.95, gt=0.0, lt=1.0, description="what the ellipse of a fix holds")


class ZmqTable(_Table):
    endpoint: str = "tcp://127.0.0.1:5555"
    topic: str = "fix"
    high_water_mark: int = Field(1000, ge=1)
    linger_ms: int = Field(500, ge=0)
    curve_secret_key_file: Path | None = Field(None, description="relative to the station file")
    curve_clients: Path | None = Field(None, description="folder of their public keys, relative to the station file")


class FileTable(_Table):
    path: Path = Field(description="relative to the working directory")
    max_bytes: int | None = Field(None, ge=1024)
    max_files: int = Field(5, ge=1)
    format: Literal["jsonl", "geojson-seq"] = "jsonl"


class RedisTable(_Table):
    """Channel, stream and latest fix in Redis."""

    url: str = "redis://127.0.0.1:6379/0"
    prefix: str = Field("gr-localize", min_length=1, max_length=200)
    max_len: int = Field(10_000, ge=1)
    capacity: int = Field(CAPACITY, ge=1)
    linger_ms: int = Field(500, ge=0)

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        return checked_redis_url(value)


class MqttTable(_Table):
    """A topic at an MQTT broker, and another that says whether the station is there."""

    url: str = "mqtt://127.0.0.1:1883"
    topic: str = Field("gr-localize", min_length=1)
    qos: Literal[0, 1, 2] = 1
    retain: bool = False
    capacity: int = Field(CAPACITY, ge=1)
    linger_ms: int = Field(500, ge=0)
    ca_file: Path | None = Field(None, description="relative to the station file, as all three")
    cert_file: Path | None = None
    key_file: Path | None = None
    client_id: str = ""

    @field_validator("url")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            mqtt_address(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value


class CotTable(_Table):
    """Events for TAK clients and servers."""

    url: str = "udp://239.2.3.1:6969"
    cot_type: str = "a-u-G"
    stale_s: float = Field(60.0, gt=0.0)
    multicast_ttl: int = Field(1, ge=0, le=255)
    interface: str = ""
    ca_file: Path | None = Field(None, description="relative to the station file, as all three")
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""
    capacity: int = Field(CAPACITY, ge=1)
    linger_ms: int = Field(500, ge=0)


class ControlTable(_Table):
    """Where a running station takes commands."""

    endpoint: str = Field("tcp://127.0.0.1:5556", description="ZeroMQ; on this machine only")

    @field_validator("endpoint")
    @classmethod
    def _local(cls, value: str) -> str:
        try:
            return check_endpoint(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error


class HttpTable(HttpOptions):
    """Map, fixes and inference over HTTP, from the running station."""

    token_file: Path | None = Field(
        None, description="file whose first line is the token that every request must carry; relative to this file"
    )

    @property
    def settings(self) -> HttpSettings:
        """With the token. Raises ConfigError where it cannot be read."""
        values = self.model_dump(exclude={"token_file"})
        return http_settings(**values, token="" if self.token_file is None else read_token(self.token_file))


class MetricsTable(_Table):
    """Where Prometheus may scrape a running station."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen at; only this machine by default")
    port: int = Field(9464, ge=0, le=65535, description="0 for one that is free")


class PublishTable(_Table):
    """Any number of sinks of each kind: one table, or an array of tables."""

    zmq: list[ZmqTable] = []
    file: list[FileTable] = []
    redis: list[RedisTable] = []
    mqtt: list[MqttTable] = []
    cot: list[CotTable] = []

    @field_validator("zmq", "file", "redis", "mqtt", "cot", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value


class Station(_Table):
    """A whole station file."""

    station: StationTable
    receiver: list[ReceiverTable] = Field(min_length=1, max_length=32)
    area: AreaTable
    features: FeaturesTable = FeaturesTable()
    propagation: PropagationTable = PropagationTable()
    model: ModelTable = ModelTable()
    publish: PublishTable = PublishTable()
    control: ControlTable | None = None
    http: HttpTable | None = None
    cache: CacheSettings = CacheSettings()
    alignment: AlignmentSettings = AlignmentSettings()
    reference: ReferenceSettings | None = None
    metrics: MetricsTable | None = None
    tracker: TrackerSettings | None = None
    scene: SceneConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Station:
        if self.reference is not None:
            self._check_reference(self.reference)
        names = [receiver.name for receiver in self.receiver]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"receiver names must differ, found more than once: {', '.join(twice)}")
        check_sources(self.station, self.receiver)
        if self.source_kind == "scene" and self.scene is None:
            raise ValueError("sources of kind 'scene' need a [scene] table")
        return self

    def _check_reference(self, reference: ReferenceSettings) -> None:
        if len(self.receiver) < 2:
            raise ValueError("a [reference] compares the clocks of two receivers or more")
        if self.alignment.clocks == "fitted":
            raise ValueError("alignment.clocks='fitted': a [reference] tells true times; leave it out")
        try:
            reference.offset_hz(self.station.frequency_hz, self.station.sample_rate_hz)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @property
    def source_kind(self) -> str:
        """Kind of all receivers' sources: "none" where a flowgraph brings the streams, "live" for several live ones."""
        kinds = {"none" if receiver.source is None else receiver.source.kind for receiver in self.receiver}
        return kinds.pop() if len(kinds) == 1 else "live"

    @property
    def is_live(self) -> bool:
        """Whether the receivers' IQ comes from radios."""
        return self.source_kind in (*LIVE_KINDS, "live")

    @property
    def is_recorded(self) -> bool:
        """Whether the receivers' IQ comes from recordings."""
        return self.source_kind in ("kiwi-wav", "sigmf")

    @property
    def played_scene(self) -> SceneConfig | None:
        """The scene that the receivers hear; None where they hear something else, whatever the file still holds."""
        return self.scene if self.source_kind == "scene" else None

    @property
    def has_common_clock(self) -> bool:
        """Whether arrival times compare between receivers."""
        if self.station.common_clock is not None:
            return self.station.common_clock
        if self.reference is not None:
            return True
        if self.is_live:
            return share_clock(self) or getattr(self, "reference", None) is not None
        return self.source_kind != "none"  # stamps of recordings, or the scene's own clock; of others nothing is known


def _describe(error: ValidationError, data: dict[str, Any]) -> str:
    lines = []
    for item in error.errors():
        key = _key(item["loc"], data)
        given = item.get("input")
        shown = f" (given: {without_password(repr(given))})" if isinstance(given, (str, int, float, bool)) else ""
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            shown = "" if "token" in key or "password" in key else shown
            message = f"unknown key{_hint(item['loc'])}"
        elif item["type"].startswith("union_tag"):
            wanted, found = ", ".join(map(repr, SOURCE_TABLES)), item["ctx"].get("tag")
            key = f"{key}.kind"
            message = f"wanted one of {wanted}" + (", found none" if found is None else f" (given: {found!r})")
        lines.append(f"{key}: {message}{shown}")
    return "; ".join(dict.fromkeys(lines))


def _key(location: tuple[int | str, ...], data: dict[str, Any]) -> str:
    """A key as the file's author knows it: receivers by their names."""
    parts = [str(part) for part in location]
    if parts[0:1] + parts[2:3] == ["receiver", "source"]:
        del parts[3:4]  # the kind, by which a table was chosen
    if len(location) > 1 and location[0] == "receiver" and isinstance(location[1], int):
        receiver = data["receiver"][location[1]]
        if isinstance(receiver, dict) and isinstance(receiver.get("name"), str):
            parts[:2] = [f"receiver {receiver['name']}"]
    return ".".join(parts) or "station file"


def _hint(location: tuple[int | str, ...]) -> str:
    """What is allowed in the table where a key is not, and what may have been meant."""
    table: type[BaseModel] | None = Station
    for part in location[:-1]:
        table = (SOURCE_TABLES if "source" in location[:-1] else _TABLES).get(str(part), table)
    allowed = sorted(table.model_fields) if table is not None else []
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    meant = f", did you mean {close[0]}?" if close else ""
    return f"{meant}; allowed: {', '.join(allowed) or 'none yet'}"


_TABLES: dict[str, type[BaseModel]] = {
    "station": StationTable,
    "receiver": ReceiverTable,
    "area": AreaTable,
    "features": FeaturesTable,
    "propagation": PropagationTable,
    "model": ModelTable,
    "challenger": ChallengerSettings,
    "gates": GateSettings,
    "queue": QueueSettings,
    "session": SessionSettings,
    "publish": PublishTable,
    "zmq": ZmqTable,
    "file": FileTable,
    "redis": RedisTable,
    "mqtt": MqttTable,
    "cot": CotTable,
    "control": ControlTable,
    "http": HttpTable,
    "alignment": AlignmentSettings,
    "reference": ReferenceSettings,
    "cache": CacheSettings,
    "similar": SimilaritySettings,
    "metrics": MetricsTable,
    "tracker": TrackerSettings,
    "scene": SceneConfig,
    "also": AlsoConfig,
}


def parse_station(text: str, *, folder: Path, name: str = "station file") -> Station:
    """Read a station from TOML text; relative paths of recordings, channel data sets and models start at `folder`.

    Raises ConfigError naming the key, the value and what is allowed.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    try:
        station = Station.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_describe(error, data)}") from error
    return _with_absolute_paths(station, folder)


def _with_absolute_paths(station: Station, folder: Path) -> Station:
    receivers = [
        receiver.model_copy(
            update={"source": receiver.source.model_copy(update={"path": folder / receiver.source.path})}
        )
        if isinstance(receiver.source, KiwiWavSource | SigmfSource)
        else receiver
        for receiver in station.receiver
    ]
    model = station.model
    moved = {"uri": _from_folder(model.uri, folder)}
    moved |= {"contract": str(folder / model.contract)} if model.contract else {}
    moved |= {"fallback": _from_folder(model.fallback, folder)} if model.fallback else {}
    model = model.model_copy(update=moved)
    if model.challenger is not None:
        uri = _from_folder(model.challenger.uri, folder)
        model = model.model_copy(update={"challenger": model.challenger.model_copy(update={"uri": uri})})
    scene = station.scene
    if scene is not None and scene.channels:
        scene = scene.model_copy(update={"channels": str(folder / scene.channels)})
    http = station.http
    if http is not None and http.token_file is not None:
        http = http.model_copy(update={"token_file": folder / http.token_file})
    publish = station.publish.model_copy(
        update={
            "zmq": [_moved(table, folder, "curve_secret_key_file", "curve_clients") for table in station.publish.zmq],
            "mqtt": [_moved(table, folder, "ca_file", "cert_file", "key_file") for table in station.publish.mqtt],
            "cot": [_moved(table, folder, "ca_file", "cert_file", "key_file") for table in station.publish.cot],
        }
    )
    moved_tables = {"receiver": receivers, "model": model, "publish": publish, "scene": scene, "http": http}
    return station.model_copy(update=moved_tables)


def _moved(table: _AnyTable, folder: Path, *keys: str) -> _AnyTable:
    """The table with those of its paths that are given starting at the folder."""
    paths = {key: getattr(table, key) for key in keys}
    return table.model_copy(update={key: folder / path for key, path in paths.items() if path is not None})


def _from_folder(uri: str, folder: Path) -> str:
    """A model source string whose file, if it names one, starts at the folder."""
    named = parse_model_uri(uri)
    return str(folder / named.path) if isinstance(named, FileUri) else uri


def load_station(path: str | Path, *, folder: Path | None = None) -> Station:
    """Read a station file; of a folder that was recorded, its own. Raises ConfigError when it is missing, not TOML, or
    breaks a rule.

    `folder`: where relative paths of recordings, channel data sets and models start; None for the file's own folder.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "station.toml").exists():
            raise ConfigError(f"{path}: is a folder without station.toml, and so no recording of gr-localize")
        path /= "station.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_station(text, folder=(folder or path.parent).resolve(), name=str(path))
