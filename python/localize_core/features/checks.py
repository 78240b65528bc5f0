"""Parameter checks that the feature configurations share. Each returns the value as a plain Python scalar."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from numbers import Integral, Real
from typing import Any

from localize_core.errors import ConfigError


def whole(name: str, value: Any, least: int) -> int:
    """Raises ConfigError unless `value` is an integer (Python or NumPy, not bool) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name}={value!r}: must be a whole number of at least {least}")
    return int(value)


def number(name: str, value: Any) -> float:
    """Raises ConfigError unless `value` is a finite real number (not bool)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: must be a finite number")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Raises ConfigError unless `value` is a finite real number above 0."""
    if number(name, value) <= 0.0:
        raise ConfigError(f"{name}={value!r}: must be above 0")
    return float(value)


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def known_fields(config_class: Any, feature: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments in `mapping`, which may carry the key "feature".

    Raises ConfigError if "feature" says something else than `feature`, a key is unknown or a required one is missing.
    """
    values = dict(mapping)
    stated = values.pop("feature", feature)
    if stated != feature:
        raise ConfigError(f"feature={stated!r}: must be {feature!r} here")
    allowed = [each.name for each in fields(config_class)]
    if unknown := sorted(set(values) - set(allowed)):
        raise ConfigError(f"unknown key {unknown[0]!r} in a {feature} configuration; allowed are {', '.join(allowed)}")
    required = [each.name for each in fields(config_class) if each.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"a {feature} configuration needs {missing[0]}")
    return values
