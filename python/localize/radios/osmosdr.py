"""Radios through gr-osmosdr, which tells no time."""

from __future__ import annotations

from localize_core.station.config import StationTable
from localize_core.station.sources import Device

from .drivers import check_channels, check_tuned, chosen_outputs, import_driver, opening
from .radio import Radio

MODES = {"off": 0, "manual": 1, "automatic": 2}


def open_radio(device: Device, station: StationTable) -> Radio:
    """Receivers of one gr-osmosdr source. Raises as `radios.open_radio`."""
    driver = import_driver("osmosdr", device)
    with opening(device):
        source = driver.source(device.source.driver_args)
        count = source.get_num_channels()
        channels = [each.channel for each in device.sources]
        check_channels(channels, count)
        source.set_sample_rate(station.sample_rate_hz)
        for channel in range(count):
            source.set_center_freq(station.frequency_hz, channel)
        for table, channel in zip(device.sources, channels, strict=True):
            source.set_freq_corr(table.ppm, channel)
            source.set_gain_mode(table.automatic_gain, channel)
            for gain_db, setter in (
                (table.gain_db, source.set_gain),
                (table.if_gain_db, source.set_if_gain),
                (table.bb_gain_db, source.set_bb_gain),
            ):
                if gain_db is not None:
                    setter(gain_db, channel)
            if table.antenna is not None:
                known = source.get_antennas(channel)
                if table.antenna not in known:
                    raise ValueError(f"antenna={table.antenna!r}: it has {', '.join(known)}")
                source.set_antenna(table.antenna, channel)
            if table.bandwidth_hz is not None:
                source.set_bandwidth(table.bandwidth_hz, channel)
            if table.dc_offset_mode is not None:
                source.set_dc_offset_mode(MODES[table.dc_offset_mode], channel)
            if table.iq_balance_mode is not None:
                source.set_iq_balance_mode(MODES[table.iq_balance_mode], channel)
        rate_hz = source.get_sample_rate()
        frequencies_hz = [source.get_center_freq(channel) for channel in channels]
    check_tuned(device, station, rate_hz, frequencies_hz)
    outputs = chosen_outputs(source, count, channels)
    return Radio(device.name, outputs, (source, outputs[0][0]), "host", rate_hz)
