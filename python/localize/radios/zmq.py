"""IQ that another flowgraph sends, with the tags it sends along."""

from __future__ import annotations

import struct

import zmq
from gnuradio import blocks, gr
from localize_core.errors import ConfigError, RadioError
from localize_core.station.config import StationTable
from localize_core.station.sources import Device

from .drivers import chosen_outputs, import_driver, opening
from .radio import Radio

FIRST_S = 3.0
"""How long the first message may take: a flowgraph that runs sends many in a second."""
TIMEOUT_MS = 100
TAGS_HEADER = struct.pack("<HB", 0x5FF0, 1)
"""What a message with tags begins with."""


def open_radio(device: Device, station: StationTable) -> Radio:
    """Receivers of one sender. Raises as `radios.open_radio`.

    That a flowgraph sends is looked at first: GNU Radio's source waits in silence where none does, and dies of
    messages with tags where it does not expect them, and the other way round.
    """
    zeromq = import_driver("gnuradio.zeromq", device)
    source = device.source
    has_tags = _has_tags(source.address, source.channels)
    size = gr.sizeof_gr_complex
    with opening(device):
        socket = zeromq.sub_source(size, source.channels, source.address, TIMEOUT_MS, has_tags, -1, "")
    whole = gr.hier_block2("zmq", gr.io_signature(0, 0, 0), gr.io_signature(source.channels, source.channels, size))
    if source.channels == 1:
        whole.connect(socket, whole)
    else:
        streams = blocks.vector_to_streams(size, source.channels)
        whole.connect(socket, streams)
        for channel in range(source.channels):
            whole.connect((streams, channel), (whole, channel))
    outputs = chosen_outputs(whole, source.channels, [each.channel for each in device.sources])
    return Radio(device.name, outputs, (whole, outputs[0][0]), source.time_source, station.sample_rate_hz)


def _has_tags(address: str, channels: int) -> bool:
    """Whether the sender's messages have tags. Raises RadioError where none come, ConfigError for other items."""
    context = zmq.Context()
    listener = context.socket(zmq.SUB)
    listener.setsockopt(zmq.LINGER, 0)
    listener.setsockopt(zmq.SUBSCRIBE, b"")
    try:
        listener.connect(address)
        if not listener.poll(FIRST_S * 1000.0):
            raise RadioError(f"zmq {address}: nothing came within {FIRST_S:g} s; does a flowgraph send there?")
        message = listener.recv()
    except zmq.ZMQError as error:
        raise RadioError(f"zmq {address}: {error}") from error
    finally:
        listener.close()
        context.term()
    if message.startswith(TAGS_HEADER):
        return True
    item = channels * gr.sizeof_gr_complex
    if len(message) % item:
        raise ConfigError(
            f"zmq {address}: messages of {len(message)} bytes are no items of channels={channels} complex samples"
        )
    return False
