"""The station of benchmarks/soak.py through one fault of each kind, in short; for longer: its own command."""

from __future__ import annotations

import pytest
from localize_benchmarks import redis_server, rtl_tcp_server
from localize_benchmarks.soak import lines, run_soak


def test_a_station_goes_on_through_faults(tmp_path, rtl_tcp, model_cache):
    pytest.importorskip("redis")
    if (why := redis_server.missing() or rtl_tcp_server.missing()) is not None:
        pytest.skip(why)
    told: list[str] = []
    report = run_soak(0.4, 2, tmp_path, told.append, every_s=2.2)
    assert report.problems == [], "\n".join([*told, *lines(report)])
    assert report.exit_code == 0
    assert len(report.faults) == 9
    assert report.fixes > 10
    assert report.windows["served"] > 10
    assert report.accounts_checked > 10
