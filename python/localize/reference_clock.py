"""Streams of receivers without a common clock, timed by a transmitter that all of them hear."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pmt
from gnuradio import gr
from localize_core.alignment.reference import ReferenceClock
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.alignment.reference_status import ClockStatus, as_dict
from localize_core.alignment.reference_stream import Mark, Seat
from localize_core.model.compiled.propagation import along_surface
from localize_core.model.contract import Receiver as ContractReceiver
from localize_core.serving.settings import make_settings
from localize_core.station.config import Station
from localize_core.types.place import place_of

from . import tags
from .guard import WORK_DONE, guarded
from .input_watch import InputWatch

STATUS_PORT = pmt.intern("status")
CALLED_PRODUCE = int(gr.WORK_CALLED_PRODUCE)
PATIENCE_S = 5.0
"""A stream this long whose clock is not known counts as lost."""


class reference_clock(gr.basic_block):
    """N complex streams of receivers without a common clock to N streams whose `rx_time` and `rx_rate` tags are.

    All receivers hear a transmitter at a known place, within their band: its delays and carrier offsets tell their
    clocks. What comes out are their samples with carriers turned back to that of one of them and the transmitter's band
    removed. A stream whose clock is not known yet, or not any more, has no samples; the others go on. After an
    interruption the first sample has a `localize_restart` tag.

    `receivers`: (name, latitude, longitude) or (name, latitude, longitude, altitude_m). `reference_hz` is the
    transmitter's own frequency. The others are the keys of a station file's `[reference]`; `max_wait_s` is that of
    time_align: a stream that is later than this is done without, None waits. `replay`: see ReferenceClock.
    """

    def __init__(
        self,
        receivers: Sequence[tuple[Any, ...]],
        sample_rate_hz: float,
        frequency_hz: float,
        latitude: float,
        longitude: float,
        reference_hz: float,
        bandwidth_hz: float,
        altitude_m: float = 0.0,
        carrier: Literal["shared", "independent"] = "shared",
        max_ppm: float = 50.0,
        search_s: float = 1.0,
        block_s: float = 0.1,
        wander_ppb: float = 2.0,
        max_error_ns: float = 100.0,
        max_wait_s: float | None = None,
        replay: bool = False,
    ) -> None:
        places = [place_of(receiver) for receiver in receivers]
        settings = make_settings(
            ReferenceSettings,
            latitude=latitude,
            longitude=longitude,
            altitude_m=altitude_m,
            frequency_hz=reference_hz,
            bandwidth_hz=bandwidth_hz,
            carrier=carrier,
            max_ppm=max_ppm,
            search_s=search_s,
            block_s=block_s,
            wander_ppb=wander_ppb,
            max_error_ns=max_error_ns,
        )
        delays_s = settings.path_delays_s(places, along_surface=along_surface(frequency_hz))
        count = len(places)
        self._make_clock = partial(
            ReferenceClock,
            count,
            sample_rate_hz,
            frequency_hz,
            settings,
            delays_s,
            max_wait_s=max_wait_s,
            replay=replay,
        )
        self.clock = self._make_clock()
        signature = [np.complex64] * count
        gr.basic_block.__init__(self, "reference_clock", in_sig=signature, out_sig=signature)
        self.failure: Exception | None = None
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.message_port_register_out(STATUS_PORT)
        self._names = [place.name for place in places]
        self._watch, self._is_idle = InputWatch(), False
        self._has_started = False
        self._losses_before = [0] * count
        self.on_lost: Callable[[list[str]], None] | None = None
        """Called in the stream's thread with the receivers whose clocks are not known, at first and when these
        change; the log has no warning of them then."""
        self._reset()

    def _reset(self) -> None:
        """As before the first sample."""
        count = len(self._names)
        self._carried: list[deque[tuple[int, Any, Any]]] = [deque(maxlen=tags.MOST_WAITING) for _ in range(count)]
        self._stamped = [False] * count
        self._told_error_s = [-1.0] * count
        self._status = self._counted(self.clock.status)
        self._locked: tuple[bool, ...] = ()
        self._lost: list[str] | None = None

    def forecast(self, noutput_items: int, ninputs: int) -> list[int]:
        return self._watch.needed(noutput_items, ninputs)

    def start(self) -> bool:
        if self._has_started and self.nitems_read(0) == 0:  # a flowgraph that is started again counts from zero
            self.clock = self._make_clock()
            self.count_on(self.report())
            self._reset()
        self._has_started = True
        self._watch.start()
        return True

    @guarded
    def general_work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        self._watch.look(input_items, is_idle=self._is_idle)
        for receiver, samples in enumerate(input_items):
            self._take(receiver, samples)
        self.clock.advance()
        produced = 0
        for receiver, output in enumerate(output_items):
            samples, seats = self.clock.pull(receiver, len(output))
            output[: len(samples)] = samples
            self._tag(receiver, len(samples), seats)
            self.produce(receiver, len(samples))
            produced += len(samples)
        self._is_idle = produced == 0
        self._publish()
        return WORK_DONE if self.clock.finished and produced == 0 else CALLED_PRODUCE

    def _take(self, receiver: int, samples: np.ndarray) -> None:
        first = self.nitems_read(receiver)
        found: dict[int, dict[str, Any]] = {}
        others = []
        for tag in self.get_tags_in_range(receiver, first, first + len(samples)):
            here = found.setdefault(tag.offset, {})
            if pmt.eq(tag.key, tags.RX_TIME):
                here["time"] = tags.time_from_pmt(tag.value)
            elif pmt.eq(tag.key, tags.RX_RATE) and pmt.is_number(tag.value):
                here["rate_hz"] = pmt.to_double(tag.value)
            elif pmt.eq(tag.key, tags.RESTART) and tags.restart_from_pmt(tag.value) != 0:
                here["restart"] = True
            elif pmt.eq(tag.key, tags.LENGTH) and pmt.is_uint64(tag.value):
                self.clock.describe(receiver, length=pmt.to_uint64(tag.value))
            elif pmt.eq(tag.key, tags.RX_FREQ) or pmt.eq(tag.key, tags.TIME_SOURCE):
                others.append((tag.offset, tag.key, tag.value))
        if len(samples) and not self._stamped[receiver]:
            self._stamped[receiver] = True
            if not any(values.get("time") for values in found.values()):
                now_s = time.time()
                found.setdefault(first, {})["time"] = (int(now_s), now_s % 1.0)
                others.append((first, tags.TIME_SOURCE, tags.time_source_to_pmt("host")))
        marks = [Mark(index, **values) for index, values in sorted(found.items())]
        taken = self.clock.push(receiver, samples, marks)
        self._carried[receiver].extend(other for other in others if other[0] < first + taken)
        self.consume(receiver, taken)

    def _tag(self, receiver: int, count: int, seats: list[Seat]) -> None:
        for seat in seats:
            self.add_item_tag(receiver, seat.index, tags.RX_TIME, tags.time_to_pmt(*seat.time))
            self.add_item_tag(receiver, seat.index, tags.RX_RATE, pmt.from_double(seat.rate_hz))
            if seat.restart:
                self.add_item_tag(receiver, seat.index, tags.RESTART, tags.restart_to_pmt())
            told_s = self._told_error_s[receiver]
            if abs(seat.error_s - told_s) > 0.2 * max(told_s, 1e-9) or seat.restart:
                self._told_error_s[receiver] = seat.error_s
                self.add_item_tag(receiver, seat.index, tags.TIME_ERROR, pmt.from_double(seat.error_s))
            waiting = self._carried[receiver]
            due = {}
            while waiting and waiting[0][0] <= seat.source:
                _, key, value = waiting.popleft()
                due[pmt.symbol_to_string(key)] = (key, value)
            for key, value in due.values():
                self.add_item_tag(receiver, seat.index, key, value)

    def _publish(self) -> None:
        """A dict on the status port, and a line in the log, where a clock is found or lost."""
        status = self.clock.status
        self._status = self._counted(status)
        locked = tuple(one.locked for one in status)
        due = PATIENCE_S * self.clock.sample_rate_hz
        lost = [
            name
            for index, name in enumerate(self._names)
            if not locked[index] and (status[index].losses or self.nitems_read(index) > due)
        ]
        if lost != self._lost:
            self._lost = lost
            if self.on_lost is not None:
                self.on_lost(lost)
        if locked == self._locked:
            return
        fewer = any(was and not now for was, now in zip(self._locked, locked, strict=False))
        self._locked = locked
        self.message_port_pub(STATUS_PORT, pmt.to_pmt(self.report()))
        unknown = [name for name, one in zip(self._names, locked, strict=True) if not one]
        said = f"no clock of {', '.join(unknown)}" if unknown else f"clocks of all {len(locked)} receivers are known"
        (self.logger.warn if fewer and self.on_lost is None else self.logger.info)(said)

    def count_on(self, report: Mapping[str, Mapping[str, Any]]) -> None:
        """Count losses on from such a report, as of the flowgraph before."""
        self._losses_before = [report.get(name, {}).get("losses", 0) for name in self._names]
        self._status = self._counted(self.clock.status)

    def _counted(self, status: Sequence[ClockStatus]) -> tuple[ClockStatus, ...]:
        """With the losses of flowgraphs before."""
        pairs = zip(status, self._losses_before, strict=True)
        return tuple(replace(one, losses=one.losses + before) for one, before in pairs)

    def report(self) -> dict[str, Any]:
        """What is known of every receiver's clock, by its name; any thread may ask. Losses are those of flowgraphs
        before too.
        """
        return {name: as_dict(one) for name, one in zip(self._names, self._status, strict=True)}


def reference_clock_of(
    station: Station, receivers: Sequence[ContractReceiver], max_wait_s: float | None, *, replay: bool
) -> Any:
    """The block that a station's `[reference]` asks for."""
    reference = station.reference
    assert reference is not None
    values = reference.model_dump(exclude={"name", "frequency_hz", "timing_sigma_ns"})
    return reference_clock(
        [(receiver.name, receiver.latitude, receiver.longitude, receiver.altitude_m) for receiver in receivers],
        station.station.sample_rate_hz,
        station.station.frequency_hz,
        reference_hz=reference.frequency_hz,
        max_wait_s=max_wait_s,
        replay=replay,
        **values,
    )
