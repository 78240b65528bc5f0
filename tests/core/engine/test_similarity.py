"""A window gets a kept answer only where a test finds the emitter where it was: real features, models and sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from localize_core.cache.settings import SimilaritySettings
from localize_core.engine.frames import FeatureFrames, warmup_frames
from localize_core.engine.similarity import SimilarityCache
from localize_core.engine.windows import Window, WindowAssembler
from localize_core.features.quality import SampleFlag
from localize_core.model.base import ModelOutput
from localize_core.model.compiled.compile import compile_model
from localize_core.model.contract import Contract, Frame
from localize_core.model.onnx_model import OnnxModel
from localize_core.simulation.scene import Scene, SceneConfig
from localize_core.station.config import load_station
from localize_core.station.plan import plan_station
from pydantic import ValidationError

ROOT = Path(__file__).resolve().parents[3]
STEPS = 24
MIDDLE = (45.07, 7.66)
NONE = SampleFlag(0)


class Site:
    """The simulated four receivers, and what a compiled model makes of them."""

    def __init__(self, folder: Path) -> None:
        station = load_station(ROOT / "examples" / "four_receivers.toml")
        plan = plan_station(station)
        assert station.scene is not None
        self.base = station.scene
        compile_model(plan.spec, folder / "model.onnx")
        self.model = OnnxModel(folder / "model.onnx")
        self.contract = self.model.contract
        self.frame = self.contract.frame.local

    def scene(self, seed: int, *, snr_db: float = 15.0, offset_m: Sequence[float] = (0.0, 0.0), **fields) -> Scene:
        """An emitter `offset_m` east and north of the middle, with that SNR if it were in the middle."""

        def made(place: tuple[float, float], **more) -> Scene:
            values = self.base.model_dump() | {"seed": seed, "track": [place], "speed_mps": 0.0} | more
            rate_hz = self.contract.sample_rate_hz
            config = SceneConfig.of(**values)
            return Scene(config, self.contract.receivers, sample_rate_hz=rate_hz, frequency_hz=433.92e6)

        heard_db = float(np.median(made(MIDDLE).level_dbfs(np.zeros(1))))
        level_db = self.base.level_dbfs_at_1km + snr_db + self.base.noise_dbfs - heard_db
        latitude, longitude = self.frame.to_wgs84(np.array(offset_m))
        level_db += fields.pop("gain_db", 0.0)
        return made((float(latitude), float(longitude)), level_dbfs_at_1km=level_db, **fields)

    def windows(self, scene: Scene, count: int, first: int = 0, contract: Contract | None = None) -> list[Window]:
        return windows_of(contract or self.contract, [scene], [count * STEPS], first * STEPS)

    def answer(self, window: Window) -> ModelOutput:
        return self.model.run(self.contract.normalisation.apply(window.features)[None])


def windows_of(contract: Contract, scenes: Sequence[Scene], frames: Sequence[int], first: int = 0) -> list[Window]:
    """Windows of so many frames of one scene after another, from frame `first` on."""
    hop, warmup = contract.hop, warmup_frames(contract)
    samples, position = [], first * hop
    for index, (scene, count) in enumerate(zip(scenes, frames, strict=True)):
        size = (count + (warmup if index == 0 else 0)) * hop
        samples.append(scene.samples(position, size))
        position += size
    features, level_db, flags = FeatureFrames(contract).push(np.concatenate(samples, axis=1))
    size = len(contract.channels), contract.rows, len(contract.receivers)
    assembler = WindowAssembler(*size, time_steps=STEPS, window_hop=STEPS)
    return assembler.push(features[warmup:], level_db[warmup:], flags[warmup:])


def axes_of(output: ModelOutput) -> np.ndarray:
    sigma_x, sigma_y, theta = output.uncertainty[0].astype(float)
    cos, sin = math.cos(math.radians(theta)), math.sin(math.radians(theta))
    return np.array([[cos * sigma_x, -sin * sigma_y], [sin * sigma_x, cos * sigma_y]])


def through(site: Site, cache: SimilarityCache, windows: Sequence[Window], first: int = 0) -> list[int]:
    """Number of the window from which each one's answer is."""
    inferred = []
    for index, window in enumerate(windows, start=first):
        found = cache.match(window, "m", index / 8.0)
        if found is None:
            cache.keep(window, site.answer(window), "m", index / 8.0)
        inferred.append(index if found is None else index - found.age_windows)
    return inferred


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    return Site(tmp_path_factory.mktemp("similarity"))


@pytest.fixture(scope="module")
def steady(site) -> list[Window]:
    return site.windows(site.scene(11), 16)


def primed(site: Site, windows: Sequence[Window], **settings) -> SimilarityCache:
    """A cache whose entry has seen eight windows."""
    cache = SimilarityCache(site.contract, SimilaritySettings(**settings))
    through(site, cache, windows[:8])
    return cache


def test_a_steady_emitter_is_answered_from_the_cache(site):
    hits, errors = 0, []
    for seed in range(20):
        windows = site.windows(site.scene(seed), 32)
        cache = SimilarityCache(site.contract)
        fresh = [site.answer(window) for window in windows]
        inferred = through(site, cache, windows)
        hits += cache.hits
        away = [np.linalg.solve(axes_of(output), output.position[0]) for output in fresh]
        errors.append([np.mean(np.square([away[k] for k in which])) for which in (range(32), inferred)])
    assert hits >= 0.85 * 20 * 32
    # The emitter stands at the frame's origin. One answer for many windows is no worse, only rarer drawn.
    without, given = np.sqrt(np.mean(errors, axis=0))
    assert given - without <= 0.1


@pytest.mark.parametrize("snr_db", [5.0, 15.0])
def test_a_jump_of_three_sigma_is_noticed_within_three_windows(site, snr_db):
    rng = np.random.default_rng(int(snr_db))
    missed = stale = 0
    for seed in range(40):
        before = int(rng.integers(8, 14))
        cache = SimilarityCache(site.contract)
        windows = site.windows(site.scene(seed, snr_db=snr_db), before)
        through(site, cache, windows)
        angle = rng.uniform(0.0, 2.0 * math.pi)
        offset_m = axes_of(site.answer(windows[-1])) @ (3.0 * np.array([math.cos(angle), math.sin(angle)]))
        moved = site.windows(site.scene(seed, snr_db=snr_db, offset_m=offset_m), 5, before)
        inferred = np.array(through(site, cache, moved, before))
        missed += not (inferred[:3] >= before).any()
        stale += bool((inferred[2:] < before).any())
    # 99 % are wanted: four of forty would be, if it were no more, less likely than 1 in 1,000.
    assert missed < 4
    assert stale < 4


def test_a_slow_drift_does_not_drag_its_reference_along(site):
    sigma_m = axes_of(site.answer(site.windows(site.scene(3), 1)[0]))
    for seed, speed in ((3, 0.1), (4, 0.3)):
        step_m = speed * sigma_m @ np.array([0.6, 0.8])
        cache = SimilarityCache(site.contract)
        inferred: list[int] = []
        for index in range(40):
            windows = site.windows(site.scene(seed, offset_m=index * step_m), 1, index)
            inferred += through(site, cache, windows, index)
        behind = (np.arange(40) - inferred) * speed
        assert behind.max() <= 3.0
        assert cache.hits > 0


@pytest.mark.parametrize(
    "change",
    [{"waveform": "none"}, {"gain_db": -6.0}, {"bandwidth_hz": 12.5e3}],
    ids=["vanishes", "quieter", "narrower"],
)
def test_what_changes_is_inferred_anew(site, change):
    for seed in range(5):
        cache = SimilarityCache(site.contract)
        through(site, cache, site.windows(site.scene(seed), 8))
        inferred = through(site, cache, site.windows(site.scene(seed, **change), 3, 8), 8)
        assert min(inferred) >= 8
        assert cache.misses["changed"] + cache.misses["moved"] >= 1


def test_an_emitter_that_appears_is_inferred(site):
    cache = SimilarityCache(site.contract)
    through(site, cache, site.windows(site.scene(5, waveform="none"), 10))
    assert cache.hits >= 6, "that there is none is an answer too"
    assert min(through(site, cache, site.windows(site.scene(5), 3, 10), 10)) >= 10


def test_a_window_in_which_something_changes_is_no_reference(site):
    sigma_m = axes_of(site.answer(site.windows(site.scene(6), 1)[0]))
    scenes = [site.scene(6), site.scene(6, offset_m=sigma_m @ np.array([8.0, 0.0]))]
    (window,) = windows_of(site.contract, scenes, [STEPS // 2, STEPS // 2])
    cache = SimilarityCache(site.contract)
    assert not cache.keep(window, site.answer(window), "m", 0.0)
    assert cache.refused == {"unsteady": 1}
    assert cache.match(window, "m", 0.1) is None


def test_steady_windows_are_references(site):
    cache = SimilarityCache(site.contract)
    windows = [window for seed in range(10) for window in site.windows(site.scene(seed), 10)]
    taken = sum(cache.keep(window, site.answer(window), "m", 0.0) for window in windows)
    assert taken >= 98


def test_an_answer_says_how_old_it_is(site, steady):
    cache = primed(site, steady)
    assert cache.as_dict()["hits"] == 7
    found = cache.match(steady[8], "m", 1.0)
    assert found is not None
    assert (found.age_s, found.age_windows) == (1.0, 8)
    np.testing.assert_array_equal(found.output.position, site.answer(steady[0]).position)


@pytest.mark.parametrize(
    ("settings", "moment_s"), [({}, 10.1), ({"max_windows": 7}, 1.0), ({}, -0.1)], ids=["seconds", "windows", "back"]
)
def test_an_old_answer_is_not_given_out(site, steady, settings, moment_s):
    cache = primed(site, steady, **settings)
    assert cache.match(steady[8], "m", moment_s) is None
    assert cache.misses["age"] == 1


def test_another_model_is_asked(site, steady):
    cache = primed(site, steady)
    assert cache.match(steady[8], "another", 1.0) is None
    assert cache.misses["model"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"flags": (NONE, SampleFlag.UNALIGNED, NONE, NONE)},
        {"flags": (SampleFlag.GAP, NONE, NONE, NONE)},
        {"unusable": np.array([False, False, True, False])},
    ],
    ids=["unaligned", "gap", "unusable"],
)
def test_receivers_in_another_state_are_another_matter(site, steady, change):
    cache = primed(site, steady)
    assert cache.match(replace(steady[8], **change), "m", 1.0) is None
    assert cache.misses["flags"] == 1


def test_a_window_of_another_length_is_inferred(site, steady):
    cache = primed(site, steady)
    assert cache.match(replace(steady[8], features=steady[8].features[:, :, :-1]), "m", 1.0) is None


def test_a_receiver_that_stays_lost_does_not_end_it(site, steady):
    lost = np.array([False, False, True, False])
    cache = SimilarityCache(site.contract)
    windows = []
    for window in steady:
        features = window.features.copy()
        features[[1, 3, 5]] = np.nan  # the pairs of the third receiver
        windows.append(replace(window, features=features, unusable=lost))
    for index, window in enumerate(windows):
        if cache.match(window, "m", index / 8.0) is None:
            assert cache.keep(window, site.answer(steady[index]), "m", index / 8.0)
    assert cache.hits >= 12


def test_forgotten_is_forgotten(site, steady):
    cache = primed(site, steady)
    cache.forget()
    assert cache.match(steady[8], "m", 1.0) is None
    assert cache.misses["empty"] == 2


def test_windows_may_overlap(site):
    hits = missed = 0
    for seed in range(8):
        before, after = site.windows(site.scene(seed), 10), site.scene(seed, offset_m=(60.0, 30.0))
        frames = np.concatenate([w.features for w in [*before, *site.windows(after, 2, 10)]], axis=2)
        windows = [
            replace(before[0], first_frame=first, features=np.ascontiguousarray(frames[:, :, first : first + STEPS]))
            for first in range(0, frames.shape[2] - STEPS + 1, STEPS // 3)
        ]
        cache = SimilarityCache(site.contract)
        inferred = np.array(through(site, cache, windows))
        steady = 3 * 9 + 1  # windows before any frame of the second place
        hits += np.count_nonzero(inferred[:steady] < np.arange(steady))
        missed += not (inferred[steady:] >= steady).any()
    assert hits >= 0.8 * 8 * steady
    assert missed == 0


def test_a_single_odd_window_does_not_cost_the_reference(site, steady):
    cache = primed(site, steady)
    far = site.windows(site.scene(11, offset_m=(300.0, 0.0)), 1, 8)[0]
    assert through(site, cache, [far], 8) == [8]
    # Its own answer is not given to those that are as before; from when it is out of the sums, the older one is.
    inferred = through(site, cache, steady[9:], 9)
    assert 8 not in inferred


def test_frames_in_degrees_are_understood(site):
    """As a learned model may have them: the same places, and jumps are as plain."""
    contract = site.contract.model_copy(update={"frame": Frame(kind="wgs84_deg", altitude_m=290.0)})

    def answer(window: Window) -> ModelOutput:
        output = site.answer(window)
        latitude, longitude = site.frame.to_wgs84(output.position[0])
        return replace(output, position=np.array([[latitude, longitude]]))

    windows = site.windows(site.scene(12), 12)
    axes_m = axes_of(site.answer(windows[-1]))
    windows += site.windows(site.scene(12, offset_m=axes_m @ np.array([3.0, 0.0])), 3, 12)
    cache = SimilarityCache(contract)
    misses = []
    for index, window in enumerate(windows):
        if cache.match(window, "m", index / 8.0) is None:
            cache.keep(window, answer(window), "m", index / 8.0)
            misses.append(index)
    assert cache.hits >= 9
    assert cache.misses["moved"] >= 1
    assert set(misses) & {12, 13, 14}


def noisy_windows(contract: Contract, level: np.ndarray, count: int, seed: int, steps: int = STEPS) -> list[Window]:
    """Windows of independent noise around a level for each channel."""
    rng = np.random.default_rng(seed)
    size = (len(contract.channels), contract.rows, steps)
    spread = np.array([0.3 if channel.feature == "log_mel" else 0.05 for channel in contract.channels])[:, None, None]
    receivers = len(contract.receivers)
    return [
        Window(
            k * steps,
            (level[:, None, None] + spread * rng.standard_normal(size)).astype(np.float32),
            np.zeros(receivers),
            (NONE,) * receivers,
            np.zeros(receivers, bool),
        )
        for k in range(count)
    ]


OUTPUT = ModelOutput(
    np.array([[47.1, 8.05]], np.float32), np.array([[200.0, 100.0, 30.0]], np.float32), np.array([[0.9]], np.float32)
)


@pytest.mark.parametrize("receivers", [1, 3])
def test_levels_alone_tell(make_contract, receivers):
    contract = make_contract(receivers, correlation=False)
    level = np.full(receivers, -8.0)
    cache = SimilarityCache(contract)
    for index, window in enumerate(noisy_windows(contract, level, 100, 1)):
        if cache.match(window, "m", index / 16.0) is None:
            assert cache.keep(window, OUTPUT, "m", index / 16.0)
    assert cache.hits >= 85
    level[0] += 0.2  # 0.9 dB, a third of the noise of one value
    louder = noisy_windows(contract, level, 3, 2)
    assert any(cache.match(window, "m", 6.5) is None for window in louder)


def test_false_alarms_stay_below_their_bound(make_contract):
    contract = make_contract(4)
    level = np.concatenate([np.full(4, -8.0), np.full(6, 0.0)])
    cache = SimilarityCache(contract, SimilaritySettings(false_alarm=0.02, max_windows=4096, max_age_s=1e9))
    for index, window in enumerate(noisy_windows(contract, level, 1500, 3)):
        low = replace(OUTPUT, confidence=np.zeros((1, 1), np.float32))  # no place, so nothing but differences is asked
        if cache.match(window, "m", float(index)) is None:
            cache.keep(window, low, "m", float(index))
    assert cache.hits >= 0.98 * 1500


def test_short_windows_and_empty_ones_are_no_references(make_contract):
    contract = make_contract(2)
    cache = SimilarityCache(contract)
    (short,) = noisy_windows(contract, np.zeros(3), 1, 1, steps=3)
    assert not cache.keep(short, OUTPUT, "m", 0.0)
    (window,) = noisy_windows(contract, np.zeros(3), 1, 1)
    assert not cache.keep(replace(window, unusable=np.ones(2, bool)), OUTPUT, "m", 0.0)
    assert cache.refused == {"short": 1, "empty": 1}


@pytest.mark.parametrize(
    "settings",
    [{"max_age": 1.0}, {"max_age_s": 0.0}, {"max_windows": 0}, {"false_alarm": 0.0}, {"power": 1.0}],
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        SimilaritySettings(**settings)
