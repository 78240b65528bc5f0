"""What all sink blocks share: a message input `fix`, and a sink of localize_core, open from start() to stop()."""

from __future__ import annotations

import traceback
from typing import Any

import pmt
from gnuradio import gr
from localize_core.errors import ConfigError, PublishError
from localize_core.sinks.base import FixSink

from .pmt_codec import fix_from_pmt

FIX_PORT = pmt.intern("fix")


class fix_sink_base(gr.sync_block):
    """A block without streams that hands every fix to `sink`.

    A message that is no fix is counted in `malformed` and logged once per burst. If the sink cannot be opened or
    raises, `failure` holds the error; every fix of one that is not open counts as dropped.
    """

    FIX_PORT = FIX_PORT

    def __init__(self, name: str, sink: FixSink) -> None:
        gr.sync_block.__init__(self, name, None, None)
        self.failure: Exception | None = None
        self.malformed = 0
        self._malformed_burst = False
        self._sink = sink
        self.message_port_register_in(FIX_PORT)
        self.set_msg_handler(FIX_PORT, self._handle_fix)

    @property
    def sent(self) -> int:
        return self._sink.sent

    @property
    def dropped(self) -> int:
        return self._sink.dropped

    @property
    def backlog(self) -> int:
        return self._sink.backlog

    def start(self) -> bool:
        try:
            self._sink.open()
        except PublishError as error:
            self.failure = error
            self.logger.error(f"{self.name()} failed: {error}")
            return False
        return True

    def stop(self) -> bool:
        self._sink.close()
        return True

    def _handle_fix(self, message: Any) -> None:
        try:
            self._sink.publish(fix_from_pmt(message))
        except ConfigError as error:
            self.malformed += 1
            if not self._malformed_burst:
                self.logger.warn(f"{self.name()}: ignoring a message that is no fix: {error}")
            self._malformed_burst = True
        except Exception as error:  # would end the thread or the whole process; whoever runs this looks at `failure`
            self.failure = error
            self.logger.error(f"{self.name()} failed: {error}\n{traceback.format_exc()}")
        else:
            self._malformed_burst = False
