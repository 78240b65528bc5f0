"""The station of benchmarks/live_reference.py at one place, in short; for more of it: its own command."""

from __future__ import annotations

import numpy as np
import pytest
from localize_benchmarks import live_reference, rtl_tcp_server
from localize_core.station.config import load_station
from scipy.stats import chi2


def test_radios_without_a_common_clock_locate(tmp_path, model_cache):
    if (why := rtl_tcp_server.missing()) is not None:
        pytest.skip(why)
    station = load_station(live_reference.EXAMPLE)
    run = live_reference.run_at(station, "rtl-tcp", (45.060, 7.640), 1, tmp_path, seconds=14.0, wanted=10)
    assert run.problem == "", (tmp_path / "rtl-tcp-1.log").read_text()
    assert run.four >= 10
    assert run.four >= 0.8 * run.after_lock
    assert np.sqrt(np.mean(np.square(run.errors_m))) < 20.0  # perfect clocks: 9 m
    assert np.mean(np.array(run.squares) <= chi2.ppf(0.95, 2)) >= 0.7
    names = [receiver.name for receiver in station.receiver]
    assert list(run.drift_ppm) == names  # all are locked
    assert np.ptp(list(run.true_ppm.values())) > 20.0
    assert run.drift_errors_ppm == pytest.approx(dict.fromkeys(names, 0.0), abs=0.5)
    assert np.ptp(list(run.late_s.values())) > 0.1
    assert run.offset_errors_s == pytest.approx(dict.fromkeys(names, 0.0), abs=0.1)
