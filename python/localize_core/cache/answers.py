"""What a model said to a window before: found again by exactly that window, that model and that contract."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localize_core.cache.base import Store
from localize_core.cache.lru import MemoryStore
from localize_core.cache.settings import CacheSettings
from localize_core.model.base import Model, ModelOutput

FORMAT = b"gr-localize/answer/1"
"""Of keys and values. What is kept under another one is never found."""
LONGEST_VALUE = 2048
_CHECK = b',"check":"'
_CHECK_DIGITS = 16


class AnswerKeys:
    """Keys of windows for one model: SHA-256 over all that decides its answer.

    That is the model's digest, name, version and backend, its contract with the normalisation, and the window's shape,
    type and bytes as they are before normalisation.
    """

    def __init__(self, model: Model) -> None:
        identity = model.identity
        self._base = hashlib.sha256()
        parts = (identity.sha256, identity.name, identity.version, identity.backend, model.contract.model_dump_json())
        for part in (FORMAT, *(text.encode() for text in parts)):
            self._base.update(len(part).to_bytes(8, "big") + part)

    @classmethod
    def of(cls, model: Model) -> AnswerKeys | None:
        """None for a model whose digest nobody knows: another one in its place would not show."""
        return cls(model) if model.identity.sha256 else None

    def __call__(self, features: np.ndarray) -> str:
        """The key of a window, (channels, rows, time_steps)."""
        digest = self._base.copy()
        digest.update(f"{features.dtype.str} {features.shape}\n".encode())
        digest.update(np.ascontiguousarray(features).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Answer:
    """One window's answer. `inference_ms`: what it took the model; `stored_s`: when, in seconds since 1970."""

    output: ModelOutput
    inference_ms: float
    stored_s: float


def encode_answer(key: str, answer: Answer) -> bytes:
    """JSON of the numbers, exact to the last bit of a float32, with a check that binds them to their key."""
    output = answer.output
    body = json.dumps(
        {
            "position": output.position[0].tolist(),
            "uncertainty": output.uncertainty[0].tolist(),
            "confidence": output.confidence[0, 0].item(),
            "inference_ms": answer.inference_ms,
            "stored_s": answer.stored_s,
        },
        separators=(",", ":"),
        allow_nan=False,
    ).encode()[:-1]
    return body + _CHECK + _check(key, body) + b'"}'


def decode_answer(key: str, value: bytes) -> Answer | None:
    """The answer, None for anything that was not written under this key by `encode_answer`."""
    body, mark, tail = value[:LONGEST_VALUE].rpartition(_CHECK)
    # Before anything is read out of it: a client that is out of step with its server gets other keys' values.
    if not mark or tail != _check(key, body) + b'"}':
        return None
    try:
        found = json.loads(body + b"}")
        numbers = [*found["position"], *found["uncertainty"], found["confidence"]]
        answer = np.array(numbers, np.float32)
        inference_ms, stored_s = float(found["inference_ms"]), float(found["stored_s"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if answer.shape != (6,) or not np.isfinite(answer).all() or not inference_ms >= 0.0 or not math.isfinite(stored_s):
        return None
    return Answer(ModelOutput(answer[None, :2], answer[None, 2:5], answer[None, 5:]), inference_ms, stored_s)


def _check(key: str, body: bytes) -> bytes:
    return hashlib.sha256(FORMAT + key.encode() + body).hexdigest()[:_CHECK_DIGITS].encode()


@dataclass(frozen=True)
class LookUp:
    """What was found of some windows: their keys, and for each the answer, or None. `spent_ms`: for each of them."""

    keys: Sequence[str]
    answers: Sequence[ModelOutput | None]
    spent_ms: float


class AnswerCache:
    """Answers in stores, the quickest first; what a slower one has goes to the quicker ones as well.

    What a store returns that was not written for that key counts as an error and is not used. Threads may share it.
    `clock`: seconds since 1970.
    """

    def __init__(self, stores: Sequence[Store], *, ttl_s: float, clock: Callable[[], float] = time.time) -> None:
        self._stores, self._ttl_s, self._clock = list(stores), ttl_s, clock
        self._lock = threading.Lock()
        self._hits = self._misses = self._garbage = 0
        self._saved_ms = self._spent_ms = 0.0

    def start(self) -> None:
        for store in self._stores:
            store.start()

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def look_up(self, keys_of: AnswerKeys, windows: Sequence[np.ndarray]) -> LookUp:
        """What is known of windows, (channels, rows, time_steps) each. Never raises."""
        began = time.perf_counter()
        keys = [keys_of(window) for window in windows]
        found = self._found(list(dict.fromkeys(keys)))
        hits = [found[key].inference_ms for key in keys if key in found]
        spent_ms = (time.perf_counter() - began) * 1e3
        with self._lock:
            self._hits += len(hits)
            self._misses += len({*keys} - {*found})
            self._saved_ms += sum(hits)
            self._spent_ms += spent_ms
        answers = [found[key].output if key in found else None for key in keys]
        return LookUp(keys, answers, spent_ms / max(len(keys), 1))

    def keep(self, key: str, output: ModelOutput, inference_ms: float, *, repeats: int = 0) -> None:
        """Keep a model's answer to one window; it has answered so many equal windows of the same batch, too."""
        began = time.perf_counter()
        value = encode_answer(key, Answer(output, inference_ms, self._clock()))
        for store in self._stores:
            store.set(key, value, self._ttl_s)
        spent_ms = (time.perf_counter() - began) * 1e3
        with self._lock:
            self._hits += repeats
            self._saved_ms += repeats * inference_ms
            self._spent_ms += spent_ms

    def _found(self, missing: list[str]) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        for index, store in enumerate(self._stores):
            for key, value in zip(missing, store.get_many(missing), strict=True):
                if value is None:
                    continue
                answer = decode_answer(key, value)
                if answer is None:
                    with self._lock:
                        self._garbage += 1
                    store.delete(key)
                    continue
                # Another process may keep its answers for longer, and another machine's clock may be ahead.
                left_s = min(answer.stored_s + self._ttl_s - self._clock(), self._ttl_s)
                if left_s <= 0.0:
                    continue
                found[key] = answer
                for quicker in self._stores[:index]:
                    quicker.set(key, value, left_s)
            missing = [key for key in missing if key not in found]
            if not missing:
                break
        return found

    def as_dict(self) -> dict[str, Any]:
        """Counts of windows, what was saved and spent, and the stores' own counts.

        `errors`: requests to stores that failed, and values that were none; `net_benefit_ms`: inference that hits
        saved, less the time for hashing, looking up and keeping.
        """
        stores = {store.name: store.stats() for store in self._stores}
        with self._lock:
            asked = self._hits + self._misses
            return {
                "hits": self._hits,
                "misses": self._misses,
                "hit_ratio": self._hits / asked if asked else None,
                "errors": self._garbage + sum(each.errors for each in stores.values()),
                "evictions": sum(each.evictions for each in stores.values()),
                "saved_ms": self._saved_ms,
                "spent_ms": self._spent_ms,
                "net_benefit_ms": self._saved_ms - self._spent_ms,
                "stores": {name: each.as_dict() for name, each in stores.items()},
            }

    def summary(self) -> dict[str, Any]:
        """Whether it is worth it, and whether all stores are asked."""
        figures = self.as_dict()
        states = [f"{name}: {each['state']}" for name, each in figures["stores"].items() if each["state"] != "ready"]
        told = {key: figures[key] for key in ("hits", "misses", "net_benefit_ms")}
        return {**told, "state": "; ".join(states) or "ready"}


def open_cache(settings: CacheSettings | None) -> AnswerCache | None:
    """The cache of these settings, None where they want none. Raises MissingExtraError without the extra `redis`."""
    if settings is None or not settings.is_used:
        return None
    stores: list[Store] = [MemoryStore(max_items=settings.max_items, max_bytes=settings.max_bytes)]
    if settings.redis is not None:
        # Only now: it needs packages that are not everywhere.
        from localize_core.cache.redis_store import RedisStore

        stores.append(RedisStore(settings.redis, timeout_s=settings.timeout_ms / 1e3, prefix=settings.prefix))
    return AnswerCache(stores, ttl_s=settings.ttl_s)
