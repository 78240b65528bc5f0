"""Prints the fixes that a station publishes, and says at the end how many were missing.

    python subscriber.py [URL]

URL is by default tcp://127.0.0.1:5555, where `gr-localize demo` publishes; docs/clients.md has the others.
"""

import sys

from localize_core.client import subscribe
from localize_core.wire.text import fix_line


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5555"
    with subscribe(url) as fixes:
        try:
            for fix in fixes:
                print(fix_line(fix), flush=True)
        except KeyboardInterrupt:
            print(
                f"{fixes.received} fixes, {fixes.missed} missed, {fixes.dropped_windows} of those dropped by stations"
            )


if __name__ == "__main__":
    main()
