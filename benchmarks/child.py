"""One benchmark in a process of its own: its memory, threads and GNU Radio are not what another one left."""

from __future__ import annotations

import importlib
import json
import sys

from localize_benchmarks import BENCHMARKS
from localize_benchmarks.figures import Settings, to_json


def main() -> None:
    """Measure the benchmark in `sys.argv[2]` by the settings, as JSON, in `sys.argv[3]`; figures go to stdout."""
    module, _ = BENCHMARKS[sys.argv[2]]
    settings = Settings(**json.loads(sys.argv[3]))
    for found in importlib.import_module(f"localize_benchmarks.{module}").measure(settings):
        print(to_json(found.as_dict()), flush=True)
