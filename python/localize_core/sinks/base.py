"""What every sink looks like to those who feed it."""

from __future__ import annotations

from typing import Protocol

from localize_core.types.fix import Fix


class FixSink(Protocol):
    """A destination of fixes. The constructor validates and holds no resource: those live from open() to close().

    `sent` counts fixes handed over, `dropped` those that were lost here, `backlog` is how many still wait here to be
    handed over: together they are all that were published.
    """

    @property
    def sent(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    @property
    def backlog(self) -> int: ...

    def open(self) -> None:
        """Acquire the resource. Raises PublishError naming it if it cannot be had."""

    def publish(self, fix: Fix) -> bool:
        """Hand one fix over without blocking; False means that it was dropped and counted.

        Raises ConfigError if the fix cannot be encoded.
        """

    def close(self) -> None:
        """Release the resource. Closing twice is harmless."""
