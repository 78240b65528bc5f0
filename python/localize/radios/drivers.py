"""Drivers of radios: whether they are installed, and what they print."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType

from localize_core.errors import MissingDriver
from localize_core.station.sources import Device

INSTALL = {
    "gnuradio.soapy": "apt-get install gnuradio, or conda install -c conda-forge gnuradio-soapy",
    "gnuradio.uhd": "apt-get install gnuradio, or conda install -c conda-forge gnuradio-uhd",
    "gnuradio.zeromq": "apt-get install gnuradio, or conda install -c conda-forge gnuradio-zeromq",
    "osmosdr": "apt-get install gr-osmosdr, or conda install -c conda-forge gnuradio-osmosdr",
}
_printing = Lock()


def import_driver(module: str, device: Device) -> ModuleType:
    """GNU Radio's module for a kind of device. Raises MissingDriver with the command that installs it."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingDriver(f"{device.name}: needs {module} ({error}): {INSTALL[module]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile what drivers print to standard output goes to standard error: they do so past Python, in C.

    Whatever else is written to standard output meanwhile goes there as well.
    """
    with _printing:
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
