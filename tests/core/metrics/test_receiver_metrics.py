"""What a station knows of its receivers comes out of a scrape."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime, timezone

from localize_core.receivers.stream_buffer import StreamCount
from localize_core.receivers.supervisor import DeviceState


def test_state_and_account_of_each_receiver(make_version, watched):
    station = watched(make_version(1))
    before = station.scrape()
    assert not [sample for sample in before.samples if sample.name.startswith("localize_receiver")]
    state = DeviceState("streaming", datetime.now(timezone.utc), restarts=2)
    count = StreamCount(taken=1000, delivered=700, dropped=200, waiting=100, lost=30, gaps=3, overflows=4)
    told = {
        "north": {**state.as_dict(), **asdict(count)},
        "east": {**replace(state, state="absent").as_dict(), **asdict(StreamCount())},
    }
    station.engine.observe("receivers", lambda: told)
    scrape = station.scrape()
    assert scrape("receiver_state", receiver="north", state="streaming") == 1
    assert scrape("receiver_state", receiver="east", state="streaming") == 0
    assert scrape("receiver_state", receiver="east", state="absent") == 1
    assert scrape("receiver_restarts_total", receiver="north") == 2
    assert scrape("receiver_samples_total", receiver="north") == 1000
    assert scrape("receiver_samples_lost_total", receiver="north", stage="receiver") == 30
    assert scrape("receiver_samples_lost_total", receiver="north", stage="buffer") == 200
    assert scrape("receiver_gaps_total", receiver="north", stage="receiver") == 3
    assert scrape("receiver_gaps_total", receiver="north", stage="buffer") == 4
    assert scrape("receiver_samples_waiting", receiver="north") == 100
    assert scrape("receiver_samples_total", receiver="east") == 0
