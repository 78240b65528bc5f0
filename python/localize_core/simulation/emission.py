"""One emitter as all receivers of a scene hear it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from localize_core.errors import ConfigError
from localize_core.phasor import phasor
from localize_core.simulation import interpolation
from localize_core.simulation.blocks import Floats, Samples
from localize_core.simulation.config import SceneConfig
from localize_core.simulation.impairments import ReceiverErrors
from localize_core.simulation.interpolation import ROW
from localize_core.simulation.propagation import Propagation
from localize_core.simulation.waveforms import MAX_BANDWIDTH, Waveform, waveform


def sent(
    config: SceneConfig, sample_rate_hz: float, *, offset_hz: float = 0.0, pauses_s: Sequence[tuple[float, float]] = ()
) -> Waveform:
    """What an emitter sends: its waveform around `offset_hz`, silent in the pauses.

    Raises ConfigError where it does not fit into the sampled band.
    """
    if 2.0 * abs(offset_hz) + config.bandwidth_hz > MAX_BANDWIDTH * sample_rate_hz and offset_hz:
        raise ConfigError(
            f"frequency_offset_hz={offset_hz:g} with bandwidth_hz={config.bandwidth_hz:g}: must lie within "
            f"±{MAX_BANDWIDTH / 2:g} times sample_rate_hz={sample_rate_hz:g}"
        )
    shape = {"bandwidth_hz": config.bandwidth_hz, "sample_rate_hz": sample_rate_hz}
    plain = waveform(config.waveform, **shape, seed=config.seed)
    if not offset_hz and not pauses_s:
        return plain

    def shifted(first: int, count: int) -> Samples:
        samples = plain(first, count) * phasor(np.arange(first, first + count) * (offset_hz / sample_rate_hz))
        for start_s, end_s in pauses_s:
            start, end = (min(max(round(s * sample_rate_hz) - first, 0), count) for s in (start_s, end_s))
            samples[start:end] = 0.0
        return samples

    return shifted


class Emission:
    """What receivers hear of an emitter, in blocks of `size` samples, without noise.

    `drifting`: whether delays change within a block by more than may be ignored.
    """

    def __init__(
        self,
        emitted: Waveform,
        propagation: Propagation,
        errors: ReceiverErrors,
        *,
        sample_rate_hz: float,
        size: int,
        drifting: bool,
    ) -> None:
        self._emitted, self._propagation, self._errors = emitted, propagation, errors
        self._rate_hz, self._size, self._drifting = sample_rate_hz, size, drifting
        self._steady = propagation.path_rate + errors.clock_rate == 0.0
        self._turning = errors.turning or propagation.path_rate > 0.0
        self._steady_filters = functools.lru_cache(maxsize=2)(functools.partial(self._filters, 0))

    def hear(self, first: int, received: Samples) -> None:
        """Write samples [first, first + size) without noise to `received`, complex64 (R, size)."""
        dwell = self._propagation.dwell
        last = first + self._size - 1
        visits = [0] if dwell is None else range(first // dwell, last // dwell + 1)
        if dwell is None or len(visits) == 1:
            self._through(first, visits[0], received)
            return
        for visit in visits:
            heard = np.empty_like(received)
            self._through(first, visit, heard)
            there = slice(max(visit * dwell - first, 0), (visit + 1) * dwell - first)
            received[:, there] = heard[:, there]

    def _through(self, first: int, visit: int, out: Samples) -> None:
        """Write samples [first, first + size) as they are heard in dwell `visit` to `out`, complex64 (R, size)."""
        behind, matrices, drift = self._steady_filters(visit) if self._steady else self._filters(first, visit)
        _, reach, columns = matrices.shape
        emitted = self._emitted_before(first, behind, self._size - ROW + reach)
        windows = np.empty((self._size // ROW, reach), np.complex64)
        if self._turning:
            start, exponent = self._common(first, visit)
            column = start * np.exp(exponent * (np.arange(columns) % ROW / self._size))
            matrices = matrices * column.astype(np.complex64)[:, None]
            row = np.exp(exponent * (np.arange(0, self._size, ROW) / self._size)).astype(np.complex64)
        if self._drifting:
            late = drift[:, None] * (np.arange(self._size) / self._size - 0.5)
            late = late.astype(np.float32).reshape(len(out), -1, ROW)
            both = np.empty((self._size // ROW, columns), np.complex64)
        for index, samples in enumerate(out.reshape(len(out), -1, ROW)):
            windows[:] = interpolation.rows(emitted[index], self._size, reach)
            if self._drifting:
                np.matmul(windows, matrices[index], out=both)
                np.multiply(both[:, ROW:], late[index], out=samples)
                samples += both[:, :ROW]
            else:
                np.matmul(windows, matrices[index], out=samples)
            if self._turning:
                samples *= row[index, :, None]

    def _emitted_before(self, first: int, behind: NDArray[np.int64], count: int) -> list[Samples]:
        """What was sent from `behind` (R,) samples before `first` on: complex64, (count,) or more, for each."""
        farthest, spread = int(behind.max()), int(behind.max() - behind.min())
        if spread > self._size:
            return [self._emitted(first - back, count) for back in behind.tolist()]
        emitted = self._emitted(first - farthest, count + spread)
        return [emitted[farthest - back :] for back in behind.tolist()]

    def _filters(self, first: int, visit: int) -> tuple[NDArray[np.int64], Samples, Floats]:
        """What makes the emitted signal the received one over a block: `behind` and matrices, see `interpolation`.

        And by how many samples each receiver's delays grow from its first sample to the next block's, (R,): in the
        middle they are those of the filters. What paths have in common is in the matrices unless it turns.
        """
        paths = self._propagation.paths(first, self._size, visit)
        late = (paths.delay_s - self._errors.clock_s(self._edges_s(first))[:, None]) * self._rate_hz
        gains = paths.gains if self._turning else paths.gains * self._common(first, visit)[0]
        behind, weights = interpolation.filters(late.mean(axis=2), gains, drifting=self._drifting)
        return behind, interpolation.row_matrices(weights), late[:, 0, 1] - late[:, 0, 0]

    def _common(self, first: int, visit: int) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        """Factor at the first sample, and exponent by which it becomes that of the next block, (R, 1) each."""
        paths = self._propagation.paths(first, self._size, visit)
        cycles = paths.cycles + self._errors.cycles(self._edges_s(first))
        amplitude = paths.amplitude * self._errors.gain[:, None]
        start = amplitude[:, :1] * np.exp(2j * np.pi * (cycles[:, :1] % 1.0))
        exponent = np.log(amplitude[:, 1:] / amplitude[:, :1]) + 2j * np.pi * (cycles[:, 1:] - cycles[:, :1])
        return start, exponent

    def _edges_s(self, first: int) -> Floats:
        return np.array([first, first + self._size]) / self._rate_hz
