"""The live receivers of a station: a graph for each device, beside the station's own, so that one may die alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gnuradio import gr
from localize_core.errors import ConfigError
from localize_core.receivers.host_clock import WallClock
from localize_core.receivers.stream_buffer import BufferGroup, StreamBuffer
from localize_core.receivers.supervisor import Supervisor
from localize_core.station.config import Station, StationTable
from localize_core.station.sources import Device, devices_of

from .radios import open_radio
from .radios.radio import Radio
from .stream_outlet import stream_outlet

SILENT_S = 2.0
"""A device that sends nothing for so long is no use."""
FIRST_S = 5.0
"""The same before its first sample."""
END_S = 3.0
"""How long a run that ends waits for its devices."""
BUFFER_S, MOST_BUFFER = 2.0, 1 << 23
"""What a receiver's buffer holds, in seconds and samples: a pause of the station's graph."""

OpenRadio = Callable[[Device, StationTable], Radio]


class DeviceGraph:
    """A device that is open, and the flowgraph that reads it. As an OpenDevice of its supervisor.

    Raises what `open_radio` does.
    """

    def __init__(
        self,
        device: Device,
        table: StationTable,
        buffers: Sequence[StreamBuffer],
        wall: WallClock,
        radio_of: OpenRadio = open_radio,
    ) -> None:
        self._radio = radio_of(device, table)
        try:
            self._outlet = stream_outlet(
                buffers, self._radio.sample_rate_hz, table.frequency_hz, self._radio.time_source, wall
            )
            self._graph = gr.top_block(device.name)
            for port, output in enumerate(self._radio.outputs):
                self._graph.connect(output, (self._outlet, port))
            for buffer in buffers:
                buffer.interrupt()
            self._began_s = time.monotonic()
            self._graph.start()
        except BaseException:
            self._radio.close()
            raise
        self._ended = threading.Event()
        self._waiter = threading.Thread(target=self._wait, name=f"wait {device.name}", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        self._graph.wait()
        self._ended.set()

    @property
    def streaming(self) -> bool:
        return self._outlet.heard_s is not None

    def trouble(self) -> str | None:
        if self._outlet.failure is not None:
            return str(self._outlet.failure)
        if self._ended.is_set():
            return "its stream ended"
        other_hz = self._outlet.other_rate_hz
        if other_hz is not None:
            slow = ", or this computer is too slow for it" if other_hz < self._radio.sample_rate_hz else ""
            return (
                f"sends {float(f'{other_hz:.3g}'):.0f} samples/s where {self._radio.sample_rate_hz:.0f} are asked{slow}"
            )
        heard_s, now_s = self._outlet.heard_s, time.monotonic()
        if heard_s is None:
            return None if now_s - self._began_s < FIRST_S else f"no samples within {FIRST_S:g} s"
        return None if now_s - heard_s < SILENT_S else f"no samples for {SILENT_S:g} s"

    def close(self) -> None:
        try:
            self._graph.stop()
        finally:
            self._radio.close()
        self._waiter.join()


class _Watched:
    """A device with its supervisor and the buffers of its receivers."""

    def __init__(
        self,
        device: Device,
        table: StationTable,
        group: BufferGroup,
        wall: WallClock,
        on_change: Callable[[], None],
        radio_of: OpenRadio,
    ) -> None:
        self.device, self.table = device, table
        capacity = min(max(round(BUFFER_S * table.sample_rate_hz), 2), MOST_BUFFER)
        self.buffers = [StreamBuffer(capacity, group) for _ in device.receivers]
        self.supervisor = Supervisor(
            device.name, lambda: DeviceGraph(device, table, self.buffers, wall, radio_of), on_change
        )

    def serves(self, device: Device, table: StationTable) -> bool:
        """Whether it is what that device is to be, and may yet work."""
        tuned = (self.table.sample_rate_hz, self.table.frequency_hz)
        wanted = (table.sample_rate_hz, table.frequency_hz)
        same = (self.device.name, self.device.sources, tuned) == (device.name, device.sources, wanted)
        return same and self.supervisor.fatal is None


class Receivers:
    """All devices of a live station, each in a graph and under a supervisor of its own, between `start` and `stop`.

    `buffers`: of the receivers, in the station's order. `before`: what runs now, of the station as it was: devices that
    stay as they are go on, and `start` ends the others. `on_change`: called from any thread when one of
    them has come or gone.
    """

    def __init__(
        self,
        station: Station,
        on_change: Callable[[], None] = lambda: None,
        *,
        before: Receivers | None = None,
        radio_of: OpenRadio = open_radio,
    ) -> None:
        self._wall = WallClock() if before is None else before._wall
        self._group = BufferGroup() if before is None else before._group
        kept = [] if before is None else before._watched
        self._watched: list[_Watched] = []
        self._fresh: list[_Watched] = []
        devices = devices_of(station)
        for device in devices:
            watched = next((each for each in kept if each.serves(device, station.station)), None)
            if watched is None:
                watched = _Watched(device, station.station, self._group, self._wall, on_change, radio_of)
                self._fresh.append(watched)
            self._watched.append(watched)
        self._replaced = [each for each in kept if each not in self._watched]
        placed = {
            index: (receiver.name, watched, buffer)
            for device, watched in zip(devices, self._watched, strict=True)
            for index, receiver, buffer in zip(device.indices, device.receivers, watched.buffers, strict=True)
        }
        self._receivers = [placed[index] for index in range(len(station.receiver))]
        self.buffers = [buffer for _, _, buffer in self._receivers]

    def start(self) -> None:
        """Open the devices, which takes its time elsewhere; before, wait for those that these replace."""
        _end(self._replaced)
        for watched in self._fresh:
            watched.supervisor.start()
        self._replaced, self._fresh = [], []

    def begin_stop(self) -> None:
        """Begin to close all devices; `stop` waits for it."""
        for watched in self._watched:
            watched.supervisor.stop()

    def stop(self) -> None:
        """Close all devices. Drivers that hang are left behind."""
        _end(self._watched)

    @property
    def fatal(self) -> ConfigError | None:
        """What keeps a device from ever working, if there is such a thing."""
        return next((each.supervisor.fatal for each in self._watched if each.supervisor.fatal is not None), None)

    def report(self) -> dict[str, dict[str, Any]]:
        """By receiver: its device's DeviceState and its stream's StreamCount, as one dict."""
        return {
            name: {**watched.supervisor.state.as_dict(), **asdict(buffer.count)}
            for name, watched, buffer in self._receivers
        }

    def lost(self) -> str:
        """Receivers that do not stream now, and why; empty where there are none, or nothing is known yet."""
        states = [(name, watched.supervisor.state) for name, watched, _ in self._receivers]
        return "; ".join(
            f"{name} is {state.state}: {state.error}" for name, state in states if state.state in ("absent", "failed")
        )


def _end(watched: Sequence[_Watched]) -> None:
    for each in watched:
        each.supervisor.stop()
    deadline_s = time.monotonic() + END_S
    for each in watched:
        each.supervisor.join(max(deadline_s - time.monotonic(), 0.0))
