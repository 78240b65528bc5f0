"""Which drivers of radios are on this machine, and whether they are those that a station needs.

Facts about the machine are gathered first; the checks are plain functions of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localize_core.errors import ConfigError
from localize_core.station.drivers import INSTALL, MODULES, drivers_of, soapy_install, uhd_images_install

from localize_apps.finding import Finding

if TYPE_CHECKING:
    from localize_core.station.config import Station

# In a Python of its own: what a driver prints or breaks while it loads is nobody's then.
PROBE = """
import importlib, json, sys
errors = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        errors[name] = None
    except Exception as error:
        errors[name] = str(error) or repr(error)
print(json.dumps(errors))
"""
PROBE_S = 60.0


@dataclass(frozen=True)
class RadioFacts:
    """What the checks look at."""

    modules: Mapping[str, str | None]  # of GNU Radio for radios: why it does not load, None where it does
    soapy: tuple[str, ...] | None  # SoapySDR's drivers; None where nothing here can list them
    uhd_images: str | None  # folder with firmware of USRPs; None where there is none, or it is empty


def gather_radio_facts() -> RadioFacts:
    """Look at this machine."""
    return RadioFacts(_modules(), _soapy_drivers(), _uhd_images())


def check_drivers(facts: RadioFacts) -> Iterator[Finding]:
    """Which kinds of radios this machine has drivers for."""
    for kind, module in MODULES.items():
        error = facts.modules[module]
        if error is not None:
            message = f"not installed ({error}); only needed for receivers of this kind"
            yield Finding(f"driver {kind}", "ok", message, INSTALL[module])
        elif kind == "soapy":
            listed = "drivers unknown without SoapySDRUtil" if facts.soapy is None else ", ".join(facts.soapy)
            yield Finding("driver soapy", "ok", f"SoapySDR with {listed or 'no driver'}")
        elif kind == "uhd" and facts.uhd_images is None:
            yield Finding("driver uhd", "ok", "there, without the firmware that USRPs load", uhd_images_install())
        else:
            yield Finding(f"driver {kind}", "ok", module)


def check_radios(station: Station, facts: RadioFacts) -> Iterator[Finding]:
    """Whether the drivers of a station's live receivers are here; nothing where it has none."""
    from localize_core.station.sources import devices_of

    devices = devices_of(station)
    modules, named = drivers_of(devices)
    fine = True
    for module in sorted(modules):
        error = facts.modules[module]
        if error is not None:
            fine = False
            yield Finding("radios", "error", f"{module} does not load: {error}", INSTALL[module])
    for driver in sorted(named):
        if facts.modules["gnuradio.soapy"] is None and facts.soapy is not None and driver not in facts.soapy:
            fine = False
            message = f"SoapySDR has no driver {driver}, only {', '.join(facts.soapy) or 'none'}"
            yield Finding("radios", "error", message, soapy_install(driver))
    if "gnuradio.uhd" in modules and facts.uhd_images is None:
        fine = False
        yield Finding("radios", "warning", "the firmware that USRPs load is not on this computer", uhd_images_install())
    if devices and fine:
        yield Finding("radios", "ok", f"drivers for {', '.join(device.name for device in devices)}")


def check_station_radios(path: Path, folder: Path | None, facts: RadioFacts) -> Iterator[Finding]:
    """The same of a station file; nothing where it cannot be read."""
    try:
        from localize_core.station.config import load_station

        station = load_station(path, folder=folder)
    except (ImportError, ConfigError):
        return
    yield from check_radios(station, facts)


def _modules() -> dict[str, str | None]:
    names = sorted(set(MODULES.values()))
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *names], capture_output=True, text=True, check=False, timeout=PROBE_S
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(names, f"loading drivers takes more than {PROBE_S:g} s")
    if done.returncode != 0:
        return dict.fromkeys(names, f"Python ended with status {done.returncode} when drivers were loaded")
    errors: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return errors


def _soapy_drivers() -> tuple[str, ...] | None:
    said = _said("SoapySDRUtil", "--info")
    if said is None:
        return None
    names = next((line for line in said.splitlines() if line.startswith("Available factories")), "").partition("...")[2]
    return () if names.strip().endswith("!") else tuple(names.replace(",", " ").split())  # No factories found!


def _uhd_images() -> str | None:
    said = _said("uhd_config_info", "--images-dir")
    if said is None:
        return None
    folder = next((line for line in said.splitlines() if line.startswith("Images directory:")), "").partition(":")[2]
    place = Path(folder.strip())
    return str(place) if folder.strip() and place.is_dir() and any(place.iterdir()) else None


def _said(tool: str, option: str) -> str | None:
    """What a tool prints; None where it is not here, or fails."""
    found = shutil.which(tool)
    if found is None:
        return None
    try:
        done = subprocess.run([found, option], capture_output=True, text=True, check=False, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None
