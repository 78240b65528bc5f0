"""GNU Radio blocks that turn SDR streams into transmitter positions. `from gnuradio import localize`."""

from .file_fix_sink import file_fix_sink
from .zmq_fix_sink import zmq_fix_sink
