from __future__ import annotations

import io
import subprocess
import sys

from localize_apps.stdout import own_stdout

PROGRAM = """
import ctypes, os, sys
from localize_apps.stdout import own_stdout
c = ctypes.CDLL(None)
c.printf(b"C before\\n")
print("before")
with own_stdout():
    c.printf(b"C within\\n")
    os.write(1, b"straight\\n")
    print("within", flush=True)
    print("at its end")
c.printf(b"C after\\n")
print("after")
"""


def test_what_libraries_print_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["C after", "C before", "after", "at its end", "before", "within"]
    assert done.stdout.index("before") < done.stdout.index("within") < done.stdout.index("after")
    assert sorted(done.stderr.splitlines()) == ["C within", "straight"]


def test_a_reader_that_leaves() -> None:
    program = PROGRAM.replace('print("at its end")', 'print("x" * 1000000)').replace('print("after")', "")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"BrokenPipeError" in process.stderr.read()
        process.wait()


def test_a_stand_in_stays(monkeypatch) -> None:
    stand_in = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stand_in)
    with own_stdout():
        sys.stdout.write("within\n")
        assert sys.stdout is stand_in
    assert stand_in.getvalue() == "within\n"
