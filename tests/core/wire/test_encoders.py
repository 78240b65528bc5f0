from __future__ import annotations

import json
import subprocess
import sys

import pytest
from localize_core.types.fix import ModelIdentity
from localize_core.wire.encoders import ENCODERS
from localize_core.wire.fix_json import fix_from_json
from localize_core.wire.geojson import fix_to_geojson
from localize_core.wire.text import fix_line


def test_names():
    assert set(ENCODERS) == {"json", "geojson", "text", "cot"}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_fix_is_one_line(make_fix, name):
    for fix in (make_fix(), make_fix(station="two\nlines", model=ModelIdentity("a\r\nb", "1", ""))):
        encoded = ENCODERS[name](fix)
        assert encoded
        assert encoded.splitlines() == [encoded]


@pytest.mark.parametrize("fix", [{}, {"reason": "silence"}])
def test_each_is_what_its_module_makes(make_fix, fix):
    fix = make_fix(**fix)
    assert fix_from_json(ENCODERS["json"](fix)) == fix
    assert json.loads(ENCODERS["geojson"](fix)) == fix_to_geojson(fix)
    assert ENCODERS["text"](fix) == fix_line(fix)
    assert (ENCODERS["cot"](fix) is None) == (fix.position is None)


def test_encoders_work_without_gnuradio():
    code = (
        "import sys; sys.modules['gnuradio'] = sys.modules['pmt'] = None\n"
        "import localize_core.wire.encoders, localize_core.wire.kml"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
