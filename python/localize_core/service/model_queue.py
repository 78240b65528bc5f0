"""Questions of several requests, answered by the model together."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from localize_core.serving.engine import Engine
from localize_core.serving.requests import MAX_REQUESTS, Request
from localize_core.types.fix import Fix

log = logging.getLogger(__name__)

TOGETHER = 16
"""Requests whose questions the model gets at a time, where so many wait: it answers them faster than one by one."""


class _Asked(NamedTuple):
    questions: Sequence[Request]
    finish: Callable[[list[Fix]], bytes]
    answer: Future[bytes]


class ModelQueue:
    """Asks `engine` in a thread of its own: each time for all that has come meanwhile, up to TOGETHER requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[_Asked] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="localize-model")
        self._thread.submit(engine.reader.warm_up)

    def ask(self, questions: Sequence[Request], finish: Callable[[list[Fix]], bytes]) -> Future[bytes]:
        """Have questions answered. `finish` makes of their fixes what the future then holds, or what it raises."""
        asked = _Asked(questions, finish, Future())
        self._waiting.append(asked)
        self._thread.submit(self._answer_some)
        return asked.answer

    def close(self) -> None:
        """Answer nothing more. Does not wait for what the model is asked now."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        while self._waiting:
            self._waiting.popleft().answer.cancel()

    def _answer_some(self) -> None:
        """Each request asks for this once: where others have been answered along with it, nothing is left to do."""
        self._answer([self._waiting.popleft() for _ in range(min(len(self._waiting), TOGETHER))])

    def _answer(self, jobs: Sequence[_Asked]) -> None:
        questions = [question for asked in jobs for question in asked.questions]
        try:
            fixes: list[Fix] = []
            for first in range(0, len(questions), MAX_REQUESTS):
                fixes += self._engine.predict(questions[first : first + MAX_REQUESTS])
        except Exception as error:  # whoever asked gets to know, and nobody else has to suffer for it
            if len(jobs) > 1:
                for asked in jobs:
                    self._answer([asked])
                return
            log.exception("questions could not be answered")
            for asked in jobs:
                if asked.answer.set_running_or_notify_cancel():
                    asked.answer.set_exception(error)
            return
        for asked in jobs:
            own, fixes = fixes[: len(asked.questions)], fixes[len(asked.questions) :]
            if not asked.answer.set_running_or_notify_cancel():
                continue
            try:
                answer = asked.finish(own)
            except Exception as error:  # mostly one of the request, which is its answer
                asked.answer.set_exception(error)
            else:
                asked.answer.set_result(answer)
