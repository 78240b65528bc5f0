"""What serving leaves of ONNX Runtime's own rate: the shipped models, as `serving.py` measures them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from localize_benchmarks.figures import Figure, Found, Settings
from localize_benchmarks.serving import speed
from localize_core.resources import shared_file

MODELS = ("demo", "single_receiver", "access_road")
WINDOWS_PER_TURN_S = 1500.0
"""150 windows in the usual turn: with fewer, starting and ending a worker for each turn would count."""
WAYS = {"engine": ("engine", None), "worker": ("worker, as streams use it", "≥ 0.9")}


def measure(settings: Settings) -> Iterator[Found]:
    windows = max(round(WINDOWS_PER_TURN_S * settings.turn_s), 2)
    for model in MODELS:
        found = speed(Path(shared_file(f"models/{model}.onnx")), settings.rounds, windows)
        bare = found["bare_windows_per_s"]
        for way, (what, goal) in WAYS.items():
            yield Figure(
                "inference",
                f"{model}, {what}",
                found[way] * bare,
                "windows/s",
                peer="bare session.run",
                peer_value=bare,
                ratio=found[way],
                goal=goal,
            )
        batched = found["bare_batch_windows_per_s"]
        yield Figure(
            "inference",
            f"{model}, requests in batches of 100",
            found["requests"] * batched,
            "windows/s",
            peer="bare session.run of 100",
            peer_value=batched,
            ratio=found["requests"],
        )
