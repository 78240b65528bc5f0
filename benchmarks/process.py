"""Other processes that see the same modules as this one, however it was installed and started."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Not `python -m`: that would put the current folder in front of the module search path.
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from localize_benchmarks.{0} import main; main()"
START_APP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from localize_apps.main import main; sys.exit(main())"
)


def start_python(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Run `main()` of a module of this package, which finds `arguments` from `sys.argv[2]` on."""
    command = [sys.executable, "-c", START.format(module), json.dumps(sys.path), *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)


def start_app(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Run `gr-localize` with these arguments."""
    command = [sys.executable, "-c", START_APP, json.dumps(sys.path), *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)
