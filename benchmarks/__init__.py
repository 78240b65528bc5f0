"""What is measured, as the package `localize_benchmarks`: `gr-localize bench` runs what BENCHMARKS names.

The other modules are scripts of their own: `python benchmarks/NAME.py --help`.
"""

from __future__ import annotations

# name: (module, one line for --list). The module's `measure(settings)` yields figures; it is imported when it is run.
BENCHMARKS = {
    "mel": ("mel_speed", "Log-mel spectrogram beside FFTW, librosa, torch and GNU Radio's own chain."),
    "correlation": ("correlation_speed", "Cross-correlation of 2, 4 and 8 receivers beside FFTW."),
    "growth": ("growth", "How time grows with receivers, n_fft, sample rate and window length."),
    "inference": ("inference_rate", "Serving beside a bare loop of ONNX Runtime."),
    "latency": ("latency", "From a complete window to a subscriber, 100 windows a second."),
    "realtime": ("realtime", "Four receivers at 2.4 MS/s each, every feature, in real time on two cores."),
    "memory": ("memory", "A station of four receivers: resident memory at the end and soon after the start."),
    "overload": ("overload", "A model that is ten times too slow for its stream."),
    "http": (
        "http_load",
        "The HTTP service under a hundred clients: JSON and binary, single and batch, cache on and off.",
    ),
    "map": ("map_load", "The live map under 100 fixes a second: frames, delay, memory of the page, first fix."),
    "fan_out": ("fan_out", "Fixes to 1, 10 and 100 subscribers over ZeroMQ and Redis, and beside one that is stopped."),
}
