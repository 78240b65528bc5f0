"""What a reference emitter and a recorder tell comes out of a scrape."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from localize_core.alignment.reference_status import ClockStatus, as_dict
from localize_core.recorder.stream_recorder import Account


def test_clocks_by_receiver(make_version, watched):
    station = watched(make_version(1))
    assert not [each for each in station.scrape().samples if each.name.startswith("localize_reference")]
    known = ClockStatus(
        True, False, offset_s=-2e-3, drift_ppm=1.5, residual_ns=8.0, error_ns=2.0, snr_db=20.0, losses=1
    )
    told = {"north": as_dict(known), "east": as_dict(ClockStatus(False, False, losses=3))}
    station.engine.observe("reference", lambda: told)
    scrape = station.scrape()
    assert scrape.by("reference_locked", "receiver") == {"north": 1.0, "east": 0.0}
    assert scrape.by("reference_base", "receiver") == {"north": 0.0, "east": 0.0}
    assert scrape.by("reference_losses_total", "receiver") == {"north": 1.0, "east": 3.0}
    for name, value in {
        "offset_seconds": -2e-3,
        "drift_ratio": 1.5e-6,
        "residual_seconds": 8e-9,
        "error_seconds": 2e-9,
        "snr_ratio": 100.0,
    }.items():
        assert scrape.by(f"reference_{name}", "receiver") == {"north": pytest.approx(value)}


def test_recording_by_receiver(make_version, watched):
    station = watched(make_version(1))
    assert not [each for each in station.scrape().samples if each.name.startswith("localize_recorder")]
    account = Account(samples=1000, lost_queue=20, lost_disk=5, bytes=8000, files=4, files_removed=1)
    told = {"receivers": {"north": {"state": "paused", "reason": "full", **asdict(account)}}, "free_bytes": 10**9}
    station.engine.observe("recorder", lambda: told)
    scrape = station.scrape()
    assert scrape.by("recorder_state", "state") == {"recording": 0, "paused": 1, "failed": 0, "stopped": 0}
    assert scrape("recorder_samples_total", receiver="north") == 1000
    assert scrape("recorder_written_bytes_total", receiver="north") == 8000
    assert scrape.by("recorder_samples_lost_total", "stage") == {"queue": 20, "disk": 5}
    assert scrape("recorder_files_total") == 4
    assert scrape("recorder_files_removed_total") == 1
    assert scrape("recorder_disk_free_bytes") == 1e9
