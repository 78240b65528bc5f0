"""Text that XML can carry."""

from __future__ import annotations

import re

_FORBIDDEN = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """The text with control characters, most of which XML 1.0 cannot even escape, replaced by U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", text)
