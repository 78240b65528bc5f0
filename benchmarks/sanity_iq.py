"""Sanity out of IQ whose errors are not those that it assumes: echoes, clocks that walk, impulses of noise.

    python benchmarks/sanity_iq.py [--stations 4] [--windows 120] [--fault NAME] [--paths-ns 20] [--seed 1] [--json]

Four receivers of 250 kS/s about an emitter of 200 kHz that stands or drives at 15 m/s; the station file says clocks of
30 ns and paths of `--paths-ns`. What is so: each clock is off by a constant of 20 ns (normal) and walks at random,
WALK_NS in a second, without bound; each receiver hears an echo besides, ECHO_DB on average (Rayleigh) and ECHO_NS late
on average (exponential), new about every 20 m of the emitter's way and else the same; and impulses IMPULSE_DB above its
noise, in one sample of a thousand. IQ goes through the features, the compiled model, a Locator and the monitor, two
windows a second, each of 0.125 s. A fault of one receiver begins after a third of the windows: a jump of 1 µs, or a
drift of 20 ns/s.

`shown`: windows with a clock fault or a suspected position among the conditions, though there is none, of all windows;
`episodes`: how often one began. `found`: stations that show one after the fault, within a median of `windows_median`;
`named`: the faulty receiver is among those named then. `off_ns`: rms of clock and echo together, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from localize_benchmarks.figures import row_line
from localize_core.engine.frames import FeatureFrames
from localize_core.engine.locator import Locator, WindowContext
from localize_core.engine.windows import WindowAssembler
from localize_core.geodesy import LocalFrame
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sanity.monitor import SanityMonitor
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station
from localize_core.station.plan import plan_station
from scipy.fft import fft, ifft, next_fast_len

RATE_HZ, FREQUENCY_HZ = 250e3, 433e6
APART_S, WINDOW_S = 0.5, 0.125
CLOCK_NS, WALK_NS = 20.0, 1.0
ECHO_DB, ECHO_NS = -10.0, 500.0
ECHO_WAY_M = 20.0
IMPULSE_DB, IMPULSES = 20.0, 1e-3
NOISE_DBFS = -60.0
SPEED_MPS = 15.0
FAULTS = {"none": (0.0, 0.0), "jump": (1000.0, 0.0), "drift": (0.0, 20.0)}
"""Nanoseconds at once, and nanoseconds a second."""
NAMES = ("north", "east", "south", "west")
FRAME = LocalFrame(45.0, 7.0)


@dataclass(frozen=True)
class Run:
    """What one station shows after each window: kinds of faults, and their words."""

    shown: tuple[dict[str, str], ...]
    faulty: str
    off_ns: np.ndarray


def random_station(rng: np.random.Generator, *, moving: bool, paths_ns: float) -> Station:
    """Receivers in four sectors, 4 to 7 km out. `paths_ns`: what the station file says of paths."""
    angle = np.pi / 2.0 * (np.arange(4) + rng.uniform(0.0, 0.6, 4))
    places = rng.uniform(4e3, 7e3, 4)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    corners = rng.uniform(-1500.0, 1500.0, 2) + 800.0 * np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    way = np.column_stack(FRAME.to_wgs84(corners if moving else corners[:1]))
    (south, north), (west, east) = FRAME.to_wgs84(np.array([[-8e3, -8e3], [8e3, 8e3]]))
    return Station.model_validate(
        {
            "station": {"name": "walk", "sample_rate_hz": RATE_HZ, "frequency_hz": FREQUENCY_HZ},
            "receiver": [
                {
                    "name": name,
                    "latitude": float(latitude),
                    "longitude": float(longitude),
                    "timing_sigma_ns": 30.0,
                    "source": {"kind": "scene"},
                }
                for name, latitude, longitude in zip(NAMES, *FRAME.to_wgs84(places), strict=True)
            ],
            "area": {"south": float(south), "north": float(north), "west": float(west), "east": float(east)},
            "features": {"window_s": WINDOW_S, "channels": ["cross_correlation"]},
            "propagation": {"timing_sigma_ns": paths_ns},
            "model": {"min_confidence": 0.0},
            "scene": {
                "bandwidth_hz": 200e3,
                "level_dbfs_at_1km": -25.0,
                "noise_dbfs": NOISE_DBFS,
                "track": way.tolist(),
                "speed_mps": SPEED_MPS if moving else 0.0,
                "seed": int(rng.integers(2**31)),
            },
        }
    )


class Air:
    """What comes to receivers that are not ideal: IQ of windows, and how late each is by clock and echo."""

    def __init__(self, rng: np.random.Generator, windows: int, size: int, *, moving: bool) -> None:
        self._rng, self._moving = rng, moving
        steps = WALK_NS * np.sqrt(APART_S) * rng.standard_normal((windows, 4))
        self.clock_ns = CLOCK_NS * rng.standard_normal(4) + np.cumsum(steps, axis=0)
        self._at_hz = np.fft.fftfreq(size, 1.0 / RATE_HZ)
        self._way_m = 0.0
        self._echo()

    def _echo(self) -> None:
        rng = self._rng
        self._gain = 10.0 ** (ECHO_DB / 20.0) * (rng.standard_normal((4, 2)) @ [1.0, 1j]) / np.sqrt(2.0)
        self._late_s = 1e-9 * rng.exponential(ECHO_NS, 4)

    def heard(self, iq: np.ndarray, window: int, fault_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IQ (4, n) of a window with all that is added to it, and by how much the emitter seems late, ns (4,)."""
        if self._moving:
            self._way_m += SPEED_MPS * APART_S
            if self._way_m >= ECHO_WAY_M:
                self._way_m = 0.0
                self._echo()
        turn = -2j * np.pi * self._at_hz
        late_s = 1e-9 * (self.clock_ns[window] + fault_ns)
        paths = 1.0 + self._gain[:, None] * np.exp(turn * self._late_s[:, None])
        spectrum = fft(iq) * paths * np.exp(turn * late_s[:, None])
        found = ifft(spectrum)
        struck = self._rng.random(iq.shape) < IMPULSES
        count = int(np.count_nonzero(struck))
        level = 10.0 ** ((NOISE_DBFS + IMPULSE_DB) / 20.0)
        found[struck] += level * (self._rng.standard_normal((count, 2)) @ [1.0, 1j]) / np.sqrt(2.0)
        # The centre of a narrow signal's delay: the slope of the phase at the carrier.
        echo_s = np.real(self._gain * self._late_s / (1.0 + self._gain))
        return found.astype(np.complex64), self.clock_ns[window] + 1e9 * echo_s


def watch(seed: list[int], folder: Path, *, fault: str, moving: bool, windows: int, paths_ns: float) -> Run:
    """One station for so many windows."""
    rng = np.random.default_rng(seed)
    station = random_station(rng, moving=moving, paths_ns=paths_ns)
    plan = plan_station(station)
    path = folder / "model.onnx"
    compile_model(plan.spec, path)
    model = OnnxModel(path)
    locator, contract = Locator(model, min_confidence=0.0), model.contract
    geometry = ArrivalGeometry.of_spec(plan.spec)
    assert geometry is not None
    monitor = SanityMonitor(contract, geometry)
    assert station.played_scene is not None
    scene = Scene(station.played_scene, station.receiver, sample_rate_hz=RATE_HZ, frequency_hz=FREQUENCY_HZ)
    steps = plan.time_steps
    size = (steps - 1) * contract.hop + contract.n_fft
    enough = next_fast_len(size)
    air = Air(rng, windows, enough, moving=moving)
    faulty, (jump_ns, drift_ns_per_s), since = int(rng.integers(4)), FAULTS[fault], windows // 3
    shown: list[dict[str, str]] = []
    for window in range(windows):
        fault_ns = np.zeros(4)
        if window >= since:
            fault_ns[faulty] = jump_ns + drift_ns_per_s * APART_S * (window - since)
        iq, off_ns = air.heard(scene.samples(round(window * APART_S * RATE_HZ), enough), window, fault_ns)
        features, level_db, flags = FeatureFrames(contract).push(np.ascontiguousarray(iq[:, :size]))
        assembler = WindowAssembler(features.shape[1], features.shape[2], 4, time_steps=steps, window_hop=steps)
        (made,) = assembler.push(features[-steps:], level_db[-steps:], flags[-steps:])
        moment_s = 1_700_000_000.0 + window * APART_S
        start = int(moment_s), moment_s % 1.0
        context = WindowContext("walk", "s", window, start, "rx_time", FREQUENCY_HZ, None, 0.0, 0)
        monitor.add(made, locator.locate(made, context))
        shown.append({kind: words for kind, words in monitor.conditions.items() if kind != "geometry_poor"})
    model.close()
    return Run(tuple(shown), NAMES[faulty], off_ns)


def summarise(runs: list[Run], fault: str) -> dict[str, float | int | None]:
    """What became of all stations with one fault."""
    windows = len(runs[0].shown)
    off_ns = np.concatenate([run.off_ns - run.off_ns.mean() for run in runs])
    told: dict[str, float | int | None] = {"stations": len(runs), "off_ns": float(np.sqrt(np.mean(off_ns**2)))}
    before = windows if fault == "none" else windows // 3
    flags = np.array([[bool(each) for each in run.shown] for run in runs])
    early = flags[:, :before]
    told |= {
        "windows": early.size,
        "shown": int(early.sum()),
        "episodes": int(np.count_nonzero(early[:, 1:] & ~early[:, :-1])),
    }
    if fault == "none":
        return told
    sound = ~early.any(axis=1)  # what was shown before says nothing of the fault
    after = [int(np.argmax(late)) + 1 for late in flags[sound, before:] if late.any()]
    words = [
        " ".join(run.shown[before + int(np.argmax(late))].values())
        for run, late, fine in zip(runs, flags[:, before:], sound, strict=True)
        if fine and late.any()
    ]
    faulty = [run.faulty for run, late, fine in zip(runs, flags[:, before:], sound, strict=True) if fine and late.any()]
    return told | {
        "sound_before": int(sound.sum()),
        "found": len(after),
        "windows_median": float(np.median(after)) if after else None,
        "windows_most": max(after, default=None),
        "named": sum(name in said for name, said in zip(faulty, words, strict=True)),
    }


@click.command()
@click.option("--stations", default=4, show_default=True, help="For each fault and kind of emitter.")
@click.option("--windows", default=120, show_default=True, help="For each station, two a second.")
@click.option("--fault", "faults", type=click.Choice(tuple(FAULTS)), multiple=True, help="Only this; all if left out.")
@click.option(
    "--paths-ns", default=20.0, show_default=True, help="Errors of paths by the station file, standard deviation."
)
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(stations: int, windows: int, faults: tuple[str, ...], paths_ns: float, seed: int, as_json: bool) -> None:
    """Sanity out of IQ with echoes, clocks that walk and impulses of noise."""
    with TemporaryDirectory() as folder:
        for moving in (False, True):
            for fault in faults or FAULTS:
                runs = [
                    watch(
                        [seed, moving, station],
                        Path(folder),
                        fault=fault,
                        moving=moving,
                        windows=windows,
                        paths_ns=paths_ns,
                    )
                    for station in range(stations)
                ]
                row = {"emitter": "moves" if moving else "stands", "fault": fault} | summarise(runs, fault)
                print(row_line(row, as_json=as_json), flush=True)


if __name__ == "__main__":
    main()
