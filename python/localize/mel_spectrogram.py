"""Log-mel spectrogram of a complex stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from localize_core.features.mel import MelConfig, MelSpectrogram

from .feature_block import feature_block


class mel_spectrogram(feature_block):
    """One complex stream to vectors of `n_mels` natural logarithms of power. Parameters as of MelConfig.

    Raises ConfigError as MelConfig does.
    """

    def __init__(
        self,
        sample_rate_hz: float,
        n_fft: int = 512,
        hop: int = 128,
        n_mels: int = 128,
        window: str = "hann",
        two_sided: bool = True,
        f_min_hz: float = 0.0,
        f_max_hz: float | None = None,
        mel_scale: str = "htk",
        corner_hz: float | None = None,
        norm: str | None = None,
        log_offset: float = 1e-10,
    ) -> None:
        config = MelConfig(
            sample_rate_hz=sample_rate_hz,
            n_fft=n_fft,
            hop=hop,
            n_mels=n_mels,
            window=window,
            two_sided=two_sided,
            f_min_hz=f_min_hz,
            f_max_hz=f_max_hz,
            mel_scale=mel_scale,
            corner_hz=corner_hz,
            norm=norm,
            log_offset=log_offset,
        )
        feature_block.__init__(self, "mel_spectrogram", MelSpectrogram(config), n_inputs=1, n_outputs=1)

    def _frames(self, feature: MelSpectrogram, samples: np.ndarray, outputs: list[np.ndarray]) -> None:
        feature.into(samples[0], outputs[0])

    @property
    def config(self) -> MelConfig:
        return self._feature.config

    def set_log_offset(self, log_offset: float) -> None:
        """Raises ConfigError unless it is above 0."""
        self._rebuild(replace(self.config, log_offset=log_offset))
