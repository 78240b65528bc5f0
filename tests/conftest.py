"""What tests of every room use."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
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


@pytest.fixture(scope="session")
def kiwi_wav() -> Callable[..., bytes]:
    """A maker of KiwiSDR IQ recordings: each block of `samples` after its `(age_s, second_of_week, ns)` stamp.

    `before_block`: chunks put before block number n. A block whose stamp is None has none.
    """

    def make(
        samples: np.ndarray,
        stamps: Sequence[tuple[int, int, int] | None],
        *,
        header_rate_hz: int = 12001,
        block: int = 512,
        before_block: Mapping[int, bytes] | None = None,
    ) -> bytes:
        scaled = np.stack([samples.real, samples.imag], axis=1) * 32768.0
        raw = np.clip(np.round(scaled), -32768, 32767).astype("<i2").tobytes()
        chunks = [struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, header_rate_hz, 4 * header_rate_hz, 4, 16)]
        for number, stamp in enumerate(stamps):
            chunks.append((before_block or {}).get(number, b""))
            if stamp is not None:
                chunks.append(struct.pack("<4sIBBII", b"kiwi", 10, stamp[0], 0, *stamp[1:]))
            part = raw[4 * block * number : 4 * block * (number + 1)]
            chunks.append(struct.pack("<4sI", b"data", len(part)) + part)
        body = b"WAVE" + b"".join(chunks)
        return struct.pack("<4sI", b"RIFF", len(body)) + body

    return make
