"""One arm of the engine: the versions of a source, one of which serves while others come and go."""

from __future__ import annotations

import logging
import threading
from typing import Any

from localize_core.engine.instruments import Instruments, NoInstruments
from localize_core.engine.locator import Locator
from localize_core.errors import ConfigError, DigestError, LocalizeError, ModelError, RegistryError, UnavailableError
from localize_core.model.admission import admit
from localize_core.model.base import ModelSource, Release
from localize_core.model.contract import Contract
from localize_core.serving.health import Health
from localize_core.serving.tally import Outcome, Tally
from localize_core.serving.version import Version

log = logging.getLogger(__name__)


class Loader:
    """Makes releases serve: opens, admits and warms them, all for the same windows.

    `like`: contract that windows are made by, None for the first model, which decides. `time_steps`: frames of a
    window, 0 while that is not known. `instruments`: told how long models run.
    """

    def __init__(self, *, min_confidence: float, probability: float, peaks: int = 1) -> None:
        self.min_confidence, self.probability, self.peaks = min_confidence, probability, peaks
        self.like: Contract | None = None
        self.time_steps = 0
        self.instruments: Instruments = NoInstruments()

    def load(self, release: Release, *, as_fallback: bool = False) -> Version:
        """Raises ModelError for a model that is no good, RegistryError or UnavailableError where it is out of reach."""
        model = release.open()
        try:
            admit(model, time_steps=self.time_steps or _natural_steps(model.contract), like=self.like)
            locator = Locator(
                model,
                min_confidence=self.min_confidence,
                probability=self.probability,
                backend=f"fallback:{model.identity.backend}" if as_fallback else None,
                peaks=self.peaks,
            )
        except BaseException:
            model.close()
            raise
        locator.instruments = self.instruments
        return Version(release.key, locator)


def _natural_steps(contract: Contract) -> int:
    """Frames of some window that the model takes."""
    return contract.time_steps or (contract.golden.time_steps if contract.golden else contract.min_time_steps)


class Arm:
    """A place that versions of one source serve in, one at a time.

    `current` answers; `previous` stays loaded, so that going back takes no time. Changes come from one thread at a
    time, answers from any. Conditions of `health` begin with `prefix`; changes are counted in `tally`.
    """

    def __init__(
        self, name: str, source: ModelSource, loader: Loader, health: Health, tally: Tally, *, prefix: str
    ) -> None:
        self.name, self.source = name, source
        self._tally = tally
        self.current: Version | None = None
        self.previous: Version | None = None
        self._loader, self._health, self._prefix = loader, health, prefix
        self._seen: str | None = None  # the source's latest release, whatever came of it: only another one is news
        self._named: str | None = None  # the version that this is
        self._refused = False  # whether that one is not served because something is wrong with it
        self._changing = threading.Lock()

    # Answering

    def acquire(self) -> Version | None:
        """The version that answers, which stays loaded until it is released. None where there is none."""
        while True:
            version = self.current
            if version is None or version.acquire():
                return version

    @property
    def versions(self) -> list[Version]:
        """What is loaded."""
        return [version for version in (self.current, self.previous) if version is not None]

    def unavailable(self, why: str) -> bool:
        """An inference server did not answer a window. Returns whether that is news."""
        return self._health.report(f"{self._prefix}_unavailable", why)

    def note_answer(self, *, failed: bool) -> bool:
        """It has answered windows, or failed on one. Returns whether that is news."""
        over = self._health.clear(f"{self._prefix}_unavailable")
        if failed:
            return self._health.report(f"{self._prefix}_error", "inference failed, or its answer means nothing") or over
        return self._health.clear(f"{self._prefix}_error") or over

    # Changing

    def open(self) -> None:
        """Serve what the source names, or else the release that served last.

        Raises ModelError, RegistryError or UnavailableError where neither will do.
        """
        try:
            release = self.source.latest()
            version = self._loader.load(release)
        except (ModelError, RegistryError, UnavailableError) as error:
            kept = self.source.remembered()
            if kept is None:
                raise
            condition = self._unchanged(error)
            self._swap(self._loader.load(kept))
            detail = f"{error}; started with version {kept.version}, which was kept here"
            self._health.report(f"{self._prefix}_{condition}", detail)
        else:
            self._seen, self._named = release.key, release.version
            self._install(version, release)

    def refresh(self) -> bool:
        """Serve what the source names now, where that is news. Returns whether the source has answered as it should.

        What is wrong is a condition of `health`, and the version that serves goes on.
        """
        try:
            self._follow(retry=False)
        except LocalizeError as error:
            return self._noted(error)
        return True

    def reload(self) -> None:
        """Serve what the source names now, where that is news or was rejected. Raises what is wrong with it."""
        try:
            self._follow(retry=True)
        except LocalizeError as error:
            self._noted(error)
            raise

    def _noted(self, error: LocalizeError) -> bool:
        """Make it a condition. Returns whether the source has answered as it should."""
        if self._unchanged(error) == "unreachable":
            self._health.report(f"{self._prefix}_unreachable", str(error))
            return False
        if self._health.report(f"{self._prefix}_rejected", str(error)):
            log.warning("%s: %s", self.name, error)
        # What was fetched with another digest may be right the next time; nothing else changes by itself.
        return not isinstance(error, DigestError)

    def _unchanged(self, error: LocalizeError) -> Outcome:
        """Count a version that does not serve, and say what came of it."""
        outcome: Outcome = "unreachable" if isinstance(error, RegistryError | UnavailableError) else "rejected"
        self._tally.changed(self.name, outcome)
        return outcome

    def _follow(self, *, retry: bool) -> None:
        release = self.source.latest()
        self._named = release.version
        self._health.clear(f"{self._prefix}_unreachable")
        serves = self.current is not None and self.current.key == release.key
        if not serves and (release.key != self._seen or (retry and self._refused)):
            self._refused = True
            try:
                self._serve(release)
            except (RegistryError, UnavailableError, DigestError):
                raise
            except LocalizeError:
                self._seen = release.key
                raise
            serves = True
        self._seen = release.key
        if serves:  # or an operator chose another version, which is nothing wrong
            self._refused = False
        if not self._refused:
            self._health.clear(f"{self._prefix}_rejected")

    def activate(self, version: str) -> None:
        """Serve that version until the source names another. Raises what is wrong with it."""
        try:
            self._serve(self.source.release(version))
        except LocalizeError as error:
            self._unchanged(error)
            raise
        self._refused = False
        self._health.clear(f"{self._prefix}_rejected")

    def rollback(self) -> None:
        """Serve the version before, at once. Raises ConfigError where there is none."""
        with self._changing:
            if self.previous is None:
                raise ConfigError(f"rollback: {self.name} has no version before this one")
            self.current, self.previous = self.previous, self.current
        self._tally.changed(self.name, "served")

    def change_source(self, source: ModelSource) -> None:
        """Serve what another source names. Raises what is wrong with it: then all is as before."""
        try:
            release = source.latest()
            version = self._loader.load(release)
        except LocalizeError as error:
            self._unchanged(error)
            raise
        self.source, self._seen, self._named, self._refused = source, release.key, release.version, False
        self._install(version, release)
        self._health.clear(*(f"{self._prefix}_{what}" for what in ("unreachable", "rejected", "unavailable", "error")))

    def take_over(self, other: Arm) -> None:
        """Serve the other arm's version, which leaves it. Raises ConfigError where it has none."""
        with other._changing:
            version, before = other.current, other.previous
            if version is None:
                raise ConfigError(f"promote: {other.name} has no version that serves")
            other.current = other.previous = None
        self._swap(version)
        if before is not None:
            before.retire()

    def close(self) -> None:
        """Let go of all versions, once nothing uses them any more."""
        with self._changing:
            versions, self.current, self.previous = self.versions, None, None
        for version in versions:
            version.retire()

    def _serve(self, release: Release) -> None:
        if self.current is not None and self.current.key == release.key:
            return
        with self._changing:
            at_hand = self.previous is not None and self.previous.key == release.key
            if at_hand:
                self.current, self.previous = self.previous, self.current
        if at_hand:
            self._tally.changed(self.name, "served")
            self.source.remember(release)
        else:
            self._install(self._loader.load(release), release)

    def _install(self, version: Version, release: Release) -> None:
        self._swap(version)
        self.source.remember(release)

    def _swap(self, version: Version) -> None:
        """From now on `version` answers. What was there stays at hand, what was before that goes."""
        with self._changing:
            old, self.previous = self.previous, self.current
            self.current = version
            replaced = self.previous is not None
        if replaced:
            self._tally.changed(self.name, "served")
        if old is not None:
            old.retire()
        identity = version.locator.model.identity
        log.info("%s: %s version %s (%s) serves", self.name, identity.name, identity.version, identity.sha256[:12])

    def as_dict(self) -> dict[str, Any]:
        """Source, the version that it named last, the one that serves and the one before it.

        `held`: the one that serves is another than the source's, because an operator chose it.
        """
        serves_named = self.current is not None and self.current.key == self._seen
        return {
            "uri": self.source.uri,
            "source_version": self._named,
            "held": self.current is not None and self._seen is not None and not (serves_named or self._refused),
            "serving": None if self.current is None else self.current.as_dict(),
            "previous": None if self.previous is None else self.previous.as_dict(),
        }
