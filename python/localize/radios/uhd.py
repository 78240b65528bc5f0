"""USRPs, through gr-uhd.

gr-uhd tags the first sample, and the first after an overflow, with the device's time. Streams of several channels begin
with a timed command, so that their samples stand side by side.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from localize_core.errors import RadioError
from localize_core.station.config import StationTable
from localize_core.station.drivers import uhd_images_install
from localize_core.station.sources import Device, UhdSource

from .drivers import check_channels, check_tuned, import_driver, opening
from .radio import Radio

LOCK_S = 30.0
"""How long a reference, or a GPS receiver that is warm, may take to lock; where it takes longer, another try waits."""
PPS_S = 1.2
SETTLE_S = 0.1
FIND = "uhd_find_devices"
FIND_S = 20.0


def open_radio(device: Device, station: StationTable) -> Radio:
    """Receivers that are channels of one USRP or of several. Raises as `radios.open_radio`."""
    uhd = import_driver("gnuradio.uhd", device)
    shared: UhdSource = device.source
    _look(device)
    channels = [each.channel for each in device.sources]
    with opening(device), _counting_channels(channels):
        source = uhd.usrp_source(shared.args, uhd.stream_args(cpu_format="fc32", channels=channels))
        mboards = range(source.get_num_mboards())
        for mboard in mboards:
            if shared.subdev is not None:
                source.set_subdev_spec(shared.subdev, mboard)
            source.set_clock_source(shared.clock_source, mboard)
            source.set_time_source(_time_source(source, shared, mboard), mboard)
        check_channels(channels, sum(len(source.get_subdev_spec(mboard).split()) for mboard in mboards))
        source.set_samp_rate(station.sample_rate_hz)
        for port, table in enumerate(device.sources):
            _set_channel(source, port, table)
        for mboard in mboards:
            if shared.clock_source != "internal":
                _wait_locked(source, "ref_locked", mboard)
            if "gpsdo" in (shared.clock_source, shared.time_source):
                _wait_locked(source, "gps_locked", mboard)
        if shared.is_pulsed:
            _set_time_at_pulse(uhd, source, shared.time_source == "gpsdo")
        else:
            source.set_time_now(uhd.time_spec(time.time()))
        # all at the same moment, so that oscillators of daughterboards that can do it start with the same phase
        for mboard in mboards:
            source.set_command_time(source.get_time_now(mboard) + uhd.time_spec(SETTLE_S), mboard)
        for port, table in enumerate(device.sources):
            source.set_center_freq(uhd.tune_request(station.frequency_hz, table.lo_offset_hz), port)
        time.sleep(2.0 * SETTLE_S)
        for mboard in mboards:
            source.clear_command_time(mboard)
            if shared.clock_source != "internal":
                _wait_locked(source, "ref_locked", mboard)
        rate_hz = source.get_samp_rate()
        frequencies_hz = [source.get_center_freq(port) for port in range(len(channels))]
    check_tuned(device, station, rate_hz, frequencies_hz)
    outputs = tuple((source, port) for port in range(len(channels)))
    return Radio(device.name, outputs, (source,), "rx_time" if shared.is_pulsed else "host", rate_hz)


def _look(device: Device) -> None:
    """Raise RadioError where the device is not there: gr-uhd holds Python's lock while it looks for one."""
    finder = shutil.which(FIND)
    if finder is None:
        return
    try:
        found = subprocess.run(
            [finder, f"--args={device.source.args}"], capture_output=True, text=True, timeout=FIND_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RadioError(f"{device.name}: {FIND} did not end within {FIND_S:g} s") from error
    if found.returncode != 0:
        raise RadioError(
            f"{device.name}: no such USRP; is it powered and connected, and its firmware here ({uhd_images_install()})?"
        )


@contextmanager
def _counting_channels(channels: list[int]) -> Iterator[None]:
    """UHD's word for a channel that is not there, which no other try mends, becomes a ValueError."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        if isinstance(error, IndexError) or "IndexError" in str(error):
            raise ValueError(f"channel={max(channels)}, counted from 0, or subdev: {error}") from error
        raise


def _time_source(source: Any, table: UhdSource, mboard: int) -> str:
    """As the motherboard calls it: N2xx have "none" in place of "internal", N3xx and X4xx have no "none"."""
    if table.time_source != "internal" or "internal" in source.get_time_sources(mboard):
        return table.time_source
    return "none"


def _set_channel(source: Any, port: int, table: UhdSource) -> None:
    if table.antenna is not None:
        known = source.get_antennas(port)
        if table.antenna not in known:
            raise ValueError(f"antenna: {table.antenna!r} is none of the device's, which are: {', '.join(known)}")
        source.set_antenna(table.antenna, port)
    if table.bandwidth_hz is not None:
        source.set_bandwidth(table.bandwidth_hz, port)
    if table.dc_removal is not None:
        source.set_auto_dc_offset(table.dc_removal, port)
    if table.gain_db is not None:
        source.set_gain(table.gain_db, port)
    elif table.agc:
        source.set_rx_agc(True, port)


def _wait_locked(source: Any, sensor: str, mboard: int) -> None:
    """Wait until a sensor, where there is such a one, says that it is locked."""
    if sensor not in source.get_mboard_sensor_names(mboard):
        return
    deadline = time.monotonic() + LOCK_S
    while not source.get_mboard_sensor(sensor, mboard).to_bool():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {sensor} at motherboard {mboard} within {LOCK_S:g} s")
        time.sleep(0.1)


def _set_time_at_pulse(uhd: Any, source: Any, gps: bool) -> None:
    """Set the time of all motherboards at the same pulse, and check that it is the same.

    Which second it is, a GPS receiver says, or this computer's clock, which may be off by almost half a second.
    """
    _wait_for_pulse(source)
    if gps:
        time.sleep(0.2)  # its sentence for this second comes after the pulse
        second = source.get_mboard_sensor("gps_time", 0).to_int()
    else:
        second = round(time.time())
    source.set_time_next_pps(uhd.time_spec(second + 1, 0.0))
    time.sleep(PPS_S)
    times_s = [source.get_time_last_pps(board).get_real_secs() for board in range(source.get_num_mboards())]
    if len(set(times_s)) > 1 or not second < times_s[0] <= second + 2:
        raise RuntimeError(
            f"motherboards took the times {times_s} at a pulse, wanted {second + 1}: is it the same pulse?"
        )


def _wait_for_pulse(source: Any) -> None:
    before = source.get_time_last_pps(0).get_real_secs()
    deadline = time.monotonic() + PPS_S
    while source.get_time_last_pps(0).get_real_secs() == before:
        if time.monotonic() > deadline:
            raise RuntimeError("no pulse each second at its time_source")
        time.sleep(0.005)
