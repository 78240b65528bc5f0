"""Where compiled models are kept between runs: compiling takes seconds, and the answer never changes."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from localize_core.errors import ModelError
from localize_core.model import compiled
from localize_core.model.compiled.compile import compile_model
from localize_core.model.compiled.spec import LikelihoodSpec
from localize_core.model.golden import check_golden
from localize_core.model.onnx_model import OnnxModel


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Digest of the compiler's own sources: another compiler makes another model."""
    digest = hashlib.sha256()
    for path in sorted(Path(compiled.__file__).parent.glob("*.py")):
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
    if path.exists():
        try:
            check_golden(OnnxModel(path))
            return path
        except ModelError:
            path.unlink(missing_ok=True)  # damaged or made by another ONNX Runtime: compile again
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        compile_model(spec, draft)
        draft.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: the compiled model cannot be written: {error}") from error
    return path
