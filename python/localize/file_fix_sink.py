"""Write fixes to a file, one record each."""

from __future__ import annotations

import os

from localize_core.sinks.file_sink import FileFixSink

from .fix_sink_base import fix_sink_base


class file_fix_sink(fix_sink_base):
    """Complete records only, rotated by size. Parameters as of FileFixSink."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int | None = None,
        max_files: int = 5,
        format: str = "jsonl",
    ) -> None:
        fix_sink_base.__init__(self, "file_fix_sink", FileFixSink(path, max_bytes, max_files, format))
