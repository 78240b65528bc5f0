"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    check: str
    level: Literal["ok", "warning", "error"]
    message: str
    fix: str | None = None
