"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import threading
import time
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "numba", "pyfftw", "onnxruntime", "librosa", "torch")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
LEAST_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What libraries read when they are loaded: every rate is one of a single thread."""


def single_threaded() -> None:
    """Hold libraries that are loaded from now on to one thread."""
    for name in LEAST_THREADS:
        os.environ[name] = "1"


def describe() -> dict[str, Any]:
    """Processor, memory, kernel and versions; None for what is not installed or not readable."""
    return {
        "figure": "machine",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "kernel": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0],
        "governor": GOVERNOR.read_text().strip() if GOVERNOR.is_file() else None,
        "versions": {
            "python": platform.python_version(),
            "gnuradio": _gnuradio(),
            **{name: _version(name) for name in PACKAGES},
        },
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gnuradio() -> str | None:
    try:
        from gnuradio import gr
    except ImportError:
        return None
    return str(gr.version())


def resident_mib(pid: int | None = None) -> float:
    """Memory of a process, by default of this one."""
    statm = Path(f"/proc/{pid or 'self'}/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Busy:
    """Cores that this process and all others keep busy from here on. Who else is at work is part of a figure."""

    def __init__(self) -> None:
        self._began_s, self._own_s, self._all_s = time.monotonic(), time.process_time(), _busy_s()

    def cores(self) -> tuple[float, float]:
        """Of this process, and of all others."""
        taken_s = time.monotonic() - self._began_s
        own = (time.process_time() - self._own_s) / taken_s
        return own, max((_busy_s() - self._all_s) / taken_s - own, 0.0)


def _busy_s() -> float:
    """CPU time of everything on this machine."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class MemoryWatch:
    """Resident memory of a process, by default of this one, every `interval_s`, while it is entered."""

    def __init__(self, interval_s: float = 0.25, pid: int | None = None) -> None:
        self.samples_mib: list[float] = []
        self._interval_s, self._pid = interval_s, pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.samples_mib.append(resident_mib(self._pid))
            if self._ended.wait(self._interval_s):
                return

    @property
    def early_mib(self) -> float:
        """Median of the second tenth: the first one still fills buffers and caches."""
        tenth = max(len(self.samples_mib) // 10, 1)
        return statistics.median(self.samples_mib[tenth : 2 * tenth] or self.samples_mib)

    @property
    def late_mib(self) -> float:
        """Median of the last tenth."""
        return statistics.median(self.samples_mib[-max(len(self.samples_mib) // 10, 1) :])

    def thinned_mib(self) -> list[float]:
        """At most some 100 of the samples."""
        return [round(value, 1) for value in self.samples_mib[:: max(len(self.samples_mib) // 100, 1)]]
