"""A fix as a PMT message: a dict laid out exactly like the fix's JSON. null is PMT_NIL, a list a PMT vector."""

from __future__ import annotations

from typing import Any

import pmt
from localize_core.errors import ConfigError
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import fix_from_dict, fix_to_dict


def fix_to_pmt(fix: Fix) -> Any:
    """The fix as a PMT dict. Raises ConfigError if a value cannot be published, naming the field."""
    return pmt.to_pmt(fix_to_dict(fix))


def fix_from_pmt(message: Any) -> Fix:
    """The fix in a PMT dict. Raises ConfigError, naming the field where it can, for any other message."""
    if not pmt.is_dict(message):
        raise ConfigError(f"not a fix: {str(message)[:80]}")
    try:
        encoded = pmt.to_python(message)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"not a fix: {str(error)[:80]}") from error
    return fix_from_dict(encoded)
