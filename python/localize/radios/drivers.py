"""What the drivers of radios have in common: they may be missing, fail at length, and do other than they were told."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from gnuradio import blocks, gr
from localize_core.alignment.aligner import MAX_RATE_ERROR
from localize_core.errors import ConfigError, MissingDriver, RadioError
from localize_core.station.config import StationTable
from localize_core.station.drivers import INSTALL
from localize_core.station.sources import Device

MAX_TUNING_ERROR = 0.01
"""Of the sample rate. Tuners have steps, of less than that."""


def import_driver(module: str, device: Device) -> ModuleType:
    """GNU Radio's module for a kind of device. Raises MissingDriver with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDriver(f"{device.name}: cannot load {module} ({error}): {INSTALL[module]}") from error


@contextmanager
def opening(device: Device) -> Iterator[None]:
    """What a driver raises becomes one line: RadioError, or ConfigError where it refuses what it was asked for."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{device.name}: {_one_line(error)}") from error
    except (RuntimeError, IndexError, KeyError, OSError) as error:
        raise RadioError(f"{device.name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_channels(channels: Sequence[int], count: int) -> None:
    """Raise ValueError where a device of `count` channels has not all of those."""
    if max(channels) >= count:
        raise ValueError(f"channel={max(channels)}: it has {count or 'none'}, counted from 0")


def check_tuned(device: Device, station: StationTable, rate_hz: float, frequencies_hz: Sequence[float]) -> None:
    """Raise ConfigError where a driver took another rate or frequency than the station's."""
    wanted_hz = station.sample_rate_hz
    if not abs(rate_hz / wanted_hz - 1.0) <= MAX_RATE_ERROR:
        raise ConfigError(f"station.sample_rate_hz={wanted_hz:g}: {device.name} gives {rate_hz:g}")
    for receiver, found_hz in zip(device.receivers, frequencies_hz, strict=True):
        if not abs(found_hz - station.frequency_hz) <= MAX_TUNING_ERROR * wanted_hz:
            raise ConfigError(
                f"station.frequency_hz={station.frequency_hz:g}: {device.name} is at {found_hz:g} for {receiver.name}"
            )


def chosen_outputs(source: Any, count: int, channels: Sequence[int]) -> tuple[tuple[Any, int], ...]:
    """Outputs of a block of `count` that are `channels`; what comes from the others is thrown away."""
    unused = sorted(set(range(count)) - set(channels))
    if not unused:
        return tuple((source, channel) for channel in channels)
    size = gr.sizeof_gr_complex
    whole = gr.hier_block2(
        "chosen_outputs", gr.io_signature(0, 0, 0), gr.io_signature(len(channels), len(channels), size)
    )
    for port, channel in enumerate(channels):
        whole.connect((source, channel), (whole, port))
    for channel in unused:
        whole.connect((source, channel), blocks.null_sink(size))
    return tuple((whole, port) for port in range(len(channels)))
