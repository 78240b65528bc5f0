"""A ZeroMQ socket that lets in known clients only, over encrypted connections."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from localize_core.wire.curve import check_curve, read_public_keys, read_secret_key

log = logging.getLogger(__name__)

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
"""Where libzmq asks whether a client may come in (RFC 27)."""
DOMAIN = b"localize"
_encode: Callable[[bytes], bytes] = z85.encode


class CurveServer:
    """The keys of a server and of its clients, read once: `secret_key_file` as NAME.key_secret, `clients_folder` with
    a file NAME.key for each client. Raises ConfigError for a key that cannot be used, or no client.
    """

    def __init__(self, secret_key_file: str | os.PathLike[str], clients_folder: str | os.PathLike[str]) -> None:
        check_curve()
        self._secret_key = read_secret_key(secret_key_file)
        self._clients = read_public_keys(clients_folder)

    def guard(self, context: zmq.Context[Any], socket: zmq.Socket[Any]) -> None:
        """Guard the socket, before it binds, until the context is terminated.

        pyzmq has authenticators of its own, but the one with a thread keeps the process from ending up to version 24,
        and the one without changed from functions to coroutines in version 25.
        """
        handler = context.socket(zmq.REP)
        handler.linger = 0
        handler.bind(ZAP_ENDPOINT)
        threading.Thread(target=self._answer, args=(handler,), name="localize-zap", daemon=True).start()
        socket.curve_secretkey = self._secret_key
        socket.curve_server = True
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler nobody comes in; otherwise all would

    def _answer(self, handler: zmq.Socket[bytes]) -> None:
        try:
            while True:
                version, request, _, address, _, mechanism, *credentials = handler.recv_multipart()
                client = self._clients.get(_encode(credentials[0])) if mechanism == b"CURVE" else None
                if client is None:
                    log.info("refused a client from %s: its key is not among the clients'", address.decode())
                else:
                    log.info("let in %s from %s", client, address.decode())
                verdict = [b"400", b"unknown key", b""] if client is None else [b"200", b"OK", os.fsencode(client)]
                handler.send_multipart([version, request, *verdict, b""])
        except zmq.ContextTerminated:
            pass
        finally:
            handler.close()
