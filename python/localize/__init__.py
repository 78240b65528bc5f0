"""GNU Radio blocks that turn SDR streams into transmitter positions. `from gnuradio import localize`."""

from .cross_correlation import cross_correlation
from .file_fix_sink import file_fix_sink
from .mel_spectrogram import mel_spectrogram
from .scene_source import scene_source
from .zmq_fix_sink import zmq_fix_sink
