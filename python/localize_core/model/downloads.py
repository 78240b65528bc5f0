"""Models that were downloaded: each version in a folder of its own, with a record by which to check it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localize_core.errors import DigestError, ModelError
from localize_core.model.onnx_model import model_digest

RECORD_FILE = "record.json"
KEPT_DOWNLOADS = 5
ABANDONED_S = 86_400.0
"""Age at which an unfinished download is taken for one whose process was killed."""


@dataclass(frozen=True)
class Download:
    """A version on this disk. `file`: the ONNX file in `folder`; `created`: when the version was, to tell it by."""

    folder: Path
    file: str
    sha256: str
    created: str

    @classmethod
    def read(cls, folder: Path) -> Download | None:
        """What was downloaded into a folder, None where nothing usable is said about it."""
        record = read_json(folder / RECORD_FILE)
        if record is None:
            return None
        try:
            return cls(folder, record["file"], record["sha256"], record["created"])
        except KeyError:
            return None

    def write(self, folder: Path) -> None:
        """Write the record into a folder that will be moved to `self.folder`."""
        record = {"file": self.file, "sha256": self.sha256, "created": self.created}
        (folder / RECORD_FILE).write_text(json.dumps(record))

    def checked(self) -> Path:
        """The ONNX file, as it was when downloaded. Raises ModelError where it is not, and throws it away."""
        path = self.folder / self.file
        try:
            digest = model_digest(path)
            if digest != self.sha256:
                raise DigestError(f"{path}: sha256 is {digest}, it was {self.sha256} when it was downloaded")
        except ModelError:
            discard(self.folder)
            raise
        with suppress(OSError):
            os.utime(self.folder / RECORD_FILE)  # the time of its last use
        return path


def discard(folder: Path) -> None:
    """Take a download away, at once for other processes."""
    with suppress(OSError):
        doomed = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".fetch-"))
        folder.rename(doomed / "version")
        shutil.rmtree(doomed, ignore_errors=True)


def prune(folder: Path) -> None:
    """Keep the downloads of a model that were used last, and those that stations will start with."""
    notes = [read_json(path) or {} for path in folder.glob("served-*.json")]
    served = {str(note.get("version")) for note in notes}
    records = sorted(folder.glob(f"*/{RECORD_FILE}"), key=_modified_s, reverse=True)
    for record in records[KEPT_DOWNLOADS:]:
        if record.parent.name not in served:
            discard(record.parent)
    for path in folder.glob(".fetch-*"):
        if time.time() - _modified_s(path) > ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)


def _modified_s(path: Path) -> float:
    """When a path was changed, now for one that another process has just taken away."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object, None where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON object: other processes see the former one or this."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".fetch-", delete=False) as file:
        json.dump(content, file)
    Path(file.name).replace(path)
