"""Between an rtl_tcp server and gr-osmosdr's client: passes bytes on, and ends the client's stream when it is to end.

Run as a program of its own, with the standard library alone: SERVER_FD LISTENER_FD STALL_S. Standard input holds the
server's greeting, and ends when the relay is to end; something on standard output says that a client may come.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
import time

GREETING_BYTES = 12
CHUNK_BYTES = 1 << 16


def relay(server: socket.socket, client: socket.socket, stall_s: float) -> str:
    """Pass bytes on until either side ends, the server is silent for `stall_s`, or standard input ends. Says which."""
    ears = selectors.DefaultSelector()
    ears.register(0, selectors.EVENT_READ, "stdin")
    ears.register(client, selectors.EVENT_READ, "client")
    ears.register(server, selectors.EVENT_READ, "server")
    pending = memoryview(b"")
    heard = time.monotonic()
    while True:
        for key, events in ears.select(stall_s / 4.0):
            if key.data == "stdin":
                return "stopped"
            if key.data == "server":
                pending = memoryview(server.recv(CHUNK_BYTES))
                if not pending:
                    return "the server closed the connection"
            elif events & selectors.EVENT_READ:
                commands = client.recv(CHUNK_BYTES)
                if not commands:
                    return "the client closed the connection"
                server.sendall(commands)
        if pending:
            with contextlib.suppress(BlockingIOError):
                pending = pending[client.send(pending) :]
            heard = time.monotonic()
            # what waits for the client goes first: the server is not heard meanwhile, and holds back itself
            ears.modify(client, selectors.EVENT_READ | (selectors.EVENT_WRITE if pending else 0), "client")
            if pending and server in ears.get_map():
                ears.unregister(server)
            elif not pending and server not in ears.get_map():
                ears.register(server, selectors.EVENT_READ, "server")
        elif time.monotonic() - heard > stall_s:
            return f"the server sent nothing for {stall_s:g} s"


def main() -> None:
    server = socket.socket(fileno=int(sys.argv[1]))
    listener = socket.socket(fileno=int(sys.argv[2]))
    greeting = os.read(0, GREETING_BYTES)
    os.write(1, b"\n")
    with selectors.DefaultSelector() as ears:
        ears.register(0, selectors.EVENT_READ)
        ears.register(listener, selectors.EVENT_READ)
        if any(key.fileobj == 0 for key, _ in ears.select()):
            return  # no client will come
    client, _ = listener.accept()
    listener.close()
    client.sendall(greeting)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setblocking(False)
    try:
        relay(server, client, float(sys.argv[3]))
    except OSError:
        pass  # either side reset the connection, which ends it as well
    finally:
        # a reset is the one end of a connection that the client takes for an end
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.close()


if __name__ == "__main__":
    main()
