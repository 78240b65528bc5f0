"""Windows in, fixes out, with models that come and go: one engine serves streams and requests alike."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from localize_core.cache.answers import AnswerCache, open_cache
from localize_core.cache.settings import CacheSettings
from localize_core.engine.instruments import Instruments
from localize_core.engine.locator import Inference, WindowContext
from localize_core.engine.similarity import SimilarityCache
from localize_core.engine.windows import Framing, Window
from localize_core.engine.worker import InferenceWorker
from localize_core.errors import ConfigError, EngineError, LocalizeError, ModelError, UnavailableError
from localize_core.model.admission import admit, check_window
from localize_core.model.contract import Contract
from localize_core.model.onnx_model import OnnxModel
from localize_core.model.source import RemoteUri, parse_model_uri
from localize_core.sanity.geometry import ArrivalGeometry
from localize_core.sanity.monitor import SanityMonitor
from localize_core.serving.arm import Arm, Loader
from localize_core.serving.experiment import Experiment
from localize_core.serving.health import CONDITIONS, Health
from localize_core.serving.likelihood import Likelihood
from localize_core.serving.requests import MAX_REQUESTS, Request, RequestReader
from localize_core.serving.sanity import SanityWatch
from localize_core.serving.settings import ChallengerSettings, ServingSettings
from localize_core.serving.sources import open_champion, open_source
from localize_core.serving.tally import FALLBACK, Tally
from localize_core.serving.version import Version
from localize_core.serving.watcher import Watcher
from localize_core.types.fix import Fix

log = logging.getLogger(__name__)

VACANT_POLL_S = 5.0
"""How often a source is asked while the arm has no version at all."""
SHADOW_CAPACITY = 8
COMMANDS = ("info", "health", "reload", "activate", "rollback", "promote", "share")

OnStatus = Callable[[dict[str, Any]], None]
OnFix = Callable[[Fix], None]
_Comparison = tuple[Window, WindowContext, Fix, Arm]


class Engine:
    """Turns windows into fixes with the models that its settings name, and exchanges them while it runs.

    `compiled`: the station's compiled model, which the source string `compiled` stands for. `station`: name in fixes
    that answer requests, the contract's if empty. `min_confidence`: below it the answer is no fix. `probability`: what
    the ellipse of a fix is said to hold. `cache`: which answers are kept for windows that come again, None for none.
    `geometry`: how far the receivers' times are to be trusted, in the contract's order; None for what is usual.

    A new engine has loaded and admitted its champion, and knows the `contract` of windows. After `prepare` it answers;
    between `start` and `stop` it also watches the sources, takes commands and compares. Answers may be asked for from
    any thread.

    Raises ConfigError, ModelError, RegistryError or UnavailableError where there is no champion to begin with: where a
    registry does not answer, the release that served last will do, and for an inference server the fallback.
    """

    def __init__(
        self,
        settings: ServingSettings,
        *,
        compiled: Path | None = None,
        station: str = "",
        min_confidence: float = 0.5,
        probability: float = 0.95,
        cache: CacheSettings | None = None,
        geometry: ArrivalGeometry | None = None,
    ) -> None:
        self.settings = settings
        self._cache_settings, self._cache = cache or CacheSettings(), open_cache(cache)
        self.health, self.tally = Health(), Tally()
        self.shadow_dropped = 0
        self._compiled = compiled
        self._loader = Loader(
            min_confidence=_checked_confidence(min_confidence), probability=probability, peaks=settings.peaks
        )
        source = open_champion(settings, compiled=compiled)
        self._champion = Arm("champion", source, self._loader, self.health, self.tally, prefix="model")
        self._challenger: Arm | None = None
        self._experiment: Experiment | None = None
        self._fallback: Version | None = None
        if settings.fallback is not None:
            local = open_source(settings.fallback, settings, compiled=compiled)
            self._fallback = self._loader.load(local.latest(), as_fallback=True)
            self._loader.like = self._fallback.locator.model.contract
        try:
            self._champion.open()
        except UnavailableError as error:
            if self._fallback is None:
                raise
            self._champion.unavailable(str(error))
        self.contract: Contract = (self._champion.current or self._at_hand()).locator.model.contract
        self._loader.like = self.contract
        self.reader = RequestReader(self.contract)
        self.station = station or self.contract.name
        self._numbering = threading.Lock()
        self._numbered = 0
        self._live = False
        self._alike: dict[str, SimilarityCache] = {}
        self._tuned_hz: float | None = None
        self._latest: tuple[Window, WindowContext] | None = None
        self._observed: dict[str, Callable[[], Any]] = {}
        self._on_status: OnStatus | None = None
        self._on_shadow: OnFix | None = None
        self._shadow: InferenceWorker[_Comparison, tuple[_Comparison, Fix]] | None = None
        self._watcher: Watcher | None = None
        geometry = geometry or ArrivalGeometry.of_contract(self.contract)
        self._sanity: SanityWatch | None = None
        if geometry is not None and self.contract.correlation_config is not None:
            self._sanity = SanityWatch(SanityMonitor(self.contract, geometry), self.health, self.notify)

    # Life

    @property
    def time_steps(self) -> int:
        """Frames in a window of a stream; 0 before `prepare`, and where requests bring as many as they like."""
        return self._loader.time_steps

    @property
    def is_remote(self) -> bool:
        """Whether answers come over a network, so that it pays to wait for several at a time."""
        return isinstance(parse_model_uri(self.settings.uri), RemoteUri)

    def prepare(self, time_steps: int = 0) -> None:
        """Get ready for windows of so many frames; 0 where the contract says how many.

        Raises ConfigError where the contract says otherwise, ModelError where a model is no good for them. A challenger
        that is no good is a matter of `health`.
        """
        self._loader.time_steps = _agreed_steps(self.contract, time_steps)
        self.reader = RequestReader(self.contract, self.time_steps)
        for version in [*self._champion.versions, *self._fallbacks()]:
            try:
                admit(version.locator.model, time_steps=self.time_steps, like=self.contract)
            except UnavailableError as error:
                self._champion.unavailable(str(error))
        self._open_challenger(self.settings.challenger)

    def prepare_for_requests(self) -> None:
        """Get ready for requests alone, each with as many frames as it brings where the contract does not say it.

        A challenger that is no good is a matter of `health`.
        """
        self._loader.time_steps = self.contract.time_steps or 0
        self.reader = RequestReader(self.contract, self.time_steps)
        self._open_challenger(self.settings.challenger)

    def start(self, *, on_status: OnStatus | None = None, on_shadow: OnFix | None = None, live: bool = False) -> None:
        """Watch, take commands and compare. Both functions are called from threads of the engine.

        `live`: comparisons are the first to go where time is short, and the cache leaves the streams alone unless its
        settings say otherwise; if not live, comparisons hold the caller back.
        """
        self._on_status, self._on_shadow, self._live = on_status, on_shadow, live
        self._tuned_hz = None
        for kept in self._alike.values():
            kept.forget()
        if self._cache is not None:
            self._cache.start()
        self._start_shadow()
        if self._sanity is not None:
            self._sanity.start(live=live)
        self._watcher = Watcher(self._poll, self._poll_s, name="localize-models")
        self._watcher.start()
        self.health.run()
        self.notify()

    def stop(self) -> None:
        """End the engine's threads; models stay loaded, and answers can still be had."""
        if self._watcher is not None:
            self._watcher.stop()
        self._watcher = None
        self._stop_shadow()
        if self._sanity is not None:
            self._sanity.stop()
        if self._cache is not None:
            self._cache.close()
        self.health.stop()
        self.notify()

    def close(self) -> None:
        """Let go of all models."""
        for arm in self._arms():
            arm.close()
        for version in self._fallbacks():
            version.retire()

    @property
    def model_file(self) -> Path | None:
        """The file of the champion that serves now; None for a model behind an inference server."""
        return _file_of(self._champion.current)

    @property
    def has_compiled(self) -> bool:
        """Whether the source string `compiled` stands for a model here."""
        return self._compiled is not None

    @property
    def fallback_file(self) -> Path | None:
        """The file of the fallback, where there is one."""
        return _file_of(self._fallback)

    def observe(self, section: str, report: Callable[[], Any]) -> None:
        """Have `status` carry what somebody else knows, such as how long a stream's windows wait."""
        self._observed[section] = report

    def observed(self, section: str) -> Any:
        """What the one who knows says now; None where there is nobody."""
        report = self._observed.get(section)
        return None if report is None else report()

    def instrument(self, instruments: Instruments) -> None:
        """From now on, tell them how long everything takes."""
        self._loader.instruments = instruments
        for version in self._versions():
            version.locator.instruments = instruments

    # Answers

    def locate(self, window: Window, context: WindowContext) -> Fix:
        """The fix of one window of a stream. Never raises on data."""
        return self.begin([window], [context])()[0]

    def begin(self, windows: Sequence[Window], contexts: Sequence[WindowContext]) -> Callable[[], list[Fix]]:
        """The first half of answering windows of one stream, which takes the model; the second gives their fixes.

        It may run in another thread. Neither raises on data.
        """
        instruments, began_s = self._loader.instruments, time.monotonic()
        for context in contexts:
            instruments.observe("queue", began_s - context.completed_s)
        conclude = self._begun(windows, contexts)

        def concluded() -> list[Fix]:
            fixes = conclude()
            instruments.observe("inference", time.monotonic() - began_s, count=len(fixes))
            self.tally.answered(fixes)
            if self._sanity is not None:
                self._sanity.offer(windows, fixes)
            return fixes

        return concluded

    @property
    def sanity(self) -> dict[str, Any]:
        """What the receivers' times say of clocks, coordinates and geometry; empty where there is nothing to tell."""
        return {} if self._sanity is None else self._sanity.report()

    @property
    def tells_likelihood(self) -> bool:
        """Whether `likelihood` may have an answer: a compiled model tells it, others where their contract says so."""
        version = self._champion.current
        return version is not None and version.locator.tells_likelihood

    def likelihood(self) -> Likelihood:
        """How probable each part of the area was in the last window that was asked about, of a stream or a request.

        Raises EngineError saying why there is none.
        """
        latest, version = self._latest, self._champion.acquire()
        if version is None:
            raise EngineError("no model serves")
        try:
            if latest is None:
                raise EngineError("there was no window yet")
            window, context = latest
            probability = version.locator.likelihood(window)
            grid = version.locator.model.contract.likelihood
            assert grid is not None  # or there had been no answer
            steps = window.features.shape[2]
            return Likelihood(
                station=context.station,
                stream=context.stream,
                sequence=context.sequence,
                timestamp=Framing.of(self.contract).centre(context.start, steps),
                grid=grid,
                probability=probability,
            )
        finally:
            version.release()

    def predict(self, requests: Sequence[Request]) -> list[Fix]:
        """A fix for each of 1 to 100 requests, in their order and with their ids; each fails alone.

        Raises ConfigError for another number of requests.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise ConfigError(f"{len(requests)} requests: a batch has 1 to {MAX_REQUESTS}")
        instruments, asked_s = self._loader.instruments, time.monotonic()
        fixes: dict[int, Fix] = {}
        windows: dict[int, tuple[Window, WindowContext]] = {}
        alike: dict[tuple[str, int, bool], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            began_s = time.monotonic()
            try:
                window, start = self.reader.window(request)
            except ConfigError as error:
                log.warning("request %s: %s", request.id, error)
                fixes[index] = self._refused(request, "invalid_request")
                continue
            instruments.observe("preprocessing", time.monotonic() - began_s)
            windows[index] = window, self._context(request, start, began_s)
            # The stream decides which arm answers, where there is a choice.
            stream = request.stream if self._experiment is not None else ""
            alike[stream, window.features.shape[2], request.cache].append(index)
        for (_, _, cached), indices in alike.items():
            pairs = [windows[index] for index in indices]
            cached = cached and self._cache_settings.requests
            located = self._begun([window for window, _ in pairs], [context for _, context in pairs], cached=cached)()
            fixes.update(zip(indices, located, strict=True))
        instruments.observe("inference", time.monotonic() - asked_s, count=len(windows))
        answers = [fixes[index] for index in range(len(requests))]
        self.tally.answered(answers)
        return answers

    def refuse(self, request: Request, reason: str) -> Fix:
        """The fix of a request that no model is asked about."""
        fix = self._refused(request, reason)
        self.tally.answered([fix])
        return fix

    def _refused(self, request: Request, reason: str) -> Fix:
        context = self._context(request, request.start or (int(time.time()), 0.0), time.monotonic())
        version = self._champion.current or self._at_hand()
        return version.locator.refuse(self.reader.empty(), context, reason)

    def _context(self, request: Request, start: tuple[int, float], began_s: float) -> WindowContext:
        with self._numbering:
            sequence = self._numbered
            self._numbered += 1
        return WindowContext(
            station=self.station,
            stream=request.stream,
            sequence=sequence,
            start=start,
            time_source="none" if request.start is None else "rx_time",
            frequency_hz=self.contract.frequency_hz if request.frequency_hz is None else request.frequency_hz,
            alignment=None,
            completed_s=began_s,
            dropped=0,
            id=request.id,
        )

    def _begun(
        self, windows: Sequence[Window], contexts: Sequence[WindowContext], *, cached: bool | None = None
    ) -> Callable[[], list[Fix]]:
        """Infer windows of one stream and one length; what is returned gives their fixes.

        `cached`: whether the cache may answer, None for what its settings say of streams.
        """
        self._latest = windows[-1], contexts[-1]
        if cached is None:
            cached = self._cache_settings.live if self._live else self._cache_settings.replay
        cache = self._cache if cached else None
        challenger, experiment = self._challenger, self._experiment
        if challenger is None or experiment is None or challenger.current is None:
            return self._inferred(self._champion, windows, contexts, cache)
        if experiment.compares and len(windows) > 1:
            # One by one: a batch's mean time is not to be held against that of a single window.
            singly = [
                self._begun([window], [context], cached=cached)
                for window, context in zip(windows, contexts, strict=True)
            ]
            return lambda: [fix for conclude in singly for fix in conclude()]
        chosen = challenger if experiment.serves(contexts[0].unit or contexts[0].stream) else self._champion
        conclude = self._inferred(chosen, windows, contexts, cache)
        if not experiment.compares:
            return conclude
        other = self._champion if chosen is challenger else challenger

        def concluded() -> list[Fix]:
            fixes = conclude()
            for window, context, fix in zip(windows, contexts, fixes, strict=True):
                if fix.model.arm != chosen.name:  # it did not answer, and the champion did
                    self._judge(experiment, experiment.fail(1))
                elif not fix.cache_hit and not fix.model.backend.startswith("fallback:"):
                    self._compare((window, context, fix, other))
            return fixes

        return concluded

    def _inferred(
        self, arm: Arm, windows: Sequence[Window], contexts: Sequence[WindowContext], cache: AnswerCache | None
    ) -> Callable[[], list[Fix]]:
        serving = arm.acquire()
        if serving is not None:
            try:
                done = [*self._answered(arm, serving, windows, contexts, cache)]
            except UnavailableError as error:
                self.tally.unanswered(arm.name, len(windows))
                if arm.unavailable(str(error)):
                    self.notify()
                    if self._watcher is not None and self.settings.poll_s:
                        self._watcher.hasten()  # the version that is asked for may be gone for another
            else:
                return lambda: [fix for each in done for fix in self._concluded(arm, serving, *each)]
            finally:
                serving.release()
        if arm is not self._champion:
            return self._inferred(self._champion, windows, contexts, cache)
        version = self._at_hand()
        if version is self._fallback:
            inference = version.locator.infer(windows, cache)
            fixes = version.locator.conclude(inference, windows, contexts, arm=arm.name)
            self._count(FALLBACK, version, fixes)
        else:
            fixes = [
                version.locator.refuse(window, context, "model_unavailable")
                for window, context in zip(windows, contexts, strict=True)
            ]
        return lambda: fixes

    def _answered(
        self,
        arm: Arm,
        serving: Version,
        windows: Sequence[Window],
        contexts: Sequence[WindowContext],
        cache: AnswerCache | None,
    ) -> Iterator[tuple[Inference, Sequence[Window], Sequence[WindowContext]]]:
        """What the version says to windows: to all at once, or one after the other where each tells of the next."""
        if not self.takes_turns or contexts[0].id is not None:  # requests are no stream
            yield serving.locator.infer(windows, cache), windows, contexts
            return
        for window, context in zip(windows, contexts, strict=True):
            similar = self._similar(arm, context)
            yield (
                serving.locator.infer_alike(window, similar, serving.key, context.completed_s),
                [window],
                [context],
            )

    def _concluded(
        self,
        arm: Arm,
        serving: Version,
        inference: Inference,
        windows: Sequence[Window],
        contexts: Sequence[WindowContext],
    ) -> list[Fix]:
        fixes = serving.locator.conclude(inference, windows, contexts, arm=arm.name)
        if inference.hits and not inference.asked:
            self._count(arm.name, serving, fixes)  # what is known already says nothing of the arm's health
        else:
            self._take_note(arm, serving, fixes)
        return fixes

    @property
    def serving(self) -> dict[str, Version | None]:
        """What answers, by arm, and the fallback where there is one."""
        answering = {arm.name: arm.current for arm in self._arms()}
        return answering if self._fallback is None else {**answering, FALLBACK: self._fallback}

    @property
    def cache(self) -> AnswerCache | None:
        """What keeps answers for windows that come again."""
        return self._cache

    @property
    def similar(self) -> dict[str, dict[str, Any]]:
        """By arm, how often a window of the live stream was like a recent one; empty where that is not looked for."""
        return {arm: kept.as_dict() for arm, kept in dict(self._alike).items()}

    @property
    def takes_turns(self) -> bool:
        """Whether windows of the stream have to be answered one after the other, for one tells of the next."""
        return self._live and self._cache_settings.similar is not None

    def _similar(self, arm: Arm, context: WindowContext) -> SimilarityCache:
        """Recent answers of the arm to the live stream, as far as they may hold for this window."""
        if context.frequency_hz != self._tuned_hz:
            # Whatever is heard there, it is another emitter.
            self._tuned_hz = context.frequency_hz
            for kept in self._alike.values():
                kept.forget()
        if arm.name not in self._alike:
            self._alike[arm.name] = SimilarityCache(self.contract, self._cache_settings.similar)
        return self._alike[arm.name]

    def _take_note(self, arm: Arm, serving: Version, fixes: Sequence[Fix]) -> None:
        """The arm has answered: count it, and what does that say of its health?"""
        if arm.note_answer(failed=self._count(arm.name, serving, fixes)):
            self.notify()

    def _count(self, arm: str, version: Version, fixes: Sequence[Fix]) -> bool:
        """Note what came out of one inference. Returns whether it failed on any."""
        self.tally.inferred(arm, fixes)
        return version.statistics.add(fixes)

    def _at_hand(self) -> Version:
        """A version that answers when the champion does not: the fallback, else the champion itself refuses."""
        version = self._fallback or self._champion.current
        assert version is not None  # without a fallback, there is no engine without a champion
        return version

    # Comparison

    def _start_shadow(self) -> None:
        experiment = self._experiment
        if experiment is None or not experiment.compares:
            return
        self._shadow = InferenceWorker(
            self._compared,
            self._deliver_comparison,
            policy="drop-oldest" if self._live else "block",
            capacity=SHADOW_CAPACITY,
            # A canary's time is held against the champion's: that would not be fair with different priorities.
            low_priority=experiment.settings.mode == "shadow",
            name="localize-shadow",
        )
        self._shadow.start()

    def _stop_shadow(self) -> None:
        shadow, self._shadow = self._shadow, None
        if shadow is not None:
            shadow.stop()

    def _compare(self, job: _Comparison) -> None:
        """Have the other arm answer a window as well, unless time is short."""
        _, context, fix, _ = job
        shadow = self._shadow
        if shadow is None:
            return
        if self._live and time.monotonic() - context.completed_s > fix.window_duration_s:
            self.shadow_dropped += 1  # the stream itself is behind: the machine is all its own
            return
        before = shadow.dropped
        try:
            shadow.submit(job)
        except Exception as error:  # of whatever comparing does: the stream has nothing to do with it
            self._give_up(f"comparing has failed: {type(error).__name__}: {error}")
        self.shadow_dropped += shadow.dropped - before

    def _give_up(self, reason: str) -> None:
        experiment = self._experiment
        if experiment is not None and experiment.state != "rolled_back":
            log.error("experiment %s: %s", experiment.name, reason)
            experiment.abort(reason)
            self.health.report("experiment_rolled_back", reason)
            self.notify()

    def _compared(self, jobs: Sequence[_Comparison], dropped: Sequence[int]) -> tuple[_Comparison, Fix]:
        (job,) = jobs
        window, context, _, other = job
        serving = other.acquire()
        if serving is None or other not in self._arms():
            if serving is not None:
                serving.release()
            return job, self._at_hand().locator.refuse(window, context, "model_unavailable", arm="shadow")
        try:
            fix = serving.locator.locate(window, context, arm="shadow")
        except UnavailableError as error:
            self.tally.unanswered(other.name, 1)
            if other.unavailable(str(error)):
                self.notify()
            return job, serving.locator.refuse(window, context, "model_unavailable", arm="shadow")
        finally:
            serving.release()
        self._take_note(other, serving, [fix])
        return job, fix

    def _deliver_comparison(self, compared: tuple[_Comparison, Fix]) -> None:
        (_, _, fix, other), shadow = compared
        if self._on_shadow is not None:
            self._on_shadow(shadow)
        experiment = self._experiment
        if experiment is None or other not in self._arms():
            return
        pair = (shadow, fix) if other is self._champion else (fix, shadow)
        self._judge(experiment, experiment.compare(*pair))

    def _judge(self, experiment: Experiment, changed: bool) -> None:
        """Say so where an experiment has gone a step further, or back."""
        if not changed or experiment is not self._experiment:
            return
        if experiment.state == "rolled_back":
            self.health.clear("challenger_error", "challenger_unavailable")  # it is not asked any more
            self.health.report("experiment_rolled_back", experiment.reason)
        log.info("experiment %s: %s %s", experiment.name, experiment.state, experiment.reason)
        self.notify()

    # Settings that may change

    @property
    def min_confidence(self) -> float:
        return self._loader.min_confidence

    @property
    def probability(self) -> float:
        return self._loader.probability

    def set_min_confidence(self, min_confidence: float) -> None:
        """Below it a fix has no position. Raises ConfigError outside 0 to 1."""
        self._loader.min_confidence = _checked_confidence(min_confidence)
        for version in self._versions():
            version.locator.min_confidence = min_confidence

    def set_share_percent(self, percent: float) -> None:
        """The challenger's share of the streams. Raises ConfigError outside 0 to 100, or where none has a share."""
        if not 0.0 <= percent <= 100.0:
            raise ConfigError(f"share_percent={percent}: must lie between 0 and 100")
        if self._experiment is None or self._experiment.settings.mode != "split":
            raise ConfigError(f"share_percent={percent}: only a challenger in mode split has a share to set")
        self._experiment.set_share_percent(percent)

    def configure(self, settings: ServingSettings) -> Future[None]:
        """Go over to other settings while running, and ask all sources for news.

        Models that the settings leave as they are are not loaded again. The future raises what is wrong with the new
        champion: then the one before goes on; ConfigError for a new fallback, which takes a restart.
        """
        return self._running().do(lambda: self._configured(settings))

    def _configured(self, settings: ServingSettings) -> None:
        before = self.settings
        if settings.fallback != before.fallback:
            raise ConfigError("model.fallback: another one takes a restart")
        if settings.uri == "compiled" and self._compiled is None:
            raise ConfigError("model.uri: going over to compiled takes a restart")
        if settings.challenger is not None:
            open_source(settings.challenger.uri, settings)  # raises before anything has changed
        fields = ("uri", "registry", "contract", "deadline_ms", "max_in_flight", "session")
        moved = any(getattr(settings, field) != getattr(before, field) for field in fields)
        try:
            if moved:
                self._champion.change_source(open_champion(settings, compiled=self._compiled))
            self.settings = settings
            if moved or settings.challenger != before.challenger:
                self._open_challenger(settings.challenger)
            elif self._challenger is not None:
                self._refresh(self._challenger)
            if not moved:
                self._champion.reload()
        finally:
            self.notify()

    def _open_challenger(self, settings: ChallengerSettings | None) -> None:
        """Begin another experiment, or none. A challenger that is no good leaves the champion alone."""
        old, self._challenger, self._experiment = self._challenger, None, None
        self._stop_shadow()
        if old is not None:
            old.close()
        self.health.clear(*(name for name in CONDITIONS if name.startswith(("challenger_", "experiment_"))))
        if settings is None:
            return
        source = open_source(settings.uri, self.settings)
        challenger = Arm("challenger", source, self._loader, self.health, self.tally, prefix="challenger")
        challenger.refresh()
        self._experiment = Experiment(settings)
        if self._watcher is not None:
            self._start_shadow()
        self._challenger = challenger

    # Commands

    def submit(
        self, command: str, *, arm: str = "champion", version: str = "", percent: float | None = None
    ) -> Future[dict[str, Any]]:
        """Begin a command; the future holds its answer, or what it raised.

        `info`: everything about models and experiment; `health`; `reload`: ask the source now, and try again what was
        rejected; `activate`: serve `version` until the source names another; `rollback`: serve the version before;
        `promote`: the challenger's version becomes the champion; `share`: `percent` of the streams for the challenger.
        `reload`, `activate` and `promote` take time; the others do not. Raises ConfigError for another command, or a
        part that is missing.
        """
        if command not in COMMANDS:
            raise ConfigError(f"command {command!r}: must be one of {', '.join(COMMANDS)}")
        chosen = next((each for each in self._arms() if each.name == arm), None)
        if chosen is None:
            raise ConfigError(f"arm={arm!r}: there is none; there are {', '.join(each.name for each in self._arms())}")
        if command == "activate" and not version:
            raise ConfigError("activate: needs a version")
        if command == "reload":
            return self._running().do(lambda: self._changed(chosen, chosen.reload))
        if command == "activate":
            return self._running().do(lambda: self._changed(chosen, lambda: chosen.activate(version)))
        if command == "promote":
            return self._running().do(lambda: self._changed(self._champion, self._promote))
        done: Future[dict[str, Any]] = Future()
        try:
            if command == "rollback":
                done.set_result(self._changed(chosen, chosen.rollback))
            elif command == "share":
                if percent is None:
                    raise ConfigError("share: needs percent")
                self.set_share_percent(percent)
                done.set_result(self.info())
            else:
                done.set_result(self.info() if command == "info" else self.health.as_dict())
        except LocalizeError as error:
            done.set_exception(error)
        return done

    def execute(self, command: str, **parts: Any) -> dict[str, Any]:
        """Carry out a command and wait for its answer. Raises as `submit` does, and what is wrong with a model."""
        return self.submit(command, **parts).result()

    def status(self) -> dict[str, Any]:
        """Health, which model serves, what the cache has brought, where there is one, and what others have to add."""
        version = self._champion.current or self._at_hand()
        identity = version.locator.model.identity
        return {
            **self.health.as_dict(),
            "model": identity.name,
            "version": identity.version,
            "sha256": identity.sha256,
            **({} if self._cache is None else {"cache": self._cache.summary()}),
            **({"similar": similar} if (similar := self.similar) else {}),
            **({"sanity": sanity} if (sanity := self.sanity) else {}),
            **{section: told for section, report in self._observed.items() if (told := report()) not in ({}, None)},
        }

    def info(self) -> dict[str, Any]:
        """All there is to know: health, arms with versions, contract and figures, experiment, fallback, cache."""
        return {
            **self.status(),
            "arms": {arm.name: arm.as_dict() for arm in self._arms()},
            "experiment": None if self._experiment is None else self._experiment.as_dict(),
            "shadow_dropped": self.shadow_dropped,
            "fallback": None if self._fallback is None else self._fallback.as_dict(),
            "cache": None if self._cache is None else self._cache.as_dict(),
        }

    def notify(self) -> None:
        """Tell how things are to whoever wants to know."""
        if self._on_status is not None:
            self._on_status(self.status())

    def _changed(self, arm: Arm, change: Callable[[], None]) -> dict[str, Any]:
        before = arm.current
        change()
        if arm is self._challenger and arm.current is not before:
            self._restart_experiment()
        self.notify()
        return self.info()

    def _promote(self) -> None:
        challenger = self._challenger
        if challenger is None:
            raise ConfigError("promote: there is no challenger")
        if self._experiment is not None and self._experiment.state == "rolled_back":
            raise ConfigError(
                f"promote: the challenger was rolled back {self._experiment.reason}; a version that is wanted all the "
                "same can be activated"
            )
        self._champion.take_over(challenger)
        self._open_challenger(None)

    def _restart_experiment(self) -> None:
        """Another version of the challenger: nothing is known of it yet."""
        if self._experiment is not None:
            self._experiment.restart()
            self.health.clear("experiment_rolled_back")

    # Watching

    def _running(self) -> Watcher:
        if self._watcher is None:
            raise ConfigError("the engine is not running")
        return self._watcher

    def _arms(self) -> list[Arm]:
        return [arm for arm in (self._champion, self._challenger) if arm is not None]

    def _versions(self) -> list[Version]:
        """All that is loaded."""
        return [*(version for arm in self._arms() for version in arm.versions), *self._fallbacks()]

    def _fallbacks(self) -> list[Version]:
        return [] if self._fallback is None else [self._fallback]

    def _poll_s(self) -> float:
        if any(arm.current is None for arm in self._arms()):
            return min(self.settings.poll_s or VACANT_POLL_S, VACANT_POLL_S)
        return self.settings.poll_s

    def _poll(self) -> bool:
        before, answered = self.health.conditions, True
        for arm in self._arms():
            answered &= self._refresh(arm)
        if self.health.conditions != before:
            self.notify()
        return answered

    def _refresh(self, arm: Arm) -> bool:
        version = arm.current
        answered = arm.refresh()
        if arm.current is not version:
            if arm is self._challenger:
                self._restart_experiment()
            self.notify()
        return answered


def _checked_confidence(min_confidence: float) -> float:
    if not 0.0 <= min_confidence <= 1.0:
        raise ConfigError(f"min_confidence={min_confidence}: must lie between 0 and 1")
    return min_confidence


def _file_of(version: Version | None) -> Path | None:
    model = None if version is None else version.locator.model
    return model.path if isinstance(model, OnnxModel) else None


def _agreed_steps(contract: Contract, time_steps: int) -> int:
    steps = time_steps or contract.time_steps or 0
    try:
        check_window(contract, steps)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    return steps
