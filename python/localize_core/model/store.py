"""Where compiled models are kept between runs: compiling takes seconds, and the answer never changes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import localize_core
from localize_core.errors import ModelError
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel

COMPILER = ("geodesy.py", "features/*.py", "model/**/*.py")
"""Sources that a compiled model depends on."""


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Digest of the compiler's sources: another compiler makes another model."""
    root = Path(localize_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for pattern in COMPILER for path in root.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gr-localize`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gr-localize"


def compiled_model_path(spec: LikelihoodSpec) -> Path:
    """The compiled model of a station, written now or found from an earlier run and checked.

    Raises ConfigError or ModelError as `compile_model` does, ModelError where the cache cannot be written.
    """
    key = hashlib.sha256(f"{_code_digest()} {spec!r}".encode()).hexdigest()
    path = cache_folder() / f"compiled-{key[:32]}.onnx"
    try:
        if _is_sound(path):
            return path
        from localize_core.model.compiled.compile import compile_model  # not needed by the next run, and slow to load

        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own beside the model: several processes may compile at once, and a rename is atomic.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            draft = Path(folder) / path.name
            compile_model(spec, draft)
            draft.replace(path)
    except OSError as error:
        raise ModelError(
            f"{path}: the compiled model cannot be kept: {error.strerror}; XDG_CACHE_HOME can name another folder"
        ) from error
    return path


def _is_sound(path: Path) -> bool:
    """Whether there is a model that answers as it did; a damaged one, or one for another ONNX Runtime, does not."""
    if not path.exists():
        return False
    try:
        check_golden(OnnxModel(path))
    except ModelError:
        return False
    return True
