"""Windows of feature frames to fixes: inference with an ONNX model, off the scheduler's thread."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pmt
from gnuradio import gr
from localize_core.cache.settings import cache_settings
from localize_core.engine.frame_values import FrameValues
from localize_core.engine.history import History
from localize_core.engine.locator import WindowContext
from localize_core.engine.windows import FrameCount, Window, WindowAssembler, frames_across
from localize_core.engine.worker import InferenceWorker, QueueState
from localize_core.errors import ConfigError, EngineError, ModelError
from localize_core.model.contract import Contract
from localize_core.serving.engine import Engine
from localize_core.serving.requests import MAX_REQUESTS, Request
from localize_core.serving.settings import ServingSettings, make_settings
from localize_core.types.fix import Alignment, Fix, TimeSource
from localize_core.types.time import shift_time

from . import tags
from .guard import guarded
from .messages import command_from_pmt, requests_from_pmt
from .pmt_codec import fix_to_pmt

MAX_BATCHES = 16
"""Messages with requests that may wait."""

REPORT_S = 1.0
"""From one status about lost windows to the next."""
TIME_JUMP_S = 1e-6
"""Where nothing aligns the streams: a time that is off by more than this and half a sample follows a loss."""
NO_QUEUE = QueueState(0, 0, 0, 0, 0, 0.0)

_Job = tuple[Window, WindowContext]


class onnx_inference(gr.sync_block):
    """Feature vectors, one input per channel of the model's contract, to `fix` and `status` messages.

    `model`: where models come from: the path of an ONNX file, `models:/NAME@ALIAS`, `grpc://HOST:PORT/NAME`, or an
    engine that exists. Its contract says how many inputs there are and what each must carry. `contract`: path of a
    contract in JSON, for a model that carries none. `time_steps`: frames in a window, 0 where
    the contract says it. `window_hop`: frames from one window to the next, 0 for windows side by side. `live`: whether
    a window may be dropped when inference is slow (radios), or the stream waits (recordings). `n_channels`, `rows`:
    what the flowgraph was drawn for, 0 for whatever the contract says.

    `registry`, `poll_s`, `fallback`, `deadline_ms`, `max_in_flight`: see ServingSettings; `challenger` and what follows
    it: ChallengerSettings; `threads` to `arena`: SessionSettings; `queue_windows` to `max_delay_ms`: QueueSettings.
    `cache`: whether answers are kept for windows that come again: "off", "auto" for requests and streams that wait,
    "on" for live ones too; `cache_redis`: address of a Redis that keeps them as well;
    `cache_similar`: whether windows of a live stream that are like a recent one get its answer. All these mean nothing
    beside an engine.

    Messages: commands on `control`, requests on `pdus`, the challenger's fixes on `shadow`.

    Raises ConfigError, ModelError, RegistryError or UnavailableError before the flowgraph starts: for an unusable
    model, a contract that differs, a golden vector that no longer comes out, sizes that cannot work, or a model that
    is out of reach.
    """

    FIX_PORT = pmt.intern("fix")
    SHADOW_PORT = pmt.intern("shadow")
    STATUS_PORT = pmt.intern("status")
    CONTROL_PORT = pmt.intern("control")
    PDUS_PORT = pmt.intern("pdus")

    def __init__(
        self,
        model: str | Engine,
        station: str = "station",
        time_steps: int = 0,
        window_hop: int = 0,
        min_confidence: float = 0.5,
        probability: float = 0.95,
        live: bool = False,
        contract: str = "",
        stream: str = "",
        n_channels: int = 0,
        rows: int = 0,
        registry: str = "",
        poll_s: float = 60.0,
        fallback: str = "",
        deadline_ms: float = 200.0,
        max_in_flight: int = 8,
        challenger: str = "",
        challenger_mode: str = "shadow",
        share_percent: float = 10.0,
        experiment: str = "",
        threads: int = 1,
        providers: str = "cpu",
        strict_providers: bool = False,
        optimisation: str = "all",
        arena: bool = True,
        queue_windows: int = 8,
        drop: str = "oldest",
        max_batch: int = 8,
        max_delay_ms: float = 0.0,
        cache: str = "auto",
        cache_redis: str = "",
        cache_similar: bool = False,
    ) -> None:
        if not station:
            raise ConfigError("station: must not be empty, fixes carry it")
        if isinstance(model, Engine):
            self.engine = model
        else:
            beside = {"uri": challenger, "mode": challenger_mode}
            beside |= {"share_percent": share_percent} if challenger_mode == "split" else {}
            session = {
                "threads": threads,
                "providers": tuple(providers.replace(",", " ").split()),
                "strict": strict_providers,
            }
            settings = make_settings(
                ServingSettings,
                uri=model,
                registry=registry or None,
                poll_s=poll_s,
                contract=contract or None,
                fallback=fallback or None,
                deadline_ms=deadline_ms,
                max_in_flight=max_in_flight,
                challenger={**beside, "experiment": experiment} if challenger else None,
                session={**session, "optimisation": optimisation, "arena": arena},
                queue={
                    "windows": queue_windows,
                    "drop": drop,
                    "max_batch": max_batch,
                    "max_delay_ms": max_delay_ms,
                },
            )
            self.engine = Engine(
                settings,
                station=station,
                min_confidence=min_confidence,
                probability=probability,
                cache=cache_settings(cache, cache_redis, similar=cache_similar),
            )
        self.contract = self.engine.contract
        _check_ports(self.contract, n_channels, rows)
        channels, rows = len(self.contract.channels), self.contract.rows
        gr.sync_block.__init__(self, "onnx_inference", [(np.float32, rows)] * channels, None)
        self.failure: Exception | None = None
        self.malformed = 0
        self._accounting = threading.Lock()
        self._ended = NO_QUEUE  # what workers have counted that are no more
        self._cut_off = 0
        self._malformed_burst = False
        self.set_tag_propagation_policy(gr.TPP_DONT)
        for port in (self.FIX_PORT, self.SHADOW_PORT, self.STATUS_PORT):
            self.message_port_register_out(port)
        for port, handler in ((self.CONTROL_PORT, self._handle_control), (self.PDUS_PORT, self._handle_pdus)):
            self.message_port_register_in(port)
            self.set_msg_handler(port, handler)
        self.engine.prepare(time_steps)
        self.engine.observe("dropped", lambda: self.dropped)
        self.engine.observe("windows", lambda: self.windows)
        self._steps = self.engine.time_steps
        self._assembler = WindowAssembler(
            channels,
            rows,
            len(self.contract.receivers),
            time_steps=self._steps,
            window_hop=window_hop or self._steps,
        )
        self._frame_count = FrameCount()
        self._live = live
        self._station = station
        self._unit = stream or station  # the random name of a stream would change its arm at each start
        self._named_stream = stream
        self._worker: InferenceWorker[_Job, Callable[[], list[Fix]]] | None = None
        self._requests: InferenceWorker[list[Request], list[Fix]] | None = None
        self._publishing = threading.Lock()
        index = {receiver.name: k for k, receiver in enumerate(self.contract.receivers)}
        correlations = [k for k, each in enumerate(self.contract.channels) if each.feature == "cross_correlation"]
        self._repeated = set(correlations[1:])
        self._receivers_of = [
            list(index.values()) if port in correlations else [index[name] for name in channel.receivers]
            for port, channel in enumerate(self.contract.channels)
        ]
        self._first = 0
        # Worked out once: a contract does so each time it is asked.
        self._hop_s = self.contract.hop / self.contract.sample_rate_hz
        self._parameters = [self.contract.parameters[channel.feature] for channel in self.contract.channels]
        self._reset()

    def _reset(self) -> None:
        """As before the first frame: a flowgraph that is started again counts its items from zero."""
        self.published = 0
        self._reported_drops, self._reported_s = self.dropped, 0.0
        self._finishing = False
        self._stream = self._named_stream or uuid.uuid4().hex[:8]  # the numbers begin again
        self._sequence = 0
        self._frames = 0
        self._warmup = 0
        self._assembler.reset()
        self._is_aligned = False
        self._rate_hz = self.contract.sample_rate_hz
        self._time: tuple[int, tuple[int, float]] | None = None
        self._tuned_hz: float | None = None
        self._boundaries: dict[int, int] = {}
        receivers = len(self.contract.receivers)
        self._levels = FrameValues(receivers, np.nan, np.float32, lambda _, new: new)
        self._flags = FrameValues(receivers, 0, np.int32, np.bitwise_or)
        self._times: History[tuple[int, float]] = History()
        self._frequencies: History[float] = History()
        self._alignments: History[Alignment] = History()
        self._time_sources: History[TimeSource] = History()

    def set_min_confidence(self, min_confidence: float) -> None:
        """Below it a fix has no position. Raises ConfigError outside 0 to 1."""
        self.engine.set_min_confidence(min_confidence)

    @property
    def dropped(self) -> int:
        """Windows that were lost."""
        return sum(self.windows["dropped"].values())

    @property
    def windows(self) -> dict[str, Any]:
        """What has become of the stream's windows: offered = served + dropped + waiting + answering.

        `age_ms`: of the oldest that waits. `dropped` by stage: `queue`, inference was slow; `end`, they came while the
        stream was being ended, or waited when inference had failed. `interrupted`: windows that were begun and never
        offered, for a boundary cut them short. `frames`: taken = offered + interrupted + skipped + held, see
        FrameCount. Counted over all starts.
        """
        frames = self._frame_count
        with self._accounting:
            ended, state = self._ended, self._worker.state if self._worker is not None else NO_QUEUE
            return {
                "offered": ended.offered + state.offered + self._cut_off,
                "served": ended.served + state.served,
                "waiting": state.waiting,
                "answering": state.answering,
                "age_ms": state.age_s * 1e3,
                "dropped": {"queue": ended.dropped + state.dropped, "end": self._cut_off},
                "interrupted": frames.windows,
                "frames": {
                    "taken": frames.taken,
                    "offered": frames.offered,
                    "interrupted": frames.interrupted,
                    "skipped": frames.skipped,
                    "held": frames.held,
                },
            }

    def count_on(self, before: onnx_inference) -> None:
        """Before the flowgraph starts: go on with the account of a block that has stopped."""
        self._ended, self._cut_off = before._ended, before._cut_off
        self._assembler.count_on(before._assembler)
        self._frame_count = self._assembler.count

    def finish(self, timeout_s: float) -> None:
        """Take no more windows and wait until those taken are answered: for a live stream that is about to be cut."""
        self._finishing = True
        worker = self._worker
        if worker is not None:
            worker.settle(timeout_s)

    def group_frames(self, group: int, first: int = 0) -> None:
        """Before the flowgraph starts: take frames in groups, after `first` ones (fewer than a group)."""
        self._first = first
        self.set_output_multiple(group)

    def start(self) -> bool:
        self.failure = None
        self._reset()
        queue = self.engine.settings.queue
        self.engine.start(on_status=self._publish_status, on_shadow=self._publish_shadow, live=self._live)
        self._worker = InferenceWorker(
            self._answer,
            self._conclude,
            policy="block" if not self._live else "drop-oldest" if queue.drop == "oldest" else "drop-newest",
            capacity=queue.windows,
            threads=self.engine.settings.max_in_flight if self.engine.is_remote and not self.engine.takes_turns else 1,
            # Which windows are answered together is a matter of chance, and with it the last digits of their fixes:
            # those of recordings are the same every time.
            max_batch=queue.max_batch if self._live else 1,
            max_delay_s=queue.max_delay_ms / 1e3 if self._live else 0.0,
        )
        self._worker.start()
        self._requests = InferenceWorker(
            self._answer_requests, self._publish_all, capacity=MAX_BATCHES, name="localize-requests"
        )
        self._requests.start()
        return True

    def stop(self) -> bool:
        for worker in (self._worker, self._requests):
            if worker is not None:
                worker.stop()
                self.failure = self.failure or worker.failure
        self._close_account()
        if self.failure is not None:
            self.engine.health.fail(str(self.failure))
        self.engine.stop()
        return True

    def _close_account(self) -> None:
        """The worker goes, what it has counted stays."""
        with self._accounting:
            if self._worker is None:
                return
            state, ended = self._worker.state, self._ended
            lost = state.waiting + state.answering  # none, unless it has failed
            self._ended = QueueState(
                offered=ended.offered + state.offered - lost,
                served=ended.served + state.served,
                dropped=ended.dropped + state.dropped,
                waiting=0,
                answering=0,
                age_s=0.0,
            )
            self._cut_off += lost
            self._worker = None

    def _handle_control(self, message: Any) -> None:
        command = "command"
        try:
            command, parts = command_from_pmt(message)
            pending = self.engine.submit(command, **parts)
        except ConfigError as error:
            self._reply(command, error)
            return
        pending.add_done_callback(lambda done: self._reply(command, done.exception() or done.result()))

    def _reply(self, command: str, answer: BaseException | dict[str, Any]) -> None:
        if isinstance(answer, BaseException):
            self.logger.warn(f"{command}: {answer}")
            reply = {**self.engine.status(), "command": command, "ok": False, "error": str(answer)}
        else:
            reply = {**answer, "command": command, "ok": True}
        self.message_port_pub(self.STATUS_PORT, pmt.to_pmt(reply))

    def _handle_pdus(self, message: Any) -> None:
        try:
            requests = requests_from_pmt(message)
            if self._requests is None:
                raise ConfigError("the flowgraph is not running")
            if not 1 <= len(requests) <= MAX_REQUESTS:
                raise ConfigError(f"{len(requests)} requests: a batch has 1 to {MAX_REQUESTS}")
            if not self._requests.offer(requests):
                self._publish_all([self.engine.refuse(request, "overloaded") for request in requests])
        except (ConfigError, EngineError) as error:
            self.malformed += 1
            if not self._malformed_burst:
                self.logger.warn(f"onnx_inference: ignoring a message that is no request: {error}")
            self._malformed_burst = True
        except Exception as error:  # what ended the worker; here it would end the block's thread
            self.failure = self.failure or error
            self.logger.error(f"onnx_inference: requests are not answered any more: {error}")
        else:
            self._malformed_burst = False

    def _answer(self, jobs: Sequence[_Job], dropped: Sequence[int]) -> Callable[[], list[Fix]]:
        contexts = [
            replace(context, dropped=context.dropped + lost) if lost else context
            for (_, context), lost in zip(jobs, dropped, strict=True)
        ]
        return self.engine.begin([window for window, _ in jobs], contexts)

    def _conclude(self, conclude: Callable[[], list[Fix]]) -> None:
        for fix in conclude():
            self._publish(fix)

    def _answer_requests(self, batches: Sequence[list[Request]], dropped: Sequence[int]) -> list[Fix]:
        (requests,) = batches
        return self.engine.predict(requests)

    @guarded
    def work(self, input_items: Any, output_items: Any) -> int:
        assert self._worker is not None  # the scheduler calls start() first
        count = len(input_items[0])
        if self._first and self._frames == 0:
            count = self._first
        level_db, flags = self._read_tags(count)
        features = np.stack([frames[:count] for frames in input_items], axis=1)
        for window in self._assembler.push(features, level_db, flags, self._boundaries):
            if self._finishing:
                self._cut_off += 1
                continue
            self._worker.submit((window, self._context(window)))
            self._sequence += 1
        self._boundaries.clear()
        self._frame_count = self._assembler.count
        self._frames += count
        if not self._live:
            # GNU Radio gives no notice of the end of a recording: nothing may be pending when work() returns.
            self._worker.drain()
        self._report_drops()
        return count

    def _read_tags(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Take note of what the tags of the next frames say; return their levels and flags, (count, receivers).

        One pass over each input: a look at its tags takes longer than a look at its frames.
        """
        for port, receivers in enumerate(self._receivers_of):
            first = self.nitems_read(port)
            for tag in self.get_tags_in_range(port, first, first + count):
                if pmt.eq(tag.key, tags.FEATURES):
                    self._check_features(port, tag.value)
                elif pmt.eq(tag.key, tags.LEVELS):
                    self._note(self._levels, tags.levels_from_pmt(tag.value, len(receivers)), tag.offset - first, port)
                elif pmt.eq(tag.key, tags.FLAGS):
                    self._note(self._flags, tags.flags_from_pmt(tag.value, len(receivers)), tag.offset - first, port)
                elif pmt.eq(tag.key, tags.BOUNDARY):
                    boundary = tags.boundary_from_pmt(tag.value)
                    if boundary is not None:
                        self._part(tag.offset, boundary[1])
                elif port == 0:
                    self._read_stream_tag(tag)
        return self._levels.take(count), self._flags.take(count)

    def _part(self, frame: int, reaching: int) -> None:
        """No window spans the begin of `frame`, and `reaching` frames from it on are in none."""
        self._boundaries[frame] = max(reaching, self._boundaries.get(frame, 0))

    def _note(self, kept: FrameValues, rows: np.ndarray | None, ahead: int, port: int) -> None:
        # A correlation block writes all receivers' quality on each of its outputs: once is enough.
        if rows is not None and port not in self._repeated:
            kept.add(ahead, rows, self._receivers_of[port])

    def _read_stream_tag(self, tag: Any) -> None:
        if pmt.eq(tag.key, tags.RX_TIME):
            moment = tags.time_from_pmt(tag.value)
            if moment is not None:
                self._times.add(tag.offset, moment)
                if self._jumps(tag.offset, moment):
                    self._part_unaligned(tag.offset)
                self._time = (tag.offset, moment)
        elif pmt.eq(tag.key, tags.RX_RATE):
            if pmt.is_number(tag.value) and not pmt.is_complex(tag.value) and pmt.to_double(tag.value) > 0.0:
                if self._time is not None:
                    known, moment = self._time
                    since_s = (tag.offset - known) * self.contract.hop / self._rate_hz
                    self._time = (tag.offset, shift_time(*moment, since_s))
                self._rate_hz = pmt.to_double(tag.value)
        elif pmt.eq(tag.key, tags.RX_FREQ):
            frequency_hz = tags.frequency_from_pmt(tag.value)
            if frequency_hz is not None:
                self._frequencies.add(tag.offset, frequency_hz)
                if self._tuned_hz not in (None, frequency_hz):
                    self._part_unaligned(tag.offset)
                self._tuned_hz = frequency_hz
        elif pmt.eq(tag.key, tags.RESTART):
            self._time = None
            self._part_unaligned(tag.offset)
        elif pmt.eq(tag.key, tags.TIME_SOURCE):
            source = tags.time_source_from_pmt(tag.value)
            if source is not None:
                self._time_sources.add(tag.offset, source)
        elif pmt.eq(tag.key, tags.ALIGNMENT):
            alignment = tags.alignment_from_pmt(tag.value)
            if alignment is not None:
                self._is_aligned = True
                self._alignments.add(tag.offset, alignment)

    def _jumps(self, frame: int, moment: tuple[int, float]) -> bool:
        """Whether a time is not that which the one before and the stream's rate say."""
        if self._time is None:
            return False
        known, (seconds, fraction) = self._time
        off_s = moment[0] - seconds + (moment[1] - fraction) - (frame - known) * self.contract.hop / self._rate_hz
        return abs(off_s) > 0.5 / self._rate_hz + TIME_JUMP_S

    def _part_unaligned(self, frame: int) -> None:
        """The same where no time_align does it. Where in the frame the sample lies is not known: as late as can be."""
        if not self._is_aligned:
            hop = self.contract.hop
            self._part(frame, frames_across(hop - 1, self.contract.n_fft, hop))

    def _check_features(self, port: int, value: Any) -> None:
        wanted, found = self._parameters[port], tags.features_from_pmt(value)
        if found is None:
            return
        configuration, warmup_frames = found
        differing = [key for key in wanted if configuration.get(key) != wanted[key]]
        if differing:
            both = ", ".join(f"{key}={wanted[key]!r} (input gives {configuration.get(key)!r})" for key in differing)
            raise ModelError(f"input {port}: the model {self.contract.name} wants {both}")
        if warmup_frames > self._warmup:
            self._assembler.skip(max(warmup_frames - max(self._warmup, self._frames), 0))
            self._warmup = warmup_frames

    def _context(self, window: Window) -> WindowContext:
        """What the tags up to the window's end say, however many frames came at once."""
        hop_s = self._hop_s
        first, last = window.first_frame, window.first_frame + self._steps - 1
        timed = self._times.at(first, last)
        if timed is not None:
            frame, (seconds, fraction) = timed
            start = shift_time(seconds, fraction, (first - frame) * hop_s)
        else:
            now = time.time() - self._steps * hop_s
            start = (int(now), now % 1.0)
        frequency = self._frequencies.at(first, last)
        # The alignment's errors and gaps are those up to the window's end.
        alignment = self._alignments.at(last, last)
        said = self._time_sources.at(last, last)
        source: TimeSource = "rx_time" if said is None else said[1]
        return WindowContext(
            station=self._station,
            stream=self._stream,
            sequence=self._sequence,
            start=start,
            time_source="host" if timed is None else source,
            frequency_hz=self.contract.frequency_hz if frequency is None else frequency[1],
            alignment=None if alignment is None else alignment[1],
            completed_s=time.monotonic(),
            dropped=0,
            unit=self._unit,
        )

    def _publish(self, fix: Fix) -> None:
        self.message_port_pub(self.FIX_PORT, fix_to_pmt(fix))
        with self._publishing:  # streams and requests come from threads of their own
            self.published += 1

    def _publish_all(self, fixes: Sequence[Fix]) -> None:
        for fix in fixes:
            try:
                self._publish(fix)
            except ConfigError as error:  # of one request's own making; the others are answered all the same
                self.logger.error(f"request {fix.id}: its fix cannot be published: {error}")

    def _publish_shadow(self, fix: Fix) -> None:
        self.message_port_pub(self.SHADOW_PORT, fix_to_pmt(fix))

    def _publish_status(self, status: dict[str, Any]) -> None:
        self.message_port_pub(self.STATUS_PORT, pmt.to_pmt(status))

    def _report_drops(self) -> None:
        """Say so where windows are lost, now and then."""
        if self._live and self.dropped != self._reported_drops and time.monotonic() > self._reported_s + REPORT_S:
            self._reported_drops, self._reported_s = self.dropped, time.monotonic()
            self.engine.notify()


def _check_ports(contract: Contract, n_channels: int, rows: int) -> None:
    if n_channels not in (0, len(contract.channels)):
        wanted = ", ".join(f"{channel.feature} {'-'.join(channel.receivers)}" for channel in contract.channels)
        raise ConfigError(
            f"n_channels={n_channels}: the model {contract.name} wants {len(contract.channels)} ({wanted})"
        )
    if rows not in (0, contract.rows):
        raise ConfigError(f"rows={rows}: the model {contract.name} wants {contract.rows}")
