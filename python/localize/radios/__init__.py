"""Radios of a station: each device's driver opened, set as the station file says, and ready for a flowgraph."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from localize_core.station.config import StationTable
from localize_core.station.sources import Device

from .radio import Radio

OPENERS = {"soapy": "soapy", "uhd": "uhd", "osmosdr": "osmosdr", "rtl-tcp": "rtl_tcp", "zmq": "zmq"}
"""Module of each kind, imported only where a station has the kind: its driver need not be installed."""


def open_radio(device: Device, station: StationTable) -> Radio:
    """Open a device of a station: one complex stream for each of its receivers, at the station's rate and frequency.

    May take seconds. Raises RadioError where the radio is not there or cannot do it (another try may help),
    MissingDriver where its driver is not installed, ConfigError where the driver does not know what the station asks.
    """
    module = importlib.import_module(f"{__name__}.{OPENERS[device.kind]}")
    opener: Callable[[Device, StationTable], Radio] = module.open_radio
    return opener(device, station)
