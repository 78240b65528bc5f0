"""The demo in a terminal: a map of dots, what the last fix says, and how errors went."""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np
from localize_core.geodesy import LocalFrame
from localize_core.simulation.scene import Scene
from localize_core.station.config import Station
from localize_core.types.fix import Fix
from localize_core.wire.fix_json import format_timestamp
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

MAP_COLUMNS, MAP_ROWS = 38, 18
FACTS_WIDTH = 37
BAR_WIDTH = 8
DOTS_WIDE, DOTS_HIGH = 2, 4
BRAILLE = 0x2800
BRAILLE_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
BARS = "▁▂▃▄▅▆▇█"
TRAIL = 60
LEVEL_RANGE_DBFS = (-60.0, -20.0)


class DotMap:
    """Dots and words on a grid of characters, two by four dots to each (Unicode's braille patterns).

    Places are (n, 2) in metres, east and north; the map shows all of `bounds`, north up, to scale.
    """

    def __init__(self, bounds: np.ndarray, columns: int, rows: int) -> None:
        low, high = bounds.min(axis=0), bounds.max(axis=0)
        size = np.array([columns * DOTS_WIDE - 1, rows * DOTS_HIGH - 1])
        self._scale = float((size / (high - low)).min())
        self._middle, self._half = (low + high) / 2.0, size / 2.0
        self._bits = np.zeros((rows, columns), int)
        self._style = np.full((rows, columns), "", object)
        self._words: dict[tuple[int, int], tuple[str, str]] = {}

    def dots(self, places: np.ndarray, style: str) -> None:
        """Set a dot at each place on the map."""
        x, y = self._dot(places).T
        row, column = y // DOTS_HIGH, x // DOTS_WIDE
        inside = (row >= 0) & (row < self._bits.shape[0]) & (column >= 0) & (column < self._bits.shape[1])
        x, y, row, column = x[inside], y[inside], row[inside], column[inside]
        np.bitwise_or.at(self._bits, (row, column), BRAILLE_BITS[y % DOTS_HIGH, x % DOTS_WIDE])
        self._style[row, column] = style

    def word(self, place: np.ndarray, text: str, style: str) -> None:
        """Write over the dots, from the place's character to the right, or leftwards where that is too long."""
        x, y = self._dot(place)
        column, row = x // DOTS_WIDE, y // DOTS_HIGH
        self._words[row, max(0, min(column, self._bits.shape[1] - len(text)))] = (text, style)

    def render(self) -> Text:
        """The map as lines of text."""
        result = Text(no_wrap=True)
        for row in range(self._bits.shape[0]):
            column = 0
            while column < self._bits.shape[1]:
                text, style = self._words.get((row, column), ("", ""))
                if not text:
                    text, style = chr(BRAILLE + self._bits[row, column]), self._style[row, column]
                result.append(text, style)
                column += len(text)
            result.append("\n")
        result.rstrip()
        return result

    def _dot(self, places: np.ndarray) -> np.ndarray:
        offset = (places - self._middle) * self._scale * np.array([1.0, -1.0])
        return np.rint(self._half + offset).astype(int)


def sparkline(values: list[float], top: float) -> str:
    """One bar a value, as high as its part of `top`."""
    return "".join(BARS[min(int(value / top * len(BARS)), len(BARS) - 1)] for value in values)


class DemoView:
    """What the terminal shows. `add` comes from the flowgraph's thread, `render` from the display's."""

    def __init__(self, station: Station, scene: Scene) -> None:
        self._station, self._scene = station, scene
        self._frame = LocalFrame(scene.config.track[0][0], scene.config.track[0][1], scene.config.altitude_m)
        self._receivers = self._plane(np.array([(r.latitude, r.longitude) for r in station.receiver]))
        self._loop = self._plane(np.array(scene.lap(400)))
        self._trail: deque[tuple[float, float]] = deque(maxlen=TRAIL)
        self._errors_m: deque[float] = deque(maxlen=FACTS_WIDTH - 4)
        self._fix: Fix | None = None
        self._count = self._dropped = 0
        self._began_s = 0.0

    def add(self, fix: Fix, error_m: float | None) -> None:
        """Show this fix from now on."""
        self._began_s = self._began_s or time.monotonic()
        self._count += 1
        self._dropped += fix.dropped_windows
        if fix.position is not None and error_m is not None:
            self._trail.append((fix.position.latitude, fix.position.longitude))
            self._errors_m.append(error_m)
        self._fix = fix

    def render(self) -> RenderableType:
        """The view as it stands."""
        fix = self._fix
        if fix is None:
            return Text("compiling the station's model and starting the receivers …", "dim")
        title = f"{self._station.station.name}, {self._station.station.frequency_hz / 1e6:g} MHz"
        panels = Table.grid()
        panels.add_row(
            Panel(self._map(fix), title=title, width=MAP_COLUMNS + 4, height=MAP_ROWS + 2),
            Panel(
                self._facts(fix),
                title=format_timestamp(fix.timestamp)[11:21],
                width=FACTS_WIDTH,
                height=MAP_ROWS + 2,
            ),
        )
        return panels

    def _map(self, fix: Fix) -> Text:
        drawn = DotMap(np.concatenate([self._receivers, self._loop]), MAP_COLUMNS, MAP_ROWS)
        drawn.dots(self._loop, "bright_black")
        if self._trail:
            drawn.dots(self._plane(np.array(list(self._trail))), "cyan")
        if fix.position is not None and fix.uncertainty is not None:
            centre = self._plane(np.array([(fix.position.latitude, fix.position.longitude)]))[0]
            angle = np.linspace(0.0, 2.0 * math.pi, 60)
            circle = fix.uncertainty.scale * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
            drawn.dots(centre + circle @ np.linalg.cholesky(fix.uncertainty.covariance_m2).T, "bright_cyan")
        for place, receiver in zip(self._receivers, self._station.receiver, strict=True):
            drawn.word(place, f"▲{receiver.name}", "yellow")
        truth = self._scene.truth(fix.timestamp.timestamp())
        drawn.word(self._plane(np.array([truth]))[0], "●", "bold green")
        return drawn.render()

    def _facts(self, fix: Fix) -> Table:
        facts = Table.grid(padding=(0, 1))
        if fix.position is not None and fix.uncertainty is not None:
            ellipse = fix.uncertainty
            share = f"{100.0 * ellipse.probability:g} %"
            facts.add_row("position", f"{fix.position.latitude:.5f} {fix.position.longitude:.5f}")
            facts.add_row("error", f"{self._errors_m[-1]:.0f} m")
            facts.add_row(f"ellipse {share}", f"{ellipse.semi_major_m:.0f} × {ellipse.semi_minor_m:.0f} m")
        else:
            facts.add_row("position", f"none: {fix.reason}")
        facts.add_row("confidence", f"{fix.confidence:.2f}")
        facts.add_row("windows", f"{self._count}, {self._rate():.1f} per s")
        facts.add_row("dropped", str(self._dropped))
        facts.add_row()
        low, high = LEVEL_RANGE_DBFS
        for receiver in fix.receivers:
            level = low if receiver.level_db is None else receiver.level_db
            filled = round(BAR_WIDTH * min(max((level - low) / (high - low), 0.0), 1.0))
            facts.add_row(receiver.name, f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {level:.0f} dB")
        table = Table.grid()
        table.add_row(facts)
        if self._errors_m:
            top = max(self._errors_m)
            table.add_row(f"\nerrors, up to {top:.0f} m")
            table.add_row(Text(sparkline(list(self._errors_m), max(top, 1e-9)), "cyan"))
        table.add_row(Text("\n● truth  ▲ receiver  ⠶ fixes", "dim"))
        return table

    def _rate(self) -> float:
        elapsed_s = time.monotonic() - self._began_s
        return (self._count - 1) / elapsed_s if elapsed_s > 0.0 else 0.0

    def _plane(self, places: np.ndarray) -> np.ndarray:
        """East and north in metres of (n, 2) latitudes and longitudes."""
        return self._frame.to_enu_m(places[:, 0], places[:, 1], self._frame.altitude_m)[:, :2]
