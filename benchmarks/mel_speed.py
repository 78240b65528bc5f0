"""Speed of log-mel spectrograms: the kernel beside its peers, the block beside the kernel and GNU Radio's own chain.

Complex samples a second, one thread, 512-point frames every 128 samples, 128 bands.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator

import numpy as np
from gnuradio import blocks, fft, gr, localize
from gnuradio.fft import window as gr_window
from localize_benchmarks.figures import Figure, Found, Settings, absent
from localize_benchmarks.flowgraphs import FlowGraph, noise
from localize_benchmarks.turns import Way, quartiles, rates, ratio, repeated
from localize_core.features.mel import MelConfig, MelSpectrogram, mel_filterbank

CONFIG = MelConfig(2.4e6, n_fft=512, hop=128, n_mels=128)
SAMPLES = 1 << 19
N_FRAMES = (SAMPLES - CONFIG.n_fft) // CONFIG.hop + 1
FFTW_FRAMES = 64
"""In one call of FFTW: 256 KiB, in place, which stay in a core's cache."""
PEERS = {"pyfftw": "pyfftw", "librosa": "librosa", "torch": "torch"}
NOTES = {
    "fftw": "the same frames as a planned (FFTW_MEASURE) transform in place, blocks of 64 frames; overlap, window, "
    "power, bands and logarithm are not counted against it",
    "fftw, copied": "the same, with each frame copied out of the samples first",
    "librosa": "librosa.feature.melspectrogram and a logarithm, on real input of the same length: half the work",
    "torch": "torch.stft, power, dense bands, logarithm; one thread",
    "gnuradio": "fft_vcc (window included) and complex_to_mag_squared, no bands, no logarithm; each vector of 512 "
    "counts as one hop of 128, so overlap costs it nothing",
}


def fftw(frames: int, n_fft: int, per_call: int) -> object:
    """Work of bare FFTW: that many transforms, forward, one thread. Needs pyfftw."""
    import pyfftw

    # Zeros stay what they are however often they are transformed; FFTW takes the same time for any numbers.
    values = pyfftw.zeros_aligned((per_call, n_fft), np.complex64)
    plan = pyfftw.FFTW(values, values, axes=(1,), threads=1, flags=("FFTW_MEASURE",))
    values[:] = 0.0

    def work() -> None:
        for _ in range(-(-frames // per_call)):
            plan.execute()

    return work


def _fftw_with_overlap() -> object:
    """The same transforms, with the copy that overlapping frames need and a kernel cannot do without."""
    import pyfftw

    frames = np.lib.stride_tricks.sliding_window_view(noise(1, SAMPLES)[0], CONFIG.n_fft)[:: CONFIG.hop]
    values = pyfftw.zeros_aligned((FFTW_FRAMES, CONFIG.n_fft), np.complex64)
    plan = pyfftw.FFTW(values, values, axes=(1,), threads=1, flags=("FFTW_MEASURE",))

    def work() -> None:
        for start in range(0, N_FRAMES, FFTW_FRAMES):
            part = frames[start : start + FFTW_FRAMES]
            values[: len(part)] = part
            plan.execute()

    return work


def _librosa() -> object:
    import librosa

    real = noise(1, SAMPLES)[0].real.copy()
    sizes = {"n_fft": CONFIG.n_fft, "hop_length": CONFIG.hop, "n_mels": CONFIG.n_mels}

    def work() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bands without a bin, which cost as much
            power = librosa.feature.melspectrogram(y=real, sr=CONFIG.sample_rate_hz, center=False, **sizes)
        np.log(power + np.float32(CONFIG.log_offset))

    return work


def _torch() -> object:
    import torch

    torch.set_num_threads(1)
    samples = torch.from_numpy(noise(1, SAMPLES)[0])
    window, bank = torch.hann_window(CONFIG.n_fft), torch.from_numpy(mel_filterbank(CONFIG))

    def work() -> None:
        spectrum = torch.stft(
            samples, CONFIG.n_fft, CONFIG.hop, window=window, center=False, onesided=False, return_complex=True
        )
        torch.log(bank @ (spectrum.real.square() + spectrum.imag.square()) + CONFIG.log_offset)

    return work


def _block_graph() -> FlowGraph:
    block = localize.mel_spectrogram(CONFIG.sample_rate_hz)
    graph = FlowGraph("mel", block, blocks.null_sink(CONFIG.n_mels * gr.sizeof_float))
    graph.connect(blocks.vector_source_c(noise(1, 1 << 16)[0], True), block, graph.sink)
    return graph


def _chain_graph() -> FlowGraph:
    n_fft = CONFIG.n_fft
    transform = fft.fft_vcc(n_fft, True, gr_window.hann(n_fft), False, 1)
    graph = FlowGraph("chain", transform, blocks.null_sink(n_fft * gr.sizeof_float))
    source = blocks.null_source(n_fft * gr.sizeof_gr_complex)
    graph.connect(source, transform, blocks.complex_to_mag_squared(n_fft), graph.sink)
    return graph


def measure(settings: Settings) -> Iterator[Found]:
    turn_s = settings.turn_s
    samples, core = noise(1, SAMPLES)[0], MelSpectrogram(CONFIG)
    busy: dict[str, list[float]] = {"block": [], "gnuradio": []}

    def of(work: object) -> Way:
        return repeated(lambda: (work(), SAMPLES)[1], turn_s)  # type: ignore[operator]

    def flowing(name: str, graph: FlowGraph) -> Way:
        def rate() -> float:
            items, cores = graph.rate(max(turn_s, 0.05))
            busy[name].append(cores)
            return items * CONFIG.hop

        return rate

    ways: dict[str, Way] = {"core": of(lambda: core(samples))}
    makers = {
        "fftw": ("pyfftw", lambda: fftw(N_FRAMES, CONFIG.n_fft, FFTW_FRAMES)),
        "fftw, copied": ("pyfftw", _fftw_with_overlap),
        "librosa": ("librosa", _librosa),
        "torch": ("torch", _torch),
    }
    for name, (module, make) in makers.items():
        if importlib.util.find_spec(module) is not None:
            ways[name] = of(make())
    ways["block"] = flowing("block", _block_graph())
    ways["gnuradio"] = flowing("gnuradio", _chain_graph())
    found = rates(ways, settings.rounds)
    yield from absent("mel", PEERS)

    comparisons = (
        ("core", "fftw", "kernel", "FFTW", "≥ 0.5"),
        ("core", "fftw, copied", "kernel", "FFTW and overlap", None),
        ("core", "librosa", "kernel", "librosa", "≥ 2"),
        ("core", "torch", "kernel", "torch", None),
        ("block", "core", "block", "kernel", "≥ 0.85"),
        ("block", "gnuradio", "block", "GNU Radio's C++ chain", "≥ 1.3"),
    )
    for name, peer, what, called, goal in comparisons:
        if peer not in found:
            continue
        details = {"quartiles": quartiles(found, name, peer), "rounds": settings.rounds}
        details |= {f"cores_{key}": float(np.median(busy[key])) for key in (name, peer) if key in busy}
        note = NOTES.get(peer, "")
        if peer == "gnuradio":
            note += f"; it kept {details['cores_gnuradio']:.1f} cores busy, the block {details['cores_block']:.1f}"
        yield Figure(
            "mel",
            what,
            float(np.median(found[name])) / 1e6,
            "MS/s",
            peer=called,
            peer_value=float(np.median(found[peer])) / 1e6,
            ratio=ratio(found, name, peer),
            goal=goal,
            note=note,
            details=details,
        )
