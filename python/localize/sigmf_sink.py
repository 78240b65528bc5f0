"""Record streams as SigMF, each with its own tags and place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gnuradio import gr
from localize_core.errors import ConfigError, LocalizeError
from localize_core.recorder.sigmf_writer import MIN_FREE_BYTES, PART_BYTES, About, Limits
from localize_core.recorder.station_recorder import StationRecorder
from localize_core.recorder.stream_recorder import StreamRecorder

from .guard import WORK_DONE, guarded
from .marks import next_marks


class sigmf_sink(gr.hier_block2):
    """One complex stream per receiver to a SigMF recording each, whose captures hold the stream's tags exactly.

    `receivers`: (name, latitude, longitude) or (name, latitude, longitude, altitude_m). `frequency_hz`: of streams
    without `rx_freq` tags. `datatype`, `flush_s`: as of SigmfWriter. `max_part_bytes` to `min_free_bytes`: as of Limits
    and for each receiver, 0 for none. `collection`: its name. `live`: whether a disk that is too slow makes a gap
    (radios), or the stream waits.

    Raises ConfigError for values that cannot be, MissingExtraError without the package that SigMF needs.
    """

    # Streams end and pause each for itself: a block with all of them as inputs would end with the first.
    def __init__(
        self,
        folder: str | os.PathLike[str],
        receivers: Sequence[tuple[Any, ...]],
        sample_rate_hz: float,
        frequency_hz: float | None = None,
        datatype: str = "cf32_le",
        flush_s: float = 1.0,
        max_part_bytes: int = PART_BYTES,
        max_part_s: float = 0.0,
        max_bytes: int = 0,
        max_parts: int = 0,
        min_free_bytes: int = MIN_FREE_BYTES,
        live: bool = True,
        collection: str = "station",
        hardware: str = "",
        description: str = "",
        author: str = "",
    ) -> None:
        if not receivers:
            raise ConfigError("receivers: none, so there is nothing to record")
        if frequency_hz is not None and not 0.0 <= frequency_hz < float("inf"):
            raise ConfigError(f"frequency_hz={frequency_hz}: must be finite, or None for unknown")
        if not collection:
            raise ConfigError("collection is empty: it needs a name")
        about = About("", sample_rate_hz, frequency_hz, hardware=hardware, description=description, author=author)
        limits = Limits(
            max_part_bytes=max_part_bytes,
            max_part_s=None if max_part_s == 0.0 else max_part_s,
            max_bytes=None if max_bytes == 0 else max_bytes,
            max_parts=None if max_parts == 0 else max_parts,
            min_free_bytes=min_free_bytes,
        )
        self.recorder = StationRecorder(
            folder,
            [replace(about, **_place(receiver)) for receiver in receivers],
            name=collection,
            datatype=datatype,
            flush_s=flush_s,
            limits=limits,
            live=live,
        )
        count = len(receivers)
        gr.hier_block2.__init__(
            self, "sigmf_sink", gr.io_signature(count, count, gr.sizeof_gr_complex), gr.io_signature(0, 0, 0)
        )
        self.blocks = [_stream_sink(self.recorder, index) for index in range(count)]
        for index, block in enumerate(self.blocks):
            self.connect((self, index), block)

    @property
    def taken(self) -> list[int]:
        """Samples of each stream that have come so far."""
        return [block.nitems_read(0) for block in self.blocks]

    @property
    def failure(self) -> Exception | None:
        """What ended a recording, if something did."""
        return next((block.failure for block in self.blocks if block.failure is not None), self.recorder.failure)


class _stream_sink(gr.sync_block):
    """One of the streams."""

    def __init__(self, recorder: StationRecorder, index: int) -> None:
        gr.sync_block.__init__(self, "sigmf_sink", [np.complex64], None)
        self.failure: Exception | None = None
        self._recorder, self._index = recorder, index
        self._stream: StreamRecorder | None = None

    def start(self) -> bool:
        try:
            self._stream = self._recorder.open_stream(self._index)
        except LocalizeError as error:
            self.failure = error
            self.logger.error(f"{self.name()} failed: {error}")
            return False
        return True

    def stop(self) -> bool:
        if self._stream is not None:
            self._stream.stop()
        return True

    @guarded
    def work(self, input_items: list[np.ndarray], output_items: list[np.ndarray]) -> int:
        if self._stream is None:  # could not be opened: GNU Radio goes on all the same
            return WORK_DONE
        samples = input_items[0]
        self._stream.push(samples, next_marks(self, 0, len(samples)))
        return len(samples)


def _place(receiver: tuple[Any, ...]) -> dict[str, Any]:
    try:
        name, latitude, longitude, *altitude_m = receiver
        (height_m,) = altitude_m or (0.0,)
        place = {"latitude": float(latitude), "longitude": float(longitude), "altitude_m": float(height_m)}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"receiver {receiver!r}: must be (name, latitude, longitude[, altitude_m])") from error
    if not (abs(place["latitude"]) <= 90.0 and abs(place["longitude"]) <= 180.0 and abs(place["altitude_m"]) < 1e6):
        raise ConfigError(f"receiver {receiver!r}: latitude and longitude are WGS84 degrees, altitude_m is metres")
    return {"receiver": str(name), **place}
