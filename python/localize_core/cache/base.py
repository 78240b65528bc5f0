"""What every store of answers is to those who use it, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StoreStatistics:
    """What a store has done since it was made.

    `errors`: requests that failed. `evictions`: entries that had to go for others, as far as the store sees it.
    `skipped`: look-ups that asked nobody, because the store was away or all its connections were busy. `dropped`:
    writes that were not carried out. `items` and `bytes`: held now, None where that is not known here. `server_bytes`:
    memory of the server that holds them, with all that is not the cache's; None where there is none, or it does not
    tell. `state`: "ready", or why the store is not asked.
    """

    hits: int = 0
    misses: int = 0
    errors: int = 0
    evictions: int = 0
    skipped: int = 0
    dropped: int = 0
    items: int | None = None
    bytes: int | None = None
    server_bytes: int | None = None
    state: str = "ready"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Store(Protocol):
    """Bytes by keys, for a while. Threads may share it. No method raises for what goes wrong inside: a store that is
    away has nothing, and counts that.
    """

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Begin to reach for what it needs. A store may be started again after `close`."""
        ...

    def get(self, key: str) -> bytes | None:
        """The value, None where there is none."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of several keys in one go, in their order."""
        ...

    def set(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep the value for `ttl_s` seconds, or for less where there is no room. It may take effect later."""
        ...

    def delete(self, key: str) -> None:
        """Forget the value. It may take effect later."""
        ...

    def stats(self) -> StoreStatistics: ...

    def close(self) -> None:
        """Let go of connections and threads."""
        ...
