"""Standard output for the command alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def own_stdout() -> Iterator[None]:
    """Meanwhile what drivers of radios print to standard output, past Python, goes to standard error.

    Python's own goes on to where it did. Does nothing where Python's is not the process's.
    """
    outer = sys.stdout
    try:
        theirs = outer.fileno() == 1
    except (AttributeError, OSError):  # a stand-in without a file, such as a test's
        theirs = False
    if not theirs:
        yield
        return
    outer.flush()
    _flush_c()
    kept = os.dup(1)
    os.dup2(2, 1)
    inner = os.fdopen(os.dup(kept), "w", encoding=outer.encoding, errors=outer.errors, buffering=1)
    sys.stdout = inner
    try:
        yield
    finally:
        _flush_c()
        with contextlib.suppress(BrokenPipeError):
            inner.close()
        sys.stdout = outer
        os.dup2(kept, 1)
        os.close(kept)


def _flush_c() -> None:
    """Have C's streams written out: what waits in them would come out wherever they lead in the end."""
    ctypes.CDLL(None).fflush(None)
