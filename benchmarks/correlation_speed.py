"""Speed of cross-correlation: the kernel beside the transforms it needs in FFTW, the block beside the kernel.

Instants a second, that is samples of each receiver; one thread, frames of 4096 samples, 128 lags.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
from gnuradio import blocks, gr, localize
from localize_benchmarks.figures import Figure, Found, Settings, absent
from localize_benchmarks.flowgraphs import FlowGraph, noise
from localize_benchmarks.mel_speed import fftw
from localize_benchmarks.turns import Way, quartiles, rates, ratio, repeated
from localize_core.features.correlation import CorrelationConfig, CrossCorrelation

RATE_HZ = 2.4e6
RECEIVERS = (2, 4, 8)
FRAMES = 16
FFTW_FRAMES = 8
"""In one call of FFTW: 256 KiB."""


def _block_graph(config: CorrelationConfig) -> FlowGraph:
    block = localize.cross_correlation(config.sample_rate_hz, config.n_receivers)
    sinks = [blocks.null_sink(config.n_lags * gr.sizeof_float) for _ in config.pairs]
    graph = FlowGraph("correlation", block, sinks[0])
    for port, samples in enumerate(noise(config.n_receivers, 1 << 16)):
        graph.connect(blocks.vector_source_c(samples, True), (block, port))
    for port, sink in enumerate(sinks):
        graph.connect((block, port), sink)
    return graph


def measure(settings: Settings) -> Iterator[Found]:
    yield from absent("correlation", {"pyfftw": "pyfftw"})
    for count in RECEIVERS:
        config = CorrelationConfig(RATE_HZ, count)
        samples, core = noise(count, FRAMES * config.n_fft), CrossCorrelation(config)
        instants, pairs = samples.shape[1], len(config.pairs)

        def of(work: Callable[[], object], instants: int = instants) -> Way:
            return repeated(lambda: (work(), instants)[1], settings.turn_s)

        graph = _block_graph(config)
        ways: dict[str, Way] = {
            "core": of(lambda core=core, samples=samples: core(samples)),  # type: ignore[misc]
            "block": lambda graph=graph, hop=config.hop: graph.rate(max(settings.turn_s, 0.2))[0] * hop,  # type: ignore[misc]
        }
        transforms = 2 * count + pairs
        if importlib.util.find_spec("pyfftw") is not None:
            ways["fftw"] = of(fftw(FRAMES * transforms, config.n_fft, FFTW_FRAMES))  # type: ignore[arg-type]
        found = rates(ways, settings.rounds)
        # Neither the first receiver's whole frame nor the last one's core is multiplied with anything.
        fewest = 2 * (count - 1) + pairs
        for name, peer, what, called in (("core", "fftw", "kernel", "FFTW"), ("block", "core", "block", "kernel")):
            if peer not in found:
                continue
            details = {"receivers": count, "pairs": pairs, "quartiles": quartiles(found, name, peer)}
            note = ""
            if peer == "fftw":
                strict = ratio(found, name, peer) * fewest / transforms
                details |= {"transforms": transforms, "ratio_of_fewest": strict, "fewest_transforms": fewest}
                note = (
                    f"{transforms} transforms of 4096 points a frame, two a receiver and one a pair, in place; beside "
                    f"the {fewest} that cannot be left out the ratio is {strict:.2g}"
                )
            yield Figure(
                "correlation",
                f"{what}, {count} receivers, {pairs} pair{'s' * (pairs > 1)}",
                float(np.median(found[name])) / 1e6,
                "MS/s each",
                peer=called,
                peer_value=float(np.median(found[peer])) / 1e6,
                ratio=ratio(found, name, peer),
                goal="≥ 0.85" if peer == "core" else None,
                note=note,
                details=details,
            )
