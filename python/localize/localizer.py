"""Receivers' IQ streams to fixes: alignment, features and inference in one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gnuradio import gr
from localize_core.alignment.aligner import StreamReport
from localize_core.alignment.settings import MAX_WAIT_S, AlignmentSettings
from localize_core.cache.settings import CacheSettings, cache_settings
from localize_core.engine.frames import warmup_frames
from localize_core.engine.windows import frame_groups
from localize_core.errors import ConfigError
from localize_core.serving.engine import Engine
from localize_core.serving.settings import make_settings
from localize_core.station.config import ModelTable, Station, load_station
from localize_core.station.engine import model_engine, station_engine

from .counters import BlockCounters
from .onnx_inference import onnx_inference
from .reference_clock import reference_clock, reference_clock_of
from .station_features import station_features
from .time_align import time_align


class localizer(gr.hier_block2):
    """N complex streams, in the order of the station's receivers, to `fix` and `status` messages.

    `source`: a station file (.toml), whose geometry is compiled or whose `[model]` names a model, or an ONNX file with
    a contract; or a localizer of one of these that has stopped, whose models go on here. `n_receivers` must be that
    of the station. `align`: put the streams on a common time grid first, by their `rx_time` tags, as the station
    says. The other parameters are those of onnx_inference; `time_steps` and `window_hop` of 0 take the station's,
    and so do a `min_confidence` and a `probability` of None (0.5 and 0.95 without a station). `name`: the station's
    name in fixes, its own if empty. `cache` and `cache_redis`, where empty: the station's, or without one "auto"
    and no Redis; `cache_similar` of False: the station's as well.

    Raises ConfigError, ModelError or SourceError before the flowgraph starts.
    """

    def __init__(
        self,
        source: str | Station | localizer,
        n_receivers: int,
        align: bool = True,
        time_steps: int = 0,
        window_hop: int = 0,
        min_confidence: float | None = None,
        probability: float | None = None,
        live: bool = False,
        name: str = "",
        cache: str = "",
        cache_redis: str = "",
        cache_similar: bool = False,
    ) -> None:
        gr.hier_block2.__init__(
            self, "localizer", gr.io_signature(n_receivers, n_receivers, gr.sizeof_gr_complex), gr.io_signature(0, 0, 0)
        )
        before = source if isinstance(source, localizer) else None
        station: Station | None = None
        if before is not None:
            station = before.station
            engine, frames, confidence = before.engine, before.frames, before._station_confidence
        elif isinstance(source, Station) or str(source).endswith(".toml"):
            station = source if isinstance(source, Station) else load_station(source)
            if probability is not None:  # a compiled model is made for what its ellipse is to hold
                station = station.model_copy(
                    update={"model": station.model.model_copy(update={"probability": probability})}
                )
            kept = _cache(station.cache, cache, cache_redis, cache_similar)
            settings = station.model
            engine, *frames = station_engine(station, name=name, min_confidence=min_confidence, cache=kept)
            confidence = settings.min_confidence
        else:
            settings = make_settings(ModelTable, uri=source)
            if probability is not None:
                settings = settings.model_copy(update={"probability": probability})
            kept = cache_settings(cache or "auto", cache_redis, similar=cache_similar)
            engine = model_engine(settings, name=name, min_confidence=min_confidence, cache=kept)
            frames, confidence = [0, 0], settings.min_confidence
        time_steps, window_hop = time_steps or frames[0], window_hop or frames[1]
        self.station, self.frames = station, [time_steps, window_hop]
        self._station_confidence = confidence
        contract = engine.contract
        wanted = len(contract.receivers)
        if n_receivers != wanted:
            wants = ", ".join(receiver.name for receiver in contract.receivers)
            raise ConfigError(f"n_receivers={n_receivers}: the model {contract.name} wants {wanted} ({wants})")

        self.inference = onnx_inference(
            engine, station=engine.station, time_steps=time_steps, window_hop=window_hop, live=live
        )
        if before is not None:
            self.inference.count_on(before.inference)
        self.blocks: list[Any] = [self.inference]
        streams: list[tuple[Any, int]] = [(self, index) for index in range(n_receivers)]
        # Streams that a flowgraph brings are a radio's if windows of them may be lost.
        is_live = live if station is None or station.source_kind == "none" else station.is_live
        plan = (AlignmentSettings() if station is None else station.alignment).plan(live=is_live)
        # One receiver has nothing to be aligned with, but gaps, which end windows.
        if align and (n_receivers > 1 or plan.max_wait_s is not None):
            clocks, wait_s, replay = plan.clocks, plan.max_wait_s, plan.max_wait_s is not None and not is_live
            if station is not None and station.reference is not None:
                # Recordings are read at any pace: one that lags is not late.
                reference = reference_clock_of(station, contract.receivers, plan.max_wait_s, replay=replay)
                self._refer(reference, streams)
                streams = [(reference, index) for index in range(n_receivers)]
                # Streams without a clock bring nothing, in recordings too.
                clocks, wait_s, replay = "trusted", plan.max_wait_s or MAX_WAIT_S, False
            aligner = time_align(
                contract.sample_rate_hz,
                n_receivers,
                acquire_s=plan.acquire_s,
                max_fill_s=plan.max_fill_s,
                clocks=clocks,
                max_wait_s=wait_s,
                replay=replay,
            )
            self.blocks.append(aligner)
            names = aligner.names = [receiver.name for receiver in contract.receivers]
            self.engine.observe("alignment", lambda: _fares(names, aligner.aligner.streams))
            for index, stream in enumerate(streams):
                self.connect(stream, (aligner, index))
            streams = [(aligner, index) for index in range(n_receivers)]
        features = station_features(contract)
        self.blocks.append(features)
        for index, stream in enumerate(streams):
            self.connect(stream, (features, index))
        for channel in range(len(contract.channels)):
            self.connect((features, channel), (self.inference, channel))
        if live:
            hop_s = contract.hop / contract.sample_rate_hz
            steps = self.inference.engine.time_steps
            groups = frame_groups(steps, window_hop or steps, warmup_frames(contract), hop_s)
            for block in (block for block in self.blocks if hasattr(block, "group_frames")):
                block.group_frames(*groups)
        self.counters = BlockCounters(self.blocks)
        self.engine.observe("blocks", self.counters)
        for message in ("fix", "shadow", "status"):
            self.message_port_register_hier_out(message)
            self.msg_connect(self.inference, message, self, message)
        for message in ("control", "pdus"):
            self.message_port_register_hier_in(message)
            self.msg_connect(self, message, self.inference, message)

    def _refer(self, reference: Any, streams: list[tuple[Any, int]]) -> None:
        """Put the block that tells the receivers' clocks behind the streams."""
        self.blocks.append(reference)
        for index, stream in enumerate(streams):
            self.connect(stream, (reference, index))
        reference.count_on(self.engine.observed("reference") or {})
        self.engine.observe("reference", reference.report)
        assert self.station is not None
        assert self.station.reference is not None
        engine, transmitter = self.engine, self.station.reference.name

        def told(names: list[str]) -> None:
            if names:
                news = engine.health.report("reference_lost", f"no clock of {', '.join(names)} by {transmitter}")
            else:
                news = engine.health.clear("reference_lost")
            if news:
                engine.notify()

        reference.on_lost = told

    def leave_out(self, receiver: int) -> None:
        """Before the flowgraph starts: this receiver's stream ends without a sample, which no tag can say."""
        for block in self.blocks:
            if isinstance(block, time_align):
                block.aligner.end(receiver)
            elif isinstance(block, reference_clock):
                block.clock.describe(receiver, length=0)

    def set_min_confidence(self, min_confidence: float | None) -> None:
        """Below it a fix has no position; None is what the station says. Raises ConfigError outside 0 to 1."""
        self.inference.set_min_confidence(self._station_confidence if min_confidence is None else min_confidence)

    @property
    def engine(self) -> Engine:
        """What answers the windows, and requests beside them."""
        engine: Engine = self.inference.engine
        return engine

    @property
    def failure(self) -> Exception | None:
        """What ended one of the blocks inside, if one has failed."""
        return next((block.failure for block in self.blocks if block.failure is not None), None)


def _fares(names: Sequence[str], streams: Sequence[StreamReport]) -> list[dict[str, Any]]:
    """How each receiver's stream fares, for the status."""
    return [{"receiver": name, **asdict(stream)} for name, stream in zip(names, streams, strict=True)]


def _cache(station: CacheSettings, cache: str, redis: str, similar: bool) -> CacheSettings | None:
    """A station's settings with what the block's parameters say otherwise. Raises ConfigError where both disagree."""
    similar = similar or station.similar is not None
    if not cache and not redis and similar == (station.similar is not None):
        return station
    wanted = cache_settings(cache or "auto", redis, similar=similar)
    if wanted is None:
        return None
    named = {"redis"} if redis or cache == "off" else set()
    named |= {"similar"} if station.similar is None else set()
    named |= {"live", "replay", "requests"} if cache else set()
    return station.model_copy(update={name: getattr(wanted, name) for name in named})
