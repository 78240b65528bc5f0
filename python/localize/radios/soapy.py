"""Radios with a SoapySDR driver, through gr-soapy.

gr-soapy tags the first sample, and the first after an overflow, with the device's time where it has a clock.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

from localize_core.errors import RadioError
from localize_core.station.config import StationTable
from localize_core.station.drivers import soapy_driver, soapy_install
from localize_core.station.sources import Device, SoapySource

from .drivers import check_channels, check_tuned, chosen_outputs, import_driver, opening
from .radio import Radio

PPS_S = 1.5
"""A pulse comes within a second."""
MAX_TIME_ERROR_S = 0.5
NO_DRIVER = "Device::make() no match"
FEWER_CHANNELS = re.compile(r"Unsupported number of channels.*Only\s+(\d+) channels available", re.DOTALL)


def open_radio(device: Device, station: StationTable) -> Radio:
    """Receivers that are channels of one SoapySDR device. Raises as `radios.open_radio`."""
    soapy = import_driver("gnuradio.soapy", device)
    channels = [each.channel for each in device.sources]
    count = max(channels) + 1
    shared: SoapySource = device.source
    with opening(device):
        try:
            source = soapy.source(shared.args, "fc32", count, "", shared.stream_args or "", [""], [""])
        except (RuntimeError, ValueError) as error:
            fewer = FEWER_CHANNELS.search(str(error))
            if fewer is not None:
                check_channels(channels, int(fewer[1]))
            driver = soapy_driver(shared.args)
            if driver is None or NO_DRIVER not in str(error):
                raise
            # what SoapySDR says where the driver is missing, and where there is no such device
            raise RadioError(
                f"{device.name}: no such device, or no driver {driver!r}, which is {soapy_install(driver)}"
            ) from error
        for key, known, setter in (
            ("clock_source", source.list_clock_sources, source.set_clock_source),
            ("time_source", source.list_time_sources, source.set_time_source),
        ):
            if (wanted := getattr(shared, key)) is not None:
                _check_known(key, wanted, known())
                setter(wanted)
        for table in device.sources:
            _set_channel(source, table, station)
        rate_hz = source.get_sample_rate(channels[0])
        frequencies_hz = [source.get_frequency(channel) for channel in channels]
        timed = shared.is_disciplined
        if timed:
            _set_time(source, device)
    check_tuned(device, station, rate_hz, frequencies_hz)
    outputs = chosen_outputs(source, count, channels)
    return Radio(device.name, outputs, (source, outputs[0][0]), "rx_time" if timed else "host", rate_hz)


def _set_channel(source: Any, table: SoapySource, station: StationTable) -> None:
    channel = table.channel
    source.set_sample_rate(channel, station.sample_rate_hz)
    if table.bandwidth_hz is not None:
        source.set_bandwidth(channel, table.bandwidth_hz)
    if table.antenna is not None:
        _check_known("antenna", table.antenna, source.list_antennas(channel))
        source.set_antenna(channel, table.antenna)
    if table.ppm:
        if not source.has_frequency_correction(channel):
            raise ValueError(f"ppm={table.ppm:g}: the driver does not correct frequencies")
        source.set_frequency_correction(channel, table.ppm)
    source.set_frequency(channel, station.frequency_hz)
    if table.agc and not source.has_gain_mode(channel):
        raise ValueError("agc: the device does not set its gain by itself; give gain_db or gains")
    if source.has_gain_mode(channel):
        source.set_gain_mode(channel, table.automatic_gain)
    if table.gain_db is not None:
        _check_range("gain_db", table.gain_db, source.get_gain_range(channel))
        source.set_gain(channel, table.gain_db)
    for name, gain_db in table.gains.items():
        _check_known("gains", name, source.list_gains(channel))
        _check_range(f"gains.{name}", gain_db, source.get_gain_range(channel, name))
        source.set_gain(channel, name, gain_db)
    if table.dc_removal is not None:
        if not source.has_dc_offset_mode(channel):
            raise ValueError("dc_removal: the driver has none")
        source.set_dc_offset_mode(channel, table.dc_removal)
    device_keys = [setting.key for setting in source.get_setting_info()]
    channel_keys = [setting.key for setting in source.get_setting_info(channel)]
    for key, value in table.settings.items():
        _check_known("settings", key, [*device_keys, *channel_keys])
        if key in device_keys:
            source.write_setting(key, value)
        else:
            source.write_setting(channel, key, value)


def _check_known(key: str, wanted: str, known: Iterable[str]) -> None:
    known = list(known)
    if wanted not in known:
        raise ValueError(f"{key}: {wanted!r} is none of the device's, which are: {', '.join(known) or 'none'}")


def _check_range(key: str, wanted: float, known: Any) -> None:
    lowest, highest = known.minimum(), known.maximum()
    if not lowest <= wanted <= highest:
        raise ValueError(f"{key}={wanted:g}: the device has {lowest:g} to {highest:g} dB")


def _set_time(source: Any, device: Device) -> None:
    """The device's time becomes UTC's at the next pulse. Raises RadioError where it did not."""
    if not source.has_hardware_time(""):
        raise ValueError("time_source: the device tells no time")
    # in the middle of a second, so that this computer's clock may be off by almost half of one
    time.sleep((0.5 - time.time()) % 1.0)
    source.set_hardware_time((int(time.time()) + 1) * 1_000_000_000, "PPS")
    time.sleep(PPS_S)
    off_s = source.get_hardware_time("") * 1e-9 - time.time()
    if abs(off_s) > MAX_TIME_ERROR_S:
        raise RadioError(f"{device.name}: its time is {off_s:.3g} s off after a pulse; does one come each second?")
