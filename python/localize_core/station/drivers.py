"""Which packages bring the drivers of live receivers, and the commands that install them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localize_core.station.sources import Device

MODULES = {
    "soapy": "gnuradio.soapy",
    "uhd": "gnuradio.uhd",
    "osmosdr": "osmosdr",
    "rtl-tcp": "osmosdr",
    "zmq": "gnuradio.zeromq",
}
"""Python module that GNU Radio reaches each kind of receiver through."""
_CONDA = "conda install -c conda-forge"
INSTALL = {
    "gnuradio.soapy": f"apt-get install gnuradio, or {_CONDA} gnuradio-soapy",
    "gnuradio.uhd": f"apt-get install gnuradio, or {_CONDA} gnuradio-uhd",
    "gnuradio.zeromq": f"apt-get install gnuradio, or {_CONDA} gnuradio-zeromq",
    "osmosdr": f"apt-get install gr-osmosdr, or {_CONDA} gnuradio-osmosdr",
}
"""Command for each module."""
UHD_DOWNLOADER = "uhd_images_downloader"
"""USRPs load their firmware from this computer, which the distribution may not ship."""
_SOAPY_PACKAGES = {
    "airspy": ("airspy", "airspy"),
    "airspyhf": ("", "airspyhf"),
    "audio": ("audio", "audio"),
    "bladerf": ("bladerf", "bladerf"),
    "hackrf": ("hackrf", "hackrf"),
    "lime": ("lms7", "lms7"),
    "plutosdr": ("", "plutosdr"),
    "redpitaya": ("redpitaya", "redpitaya"),
    "remote": ("remote", "remote"),
    "rtlsdr": ("rtlsdr", "rtlsdr"),
    "uhd": ("uhd", "uhd"),
    "xtrx": ("xtrx", ""),
}


def uhd_images_install() -> str:
    """The command that fetches the firmware of USRPs."""
    return UHD_DOWNLOADER if shutil.which(UHD_DOWNLOADER) else f"apt-get install uhd-host && {UHD_DOWNLOADER}"


def soapy_driver(args: str) -> str | None:
    """Which SoapySDR driver a device's arguments name; None if they leave that to what is found."""
    pairs = (part.partition("=") for part in args.split(","))
    return next((value.strip() for key, _, value in pairs if key.strip() == "driver"), None)


def soapy_install(driver: str) -> str:
    """The command that installs a SoapySDR driver."""
    apt, conda = _SOAPY_PACKAGES.get(driver, (driver, driver))
    commands = []
    if apt:
        commands.append(f"apt-get install soapysdr-module-{apt}")
    if conda:
        commands.append(f"{_CONDA} soapysdr-module-{conda}")
    return ", or ".join(commands)


def drivers_of(devices: tuple[Device, ...]) -> tuple[set[str], set[str]]:
    """Python modules and SoapySDR drivers that devices need."""
    modules = {MODULES[device.kind] for device in devices}
    named = {soapy_driver(device.source.args) for device in devices if device.kind == "soapy"}
    return modules, {driver for driver in named if driver is not None}
