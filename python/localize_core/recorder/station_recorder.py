"""The recordings of a station's receivers, side by side in a folder, and the SigMF collection that names them."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from localize_core.errors import ConfigError, MissingExtraError, PublishError
from localize_core.recorder.sigmf_writer import About, Limits, SigmfWriter
from localize_core.recorder.stream_recorder import QUEUE_S, Account, Phase, StreamRecorder

log = logging.getLogger(__name__)

MIN_CAPACITY = 1 << 18
"""Samples of one stream: what a flowgraph may hand over at once, several times."""


class StationRecorder:
    """Records the streams that `abouts` describe into `folder`; the collection is called `name`.

    `datatype`, `flush_s`: as of SigmfWriter, `limits` are those of each stream. `queue_s`: what may wait for the disk,
    `live` whether what exceeds that is not kept, or the stream waits.
    Each stream opens and closes by itself; opened again, it is another recording beside the earlier one, and limits
    hold for both together. `on_open`: called before the first stream opens. `on_part`: called when a part is whole or
    went. `earlier`: by name, whole parts in other folders for which the limits hold as well.

    Raises ConfigError for values that cannot be, MissingExtraError without the library that writes collections.
    """

    def __init__(
        self,
        folder: str | Path,
        abouts: Sequence[About],
        *,
        name: str,
        datatype: str = "cf32_le",
        flush_s: float = 1.0,
        limits: Limits | None = None,
        queue_s: float = QUEUE_S,
        live: bool = True,
    ) -> None:
        try:
            import sigmf
        except ImportError as error:
            raise MissingExtraError("recording", "sigmf") from error
        if not str(folder):
            raise ConfigError("the folder of a recording is empty")
        if not 0.0 < queue_s < float("inf"):
            raise ConfigError(f"queue_s={queue_s}: wanted more than 0")
        for about in abouts:
            if not 0.0 < about.sample_rate_hz < float("inf"):
                raise ConfigError(f"sample_rate_hz={about.sample_rate_hz}: must be positive")
        SigmfWriter.check(datatype, flush_s)
        self.folder, self.name = Path(folder), file_names([name])[0]
        self.names = file_names([about.receiver for about in abouts])
        self.streams: list[StreamRecorder | None] = [None] * len(abouts)
        self._sigmf = sigmf
        self._abouts = [replace(about, collection=self.name) for about in abouts]
        self._datatype, self._flush_s, self._limits = datatype, flush_s, limits
        self._queue_s, self._live = queue_s, live
        self.on_open: Callable[[], None] = lambda: None
        self.on_part: Callable[[], None] = lambda: None
        self.earlier: Mapping[str, Sequence[Path]] = {}
        self._collecting, self._opening, self._counting = threading.Lock(), threading.Lock(), threading.Lock()
        self._digests: dict[Path, str] = {}
        self._whole: dict[int, list[Path]] = {}
        self._ended = [Account()] * len(abouts)
        """Of streams that were opened again."""

    def open_stream(self, index: int) -> StreamRecorder:
        """Begin the recording of a stream. Raises PublishError where the folder cannot be written."""
        about = self._abouts[index]

        def collect() -> None:
            with self._collecting:
                self._whole[index] = [path for path in writer.parts if path.parent == self.folder]
                self._collect()
            self.on_part()

        with self._opening:
            if not any(self.streams):
                self.on_open()
        earlier = [*self.earlier.get(self.names[index], ()), *self._whole.get(index, ())]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writer = SigmfWriter(
                self.folder,
                self.names[index],
                about,
                stream=uuid.uuid4().hex,
                datatype=self._datatype,
                flush_s=self._flush_s,
                limits=self._limits,
                earlier=[path for path in earlier if path.exists()],
                on_part=collect,
            )
            writer.make_room()  # limits may be others than those of earlier parts
        except OSError as error:
            raise PublishError(f"cannot record into {self.folder}: {error.strerror or error}") from error
        capacity = max(round(self._queue_s * about.sample_rate_hz), MIN_CAPACITY)
        stream = StreamRecorder(writer, capacity=capacity, live=self._live)
        with self._counting:
            before, self.streams[index] = self.streams[index], stream
            if before is not None:
                self._ended[index] += before.account
        stream.start()
        return stream

    @property
    def accounts(self) -> dict[str, Account]:
        """Of the receivers, by name."""
        with self._counting:
            return {
                about.receiver: ended if stream is None else ended + stream.account
                for about, stream, ended in zip(self._abouts, self.streams, self._ended, strict=True)
            }

    @property
    def free_bytes(self) -> int | None:
        """Left on the disk when a stream was last written; None before."""
        seen = [stream.writer.seen_free for stream in self.streams if stream is not None]
        return max((each for each in seen if each is not None), default=(0.0, None))[1]

    @property
    def phases(self) -> dict[str, tuple[Phase, str]]:
        """How recording goes, by the receivers' names, and why."""
        return {
            about.receiver: ("stopped", "") if stream is None else (stream.phase, stream.state)
            for about, stream in zip(self._abouts, self.streams, strict=True)
        }

    @property
    def whole(self) -> dict[str, list[Path]]:
        """Metadata of the parts that are whole, oldest first, by the names of files."""
        with self._collecting:
            return {self.names[index]: list(parts) for index, parts in self._whole.items()}

    @property
    def failure(self) -> Exception | None:
        """What ended the recording of a stream, if something did."""
        return next((each.failure for each in self.streams if each is not None and each.failure is not None), None)

    def tidy(self) -> bool:
        """Have the collection follow where others have let parts go. Returns whether any is left; without, it goes too.

        For a recorder whose streams have ended.
        """
        with self._collecting:
            left = {index: [path for path in parts if path.exists()] for index, parts in self._whole.items()}
            if left != self._whole:
                self._whole = left
                self._collect()
            if any(left.values()):
                return True
            self._path.unlink(missing_ok=True)
            for name in self.names:  # that wait for samples which never came
                for meta in self.folder.glob(f"{name}-[0-9]*.sigmf-meta"):
                    if not meta.with_suffix(".sigmf-data").exists():
                        meta.unlink(missing_ok=True)
            return False

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.sigmf-collection"

    def _collect(self) -> None:
        """Write the collection of all parts that are whole anew. Needs the lock."""
        whole = [path for index in sorted(self._whole) for path in self._whole[index]]
        draft = self._path.with_name(f".{self._path.name}.new")
        try:
            known = self._digests
            self._digests = {
                each: known.get(each) or self._sigmf.hashing.calculate_sha512(filename=each) for each in whole
            }
            streams = [{"name": each.with_suffix("").name, "hash": self._digests[each]} for each in whole]
            collection = self._sigmf.SigMFCollection(
                metadata={"collection": {"core:streams": streams}}, base_path=self.folder, skip_checksums=True
            )
            draft.write_text(collection.dumps() + "\n", encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:  # the recordings are what counts
            log.warning("%s: %s", self._path, error.strerror or error)
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


def file_names(names: Sequence[str]) -> list[str]:
    """What the files of these receivers are called. NAME-[0-9]* is a pattern for those of one of them alone."""
    found: list[str] = []
    for name in names:
        short = re.sub(r"[^\w.+-]+", "_", name).strip("._-") or "receiver"
        short = re.sub(r"-(?=\d)", "_", short)
        while short in found:
            short += "_"
        found.append(short)
    return found
