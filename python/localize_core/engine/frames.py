"""Samples to feature frames of all channels of a contract, without GNU Radio."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localize_core.features.correlation import CrossCorrelation
from localize_core.features.mel import MelSpectrogram
from localize_core.features.quality import sample_quality
from localize_core.model.contract import Contract


class FeatureFrames:
    """Feature frames of all channels out of chunks of samples; frame i ends with sample (i + 1) * hop - 1.

    Before the first sample there are zeros, as before a block's.
    """

    def __init__(self, contract: Contract) -> None:
        mel, correlation = contract.mel_config, contract.correlation_config
        self._mel = None if mel is None else MelSpectrogram(mel)
        self._correlation = None if correlation is None else CrossCorrelation(correlation)
        self._hop = contract.hop
        self._reach = max(contract.n_fft - contract.hop, 0)
        self._held = np.zeros((len(contract.receivers), self._reach), np.complex64)

    def restart(self) -> None:
        """As before the first sample."""
        self._held = np.zeros_like(self._held, shape=(len(self._held), self._reach))

    def push(self, samples: NDArray[np.complex64]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames (n, channels, rows) that the samples (R, m) complete, with levels and flags (n, R)."""
        hop = self._hop
        held = np.concatenate([self._held, samples], axis=1)
        count = (held.shape[1] - self._reach) // hop
        self._held = held[:, count * hop :]
        held = held[:, : self._reach + count * hop]
        receivers = len(held)
        level_db, flags = sample_quality(held[:, self._reach :].reshape(receivers, count, hop))
        channels: list[np.ndarray] = []
        if self._mel is not None:
            spanned = self._spanned(held, self._mel.config.n_fft)
            channels += [self._mel(spanned[receiver])[:count] for receiver in range(receivers)]
        if self._correlation is not None:
            channels += list(self._correlation(self._spanned(held, self._correlation.config.n_fft))[:, :count])
        return np.stack(channels, axis=1), level_db, flags

    def _spanned(self, held: NDArray[np.complex64], n_fft: int) -> NDArray[np.complex64]:
        """What frames of `n_fft` samples are made of: the first ends with the first new hop."""
        return np.ascontiguousarray(held[:, self._reach + self._hop - n_fft :])


def warmup_frames(contract: Contract) -> int:
    """Frames that reach before the first sample."""
    configs = (contract.mel_config, contract.correlation_config)
    return max(config.warmup_frames for config in configs if config is not None)
