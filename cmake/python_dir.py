"""Print where Python modules go below the installation prefix in argv[1]."""

import sys
import sysconfig
from pathlib import Path

prefix = Path(sys.argv[1])
searched = [Path(entry) for entry in sys.path if entry]
# below lib/ only: /usr must not lead to /usr/local/lib
below_prefix = [
    entry
    for entry in searched
    if entry.name in ("site-packages", "dist-packages")
    and prefix in entry.parents
    and entry.relative_to(prefix).parts[0].startswith("lib")
]
usual = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(prefix)}))
print(below_prefix[0] if below_prefix else usual)
