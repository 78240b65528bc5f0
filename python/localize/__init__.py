"""GNU Radio blocks that turn SDR streams into transmitter positions. `from gnuradio import localize`."""

from .cot_fix_sink import cot_fix_sink
from .cross_correlation import cross_correlation
from .file_fix_sink import file_fix_sink
from .http_fix_sink import http_fix_sink
from .kiwi_wav_source import kiwi_wav_source
from .localizer import localizer
from .mel_spectrogram import mel_spectrogram
from .mqtt_fix_sink import mqtt_fix_sink
from .onnx_inference import onnx_inference
from .redis_fix_sink import redis_fix_sink
from .reference_clock import reference_clock
from .scene_source import scene_source
from .sigmf_sink import sigmf_sink
from .sigmf_source import sigmf_source
from .time_align import time_align
from .tracker import tracker
from .zmq_fix_sink import zmq_fix_sink
