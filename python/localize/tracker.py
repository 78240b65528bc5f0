"""Fixes to fixes with tracks: the emitters behind them, followed over time."""

from __future__ import annotations

import time
import traceback
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pmt
from gnuradio import gr
from localize_core.errors import ConfigError
from localize_core.serving.settings import make_settings
from localize_core.tracking.settings import TrackerSettings
from localize_core.tracking.tracker import Share, Tracker

from .pmt_codec import fix_from_pmt, fix_to_pmt

BUSY = 0.5
"""Part of the time that a live tracker may spend."""
BURST_S = 0.5
"""Of work that it may take on at once."""


class tracker(gr.sync_block):
    """A block without streams: every message `fix` goes on as it came, with the tracks as they stand after it.

    `common`: a share, or a function of a fix's position and ellipse that gives it; None for 0.25. Without `live`, every
    fix is followed; with it, fixes pass as they are while they come faster than they can be followed, and count in
    `passed`. The other parameters are those of TrackerSettings.

    Messages on `status` go on as they came. GNU Radio ends a block with the first of those that send to it: whoever
    takes both `fix` and `status` has to get both from here, or misses the last fixes of a recording.

    A message that is no fix goes no further: it is counted in `malformed` and logged once per burst. What else goes
    wrong is kept in `failure`, and fixes go on without tracks.

    Raises ConfigError for a parameter that cannot work, or without Stone Soup.
    """

    FIX_PORT = pmt.intern("fix")
    STATUS_PORT = pmt.intern("status")

    def __init__(
        self,
        acceleration_mps2: float = 3.0,
        max_speed_mps: float = 50.0,
        gate: float = 0.999,
        confirm: int = 3,
        lost_s: float = 10.0,
        common: float | Share | None = None,
        lag_s: float = 0.0,
        max_tracks: int = 16,
        live: bool = False,
    ) -> None:
        self.settings = make_settings(
            TrackerSettings,
            acceleration_mps2=acceleration_mps2,
            max_speed_mps=max_speed_mps,
            gate=gate,
            confirm=confirm,
            lost_s=lost_s,
            common=None if callable(common) else common,
            lag_s=lag_s,
            max_tracks=max_tracks,
        )
        self._share = common if callable(common) else None
        self._tracker = Tracker(self.settings, share=self._share)
        gr.sync_block.__init__(self, "tracker", None, None)
        self.failure: Exception | None = None
        self.malformed = self.passed = 0
        self._malformed_burst = False
        self._live = live
        self._debt_s, self._since_s = 0.0, 0.0
        self._thread: Executor | None = None
        for port, handler in ((self.FIX_PORT, self._handle_fix), (self.STATUS_PORT, self._handle_status)):
            self.message_port_register_in(port)
            self.message_port_register_out(port)
            self.set_msg_handler(port, handler)

    def start(self) -> bool:
        self.failure = None
        self._tracker = Tracker(self.settings, share=self._share)
        self._debt_s, self._since_s = 0.0, time.monotonic()
        # In GNU Radio's own, what Python keeps for a thread, such as pyproj's projections, goes after each message.
        self._thread = ThreadPoolExecutor(1, "localize-tracker")
        return True

    def stop(self) -> bool:
        if self._thread is not None:
            self._thread.shutdown()
        return True

    @property
    def late(self) -> int:
        """Fixes that were no newer than the one before them: they have no tracks."""
        return self._tracker.late

    def _handle_status(self, message: Any) -> None:
        self.message_port_pub(self.STATUS_PORT, message)

    def _handle_fix(self, message: Any) -> None:
        followed = message
        began_s = time.monotonic()
        # What is slow here would have messages pile up without bound.
        self._debt_s = max(self._debt_s - BUSY * (began_s - self._since_s), 0.0)
        self._since_s = began_s
        if self._live and self._debt_s > BURST_S:
            self.passed += 1
        else:
            try:
                assert self._thread is not None  # the scheduler calls start() first
                followed = fix_to_pmt(self._thread.submit(self._tracker.follow, fix_from_pmt(message)).result())
            except ConfigError as error:
                self.malformed += 1
                if not self._malformed_burst:
                    self.logger.warn(f"tracker: ignoring a message that is no fix: {error}")
                self._malformed_burst = True
                return
            except (
                Exception
            ) as error:  # would end the thread or the whole process; whoever runs this looks at `failure`
                self.failure = error
                self.logger.error(f"tracker failed: {error}\n{traceback.format_exc()}")
            self._malformed_burst = False
            self._debt_s += time.monotonic() - began_s
        self.message_port_pub(self.FIX_PORT, followed)
