"""`gr-localize run` with a radio: the real client of rtl_tcp, from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

STATION = """
[station]
name = "one-radio"
sample_rate_hz = 250e3
frequency_hz = 1090e6

[[receiver]]
name = "roof"
latitude = 45.07
longitude = 7.69
source = {{ kind = "rtl-tcp", address = "{address}", gain_db = 20.0 }}

[area]
south = 45.00
west = 7.60
north = 45.14
east = 7.79

[features]
n_fft = 512
hop = 512
rows = 64
window_s = 0.2

[propagation]
level_dbfs_at_1km = -30.0
"""


def test_fixes_of_a_radio(rtl_tcp, start_rtl_tcp, data_dir, tmp_path: Path, model_cache) -> None:
    server = start_rtl_tcp(data_dir / "adsb-rtlsdr" / "modes1.cu8")
    path = tmp_path / "station.toml"
    path.write_text(STATION.format(address=server.address))
    command = [str(Path(sys.executable).with_name("gr-localize")), "-v", "run", str(path), "--json"]
    with (
        (tmp_path / "stderr").open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        first = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in process.stdout]  # and nothing else
        assert process.wait(30) == 0
    for fix in first + rest:
        assert (fix["time_source"], fix["frequency_hz"]) == ("host", 1090e6)
        assert [receiver["name"] for receiver in fix["receivers"]] == ["roof"]
    assert "gr-osmosdr" in (tmp_path / "stderr").read_text()
    assert server.value(rtl_tcp.RATE) == 250_000
    assert server.value(rtl_tcp.GAIN) == 197
    assert server.clients == 1
