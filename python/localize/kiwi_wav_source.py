"""A KiwiSDR IQ recording as a source, with the true times of its samples."""

from __future__ import annotations

from pathlib import Path

from localize_core.sources.kiwi import read_kiwi_wav

from .recording_source import recording_source


class kiwi_wav_source(recording_source):
    """Samples and tags as of recording_source. The times come from the line fitted to all stamps of the file.

    `frequency_hz`: None for what the file's name says. Raises ConfigError for a frequency that is not finite,
    SourceError if the file is no such recording.
    """

    def __init__(self, path: str | Path, repeat: bool = False, frequency_hz: float | None = None) -> None:
        recording_source.__init__(self, "kiwi_wav_source", read_kiwi_wav(path), repeat, frequency_hz)
