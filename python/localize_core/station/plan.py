"""From a station file to what its flowgraph runs: features, window, and the specification of the compiled model.

Everything that a station file leaves out is decided here, from rate, geometry and kind of source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from localize_core.alignment.aligner import MAX_RATE_ERROR
from localize_core.alignment.settings import MAX_FILL_S
from localize_core.errors import ConfigError
from localize_core.features.correlation import CorrelationConfig
from localize_core.features.mel import MelConfig
from localize_core.geodesy import SPEED_OF_LIGHT_MPS, path_length_m
from localize_core.model.compiled.propagation import PathDelay, along_surface, path_delay
from localize_core.model.compiled.spec import MIN_TIME_STEPS, Area, LevelModel, LikelihoodSpec, TimingModel
from localize_core.model.contract import Contract, Receiver, moved_receivers
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sources.kiwi import read_kiwi_wav
from localize_core.sources.recording import Recording, common_span
from localize_core.sources.sigmf import read_sigmf
from localize_core.station.config import Station
from localize_core.station.sources import KiwiWavSource, SigmfSource, devices_of

DEFAULT_ROWS = 128
MAX_ROWS = 2048
DEFAULT_WINDOW_S = 0.25
LONGEST_RECORDING_S = 120.0
"""A longer recording becomes several windows: an emitter may move, and memory is finite."""
FRAMES_AIMED_AT = 32
SMALLEST_FFT = 256
LARGEST_FFT = 16384
CLOCK_SIGMA_NS = {"kiwi-wav": 1000.0, "scene": 5.0}
"""Standard deviation of a receiver's clock by kind of source: GNSS in a KiwiSDR; scenes have true clocks."""
DISCIPLINED_SIGMA_NS = 100.0
"""The same of other receivers that share a clock: they are taken for disciplined by GNSS."""
ONE_CLOCK_SIGMA_NS = 10.0
"""The same between channels of one recording or one radio: what cables and filters differ by."""
MAX_WINDOW_VALUES = 1 << 26
"""Feature values in one window: 256 MiB."""
SAMPLE_SIGMA = 0.003
"""Part of a sample that resampling and interpolation may be off."""


@dataclass(frozen=True)
class Plan:
    """What runs: the model's specification, and windows of `time_steps` frames, a new one every `window_hop` frames."""

    spec: LikelihoodSpec
    time_steps: int
    window_hop: int


def plan_station(station: Station) -> Plan:
    """Decide what a station runs. Raises ConfigError for what cannot work, SourceError for unreadable recordings."""
    area = Area(**station.area.model_dump())
    receivers = tuple(
        Receiver(name=r.name, latitude=r.latitude, longitude=r.longitude, altitude_m=r.altitude_m)
        for r in station.receiver
    )
    rate_hz = station.station.sample_rate_hz
    channels = station.features.channels or _default_channels(station)
    if "cross_correlation" in channels and not station.has_common_clock:
        raise ConfigError(
            "features.channels: cross_correlation needs receivers on a common clock; set station.common_clock = true "
            "if they have one, or use log_mel alone"
        )
    recordings = read_recordings(station)
    timed = sum(recording.time_valid for recording in recordings)
    if recordings and "cross_correlation" in channels and timed < 2 and not _is_one_recording(station):
        raise ConfigError(
            "features.channels: cross_correlation needs recordings with valid time stamps, fewer than two have them"
        )
    spans = _spans(station, recordings)
    window_s = _window_s(station, spans)
    path = _path(station)
    clock_ns = [
        receiver.timing_sigma_ns or _clock_sigma_ns(station, recordings, index)
        for index, receiver in enumerate(station.receiver)
    ]

    correlates = "cross_correlation" in channels
    reach = _lag_reach_samples(receivers, area, path, max(clock_ns), station) if correlates else 0.0
    rows, lag_step = _rows_and_step(station, reach)
    # A frame of four times its largest lag keeps half of itself as common core; mel bands need bins of their own.
    smallest = max(2.0 * rows * lag_step if correlates else 0.0, 4.0 * rows if "log_mel" in channels else 0.0)
    n_fft = station.features.n_fft or max(_default_n_fft(station, window_s), 2 ** math.ceil(math.log2(smallest)))
    # What the largest lag takes off both ends of a frame is used by its neighbours; a window's tapered ends as well.
    hop = station.features.hop or max(n_fft - 2 * math.ceil(rows // 2 * lag_step) if correlates else n_fft // 2, 1)
    if station.features.window_s is None and not spans:
        # At low rates frames are long: a window holds enough of them all the same.
        window_s = max(window_s, (n_fft + (FRAMES_AIMED_AT - 1) * hop) / rate_hz)

    timing = level = None
    if "cross_correlation" in channels:
        config = CorrelationConfig(
            rate_hz, len(receivers), n_fft, hop, rows, lag_step, station.features.weighting, station.features.signal
        )
        # Nothing resamples the streams of a scene.
        resampled = station.played_scene is None or station.reference is not None
        sample_ns = SAMPLE_SIGMA / rate_hz * 1e9 if resampled else 0.0
        sigma_ns = [math.hypot(value, sample_ns) for value in clock_ns]
        timing = TimingModel(config, tuple(value * 1e-9 * SPEED_OF_LIGHT_MPS for value in sigma_ns), path)
    if "log_mel" in channels:
        propagation = station.propagation
        level = LevelModel(
            config=MelConfig(rate_hz, n_fft=n_fft, hop=hop, n_mels=rows),
            noise_dbfs=tuple(_noise_dbfs(station, index) for index in range(len(receivers))),
            gain_sigma_db=tuple(receiver.gain_sigma_db for receiver in station.receiver),
            shadowing_db=propagation.shadowing_db,
            exponent=propagation.path_loss_exponent,
            exponent_sigma=propagation.path_loss_exponent_sigma,
            level_dbfs_at_1km=propagation.level_dbfs_at_1km,
            level_sigma_db=propagation.level_sigma_db,
        )
    time_steps, window_hop = _frames(station, window_s, spans, n_fft=n_fft, hop=hop)
    if time_steps < MIN_TIME_STEPS:
        raise ConfigError(
            f"features.window_s={window_s:g}: holds {time_steps} frames of {n_fft} samples, at least "
            f"{MIN_TIME_STEPS} are needed; make the window longer or features.n_fft smaller"
        )
    spec = LikelihoodSpec(
        name=station.station.name,
        sample_rate_hz=rate_hz,
        frequency_hz=station.station.frequency_hz,
        receivers=receivers,
        area=area,
        along_surface=along_surface(station.station.frequency_hz),
        timing=timing,
        level=level,
        probability=station.model.probability,
    )
    size = (
        time_steps
        * rows
        * ((timing is not None) * len(receivers) * (len(receivers) - 1) // 2 + (level is not None) * len(receivers))
    )
    if size > MAX_WINDOW_VALUES:
        raise ConfigError(
            f"features.window_s={window_s:g}: {time_steps} frames of {rows} rows are {size:.2g} values in a window, at "
            f"most {MAX_WINDOW_VALUES:.2g} are allowed; make the window shorter or features.hop longer"
        )
    return Plan(spec, time_steps, window_hop)


def arrival_geometry(station: Station) -> ArrivalGeometry | None:
    """How far the receivers' times are to be trusted, whatever model a station has; None where it takes levels only."""
    if "cross_correlation" not in (station.features.channels or _default_channels(station)):
        return None
    area = Area(**station.area.model_dump())
    clock_ns = [r.timing_sigma_ns or _clock_sigma_ns(station, [], index) for index, r in enumerate(station.receiver)]
    places = np.array([(r.latitude, r.longitude, r.altitude_m) for r in station.receiver])
    return ArrivalGeometry(
        names=tuple(receiver.name for receiver in station.receiver),
        receivers_m=area.frame.to_enu_m(*places.T),
        sigma_m=np.array(clock_ns) * 1e-9 * SPEED_OF_LIGHT_MPS,
        frame=area.frame,
        along_surface=along_surface(station.station.frequency_hz),
        path=_path(station),
    )


def fit_station(station: Station, contract: Contract) -> tuple[int, int]:
    """Frames in a window, and from one window to the next, with a model that was not compiled here.

    Raises ConfigError naming both sides where the model is for other receivers, another rate or another window,
    SourceError for unreadable recordings.
    """
    rate_hz = station.station.sample_rate_hz
    if contract.sample_rate_hz != rate_hz:
        raise ConfigError(
            f"station.sample_rate_hz={rate_hz:g}: the model {contract.name} wants {contract.sample_rate_hz:g}"
        )
    names, wanted = [r.name for r in station.receiver], [r.name for r in contract.receivers]
    if names != wanted:
        raise ConfigError(f"receivers {', '.join(names)}: the model {contract.name} wants {', '.join(wanted)}")
    for own, theirs, apart_m in moved_receivers(station.receiver, contract.receivers):
        raise ConfigError(
            f"receiver {own.name} at {own.latitude:g}, {own.longitude:g}: the model {contract.name} was made for "
            f"{theirs.latitude:g}, {theirs.longitude:g}, {apart_m:.0f} m away"
        )
    _check_features(station, contract)
    spans = _spans(station, read_recordings(station))
    window_s = _window_s(station, spans)
    time_steps, window_hop = _frames(station, window_s, spans, n_fft=contract.n_fft, hop=contract.hop)
    fixed = contract.time_steps
    if fixed is None:
        if time_steps < contract.min_time_steps:
            raise ConfigError(
                f"features.window_s={window_s:g}: holds {time_steps} frames of {contract.n_fft} samples, the model "
                f"{contract.name} wants {contract.min_time_steps} or more"
            )
        return time_steps, window_hop
    if station.features.window_s is not None and time_steps != fixed:
        raise ConfigError(
            f"features.window_s={window_s:g}: holds {time_steps} frames, the model {contract.name} wants {fixed}"
        )
    return fixed, fixed if station.features.window_hop_s is None else window_hop


def _check_features(station: Station, contract: Contract) -> None:
    """Raise ConfigError where the station states a feature otherwise than the model was made for."""
    present = list(dict.fromkeys(channel.feature for channel in contract.channels))
    found: dict[str, object] = {
        "channels": present,
        "rows": contract.rows,
        "n_fft": contract.n_fft,
        "hop": contract.hop,
    }
    if contract.correlation_config is not None:
        found |= {key: contract.correlation_config.as_dict()[key] for key in ("lag_step", "signal", "weighting")}
    told = station.features.model_dump(include=station.features.model_fields_set & found.keys())
    if told.get("channels") is not None:
        told["channels"] = sorted(told["channels"])
    for key, value in told.items():
        if value is not None and value != found[key]:
            raise ConfigError(f"features.{key}={value!r}: the model {contract.name} was made for {found[key]!r}")


def read_recordings(station: Station) -> list[Recording]:
    """The recordings of a station in the order of its receivers, empty for other kinds of source.

    Raises SourceError for unreadable ones, ConfigError for one whose rate is not the station's.
    """
    rate_hz = station.station.sample_rate_hz
    found: list[Recording] = []
    for receiver in station.receiver:
        if isinstance(receiver.source, KiwiWavSource):
            found.append(read_kiwi_wav(receiver.source.path))
        elif isinstance(receiver.source, SigmfSource):
            source = receiver.source
            found.append(read_sigmf(source.path, channel=source.channel, stream=source.stream))
    for recording in found:
        if abs(recording.sample_rate_hz / rate_hz - 1.0) > MAX_RATE_ERROR:
            raise ConfigError(
                f"station.sample_rate_hz={rate_hz:g}: {recording.path} has {recording.sample_rate_hz:.0f}, and "
                f"alignment bridges {MAX_RATE_ERROR:.0%}"
            )
    return found


def _spans(station: Station, recordings: list[Recording]) -> list[Recording]:
    """The recordings whose common span bounds a window: none where receivers come and go as live ones do, or what was
    heard live has the windows that it had then.
    """
    as_live = station.features.window_s is not None and all(recording.marks is not None for recording in recordings)
    return [] if as_live or station.alignment.max_wait_s is not None else recordings


def _window_s(station: Station, recordings: list[Recording]) -> float:
    """Span of a window: as the station says, or the default for its kind of source."""
    told = station.features.window_s
    if not recordings:
        return told or DEFAULT_WINDOW_S
    span_s = _usable_span_s(recordings)
    if told is None:
        return span_s if span_s <= LONGEST_RECORDING_S else LONGEST_RECORDING_S / 4
    if told > span_s:
        raise ConfigError(f"features.window_s={told:g}: the recordings share only {span_s:.4g} s")
    return told


def _usable_span_s(recordings: list[Recording]) -> float:
    """How much time the recordings share, without what is skipped because one of them has lost it.

    A recording without valid time stands beside the others from their common start on.
    """
    timed = [recording for recording in recordings if recording.time_valid]
    shared_s = common_span(timed)[1] if timed else math.inf
    lost_s = [gap.missing / recording.sample_rate_hz for recording in timed for gap in recording.gaps]
    skipped_s = sum(length_s for length_s in lost_s if length_s > MAX_FILL_S)
    untimed_s = [recording.duration_s for recording in recordings if not recording.time_valid]
    return max(min([shared_s - skipped_s, *untimed_s]), 0.0)


def _frames(station: Station, window_s: float, recordings: list[Recording], *, n_fft: int, hop: int) -> tuple[int, int]:
    """Frames that fit into a window (0 if none does), and from one window's start to the next."""
    rate_hz = station.station.sample_rate_hz
    time_steps = math.floor((window_s * rate_hz - n_fft) / hop) + 1
    if recordings:
        # The first frames reach back before the start and are no use; rounding of the common grid may cost another.
        whole = math.floor(_usable_span_s(recordings) * rate_hz / hop)
        time_steps = min(time_steps, whole - math.ceil(n_fft / hop))
    window_hop_s = station.features.window_hop_s or window_s
    return max(time_steps, 0), max(round(window_hop_s * rate_hz / hop), 1)


def _default_channels(station: Station) -> list[str]:
    return ["cross_correlation"] if station.has_common_clock and len(station.receiver) > 1 else ["log_mel"]


def _default_n_fft(station: Station, window_s: float) -> int:
    """Frames for `FRAMES_AIMED_AT` in a window, but none so long that motion turns the phase by half a circle.

    Two receivers can see an emitter approach and leave: the Doppler shift counts twice.
    """
    shift_hz = 2.0 * station.station.frequency_hz * station.propagation.max_speed_mps / SPEED_OF_LIGHT_MPS
    longest_s = min(window_s / FRAMES_AIMED_AT, 0.5 / shift_hz)
    size = 2 ** int(math.log2(max(longest_s * station.station.sample_rate_hz, 1.0)))
    return min(max(size, SMALLEST_FFT), LARGEST_FFT)


def _path(station: Station) -> PathDelay:
    told = station.propagation.timing_sigma_ns
    if told is not None:
        return PathDelay(floor_sigma_m=told * 1e-9 * SPEED_OF_LIGHT_MPS)
    if station.played_scene is not None and not station.played_scene.has_channels:
        return PathDelay(floor_sigma_m=0.0)  # in the free space of a scene waves travel straight
    return path_delay(station.station.frequency_hz)


def _is_one_recording(station: Station) -> bool:
    """Whether all receivers are channels of one recording: their samples stand side by side, whatever its times are."""
    paths = {(r.source.path, r.source.stream) if isinstance(r.source, SigmfSource) else None for r in station.receiver}
    return len(paths) == 1 and None not in paths


def _is_one_radio(station: Station) -> bool:
    """Whether all receivers are channels of one radio's clock."""
    devices = devices_of(station)
    return len(devices) == 1 and devices[0].source.has_one_clock


def _clock_sigma_ns(station: Station, recordings: list[Recording], index: int) -> float:
    if station.reference is not None:
        return float(f"{station.reference.clock_sigma_ns:.2g}")
    if _is_one_recording(station) or _is_one_radio(station):
        return ONE_CLOCK_SIGMA_NS
    sigma_ns = CLOCK_SIGMA_NS.get(station.source_kind, DISCIPLINED_SIGMA_NS)
    if recordings:
        # Two digits, so that recordings of one station share a compiled model.
        return float(f"{math.hypot(sigma_ns, recordings[index].time_error_ns):.2g}")
    scene = station.played_scene
    return sigma_ns if scene is None else math.hypot(sigma_ns, scene.clock_offset_ns, scene.timing_jitter_ns)


def _noise_dbfs(station: Station, index: int) -> float | None:
    told = station.receiver[index].noise_dbfs
    if told is None and station.played_scene is not None:
        return station.played_scene.noise_dbfs
    return told


def _lag_reach_samples(
    receivers: tuple[Receiver, ...], area: Area, path: PathDelay, clock_ns: float, station: Station
) -> float:
    """Largest delay between two receivers that an emitter in the area can cause, with three deviations to spare."""
    frame = area.frame
    lat, lon = area.grid(32)
    edge_lat, edge_lon = np.meshgrid(
        np.linspace(area.south, area.north, 17), np.linspace(area.west, area.east, 17), indexing="ij"
    )
    lat, lon = np.append(lat, edge_lat), np.append(lon, edge_lon)
    places = frame.to_enu_m(
        np.array([r.latitude for r in receivers]),
        np.array([r.longitude for r in receivers]),
        np.array([r.altitude_m for r in receivers]),
    )
    lengths = path_length_m(
        frame.to_enu_m(lat, lon, area.altitude_m), places, along_surface=along_surface(station.station.frequency_hz)
    )
    excess, variance = path.moments(lengths, np.sqrt)
    arrival = lengths + excess
    spare = 3.0 * math.sqrt(2.0) * math.hypot(float(np.sqrt(variance.max())), clock_ns * 1e-9 * SPEED_OF_LIGHT_MPS)
    return (float(np.ptp(arrival, axis=1).max()) + spare) / SPEED_OF_LIGHT_MPS * station.station.sample_rate_hz


def _rows_and_step(station: Station, reach: float) -> tuple[int, float]:
    """Rows and lag step that cover ±reach samples: half a sample apart, or finer where rows are left over."""
    features = station.features
    if reach == 0.0:  # levels alone have no lags
        return features.rows or DEFAULT_ROWS, features.lag_step or 1.0
    margin = 6.0  # lags at either end that a peak's polynomial and rounding need
    if features.rows is not None and features.rows < 4.0 * margin:
        raise ConfigError(f"features.rows={features.rows}: cross_correlation needs at least {4.0 * margin:.0f} lags")
    if features.rows is not None and features.lag_step is not None:
        rows, step = features.rows, features.lag_step
    elif features.lag_step is not None:
        step = features.lag_step
        rows = _even(2.0 * (reach / step + margin), features.lag_step)
    else:
        rows = features.rows or DEFAULT_ROWS
        step = max(reach, 1.0) / (rows / 2.0 - margin)
        if features.rows is None:
            while step > 0.5 and rows < MAX_ROWS:
                rows *= 2
                step = max(reach, 1.0) / (rows / 2.0 - margin)
        step = max(step, 0.125)
    if reach > (rows / 2.0 - margin / 2.0) * step:
        raise ConfigError(
            f"features: {rows} rows {step:g} samples apart cover ±{rows / 2 * step:.1f} samples of delay, the area and "
            f"the receivers need ±{reach:.1f}; raise features.rows or features.lag_step"
        )
    return rows, step


def _even(rows: float, lag_step: float) -> int:
    count = max(2 * math.ceil(rows / 2.0), DEFAULT_ROWS)
    if count > 4096:
        raise ConfigError(f"features.lag_step={lag_step:g}: needs {count} rows, at most 4096; take a larger step")
    return count
