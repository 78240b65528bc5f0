"""The forms that one fix has on its own, by name."""

from __future__ import annotations

import json
from collections.abc import Callable

from localize_core.types.fix import Fix
from localize_core.wire.cot import fix_to_cot
from localize_core.wire.fix_json import fix_to_json
from localize_core.wire.geojson import fix_to_geojson
from localize_core.wire.text import fix_line


def _geojson_line(fix: Fix) -> str:
    return json.dumps(fix_to_geojson(fix), separators=(",", ":"), allow_nan=False)


ENCODERS: dict[str, Callable[[Fix], str | None]] = {
    "json": fix_to_json,
    "geojson": _geojson_line,
    "text": fix_line,
    "cot": fix_to_cot,
}
"""One fix in one line without line end, or None where the form has nothing to say about it: CoT without a position.

All but text raise ConfigError as `fix_to_dict` does.
"""
