"""Fixes of many streams in a terminal: a row for each with its last fix and what is missing, and for each track."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from localize_core.client import FixSubscriber
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import format_timestamp
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

ROWS = 30
"""The streams that spoke last."""
TRACKS = 8
"""Of a stream's tracks, those that fixes belonged to last."""
RATE_OVER = 50
"""Fixes that the rate is taken over."""
COUNTS = ("conf.", "per s", "age s", "missed", "dropped")
WIDE = 120
"""Columns of a terminal that has room for counts and directions."""
STYLES = {"connected": "green", "disconnected": "red"}


@dataclass
class Row:
    fix: Fix
    arrivals_s: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_OVER))


class FixTable:
    """What rich draws, several times a second, while another thread adds fixes."""

    def __init__(self, fixes: FixSubscriber) -> None:
        self._fixes = fixes
        self._rows: OrderedDict[tuple[str, str], Row] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, fix: Fix) -> None:
        key = fix.station, fix.stream
        with self._lock:
            row = self._rows.setdefault(key, Row(fix))
            row.fix = fix
            row.arrivals_s.append(time.monotonic())
            self._rows.move_to_end(key)
            if len(self._rows) > ROWS:
                self._rows.popitem(last=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(wide=options.max_width >= WIDE)

    def _table(self, *, wide: bool) -> Table:
        fixes = self._fixes
        table = Table(title=self._title(), title_justify="left", title_style="", expand=False)
        with self._lock:
            rows = [(key, row.fix, tuple(row.arrivals_s)) for key, row in sorted(self._rows.items())]
        followed = any(fix.tracks for _, fix, _ in rows)
        for name in ("station", "MHz", "time (UTC)", "position", "ellipse, velocity" if followed else "ellipse"):
            table.add_column(name, no_wrap=name != "station")
        for name in COUNTS if wide else ():
            table.add_column(name, justify="right", no_wrap=True)
        if malformed := fixes.malformed:
            table.caption = f"{malformed} messages were no fix"
        now_s, streams = time.monotonic(), fixes.streams
        for key, fix, came_s in rows:
            count = streams.get(key)
            cells = [
                Text(fix.station),
                "" if fix.frequency_hz is None else f"{fix.frequency_hz / 1e6:g}",
                format_timestamp(fix.timestamp)[11:-4],
                *self._place(fix, wide=wide),
                f"{fix.confidence:.2f}",
                f"{(len(came_s) - 1) / (now_s - came_s[0]):.1f}" if len(came_s) > 1 else "",
                f"{now_s - came_s[-1]:.0f}",
                "" if count is None else str(count.missed),
                "" if count is None else str(count.dropped_windows),
            ]
            table.add_row(*cells[: len(table.columns)])
            for cells in self._tracks(fix):
                table.add_row(*cells)
        return table

    def _title(self) -> Text:
        fixes = self._fixes
        title = Text(f"{fixes.name}  ")
        title.append(fixes.state, STYLES.get(fixes.state, "yellow"))
        return title.append(f": {fixes.reason}" if fixes.reason else f", {fixes.received} fixes")

    @staticmethod
    def _tracks(fix: Fix) -> Iterator[list[Text | str]]:
        latest = sorted(fix.tracks, key=lambda track: track.idle_s)[:TRACKS]
        for track in sorted(latest, key=lambda track: track.id):
            yield [
                f"track\N{NO-BREAK SPACE}{track.id}",
                "",
                Text("coasting", "yellow") if track.state == "coasting" else "",
                f"{track.position.latitude:.5f} {track.position.longitude:.5f}",
                f"{track.speed_mps:.1f} m/s {track.course_deg:.0f}°",
            ]
        if len(fix.tracks) > TRACKS:
            yield [f"{len(fix.tracks) - TRACKS} more tracks"]

    @staticmethod
    def _place(fix: Fix, *, wide: bool) -> tuple[Text, str]:
        if fix.position is None or fix.uncertainty is None:
            return Text(f"no fix: {fix.reason}", "yellow"), ""
        u = fix.uncertainty
        place = Text(f"{fix.position.latitude:.5f} {fix.position.longitude:.5f}")
        azimuth = f" {u.azimuth_deg:.0f}°" if wide else ""
        return place, f"{u.semi_major_m:.0f} × {u.semi_minor_m:.0f} m{azimuth}"
