"""One window in, one fix out: normalisation, inference, and the decision whether the answer is a position."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from localize_core.cache.answers import AnswerCache, AnswerKeys
from localize_core.engine.instruments import Instruments, NoInstruments
from localize_core.engine.masking import ChannelMask
from localize_core.engine.peaks import PeakEraser, are_one, basins, separation_m
from localize_core.engine.similarity import SimilarityCache
from localize_core.engine.windows import Framing, Window
from localize_core.errors import ConfigError, EngineError, UnavailableError
from localize_core.features.quality import SampleFlag
from localize_core.model.base import LikelihoodModel, Model, ModelOutput
from localize_core.types.fix import Alignment, Fix, Peak, Position, ReceiverReport, TimeSource, Uncertainty

HORIZON_M = 6_000e3
"""From a frame's origin: farther out, its plane no longer lies over the Earth."""


@dataclass(frozen=True)
class WindowContext:
    """What is known of a window beside its features.

    `start`: time of the first sample of its first hop, whole seconds since 1970 and the rest. `completed_s`:
    monotonic clock when its last frame came. `dropped`: windows of this stream lost just before it. `id`: of the
    request that it answers, None for streams. `unit`: name by which an experiment chooses, the stream's if empty.
    """

    station: str
    stream: str
    sequence: int
    start: tuple[int, float]
    time_source: TimeSource
    frequency_hz: float | None
    alignment: Alignment | None
    completed_s: float
    dropped: int
    id: str | None = None
    unit: str = ""


@dataclass(frozen=True)
class Inference:
    """What a model said to a batch: usable receivers of each window, answers by the index of their windows (None where
    inference failed, nothing where the model was not asked), and the time that each of them took.

    `hits`: windows whose answer was known already, from a cache or an equal window of the batch; `lookup_ms`: the time
    that looking for each took. `peaks`: further places, by the index of their windows.
    """

    usable: Sequence[np.ndarray]
    outputs: Mapping[int, ModelOutput | None]
    spent_ms: float
    hits: frozenset[int] = frozenset()
    lookup_ms: float = 0.0
    peaks: Mapping[int, tuple[Peak, ...]] = field(default_factory=dict)

    @property
    def asked(self) -> bool:
        """Whether the model itself has answered, or failed on, any of them."""
        return len(self.outputs) > len(self.hits)


class Locator:
    """Turns windows into fixes with one model.

    `min_confidence`: below it the answer is no fix. `probability`: what the ellipse of a fix is said to hold.
    `backend`: name in fixes of what runs the model, by default the model's own. `peaks`: most places of a window, the
    fix's position among them; looking for each further one takes an inference. Its `instruments`, at first nobody, are
    told how long the model runs.
    Raises ConfigError unless `probability` lies between 0 and 1.
    """

    def __init__(
        self,
        model: Model,
        *,
        min_confidence: float = 0.5,
        probability: float = 0.95,
        backend: str | None = None,
        peaks: int = 1,
    ) -> None:
        if not 0.0 < probability < 1.0:
            raise ConfigError(f"probability={probability}: must lie between 0 and 1")
        self.model = model
        self.min_confidence = min_confidence
        self.probability = probability
        self.instruments: Instruments = NoInstruments()
        self._identity = replace(model.identity, backend=backend or model.identity.backend)
        self._keys = AnswerKeys.of(model)
        self._mask = ChannelMask(model.contract)
        self._framing = Framing.of(model.contract)
        self._frame = model.contract.frame.local
        self._in_degrees = model.contract.frame.kind == "wgs84_deg"
        self._min_receivers = model.contract.min_receivers
        self._names = [receiver.name for receiver in model.contract.receivers]
        self._peaks = peaks
        # Three arrival times fit two places as a rule, and levels many; more receivers leave one.
        self._mirrors = self.tells_likelihood and (model.contract.correlation_config is None or len(self._names) <= 3)
        self._eraser = None if model.contract.correlation_config is None else PeakEraser(model.contract)

    def locate(self, window: Window, context: WindowContext, *, arm: str = "champion") -> Fix:
        """The fix of one window; see `locate_batch`."""
        return self.locate_batch([window], [context], arm=arm)[0]

    def locate_batch(
        self, windows: Sequence[Window], contexts: Sequence[WindowContext], *, arm: str = "champion"
    ) -> list[Fix]:
        """The fixes of windows of one length, in one inference.

        What cannot be answered is a fix without position that names its reason; one window's trouble leaves the others
        alone. Raises UnavailableError where nothing answers in time.
        """
        return self.conclude(self.infer(windows), windows, contexts, arm=arm)

    def infer(self, windows: Sequence[Window], cache: AnswerCache | None = None) -> Inference:
        """The first half of `locate_batch`: what takes the model, as far as `cache` has no answer. Raises
        UnavailableError.
        """
        sound = [self._mask.sound(window) for window in windows]
        usable = [self._mask.usable(each) for each in sound]
        fed = [index for index, each in enumerate(usable) if np.count_nonzero(each) >= self._min_receivers]
        masked = [self._mask.apply(windows[index].features, sound[index]) for index in fed]
        if cache is not None and self._keys is not None:
            found = self._recalled(cache, self._keys, usable, fed, masked)
        else:
            outputs, spent_ms = self._timed(masked)
            found = Inference(usable, dict(zip(fed, outputs, strict=True)), spent_ms)
        if self._peaks == 1:
            return found
        answers = dict(found.outputs)
        peaks = {}
        for index, each in zip(fed, masked, strict=True):
            if self._eraser is not None and not self._is_placed(answers[index]):
                focused = self._focused(each)
                answers[index] = focused if self._is_placed(focused) else answers[index]
            peaks[index] = self._further(each, answers[index])
        return replace(found, outputs=answers, peaks=peaks)

    def _is_placed(self, output: ModelOutput | None) -> bool:
        return output is not None and self._judged(output)[2] is not None

    def _focused(self, features: np.ndarray) -> ModelOutput | None:
        """The answer to what most pairs of masked features agree on."""
        assert self._eraser is not None
        focused = self._eraser.focus(features)
        if focused is None:
            return None
        (answer,) = self._run([self.model.contract.normalisation.apply(focused)])
        return answer

    def _further(self, features: np.ndarray, output: ModelOutput | None) -> tuple[Peak, ...]:
        """Further places that masked features point to, beside the answer. Raises UnavailableError."""
        _, _, placed = (None, 0.0, None) if output is None else self._judged(output)
        found: list[Peak] = []
        given = features
        places = [placed] if placed is not None else []
        while self._eraser is not None and placed is not None and len(places) < self._peaks:
            position, ellipse = placed
            sigma_m = max(ellipse.sigma_x, ellipse.sigma_y)
            altitude_m = self._frame.altitude_m
            features = self._eraser.erase(features, position.latitude, position.longitude, altitude_m, sigma_m)
            (answer,) = self._run([self.model.contract.normalisation.apply(features)])
            if not self._is_placed(answer):
                answer = self._focused(features)
            _, confidence, placed = (None, 0.0, None) if answer is None else self._judged(answer)
            if placed is None or any(are_one(placed, other) for other in places):
                break
            places.append(placed)
            found.append(Peak(*placed, confidence, "emitter"))
        if len(places) == 1 and self._mirrors:
            found = self._alternatives(given, places[0])
        return tuple(found)

    def _alternatives(self, features: np.ndarray, placed: tuple[Position, Uncertainty]) -> list[Peak]:
        """Where the same emitter may be instead, as the likelihood of masked features has it."""
        assert isinstance(self.model, LikelihoodModel)
        assert self.model.contract.likelihood is not None
        try:
            likelihood = self.model.likelihood(self.model.contract.normalisation.apply(features)[None])
        except EngineError:
            return []
        if likelihood is None or not np.isfinite(likelihood).all():
            return []
        several = [
            Peak(basin.position, basin.uncertainty(self.probability), min(basin.mass, 1.0), "alternative")
            for basin in basins(likelihood[0], self.model.contract.likelihood)
        ]
        if len(several) < 2:
            return []
        own = min(several, key=lambda peak: separation_m(peak.position, placed[0]))
        return [peak for peak in several if peak is not own][: self._peaks - 1]

    @property
    def tells_likelihood(self) -> bool:
        """Whether the model can say how probable each part of its area is."""
        return isinstance(self.model, LikelihoodModel) and self.model.contract.likelihood is not None

    def likelihood(self, window: Window) -> np.ndarray:
        """Probability of the cells of the contract's grid, see LikelihoodGrid: float32 (rows, columns), summing to one.

        Raises EngineError where the model does not tell, inference fails, or too few receivers are of use.
        """
        model = self.model
        if not isinstance(model, LikelihoodModel) or model.contract.likelihood is None:
            raise EngineError(f"the model {model.contract.name} tells no likelihood")
        sound = self._mask.sound(window)
        if np.count_nonzero(self._mask.usable(sound)) < self._min_receivers:
            raise EngineError(f"the last window has no likelihood: {_refusal(window)}")
        masked = model.contract.normalisation.apply(self._mask.apply(window.features, sound))
        found = model.likelihood(masked[None])
        if found is None or not np.isfinite(found).all():
            raise EngineError("the last window has no likelihood: model_error")
        return found[0]

    def infer_alike(self, window: Window, similar: SimilarityCache, key: str, moment_s: float) -> Inference:
        """The same for one window of a stream, of which `similar` knows recent answers. Raises UnavailableError.

        `key`: of this model's release. `moment_s`: when the window was complete, of a clock that only rises.
        """
        sound = self._mask.sound(window)
        usable = self._mask.usable(sound)
        if np.count_nonzero(usable) < self._min_receivers:
            return Inference([usable], {}, 0.0)
        began = time.perf_counter()
        known = similar.match(window, key, moment_s)
        lookup_ms = (time.perf_counter() - began) * 1e3
        if known is not None:
            return Inference([usable], {0: known.output}, 0.0, frozenset({0}), lookup_ms)
        (output,), spent_ms = self._timed([self._mask.apply(window.features, sound)])
        if output is not None and self._is_answer(output):
            similar.keep(window, output, key, moment_s)
        return Inference([usable], {0: output}, spent_ms, frozenset(), lookup_ms)

    def _recalled(
        self,
        cache: AnswerCache,
        keys: AnswerKeys,
        usable: Sequence[np.ndarray],
        fed: Sequence[int],
        masked: Sequence[np.ndarray],
    ) -> Inference:
        """Answers from the cache, and of the model for each window that it lacks; equal ones are answered once."""
        found = cache.look_up(keys, masked)
        outputs: dict[int, ModelOutput | None] = {}
        hits: set[int] = set()
        lacking: dict[str, list[int]] = defaultdict(list)
        for place, (key, answer) in enumerate(zip(found.keys, found.answers, strict=True)):
            outputs[fed[place]] = answer
            if answer is None:
                lacking[key].append(place)
            else:
                hits.add(fed[place])
        answers, spent_ms = self._timed([masked[places[0]] for places in lacking.values()])
        for (key, places), answer in zip(lacking.items(), answers, strict=True):
            outputs |= dict.fromkeys((fed[place] for place in places), answer)
            if answer is not None and self._is_answer(answer):
                cache.keep(key, answer, spent_ms, repeats=len(places) - 1)
                hits |= {fed[place] for place in places[1:]}
        return Inference(usable, outputs, spent_ms, frozenset(hits), found.spent_ms)

    def _timed(self, masked: Sequence[np.ndarray]) -> tuple[list[ModelOutput | None], float]:
        """The model's answers to masked features, and the time that each of them took."""
        began = time.perf_counter()
        outputs = self._run([self.model.contract.normalisation.apply(features) for features in masked])
        return outputs, (time.perf_counter() - began) * 1e3 / max(len(masked), 1)

    def conclude(
        self,
        inference: Inference,
        windows: Sequence[Window],
        contexts: Sequence[WindowContext],
        *,
        arm: str = "champion",
    ) -> list[Fix]:
        """The second half: what the answers mean."""
        return [
            self._fix(
                window,
                contexts[index],
                inference.usable[index],
                inference.outputs.get(index),
                None if index in inference.outputs else _refusal(window),
                arm=arm,
                spent_ms=_spent_ms(inference, index),
                cache_hit=index in inference.hits,
                peaks=inference.peaks.get(index, ()),
            )
            for index, window in enumerate(windows)
        ]

    def refuse(self, window: Window, context: WindowContext, reason: str, *, arm: str = "champion") -> Fix:
        """A fix without position, the model not having been asked."""
        usable = self._mask.usable(self._mask.sound(window))
        return self._fix(window, context, usable, None, reason, arm=arm, spent_ms=0.0)

    def _run(self, features: Sequence[np.ndarray]) -> list[ModelOutput | None]:
        """An answer of batch 1 to each, None where inference fails."""
        if not features:
            return []
        try:
            # One window is not copied: that would cost more than a small model.
            output = self._run_timed(features[0][None] if len(features) == 1 else np.stack(features))
        except UnavailableError:
            raise
        except EngineError:
            return [None] if len(features) == 1 else [answer for each in features for answer in self._run([each])]
        if len(features) == 1:
            return [output]
        return [
            ModelOutput(output.position[k : k + 1], output.uncertainty[k : k + 1], output.confidence[k : k + 1])
            for k in range(len(features))
        ]

    def _run_timed(self, batch: np.ndarray) -> ModelOutput:
        began_s = time.perf_counter()
        try:
            return self.model.run(batch)
        finally:
            self.instruments.observe("model_run", time.perf_counter() - began_s, backend=self._identity.backend)

    def _fix(
        self,
        window: Window,
        context: WindowContext,
        usable: np.ndarray,
        output: ModelOutput | None,
        reason: str | None,
        *,
        arm: str,
        spent_ms: float,
        cache_hit: bool = False,
        peaks: tuple[Peak, ...] = (),
    ) -> Fix:
        position: Position | None = None
        uncertainty: Uncertainty | None = None
        confidence = 0.0
        if output is not None:
            reason, confidence, placed = self._judged(output)
            if placed is not None:
                position, uncertainty = placed
        elif reason is None:
            reason = "model_error"
        steps = window.features.shape[2]
        samples = steps * self._framing.hop
        return Fix(
            station=context.station,
            stream=context.stream,
            sequence=context.sequence,
            timestamp=self._framing.centre(context.start, steps),
            time_source=context.time_source,
            status="ok" if reason is None else "no_fix",
            reason=reason,
            position=position,
            uncertainty=uncertainty,
            confidence=confidence,
            frequency_hz=context.frequency_hz,
            receivers=_reports(window, usable, self._names),
            model=self._identity if arm == self._identity.arm else replace(self._identity, arm=arm),
            window_samples=samples,
            window_duration_s=samples / self._framing.sample_rate_hz,
            alignment=context.alignment,
            cache_hit=cache_hit,
            inference_time_ms=spent_ms,
            latency_ms=(time.monotonic() - context.completed_s) * 1e3,
            dropped_windows=context.dropped,
            id=context.id,
            peaks=peaks,
        )

    def _judged(self, output: ModelOutput) -> tuple[str | None, float, tuple[Position, Uncertainty] | None]:
        """Reason against the answer, its confidence, and its place where nothing is to be said against it."""
        if not _means_something(output):
            return "model_error", 0.0, None
        confidence = min(max(output.confidence[0, 0].item(), 0.0), 1.0)
        if confidence < self.min_confidence:
            return "no_emitter", confidence, None
        first, second = output.position[0].tolist()
        sigma_x, sigma_y, theta = output.uncertainty[0].tolist()
        placed = self._place(first, second, Uncertainty(sigma_x, sigma_y, theta, self.probability))
        return (None if placed is not None else "model_error"), confidence, placed

    def _is_answer(self, output: ModelOutput) -> bool:
        """Whether no error is made of it, whatever confidence a fix must have."""
        return _means_something(output) and self._is_on_earth(*output.position[0].tolist())

    def _is_on_earth(self, first: float, second: float) -> bool:
        if self._in_degrees:
            return abs(first) <= 90.0 and abs(second) <= 360.0
        return math.hypot(first, second) <= HORIZON_M

    def _place(self, first: float, second: float, uncertainty: Uncertainty) -> tuple[Position, Uncertainty] | None:
        """Place and ellipse on the ground, None where the model's answer is no place on Earth."""
        if not self._is_on_earth(first, second):
            return None
        if self._in_degrees:
            latitude, longitude = first, second
            longitude = (longitude + 180.0) % 360.0 - 180.0  # an area may reach across the antimeridian
            return Position(latitude, longitude), uncertainty
        latitude, longitude, covariances_m2 = self._frame.on_ground(first, second, uncertainty.covariances_m2)
        return Position(latitude, longitude), Uncertainty.of_covariances(*covariances_m2, self.probability)


def _means_something(output: ModelOutput) -> bool:
    """Whether one window's answer is finite, and its ellipse has two axes."""
    values = (*output.position[0].tolist(), *output.uncertainty[0].tolist(), *output.confidence[0].tolist())
    return all(map(math.isfinite, values)) and min(values[2], values[3]) > 0.0


def _spent_ms(inference: Inference, index: int) -> float:
    """What a window took: the model's time, or that of looking for an answer that was known; nothing if neither."""
    if index in inference.hits:
        return inference.lookup_ms
    return inference.spent_ms if index in inference.outputs else 0.0


def _refusal(window: Window) -> str:
    """Why too few receivers are left."""
    if window.unusable.all() and all(flag & SampleFlag.SILENT for flag in window.flags):
        return "silence"
    invalid = (flag & SampleFlag.INVALID and lost for flag, lost in zip(window.flags, window.unusable, strict=True))
    return "invalid_samples" if any(invalid) or not np.isfinite(window.features).all() else "too_few_receivers"


def _reports(window: Window, usable: np.ndarray, names: Sequence[str]) -> tuple[ReceiverReport, ...]:
    levels_db, used = window.level_db.tolist(), usable.tolist()
    return tuple(
        ReceiverReport(name=name, level_db=level if math.isfinite(level) else None, used=fine, flags=flag.words)
        for name, level, fine, flag in zip(names, levels_db, used, window.flags, strict=True)
    )
