"""One channel of a SigMF recording as a source, with the times that its captures say."""

from __future__ import annotations

from pathlib import Path

from localize_core.sources.sigmf import read_sigmf

from .recording_source import recording_source


class sigmf_source(recording_source):
    """Samples and tags as of recording_source. Times are those of `core:datetime`; frequencies change with captures.

    `path`: either file of a recording, an archive, a pattern for parts that follow each other (`north-*.sigmf-meta`),
    or a collection, whose `stream` it is then. `channel`: which of the recording's interleaved streams. `frequency_hz`:
    None for what its captures say.

    Raises ConfigError for a frequency that is not finite, SourceError if the recording cannot be read or has no such
    channel.
    """

    def __init__(
        self,
        path: str | Path,
        channel: int = 0,
        repeat: bool = False,
        frequency_hz: float | None = None,
        stream: str = "",
    ) -> None:
        recording = read_sigmf(path, channel=channel, stream=stream)
        recording_source.__init__(self, "sigmf_source", recording, repeat, frequency_hz)
