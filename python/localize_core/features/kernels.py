"""Which loops the features run: compiled ones where their packages are installed."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType

from localize_core.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "LOCALIZE_KERNELS"
CHOICES = ("auto", "numpy", "compiled")


@functools.cache
def fast_kernels() -> ModuleType | None:
    """`features.compiled`, or None for NumPy and SciPy alone.

    The environment variable LOCALIZE_KERNELS decides: `auto` (default) takes what is installed, `numpy` never the
    compiled loops, `compiled` insists on them. It is read once. Raises ConfigError for another value, or where it
    insists in vain.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ConfigError(f"{VARIABLE}={choice!r}: must be one of {', '.join(CHOICES)}")
    if choice == "numpy":
        return None
    try:
        return importlib.import_module("localize_core.features.compiled")
    except ImportError as error:
        if choice == "compiled":
            raise ConfigError(
                f"{VARIABLE}=compiled: {error}; pip install 'gr-localize[fast]' brings what is missing"
            ) from error
        log.info(
            "features run on NumPy alone: %s; pip install 'gr-localize[fast]' makes them several times faster", error
        )
        return None
