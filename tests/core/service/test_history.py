"""The history: cursors that rise, bounded, read by many while it is written."""

from __future__ import annotations

import threading

import pytest
from localize_core.errors import ConfigError
from localize_core.service.history import PAGE, FixHistory
from localize_core.wire.fix_json import fix_from_json


def test_cursors_rise_by_one(make_fix):
    history = FixHistory(3)
    cursors = [history.append(make_fix(sequence=number)) for number in range(5)]
    assert cursors == list(range(cursors[0], cursors[0] + 5))
    assert (history.newest, history.received) == (cursors[4], 5)
    assert [fix_from_json(entry.json).sequence for entry in history.backwards()] == [4, 3, 2]


def test_a_later_run_begins_above(make_fix):
    earlier = FixHistory(3)
    cursor = earlier.append(make_fix())
    later = FixHistory(3)
    first = later.append(make_fix())
    assert first > cursor
    assert later.after(cursor, 10)[1][0].cursor == first


@pytest.mark.parametrize(
    ("read", "missing", "sequences"), [(-1, 2, [2, 3]), (0, 1, [2, 3]), (1, 0, [2, 3]), (3, 0, [4])]
)
def test_reading_after_a_cursor(make_fix, read, missing, sequences):
    history = FixHistory(3)
    cursors = [history.append(make_fix(sequence=number)) for number in range(5)]
    found = history.after(cursors[0] + read, 2)
    assert (found[0], [entry.fix.sequence for entry in found[1]]) == (missing, sequences)


def test_nothing_new(make_fix):
    history = FixHistory(3)
    assert history.after(history.newest, 10) == (0, [])
    history.append(make_fix())
    assert history.after(history.newest, 10) == (0, [])


def test_a_cursor_that_was_never_given_reads_from_the_beginning(make_fix):
    history = FixHistory(3)
    cursor = history.append(make_fix())
    for stranger in (0, cursor - 2, cursor + 1):
        assert [entry.cursor for entry in history.after(stranger, 10)[1]] == [cursor]


def test_going_backwards_over_pages_while_fixes_come(make_fix):
    history, fix = FixHistory(3 * PAGE), make_fix()
    first = [history.append(fix) for _ in range(7 * PAGE)][-3 * PAGE]
    backwards = history.backwards()
    seen = [next(backwards).cursor for _ in range(PAGE + 1)]
    for _ in range(PAGE // 2):
        history.append(fix)
    seen += [entry.cursor for entry in backwards]
    assert seen == list(range(first + 3 * PAGE - 1, first + PAGE // 2 - 1, -1))


def test_watchers_are_told_after_each_fix(make_fix):
    history, told = FixHistory(3), []
    watcher = lambda: told.append(history.newest)  # noqa: E731
    history.watch(watcher)
    cursor = history.append(make_fix())
    history.unwatch(watcher)
    history.append(make_fix())
    assert told == [cursor]


def test_a_fix_that_cannot_be_encoded_leaves_it_as_it_was(make_fix):
    history = FixHistory(3)
    with pytest.raises(ConfigError, match="confidence"):
        history.append(make_fix(confidence=2.0))
    assert history.received == 0


def test_threads_lose_nothing(make_fix):
    history, fix = FixHistory(1000), make_fix()
    writers = [threading.Thread(target=lambda: [history.append(fix) for _ in range(50)]) for _ in range(4)]
    seen, cursor = 0, history.newest
    for writer in writers:
        writer.start()
    while seen < 200:
        missing, entries = history.after(cursor, 7)
        assert missing == 0
        assert [entry.cursor for entry in entries] == list(range(cursor + 1, cursor + 1 + len(entries)))
        seen += len(entries)
        cursor += len(entries)
    for writer in writers:
        writer.join()
