"""Files that come with the project beside its code: examples and models."""

from __future__ import annotations

from pathlib import Path

from localize_core.errors import ConfigError

_CODE = Path(__file__).resolve().parent


def shared_file(name: str) -> str:
    """Absolute path of `name`, such as "models/single_receiver.onnx", in the source tree or where it was installed.

    Raises ConfigError naming the file and where it was looked for.
    """
    shares = [folder / "share" / "gr-localize" for folder in _CODE.parents]
    candidates = [folder / name for folder in (_CODE.parents[1], *shares)]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise ConfigError(f"{name}: not found in {_CODE.parents[1]} or share/gr-localize of {_CODE} and its parents")
    return str(found)
