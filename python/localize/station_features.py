"""All feature channels of a model in one block."""

from __future__ import annotations

from typing import Any

import numpy as np
from localize_core.features.correlation import CrossCorrelation
from localize_core.features.mel import MelSpectrogram
from localize_core.features.quality import zero_unusable
from localize_core.model.contract import Contract

from . import tags
from .feature_block import feature_block


class station_features(feature_block):
    """A complex stream of each receiver of `contract` to one output per channel, in its order.

    What `mel_spectrogram` for each receiver and `cross_correlation` give, frame by frame and tag by tag, but levels and
    flags of a receiver on one output only. Each block in Python has a thread, whose every turn waits for the
    interpreter: one instead of five halves what a station spends on two cores.
    """

    def __init__(self, contract: Contract) -> None:
        mel, correlation = contract.mel_config, contract.correlation_config
        self._mel = None if mel is None else MelSpectrogram(mel)
        self._correlation = None if correlation is None else CrossCorrelation(correlation)
        self._n_mels = 0 if mel is None else len(contract.receivers)
        feature_block.__init__(
            self,
            "station_features",
            _Both(contract),
            n_inputs=len(contract.receivers),
            n_outputs=len(contract.channels),
        )

    def _frames(self, feature: Any, samples: np.ndarray, outputs: list[np.ndarray]) -> None:
        samples = zero_unusable(samples)
        if self._mel is not None:
            later = self._later(feature, self._mel.config.n_fft)
            self._mel.into_each(samples[:, later:], outputs[: self._n_mels])
        if self._correlation is not None:
            later = self._later(feature, self._correlation.config.n_fft)
            self._correlation.into(samples[:, later:], outputs[self._n_mels :])

    @staticmethod
    def _later(feature: Any, n_fft: int) -> int:
        """By how many samples frames of this feature begin after those of the longer one; they end with them."""
        return feature.config.n_fft - n_fft

    def _announce(self, feature: Any) -> None:
        for output in range(self._n_outputs):
            single = self._mel if output < self._n_mels else self._correlation
            assert single is not None
            value = tags.features_to_pmt(single.config)
            self.add_item_tag(output, self.nitems_written(output), tags.FEATURES, value)

    def _tell_quality(self, levels_dbfs: np.ndarray, flags: np.ndarray) -> None:
        if not self._n_mels:
            tags.write_quality(self, [0], levels_dbfs, flags)
        for receiver in range(self._n_mels):
            own = slice(receiver, receiver + 1)
            tags.write_quality(self, [receiver], levels_dbfs[:, own], flags[:, own])


class _Both:
    """What a feature block asks of its feature, of several at once."""

    def __init__(self, contract: Contract) -> None:
        self.config = self
        self.n_fft, self.hop, self.rows = contract.n_fft, contract.hop, contract.rows
        self.sample_rate_hz = contract.sample_rate_hz
