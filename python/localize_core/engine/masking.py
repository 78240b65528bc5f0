"""What of a window a model gets to see: channels from samples that mean something, the others emptied."""

from __future__ import annotations

import math

import numpy as np

from localize_core.engine.windows import Window
from localize_core.features.quality import SampleFlag
from localize_core.model.contract import Contract


class ChannelMask:
    """Tells sound channels from others, and empties the others, for windows of one contract.

    `members`: indices of the receivers that each channel comes from.
    """

    def __init__(self, contract: Contract) -> None:
        names = [receiver.name for receiver in contract.receivers]
        self._contract = contract
        self._receivers = len(names)
        self.members = [[names.index(name) for name in channel.receivers] for channel in contract.channels]

    def sound(self, window: Window) -> np.ndarray:
        """Which channels are finite and come from samples that mean something, (channels,) bool.

        A correlation needs receivers on one time grid. Where no receiver has time, they stand as they were delivered.
        """
        finite = _finite(window.features)
        if not window.unusable.any() and not any(flag & SampleFlag.UNALIGNED for flag in window.flags):
            return finite
        unaligned = np.array([bool(flag & SampleFlag.UNALIGNED) for flag in window.flags])
        timeless = np.zeros_like(unaligned) if unaligned.all() else unaligned
        from_samples = [
            not window.unusable[members].any()
            and not (channel.feature == "cross_correlation" and timeless[members].any())
            for channel, members in zip(self._contract.channels, self.members, strict=True)
        ]
        return np.array(from_samples) & finite

    def usable(self, sound: np.ndarray) -> np.ndarray:
        """Which receivers have a sound channel, (receivers,) bool."""
        if sound.all():
            return np.ones(self._receivers, bool)
        usable = np.zeros(self._receivers, bool)
        for members, fine in zip(self.members, sound, strict=True):
            usable[members] |= fine
        return usable

    def apply(self, features: np.ndarray, sound: np.ndarray) -> np.ndarray:
        """`features` with the channels that are not sound emptied: no correlation, and power at its floor."""
        if sound.all():
            return features
        masked = features.copy()
        mel = self._contract.mel_config
        for index in np.flatnonzero(~sound):
            is_mel = self._contract.channels[index].feature == "log_mel"
            masked[index] = math.log(mel.log_offset) if is_mel and mel is not None else 0.0
        return masked


def _finite(features: np.ndarray) -> np.ndarray:
    """Which channels hold neither NaN nor infinity, (channels,) bool."""
    sums = np.isfinite(features.sum(axis=(1, 2)))  # a third of the time, and enough unless a sum overflows
    return sums if sums.all() else np.isfinite(features).all(axis=(1, 2))
