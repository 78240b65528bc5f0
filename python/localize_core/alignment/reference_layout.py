"""What a reference clock is laid out on: its blocks, the parts of them that are measured, and the extracted band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from localize_core.alignment.clock_filter import ClockFilter
from localize_core.alignment.reference_band import BandExtractor
from localize_core.alignment.reference_settings import ReferenceSettings
from localize_core.errors import ConfigError

SUB_BLOCKS = 20
SUB_BLOCK_BINS = 16
"""A sub-block holds so many independent frequencies of the reference at least."""
FEWEST_SUB_BLOCKS = 4


@dataclass(frozen=True)
class Layout:
    """Of streams at `sample_rate_hz` around `frequency_hz`.

    `block_n`, `block_s`: a block. `subs`, `sub_s`, `length`: how many sub-blocks it has, of what span, and samples of
    the extracted band in the FFT of each. `bins`, `bins_hz`: its lines within the reference's band, of which `wide` are
    a few more, counted from the reference's centre. `template_s`: what a search looks for. `reach_s`: by how much a
    followed stream may be off. `keep_s`: how long what was extracted is kept. `off_hz`: the reference in the extracted
    band; `margin_hz`: by how much oscillators displace it.
    """

    settings: ReferenceSettings
    sample_rate_hz: float
    frequency_hz: float
    block_n: int
    block_s: float
    subs: int
    sub_s: float
    length: int
    bins: NDArray[np.int64]
    bins_hz: NDArray[np.float64]
    wide: NDArray[np.int64]
    wide_hz: NDArray[np.float64]
    template_s: float
    reach_s: float
    keep_s: float
    margin_hz: float
    off_hz: float
    centre_hz: float
    decimation: int
    band_rate_hz: float

    def new_clock(self, offset_s: float, sigma_s: float) -> ClockFilter:
        """A clock of which nothing is known but its offset."""
        return ClockFilter(
            self.settings.carrier,
            offset_s=offset_s,
            offset_sigma_s=sigma_s,
            max_drift=2e-6 * self.settings.max_ppm,
            wander=1e-9 * self.settings.wander_ppb,
            carrier_gain=1.0 + self.centre_hz / self.frequency_hz,
        )


def lay_out(settings: ReferenceSettings, sample_rate_hz: float, frequency_hz: float, band: BandExtractor) -> Layout:
    """`band`: the reference's and its margin. Raises ConfigError where a block has too little of the reference."""
    offset_hz, margin_hz = settings.offset_hz(frequency_hz, sample_rate_hz), settings.margin_hz(frequency_hz)
    block_n = max(1, round(settings.block_s * sample_rate_hz))
    block_s = block_n / sample_rate_hz
    off_hz = offset_hz - band.centre_hz
    count = block_s * settings.bandwidth_hz / SUB_BLOCK_BINS
    subs = int(min(max(count, FEWEST_SUB_BLOCKS), SUB_BLOCKS))
    sub_s = block_s / subs
    # Drift smears what is correlated by less than half of its width. What is shorter than a sub-block tells the carrier
    # less well than sub-blocks have to know it.
    template_s = min(0.5 / (2e-6 * settings.max_ppm * settings.bandwidth_hz), max(settings.search_s, sub_s))
    length = max(int(sub_s * band.rate_hz * (1.0 - 4e-6 * settings.max_ppm)), 8)
    lines_hz = scipy.fft.fftfreq(length, 1.0 / band.rate_hz)
    bins = np.flatnonzero(np.abs(lines_hz - off_hz) <= settings.bandwidth_hz / 2.0)
    wide = np.flatnonzero(np.abs(lines_hz - off_hz) <= settings.bandwidth_hz * 0.6)
    if len(bins) < 4:
        raise ConfigError(too_little(settings))
    return Layout(
        settings,
        sample_rate_hz,
        frequency_hz,
        block_n=block_n,
        block_s=block_s,
        subs=subs,
        sub_s=sub_s,
        length=length,
        bins=bins,
        bins_hz=np.ascontiguousarray(lines_hz[bins]),
        wide=wide,
        wide_hz=lines_hz[wide] - off_hz,
        template_s=template_s,
        reach_s=4.0 / band.rate_hz + 2.4e-6 * settings.max_ppm * block_s,
        keep_s=2.0 * settings.search_s + 2.0 * template_s + 4.0 * block_s,
        margin_hz=margin_hz,
        off_hz=off_hz,
        centre_hz=band.centre_hz,
        decimation=band.decimation,
        band_rate_hz=band.rate_hz,
    )


def too_little(settings: ReferenceSettings) -> str:
    return (
        f"reference.bandwidth_hz={settings.bandwidth_hz:g}: too little of it in block_s={settings.block_s:g}; "
        "make block_s longer"
    )


class CommonTime:
    """The time of the blocks, once it has begun."""

    def __init__(self, layout: Layout) -> None:
        self._block_n, self._rate = layout.block_n, Fraction(layout.sample_rate_hz)
        self._origin: tuple[int, Fraction] | None = None

    @property
    def begun(self) -> bool:
        return self._origin is not None

    def begin(self, seconds: int, fraction: float) -> None:
        """Block 0 begins at this time."""
        self._origin = seconds, Fraction(fraction)

    def block_at(self, time: tuple[int, float], later_s: float) -> int:
        """The first block that begins no earlier than `later_s` after a time."""
        assert self._origin is not None
        seconds, fraction = self._origin
        after = time[0] - seconds + Fraction(time[1]) - fraction + Fraction(later_s)
        return math.ceil(after * self._rate / self._block_n)

    def at(self, block: int) -> tuple[int, float]:
        """When a block begins: whole seconds and the rest."""
        assert self._origin is not None
        seconds, fraction = self._origin
        exact = fraction + Fraction(block * self._block_n) / self._rate
        whole = math.floor(exact)
        return seconds + whole, float(exact - whole)
