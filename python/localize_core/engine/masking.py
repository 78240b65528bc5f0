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
        self.members = [[names.index(name) for name in channel.receivers] for channel in contract.channels]
        self._all_sound = np.ones(len(contract.channels), bool)
        self._all_usable = np.ones(len(names), bool)
        for shared in (self._all_sound, self._all_usable):
            shared.setflags(write=False)

    def sound(self, window: Window) -> np.ndarray:
        """Which channels are finite and come from samples that mean something, (channels,) bool.

        A correlation needs receivers on one time grid. Where no receiver has time, they stand as they were delivered.
        """
        faulty = any(flag & SampleFlag.UNALIGNED for flag in window.flags) or window.unusable.any()
        if not faulty and window.is_finite:
            return self._all_sound
        unaligned = np.array([bool(flag & SampleFlag.UNALIGNED) for flag in window.flags])
        timeless = np.zeros_like(unaligned) if unaligned.all() else unaligned
        from_samples = [
            not window.unusable[members].any()
            and not (channel.feature == "cross_correlation" and timeless[members].any())
            for channel, members in zip(self._contract.channels, self.members, strict=True)
        ]
        return np.array(from_samples) & np.isfinite(window.features).all(axis=(1, 2))

    def usable(self, sound: np.ndarray) -> np.ndarray:
        """Which receivers have a sound channel, (receivers,) bool."""
        if sound is self._all_sound:
            return self._all_usable
        usable = np.zeros(len(self._all_usable), bool)
        for members, fine in zip(self.members, sound, strict=True):
            usable[members] |= fine
        return usable

    def apply(self, features: np.ndarray, sound: np.ndarray) -> np.ndarray:
        """`features` with the channels that are not sound emptied: no correlation, and power at its floor."""
        if sound is self._all_sound or sound.all():
            return features
        masked = features.copy()
        mel = self._contract.mel_config
        for index in np.flatnonzero(~sound):
            is_mel = self._contract.channels[index].feature == "log_mel"
            masked[index] = math.log(mel.log_offset) if is_mel and mel is not None else 0.0
        return masked
