"""What the feature blocks share: framing of the stream, and the tags that go with the frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from gnuradio import gr
from localize_core.features.quality import sample_quality

from . import tags
from .guard import guarded

BUFFERED_SAMPLES = 1 << 17
"""Samples of each input, and frames made of them, that a block in a hurry takes at a time: what comes on top of the
frames themselves, in Python, is small beside them then. GNU Radio's own buffers would hold a sixteenth of it."""

BUFFERED_BYTES = 4 << 20
"""At most, for frames that lie close together."""


class feature_block(gr.decim_block):
    """Complex streams to feature frames, one per `hop` samples, on every output.

    Frame i covers the `n_fft` samples that end with sample (i + 1) * hop - 1; before the first sample there are
    zeros. Output and tags are the same however the stream is chopped.
    """

    def __init__(self, name: str, feature: Any, n_inputs: int, n_outputs: int) -> None:
        config = feature.config
        signature = [(np.float32, config.rows)] * n_outputs
        gr.decim_block.__init__(self, name, [np.complex64] * n_inputs, signature, config.hop)
        self.failure: Exception | None = None
        self._feature = feature
        self._announced: Any = None
        self._n_inputs, self._n_outputs = n_inputs, n_outputs
        self._many = min(-(-BUFFERED_SAMPLES // config.hop), max(BUFFERED_BYTES // (4 * config.rows), 1))
        self._group, self._first = 1, 0
        sample_quality(np.zeros((1, 1, config.hop), np.complex64))  # compiled now, and not when the first samples wait
        self.set_history(max(config.n_fft - config.hop, 0) + 1)
        self.set_output_multiple(self._many)
        self.set_tag_propagation_policy(gr.TPP_DONT)

    def group_frames(self, group: int, first: int = 0) -> None:
        """Before the flowgraph starts: make frames in groups, after `first` ones (fewer than a group).

        What a group does not fill at the end of a stream is lost.
        """
        self._group, self._first = group, first
        self._many = -(-self._many // group) * group
        self.set_output_multiple(self._many)

    def start(self) -> bool:
        # The multiple was for the buffers, which are there by now; frames go out as they come.
        self.set_output_multiple(self._group)
        self._announced = None
        return True

    def stop(self) -> bool:
        self.set_output_multiple(self._many)  # a flowgraph that starts again makes new buffers
        return True

    def _frames(self, feature: Any, samples: np.ndarray, outputs: list[np.ndarray]) -> None:
        """Frames of `samples`, (inputs, m), into each output, (n_frames, rows)."""
        raise NotImplementedError

    def _rebuild(self, config: Any) -> None:
        """The next frames are made by `config`, and a new `localize_features` tag says so."""
        self._feature = type(self._feature)(config)

    @guarded
    def work(self, input_items: Any, output_items: Any) -> int:
        feature, n_frames = self._feature, len(output_items[0])
        if self._first and self.nitems_written(0) == 0:
            n_frames = self._first
            output_items = [output[:n_frames] for output in output_items]
        n_fft, hop = feature.config.n_fft, feature.config.hop
        # One stream is taken where it lies.
        samples = input_items[0][None] if self._n_inputs == 1 else np.stack(input_items)
        oldest, newest = max(hop - n_fft, 0), max(n_fft - hop, 0)
        self._frames(feature, samples[:, oldest : oldest + (n_frames - 1) * hop + n_fft], output_items)
        new = samples[:, newest : newest + n_frames * hop].reshape(self._n_inputs, n_frames, hop)
        levels_dbfs, flags = sample_quality(new)
        flags |= tags.incoming_flags(self, self._n_inputs, n_frames, hop)
        if feature is not self._announced:
            self._announce(feature)
            self._announced = feature
        tags.forward_to_frames(self, self._n_outputs, n_frames, hop, feature.config.sample_rate_hz, n_fft)
        self._tell_quality(levels_dbfs, flags)
        return n_frames

    def _announce(self, feature: Any) -> None:
        """Say on each output how its frames are made from the next one on."""
        tags.write(self, self._n_outputs, 0, tags.FEATURES, tags.features_to_pmt(feature.config))

    def _tell_quality(self, levels_dbfs: np.ndarray, flags: np.ndarray) -> None:
        """Say what the next frames' samples were like, (n_frames, n_inputs) each."""
        tags.write_quality(self, range(self._n_outputs), levels_dbfs, flags)
