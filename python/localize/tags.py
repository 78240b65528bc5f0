"""Stream tags of this project and of UHD: reading, writing, and carrying them from samples to feature frames."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol, get_args

import numpy as np
import pmt
from localize_core.alignment.stream import Boundary
from localize_core.engine.windows import frames_across
from localize_core.types.fix import Alignment, TimeSource
from localize_core.types.time import shift_time

RX_TIME = pmt.intern("rx_time")
RX_RATE = pmt.intern("rx_rate")
RX_FREQ = pmt.intern("rx_freq")
FEATURES = pmt.intern("localize_features")
LEVELS = pmt.intern("localize_levels")
FLAGS = pmt.intern("localize_flags")
ALIGNMENT = pmt.intern("localize_alignment")
GAP = pmt.intern("localize_gap")
LENGTH = pmt.intern("localize_length")
TIME_ERROR = pmt.intern("localize_time_error")
TIME_SOURCE = pmt.intern("localize_time_source")
RESTART = pmt.intern("localize_restart")
BOUNDARY = pmt.intern("localize_boundary")

MOST_WAITING = 4096
"""Tags of a stream that a block keeps while the samples after them wait; the oldest go."""

END_OF_TIME_S = 253_402_214_400
"""31 December 9999: later times are no dates."""


class FeatureConfig(Protocol):
    """What a tag needs of MelConfig and CorrelationConfig."""

    @property
    def warmup_frames(self) -> int: ...

    def as_dict(self) -> dict[str, Any]: ...


def time_to_pmt(seconds: int, fraction: float) -> Any:
    """The value of an `rx_time` tag: whole seconds since 1970 and the rest in [0, 1)."""
    return pmt.make_tuple(pmt.from_uint64(seconds), pmt.from_double(fraction))


def time_from_pmt(value: Any) -> tuple[int, float] | None:
    """Whole seconds and fraction of an `rx_time` tag; None if it is no such value."""
    if not pmt.is_tuple(value) or pmt.length(value) != 2:
        return None
    seconds, fraction = pmt.tuple_ref(value, 0), pmt.tuple_ref(value, 1)
    if not (pmt.is_uint64(seconds) or pmt.is_integer(seconds)) or not pmt.is_real(fraction):
        return None
    whole, rest = int(pmt.to_python(seconds)), float(pmt.to_double(fraction))
    return (whole, rest) if 0 <= whole < END_OF_TIME_S and 0.0 <= rest < 1.0 else None


def frequency_from_pmt(value: Any) -> float | None:
    """Hertz of an `rx_freq` tag; None if it is no such value."""
    if not pmt.is_number(value) or pmt.is_complex(value):
        return None
    frequency_hz = float(pmt.to_double(value))
    return frequency_hz if math.isfinite(frequency_hz) and frequency_hz >= 0.0 else None


def _dictionary(value: Any) -> dict[str, Any]:
    """A PMT dict as a Python one; empty for anything else."""
    try:
        fields = pmt.to_python(value) if pmt.is_dict(value) else None
    except (ValueError, TypeError, RuntimeError):
        return {}
    return fields if isinstance(fields, dict) else {}


def features_to_pmt(config: FeatureConfig) -> Any:
    """The value of a `localize_features` tag."""
    return pmt.to_pmt({**config.as_dict(), "warmup_frames": config.warmup_frames})


def features_from_pmt(value: Any) -> tuple[dict[str, Any], int] | None:
    """Configuration as its `as_dict()`, and warm-up frames, of a `localize_features` tag; None if it is none."""
    configuration = _dictionary(value)
    warmup_frames = configuration.pop("warmup_frames", None)
    return (configuration, warmup_frames) if isinstance(warmup_frames, int) else None


def alignment_to_pmt(alignment: Alignment) -> Any:
    """The value of a `localize_alignment` tag; "time": "none" where the streams carried no time."""
    fields: dict[str, Any] = {
        "residual_ns": None if alignment.residual_ns is None else float(alignment.residual_ns),
        "gaps_filled": int(alignment.gaps_filled),
        "gaps_skipped": int(alignment.gaps_skipped),
    }
    if alignment.residual_ns is None:
        fields["time"] = "none"
    return pmt.to_pmt(fields)


def alignment_from_pmt(value: Any) -> Alignment | None:
    """What a `localize_alignment` tag says; None if it is no such value."""
    fields = _dictionary(value)
    residual_ns, filled, skipped = (fields.get(key) for key in ("residual_ns", "gaps_filled", "gaps_skipped"))
    if not isinstance(filled, int) or not isinstance(skipped, int) or not isinstance(residual_ns, float | None):
        return None
    return Alignment(residual_ns, filled, skipped)


def time_source_to_pmt(source: TimeSource) -> Any:
    """The value of a `localize_time_source` tag: whose clock the stream's `rx_time` tags are, "rx_time" or "host"."""
    return pmt.intern(source)


def time_source_from_pmt(value: Any) -> TimeSource | None:
    """Whose clock a `localize_time_source` tag names, None if it is no such value."""
    said = pmt.symbol_to_string(value) if pmt.is_symbol(value) else ""
    return "rx_time" if said == "rx_time" else "host" if said == "host" else None


def restart_to_pmt(lost: int | None = None) -> Any:
    """The value of a `localize_restart` tag: how many samples were lost just before, None where nobody knows."""
    return pmt.PMT_NIL if lost is None else pmt.from_uint64(lost)


def restart_from_pmt(value: Any) -> int | None:
    """Samples that were lost before a `localize_restart` tag, None where it does not say."""
    return int(pmt.to_uint64(value)) if pmt.is_uint64(value) else None


def boundary_to_pmt(reason: Boundary, frames: int = 0) -> Any:
    """The value of a `localize_boundary` tag. On frames it says also how many of them, from its own on, have seen
    samples of both sides.
    """
    symbol = pmt.intern(reason)
    return pmt.cons(symbol, pmt.from_uint64(frames)) if frames else symbol


def boundary_from_pmt(value: Any) -> tuple[Boundary, int] | None:
    """Reason and frames of a `localize_boundary` tag, 0 frames where it names none; None if it is no such value."""
    reason, frames = (pmt.car(value), pmt.cdr(value)) if pmt.is_pair(value) else (value, pmt.from_uint64(0))
    if not pmt.is_symbol(reason) or not pmt.is_uint64(frames):
        return None
    said = pmt.symbol_to_string(reason)
    return (said, int(pmt.to_uint64(frames))) if said in get_args(Boundary) else None


def write(block: Any, n_outputs: int, index: int, key: Any, value: Any) -> None:
    """Tag the item `index` places after those already written, on every output."""
    for output in range(n_outputs):
        block.add_item_tag(output, block.nitems_written(output) + index, key, value)


def forward_to_frames(block: Any, n_outputs: int, n_frames: int, hop: int, sample_rate_hz: float, n_fft: int) -> None:
    """Carry the tags of input 0's next `n_frames` * `hop` samples to the frames that they fall into, on every output.

    Times are moved back to the first new sample of the frame. Boundaries say how many frames of `n_fft` samples reach
    across them. This project's own tags on frames are not carried.
    """
    first = block.nitems_read(0)
    for tag in block.get_tags_in_range(0, first, first + n_frames * hop):
        frame, sample = divmod(tag.offset - first, hop)
        value = tag.value
        if pmt.eq(tag.key, RX_TIME):
            time = time_from_pmt(value)
            if time is None:
                continue
            value = time_to_pmt(*shift_time(*time, -sample / sample_rate_hz))
        elif pmt.eq(tag.key, BOUNDARY):
            boundary = boundary_from_pmt(value)
            if boundary is None:
                continue
            value = boundary_to_pmt(boundary[0], frames_across(sample, n_fft, hop))
        if not any(pmt.eq(tag.key, own) for own in (FEATURES, LEVELS, FLAGS)):
            write(block, n_outputs, frame, tag.key, value)


def incoming_flags(block: Any, n_receivers: int, n_frames: int, hop: int) -> np.ndarray:
    """What `localize_flags` tags on the inputs' next samples say of frames: int32, (n_frames, n_receivers).

    A frame that a boundary falls into has the flags from there on: what was before is over, and no window has it.
    """
    flags = np.zeros((n_frames, n_receivers), np.int32)
    for receiver in range(n_receivers):
        first = block.nitems_read(receiver)
        found = block.get_tags_in_range(receiver, first, first + n_frames * hop, FLAGS)
        if not found:
            continue
        edges: dict[int, int] = {}
        for tag in block.get_tags_in_range(receiver, first, first + n_frames * hop, BOUNDARY):
            frame = (tag.offset - first) // hop
            edges[frame] = max(edges.get(frame, 0), tag.offset)
        for tag in found:
            frame = (tag.offset - first) // hop
            if pmt.is_s32vector(tag.value) and tag.offset >= edges.get(frame, 0):
                for bits in pmt.s32vector_elements(tag.value):
                    flags[frame, receiver] |= bits
    return flags


def write_quality(block: Any, outputs: Iterable[int], levels_dbfs: np.ndarray, flags: np.ndarray) -> None:
    """`localize_levels` on the first of the next frames of the outputs, `localize_flags` on the first with one set.

    `levels_dbfs`, `flags`: (n_frames, n_receivers), as `sample_quality` returns them. A tag holds for as many frames as
    it has values for: one for each frame would cost more than the frames themselves.
    """
    said = [(0, LEVELS, pmt.init_f32vector(levels_dbfs.size, levels_dbfs.ravel().tolist()))]
    flagged = np.flatnonzero(flags.any(axis=1))
    if flagged.size:
        rows = flags[flagged[0] : flagged[-1] + 1]
        said.append((int(flagged[0]), FLAGS, pmt.init_s32vector(rows.size, rows.ravel().tolist())))
    for output in outputs:
        for index, key, value in said:
            block.add_item_tag(output, block.nitems_written(output) + index, key, value)


def levels_from_pmt(value: Any, n_receivers: int) -> np.ndarray | None:
    """Levels of consecutive frames, float32 (n_frames, n_receivers), of a `localize_levels` tag; None if it is none."""
    return _rows(pmt.f32vector_elements(value), n_receivers, np.float32) if pmt.is_f32vector(value) else None


def flags_from_pmt(value: Any, n_receivers: int) -> np.ndarray | None:
    """Flags of consecutive frames, int32 (n_frames, n_receivers), of a `localize_flags` tag; None if it is none."""
    return _rows(pmt.s32vector_elements(value), n_receivers, np.int32) if pmt.is_s32vector(value) else None


def _rows(elements: Any, columns: int, dtype: type) -> np.ndarray | None:
    values = np.array(elements, dtype)
    return values.reshape(-1, columns) if values.size and values.size % columns == 0 else None
