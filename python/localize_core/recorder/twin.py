"""The twin of a live station: a station file that plays what was heard, beside the model that answered."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localize_core.errors import ConfigError, MissingExtraError, ModelError, PublishError
from localize_core.model.contract import Contract
from localize_core.model.onnx_model import model_files
from localize_core.station.config import Station

STATION_FILE = "station.toml"
MODEL_FILE = "model.onnx"
CONTRACT_FILE = "contract.json"
FALLBACK_FILE = "fallback/model.onnx"
FIXES_FILE = "fixes.jsonl"

NOT_PLAYED = {"publish", "control", "http", "metrics", "cache", "scene"}
"""Tables for those who look at a station, and of the simulation that it heard."""
NOT_SERVED = {"registry", "poll_s", "challenger", "queue"}
"""Keys of `[model]` that a frozen model has no use for, and how a live stream's windows wait."""


def write_twin(
    folder: Path,
    station: Station,
    files: Sequence[str],
    *,
    contract: Contract,
    frames: tuple[int, int],
    model: Path | None,
    fallback: Path | None = None,
) -> None:
    """Write the station file that plays `files` (names of the receivers' recordings), and copies of its models.

    `contract`, `model`: of the model that answers, None for one behind an inference server; `fallback`: of that.
    `frames`: in a window, and from one window to the next. Raises PublishError where that cannot be written, ModelError
    for a model that is no longer there.
    """
    try:
        import tomli_w
    except ImportError as error:
        raise MissingExtraError("recording", "sigmf") from error
    content = twin(station, files, contract=contract, frames=frames, frozen=model is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if model is not None:
            _copy_model(model, folder / MODEL_FILE)
        if fallback is not None:
            _copy_model(fallback, folder / FALLBACK_FILE)
            content["model"]["fallback"] = FALLBACK_FILE
        if "contract" in content["model"]:
            (folder / CONTRACT_FILE).write_text(contract.model_dump_json(), encoding="utf-8")
        (folder / STATION_FILE).write_text(tomli_w.dumps(content), encoding="utf-8")
    except OSError as error:
        raise PublishError(f"cannot record into {folder}: {error.strerror or error}") from error


def remove_twin(folder: Path) -> None:
    """Take away what `write_twin` has written."""
    for model in (folder / MODEL_FILE, folder / FALLBACK_FILE):
        try:
            files = model_files(model)
        except ModelError:
            files = [model]
        for file in files:
            file.unlink(missing_ok=True)
    for name in (CONTRACT_FILE, STATION_FILE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # where it is none of ours, there may be more in it
        (folder / FALLBACK_FILE).parent.rmdir()


def twin(
    station: Station, files: Sequence[str], *, contract: Contract, frames: tuple[int, int], frozen: bool
) -> dict[str, Any]:
    """A station file's content: the same receivers, model, window and alignment, with recordings as sources.

    What a live station leaves to its kind of sources is explicit here. `frozen`: the model is a file beside it.
    """
    content = station.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude=NOT_PLAYED)
    content["station"]["common_clock"] = station.has_common_clock
    for receiver, name in zip(content["receiver"], files, strict=True):
        receiver["source"] = {"kind": "sigmf", "path": f"{name}-[0-9]*.sigmf-meta"}
    served = {key: value for key, value in content.get("model", {}).items() if key not in NOT_SERVED}
    content["model"] = served | ({"uri": MODEL_FILE} if frozen else {})
    if "contract" in served:
        content["model"]["contract"] = CONTRACT_FILE
    if frozen:
        content["model"].pop("fallback", None)
    content.setdefault("features", {}).update(_window(station, contract, frames))
    plan = station.alignment.plan(live=station.is_live)
    alignment = {
        "clocks": plan.clocks if station.reference is None else None,  # which a reference says
        "max_wait_s": plan.max_wait_s,
        "fill_gaps_s": plan.max_fill_s,
        "acquire_s": plan.acquire_s,
    }
    content["alignment"] = {key: value for key, value in alignment.items() if value is not None}
    return content


def _window(station: Station, contract: Contract, frames: tuple[int, int]) -> dict[str, float]:
    """Keys of `[features]` that give exactly these windows."""
    steps, hop = frames
    rate_hz, told = station.station.sample_rate_hz, station.features.window_s
    window_s = (contract.n_fft + (steps - 1) * contract.hop) / rate_hz if told is None else told
    while math.floor((window_s * rate_hz - contract.n_fft) / contract.hop) + 1 < steps:  # rounding
        window_s = math.nextafter(window_s, math.inf)
    return {"window_s": window_s, "window_hop_s": hop * contract.hop / rate_hz}


def _copy_model(path: Path, target: Path) -> None:
    """With the files that its tensors lie in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    files = model_files(path)
    for file in files:
        place = target if file == files[0] else target.parent / file.resolve().relative_to(path.resolve().parent)
        if place.resolve() == file.resolve():
            raise ConfigError(f"{target.parent}: is where the model comes from; record into another folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
