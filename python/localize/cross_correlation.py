"""Cross-correlation of receivers on a common clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation
from localize_core.features.quality import zero_unusable

from .feature_block import feature_block


class cross_correlation(feature_block):
    """Complex streams, one per receiver, to vectors of `n_lags` coefficients, one output per pair of receivers.

    Outputs are ordered as `config.pairs`: (0, 1), (0, 2), ... (1, 2), ... Parameters as of CorrelationConfig.
    Raises ConfigError as CorrelationConfig does.
    """

    def __init__(
        self,
        sample_rate_hz: float,
        n_receivers: int = 2,
        n_fft: int = 4096,
        hop: int | None = None,
        n_lags: int = 128,
        lag_step: float = 1.0,
        weighting: str = "plain",
        signal: str = "iq",
    ) -> None:
        config = CorrelationConfig(
            sample_rate_hz=sample_rate_hz,
            n_receivers=n_receivers,
            n_fft=n_fft,
            hop=hop,
            n_lags=n_lags,
            lag_step=lag_step,
            weighting=weighting,
            signal=signal,
        )
        feature = CrossCorrelation(config)
        feature_block.__init__(self, "cross_correlation", feature, n_inputs=n_receivers, n_outputs=len(config.pairs))

    def _frames(self, feature: CrossCorrelation, samples: np.ndarray, outputs: list[np.ndarray]) -> None:
        feature.into(zero_unusable(samples), outputs)

    @property
    def config(self) -> CorrelationConfig:
        return self._feature.config

    def set_weighting(self, weighting: str) -> None:
        """Raises ConfigError unless it is "plain" or "phat"."""
        self._rebuild(replace(self.config, weighting=weighting))

    def set_signal(self, signal: str) -> None:
        """Raises ConfigError unless it is "iq", "envelope" or "phase"."""
        self._rebuild(replace(self.config, signal=signal))
