"""RTL-SDRs served by rtl_tcp, through gr-osmosdr's client.

That client holds Python's lock while it waits for a server's greeting, reads on for ever at full load once the server
has closed the connection, and cannot be stopped while it waits for samples. So it talks to a relay: a process that
has the greeting at hand, and resets the connection, which ends the client's stream, when the server has closed it, is
silent for `STALL_S`, or `Radio.close` is called.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path

from gnuradio import blocks, gr
from localize_core.errors import RadioError
from localize_core.station.config import StationTable
from localize_core.station.sources import Device, split_address

from .drivers import import_driver
from .radio import Radio

CONNECT_S = 5.0
STALL_S = 2.0
"""rtl_tcp sends without pause: silence means that it or its radio is gone."""
CLIENT_BUFFER = 1 << 20
"""Bytes that gr-osmosdr's client can take at once: more than any buffer of GNU Radio holds, as it does not look."""
RELAY = Path(__file__).with_name("rtl_tcp_relay.py")
TUNERS = {1: "E4000", 2: "FC0012", 3: "FC0013", 4: "FC2580", 5: "R820T", 6: "R828D"}
DIRECT_SAMPLING = {None: 0, "i": 1, "q": 2}


def open_radio(device: Device, station: StationTable) -> Radio:
    """The one receiver of an rtl_tcp server. Raises as `radios.open_radio`."""
    osmosdr = import_driver("osmosdr", device)
    source = device.source
    server, greeting = _connect(source.address)
    with server, socket.create_server(("127.0.0.1", 0)) as listener:
        relay = subprocess.Popen(
            [sys.executable, "-I", "-S", RELAY, str(server.fileno()), str(listener.fileno()), str(STALL_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(server.fileno(), listener.fileno()),
            start_new_session=True,  # Ctrl-C in a terminal is for the command, which ends the relay
        )
        port = listener.getsockname()[1]
    assert relay.stdin is not None
    assert relay.stdout is not None
    relay.stdin.write(greeting)
    ready = relay.stdout.read(1)  # once it waits for the client, the client need not wait for it
    relay.stdout.close()

    def close() -> None:
        assert relay.stdin is not None
        relay.stdin.close()
        relay.wait()

    if not ready:
        close()
        raise RadioError(f"{device.name}: the relay {RELAY} did not start")

    arguments = {
        "rtl_tcp": f"127.0.0.1:{port}",
        "psize": CLIENT_BUFFER,
        "direct_samp": DIRECT_SAMPLING[source.direct_sampling],
        "bias": int(source.bias_tee),
    }
    try:
        client = osmosdr.source(",".join(f"{key}={value}" for key, value in arguments.items()))
        client.set_sample_rate(station.sample_rate_hz)
        client.set_center_freq(station.frequency_hz)
        # it turns the number into an unsigned one of 32 bits, which leaves open what becomes of negative ones
        client.set_freq_corr(source.ppm % 2**32)
        client.set_gain_mode(source.automatic_gain)
        if source.gain_db is not None:
            client.set_gain(source.gain_db)
    except BaseException as error:
        close()
        if not isinstance(error, RuntimeError):
            raise
        raise RadioError(f"{device.name}: {error}") from error
    output = _without_dc(client) if source.dc_removal else client
    return Radio(device.name, ((output, 0),), (client, output), "host", client.get_sample_rate(), [close])


def _connect(address: str) -> tuple[socket.socket, bytes]:
    """A connection to a server, and its greeting. Raises RadioError where there is none that has a radio."""
    host, port = split_address(address)
    try:
        server = socket.create_connection((host, int(port)), timeout=CONNECT_S)
    except OSError as error:
        raise RadioError(f"rtl-tcp {address}: {_reason(error)}; is rtl_tcp running there?") from error
    greeting = b""
    try:
        while len(greeting) < 12:
            part = server.recv(12 - len(greeting))
            if not part:
                raise RadioError(f"rtl-tcp {address}: the server closed the connection; is its radio plugged in?")
            greeting += part
    except OSError as error:
        server.close()
        raise RadioError(f"rtl-tcp {address}: {_reason(error)}; does it have another client?") from error
    except RadioError:
        server.close()
        raise
    magic, tuner, _ = struct.unpack(">4sII", greeting)
    if magic != b"RTL0" or tuner not in TUNERS:
        server.close()
        raise RadioError(f"rtl-tcp {address}: what answers there is no rtl_tcp: it begins with {greeting!r}")
    server.settimeout(None)
    return server, greeting


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_S:g} s"
    return (error.strerror or str(error)).lower()


def _without_dc(client: gr.hier_block2) -> gr.hier_block2:
    whole = gr.hier_block2("rtl_tcp", gr.io_signature(0, 0, 0), gr.io_signature(1, 1, gr.sizeof_gr_complex))
    whole.connect(client, blocks.correctiq(), whole)
    return whole
