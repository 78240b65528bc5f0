"""What tests of every room use."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from localize_core.types.fix import Fix, ModelIdentity, Position, ReceiverReport, Uncertainty

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The recordings and channel data sets, which are not part of the repository."""
    folder = Path(os.environ.get("GR_LOCALIZE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set GR_LOCALIZE_DATA to where it is")
    return folder


@pytest.fixture(scope="session")
def make_fix() -> Callable[..., Fix]:
    """A maker of fixes: a complete one, with the fields that the test names changed. A `reason` makes it a no_fix."""

    def make(**changes: Any) -> Fix:
        fields: dict[str, Any] = {
            "station": "demo",
            "stream": "a1b2",
            "sequence": 412,
            "timestamp": datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc),
            "time_source": "rx_time",
            "status": "ok",
            "reason": None,
            "position": Position(45.123, 7.456),
            "uncertainty": Uncertainty(45.0, 38.0, 25.0),
            "confidence": 0.92,
            "frequency_hz": 433920000.0,
            "receivers": (ReceiverReport("north", -71.2, True),),
            "model": ModelIdentity("localization_model", "3", "0" * 64),
            "window_samples": 16384,
            "window_duration_s": 0.008,
            "inference_time_ms": 1.9,
            "latency_ms": 4.2,
        }
        if "reason" in changes:
            fields |= {"status": "no_fix", "position": None, "uncertainty": None}
        return Fix(**(fields | changes))

    return make
