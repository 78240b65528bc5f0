"""Transforms planned by FFTW and loops compiled by Numba. They leave the interpreter alone while they run.

Needs the packages of the extra `fast`; see `kernels.fast_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import pyfftw
from numpy.typing import NDArray

WIDE_BAND = 24
"""Bins of a mean band from which it is summed up on its own."""

PLANNED_VALUES = 1 << 13
"""Values that one call of FFTW transforms: enough that the call itself costs little, few enough to waste little."""

F = TypeVar("F", bound=Callable[..., Any])


def _jit(function: F) -> F:
    """Compiled at its first call, and kept on disk for the next process.

    Products and sums may become one rounding (contract); nothing else of floating point is given up.
    """
    return _compiled(function, {"contract"})


def _sum_jit(function: F) -> F:
    """The same where sums may be added in another order, always the same one."""
    return _compiled(function, {"contract", "reassoc"})


def _compiled(function: F, fastmath: set[str]) -> F:
    try:
        return numba.njit(function, cache=True, nogil=True, fastmath=fastmath)
    except RuntimeError:  # no place to keep it: a read-only installation, and no home
        return numba.njit(function, nogil=True, fastmath=fastmath)


class PlannedFft:
    """Transforms along the last axis of an array of fixed shape, `input` to `output`.

    `shape`: of the input. `frames`: which of its axes counts frames, of which a call transforms as many as there are.
    `real`: of real samples, float32, to bins 0 .. n / 2; else complex64 to complex64.

    FFTW estimates its plan instead of measuring: a measured one differs from process to process, and so would the last
    digits of all that is made of it.
    """

    def __init__(self, shape: tuple[int, ...], *, frames: int = 0, real: bool = False, inverse: bool = False) -> None:
        half = (*shape[:-1], shape[-1] // 2 + 1)
        self.input: NDArray[Any] = pyfftw.zeros_aligned(shape, np.float32 if real else np.complex64)
        self.output: NDArray[np.complex64] = pyfftw.empty_aligned(half if real else shape, np.complex64)
        self._group = max(1, PLANNED_VALUES // shape[-1])
        self._plans = [
            pyfftw.FFTW(
                _along(self.input, frames, start, self._group),
                _along(self.output, frames, start, self._group),
                direction="FFTW_BACKWARD" if inverse else "FFTW_FORWARD",
                flags=("FFTW_ESTIMATE",),
            )
            for start in range(0, shape[frames], self._group)
        ]

    def __call__(self, count: int) -> None:
        """Transform the first `count` frames of `input`, unnormalised. `input` stays as it is."""
        for plan in self._plans[: -(-count // self._group)]:
            plan.execute()


def _along(array: NDArray[Any], axis: int, start: int, count: int) -> NDArray[Any]:
    return array[(slice(None),) * axis + (slice(start, start + count),)]


@_jit
def centre(
    samples: Any, start: int, hop: int, count: int, margin: int, n_core: int, flat: float, values: Any, empty: Any
) -> None:
    """Frames less their core's mean, and the energy below which there is only rounding error.

    `samples`: complex values as float32, (receivers, 2 m). `values`: the same, (receivers, frames, 2 n_fft), frame i
    from sample start + i * hop, of which the first `count` are made. `empty`: (receivers, count, 1).
    """
    # Whole arrays and a count, here and below: for a part of one, Numba would make other loops, which round otherwise.
    size = values.shape[2]
    for receiver in range(values.shape[0]):
        for frame in range(count):
            first = 2 * (start + frame * hop)
            row, target = samples[receiver, first : first + size], values[receiver, frame]
            re, im = 0.0, 0.0
            for begin in range(2 * margin, 2 * (margin + n_core), 2048):  # single precision adds few numbers well
                part_re, part_im = _sums(row[begin : min(begin + 2048, 2 * (margin + n_core))])
                re += part_re
                im += part_im
            mean_re, mean_im = np.float32(re / n_core), np.float32(im / n_core)
            for k in range(size // 2):
                target[2 * k] = row[2 * k] - mean_re
                target[2 * k + 1] = row[2 * k + 1] - mean_im
            empty[receiver, frame, 0] = flat * n_core * (float(mean_re) ** 2 + float(mean_im) ** 2)


@_sum_jit
def _sums(values: Any) -> Any:
    re, im = np.float32(0.0), np.float32(0.0)
    for k in range(values.size // 2):
        re += values[2 * k]
        im += values[2 * k + 1]
    return re, im


@_jit
def norms(
    values: Any,
    parts: Any,
    margin: int,
    n_core: int,
    straight: float,
    empty: Any,
    empty_part: float,
    silence: float,
    place: Any,
    next_place: Any,
    fraction: Any,
    core_norm: Any,
    lag_norm: Any,
) -> None:
    """Norms as `correlation.CrossCorrelation._norms` has them, into `core_norm` and `lag_norm`.

    `values`: complex64 or float32, (receivers, frames or more, n_fft), and the same as float32 in `parts`. `straight`:
    sum of the squared times of a core, 0 where lines are left in. `empty`, `empty_part`, `silence`: energies, absolute
    or of the most at any place, up to which there is nothing. `place`, `next_place`, `fraction`: where the lags'
    samples begin.
    """
    n_places, size = 2 * margin + 1, values.shape[2]
    width = parts.shape[2] // size
    energies = np.empty(n_places)
    squares, totals, moments = np.empty(n_places), np.empty(n_places, np.complex128), np.empty(n_places, np.complex128)
    for receiver in range(values.shape[0]):
        for frame in range(core_norm.shape[1]):
            own = _sum_of_squares(parts[receiver, frame, width * margin : width * (margin + n_core)])
            least = max(empty[receiver, frame, 0], silence)
            core_norm[receiver, frame, 0] = 1.0 / np.sqrt(own) if own > least else 0.0
            if receiver == 0:
                continue
            row, target = values[receiver, frame], lag_norm[receiver - 1, frame]
            square: Any = 0.0
            total: Any = 0.0j
            moment: Any = 0.0j
            middle = (size - 1) / 2
            for index in range(n_places):
                squares[index], totals[index], moments[index] = square, total, moment
                if index < n_places - 1:
                    lost, gained = np.complex128(row[index]), np.complex128(row[index + n_core])
                    square += gained.real**2 + gained.imag**2 - lost.real**2 - lost.imag**2
                    total += gained - lost
                    if straight > 0.0:
                        moment += gained * (index + n_core - middle) - lost * (index - middle)
            most = 0.0
            for index in range(n_places):
                here = totals[index] - totals[margin]
                energy = own + squares[index] - squares[margin] - (here.real**2 + here.imag**2) / n_core
                if straight > 0.0:
                    energy -= (moments[index] - moments[margin] - here * (index - margin)).real ** 2 / straight
                energies[index] = energy
                most = max(most, energy)
            least = max(least, empty_part * most)
            for lag in range(target.size):
                energy = energies[place[lag]]
                energy += fraction[lag] * (energies[next_place[lag]] - energy)
                target[lag] = 1.0 / np.sqrt(energy) if energy > least else 0.0


@_jit
def place_frames(
    values: Any,
    count: int,
    width: int,
    margin: int,
    n_core: int,
    tapered: bool,
    core_taper: Any,
    taper: Any,
    cores: Any,
    wholes: Any,
) -> None:
    """Cores of all receivers but the last, and frames of all but the first, to where they are transformed.

    All as float32, `width` of them for each sample: `values`, `cores`, `wholes`, (receivers, frames, samples); of the
    latter, what is not written stays. `tapered`: faded in and out by the tapers, one value a sample.
    """
    last = values.shape[0] - 1
    for receiver in range(values.shape[0]):
        for frame in range(count):
            row = values[receiver, frame]
            if receiver < last:
                inside = row[width * margin : width * (margin + n_core)]
                _copy(inside, cores[receiver, frame, width * margin :], width, tapered, core_taper)
            if receiver > 0:
                _copy(row, wholes[receiver - 1, frame], width, tapered, taper)


@_jit
def _copy(row: Any, target: Any, width: int, tapered: bool, taper: Any) -> None:
    if not tapered:
        for k in range(row.size):
            target[k] = row[k]
    else:
        for k in range(row.size):
            target[k] = row[k] * taper[k // width]


@_jit
def _sum_of_squares(values: Any) -> float:
    total = 0.0
    for start in range(0, values.size, 1024):  # single precision adds few numbers well
        few = values[start : start + 1024]
        total += _dot(few, few)
    return total


def largest(parts: NDArray[np.float32]) -> np.float32:
    """Largest magnitude of all, NaN if there is one."""
    bits: NDArray[np.int32] = np.array([_largest(parts.view(np.int32))], np.int32)
    return bits.view(np.float32)[0]


@_jit
def _largest(bits: Any) -> Any:
    """Bits of the largest float32, given all of them: of numbers without sign they are in the same order, NaN above."""
    found = np.int32(0)
    for k in range(bits.size):
        value = np.int32(bits[k] & np.int32(0x7FFFFFFF))  # else Numba makes it 64 bits wide
        found = value if value > found else found
    return found


@_jit
def frame_quality(
    parts: Any,
    bits: Any,
    limit: int,
    full_scale: int,
    saturated_samples: float,
    invalid: int,
    silent: int,
    saturated: int,
    power: Any,
    flags: Any,
) -> None:
    """Summed power and flags of every frame, as `quality.sample_quality` has them.

    `parts`, `bits`: real and imaginary parts, float32 (frames, 2 hop), and the same as int32. `limit`, `full_scale`:
    as the bits of a float32. The flag `saturated` takes that many samples.
    """
    for frame in range(parts.shape[0]):
        largest, flag = _largest(bits[frame]), 0
        if largest == 0:
            flag |= silent
        if largest < full_scale:
            power[frame] = _sum_of_squares(parts[frame])
        else:
            total, clipped = 0.0, 0
            for k in range(0, parts.shape[1], 2):
                higher = max(bits[frame, k] & 0x7FFFFFFF, bits[frame, k + 1] & 0x7FFFFFFF)
                if higher > limit:
                    flag |= invalid
                    continue
                clipped += higher >= full_scale
                re, im = parts[frame, k], parts[frame, k + 1]
                total += re * re + im * im
            if clipped >= saturated_samples:
                flag |= saturated
            power[frame] = total
        flags[frame] = flag


@_jit
def weigh(samples: Any, step: int, window: Any, out: Any) -> None:
    """Frames times their window: row i of `out` from samples[i * step:], all flat float32."""
    size = window.size
    for row in range(out.shape[0]):
        # Slices, not computed indices: those could be negative as far as the compiler knows, and stay scalar.
        values, weighted = samples[row * step : row * step + size], out[row]
        for k in range(size):
            weighted[k] = values[k] * window[k]


@_jit
def _square(spectrum: Any, out: Any) -> None:
    """|x|^2 of complex values as flat float32."""
    for k in range(out.size):
        out[k] = spectrum[2 * k] * spectrum[2 * k] + spectrum[2 * k + 1] * spectrum[2 * k + 1]


@_jit
def band_power(
    spectra: Any, count: int, bins: int, roll: int, first: Any, stop: Any, weights: Any, offset: Any, out: Any
) -> None:
    """Power of `count` spectra in each band, plus `offset`.

    `spectra`: complex values as float32, (frames, 2 n_fft), of which the first `bins` count. Band m holds the bins
    first[m] to stop[m] - 1 of the powers rolled by `roll`; `weights` holds those of all bands, one after the other.
    `out`: float32, (count, bands). Sums are added in the same order, whatever `count` is.
    """
    if weights.size >= WIDE_BAND * first.size:
        _wide_band_power(spectra, count, bins, roll, first, stop, weights, offset, out)
    else:
        _narrow_band_power(spectra, count, bins, roll, first, stop, weights, offset, out)


@_jit
def _wide_band_power(
    spectra: Any, count: int, bins: int, roll: int, first: Any, stop: Any, weights: Any, offset: Any, out: Any
) -> None:
    """One frame after the other: bands of many bins keep a core's multipliers busy by themselves."""
    powers = np.empty(bins, np.float32)
    for frame in range(count):
        spectrum, index = spectra[frame], 0
        _square(spectrum[: 2 * (bins - roll)], powers[roll:])
        _square(spectrum[2 * (bins - roll) : 2 * bins], powers[:roll])
        for band in range(first.size):
            size = stop[band] - first[band]
            out[frame, band] = offset + _dot(weights[index : index + size], powers[first[band] : stop[band]])
            index += size


@_jit
def _narrow_band_power(
    spectra: Any, count: int, bins: int, roll: int, first: Any, stop: Any, weights: Any, offset: Any, out: Any
) -> None:
    """Eight frames at a time: a sum of few bins spends its time waiting for itself."""
    powers = np.empty((8, bins), np.float32)
    for frame in range(0, count, 8):
        rows = min(8, count - frame)
        for row in range(rows):
            spectrum = spectra[frame + row]
            _square(spectrum[: 2 * (bins - roll)], powers[row, roll:])
            _square(spectrum[2 * (bins - roll) : 2 * bins], powers[row, :roll])
        if rows == 8:
            _eight_sums(powers, first, stop, weights, offset, out[frame : frame + 8])
            continue
        for row in range(rows):
            index, power = 0, powers[row]
            for band in range(first.size):
                total = offset
                for k in range(first[band], stop[band]):
                    total += weights[index] * power[k]
                    index += 1
                out[frame + row, band] = total


@_jit
def _eight_sums(powers: Any, first: Any, stop: Any, weights: Any, offset: Any, out: Any) -> None:
    p0, p1, p2, p3, p4, p5, p6, p7 = (
        powers[0],
        powers[1],
        powers[2],
        powers[3],
        powers[4],
        powers[5],
        powers[6],
        powers[7],
    )
    o0, o1, o2, o3, o4, o5, o6, o7 = out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7]
    index = 0
    for band in range(first.size):
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = offset
        for k in range(first[band], stop[band]):
            weight = weights[index]
            index += 1
            s0 += weight * p0[k]
            s1 += weight * p1[k]
            s2 += weight * p2[k]
            s3 += weight * p3[k]
            s4 += weight * p4[k]
            s5 += weight * p5[k]
            s6 += weight * p6[k]
            s7 += weight * p7[k]
        o0[band], o1[band], o2[band], o3[band] = s0, s1, s2, s3
        o4[band], o5[band], o6[band], o7[band] = s4, s5, s6, s7


@_jit
def gather_cross(
    cores: Any,
    wholes: Any,
    first: Any,
    second: Any,
    count: int,
    two_sided: bool,
    empty_bin: Any,
    before: int,
    n_padded: int,
    taps: Any,
    step: int,
    chirp: Any,
    out: Any,
) -> None:
    """Cross spectra cores[first] * conj(wholes[second]) of each pair, gathered as `lags.LagGrid` has it, times `chirp`.

    `cores`, `wholes`: complex values as float32, (receivers, frames, 2 bins), of which the first `count` frames count.
    `empty_bin`: 0 for spectra as they are, over the transform's size; else PHAT: bins with more than this part of the
    mean magnitude get magnitude 1 over their number, the others 0. `out`: complex64, (frames, pairs, sums or more).
    """
    n_bins = cores.shape[2] // 2
    half = n_bins // 2 if two_sided else n_bins - 1
    start = before + half if two_sided else before  # where bin 0 goes
    re, im = np.zeros(n_padded, np.float32), np.zeros(n_padded, np.float32)
    size = np.float32(2 * half)
    for frame in range(count):
        for pair in range(first.size):
            core, whole = cores[first[pair], frame], wholes[second[pair], frame]
            if two_sided:
                _cross(core[: 2 * half], whole[: 2 * half], re[start:], im[start:])
                _cross(core[2 * half :], whole[2 * half :], re[before:], im[before:])
            else:
                _cross(core, whole, re[start:], im[start:])
            used_re, used_im = re[before : before + n_bins], im[before : before + n_bins]
            if empty_bin > 0.0:
                _whiten(used_re, used_im, empty_bin, two_sided)
            else:
                _scale(used_re, used_im, np.float32(1.0) / size)
            if two_sided:
                # Half of the bin at half the sample rate belongs to each end of the spectrum.
                re[before] *= np.float32(0.5)
                im[before] *= np.float32(0.5)
                re[before + n_bins], im[before + n_bins] = re[before], im[before]
            else:
                _scale(used_re[1:half], used_im[1:half], np.float32(2.0))
            sums = out[frame, pair]
            for q in range(chirp.size):
                here = slice(q * step, q * step + taps.size)
                sum_re, sum_im = _gathered(taps, re[here], im[here])
                sums[q] = complex(sum_re, sum_im) * chirp[q]


@_sum_jit
def _gathered(taps: Any, re: Any, im: Any) -> Any:
    total_re, total_im = np.float32(0.0), np.float32(0.0)
    for k in range(taps.size):
        total_re += taps[k] * re[k]
        total_im += taps[k] * im[k]
    return total_re, total_im


@_jit
def coefficients(
    values: Any, finish: Any, two_sided: bool, first: Any, second: Any, core_norm: Any, lag_norm: Any, out: Any
) -> None:
    """Of each pair |values * finish| or their real part, times both norms, in [-1, 1].

    `values`: complex64 (frames, pairs, lags or more). `core_norm`: (receivers, frames, 1); `lag_norm`: (receivers - 1,
    frames, lags). `out`: (pairs, frames, lags).
    """
    one = np.float32(1.0)
    for pair in range(out.shape[0]):
        for frame in range(out.shape[1]):
            row, target = values[frame, pair], out[pair, frame]
            own, norms_here = core_norm[first[pair], frame, 0], lag_norm[second[pair], frame]
            for k in range(target.size):
                re = row[k].real * finish[k].real - row[k].imag * finish[k].imag
                if two_sided:
                    im = row[k].real * finish[k].imag + row[k].imag * finish[k].real
                    re = np.sqrt(re * re + im * im)
                target[k] = max(min(re * (own * norms_here[k]), one), -one)


@_jit
def _cross(core: Any, whole: Any, re: Any, im: Any) -> None:
    for k in range(core.size // 2):
        re[k] = core[2 * k] * whole[2 * k] + core[2 * k + 1] * whole[2 * k + 1]
        im[k] = core[2 * k + 1] * whole[2 * k] - core[2 * k] * whole[2 * k + 1]


@_jit
def _scale(re: Any, im: Any, factor: Any) -> None:
    for k in range(re.size):
        re[k] *= factor
        im[k] *= factor


@_jit
def _whiten(re: Any, im: Any, empty_bin: Any, two_sided: bool) -> None:
    magnitude = np.sqrt(re * re + im * im)
    limit = empty_bin * magnitude.mean()
    count = 0
    for k in range(re.size):
        count += magnitude[k] > limit
    if not two_sided:
        # Each bin but the ends stands for two.
        count = 2 * count - (magnitude[0] > limit) - (magnitude[re.size - 1] > limit)
    each = np.float32(1.0 / max(count, 1))
    for k in range(re.size):
        factor = each / magnitude[k] if magnitude[k] > limit else np.float32(0.0)
        re[k] *= factor
        im[k] *= factor


@_sum_jit
def _dot(one: Any, other: Any) -> Any:
    total = np.float32(0.0)
    for k in range(one.size):
        total += one[k] * other[k]
    return total
