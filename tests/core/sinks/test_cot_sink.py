"""CoT events on the wire, read by sockets: datagrams, and streams of documents as a TAK server has them."""

from __future__ import annotations

import contextlib
import math
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest
from localize_core.errors import ConfigError
from localize_core.sinks import cot_sink
from localize_core.sinks.cot_sink import CotFixSink
from localize_core.wire.cot import fix_to_cot
from lxml import etree

WAIT_S = 30.0
GROUP = "239.2.3.1"
DECLARATION = b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<event '
IP_RECVTTL = 12  # linux/in.h; Python has no name for it


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)


def number(event):
    """Which fix an event is of: tests number them by station."""
    return int(event.find("detail/contact").get("callsign").split()[0])


@pytest.fixture
def open_sink():
    sinks = []

    def open_one(url, **options):
        sink = CotFixSink(url, **{"linger_ms": 0, **options})
        sink.open()
        sinks.append(sink)
        return sink

    yield open_one
    for sink in sinks:
        sink.close()


@pytest.fixture
def numbered(make_fix):
    return lambda n, padding=0: make_fix(station=f"{n} {'x' * padding}")


class Server:
    """A TCP server that reads a stream of events from one connection at a time. `chatter`: what it sends meanwhile."""

    def __init__(self, *, port=0, chatter=b"", tls=None, reads=True):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        self.numbers, self.connections = [], 0
        self.reads, self.ended = threading.Event(), threading.Event()
        if reads:
            self.reads.set()
        self._chatter, self._tls, self.opened = chatter, tls, []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self.ended.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError):  # of a client that goes away, or whose certificate is no good
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                self.opened.append(connection)
                self._read(connection)
            connection.close()

    def _read(self, connection):
        rest = b""
        if self._chatter:
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()
        while self.reads.wait() and (data := connection.recv(4096)):
            *documents, rest = (rest + data).split(b"</event>")
            for document in documents:
                assert document.startswith(DECLARATION)
                self.numbers.append(number(etree.fromstring(document + b"</event>")))

    def _talk(self, connection):
        with contextlib.suppress(OSError):
            while not self.ended.is_set():
                connection.sendall(self._chatter)

    def abort(self):
        """Have the connection reset, with all that was not read yet."""
        self.opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        self.opened[-1].close()

    def hang_up(self):
        for connection in self.opened:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.ended.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.reads.set()
        self.hang_up()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def serve():
    servers = []

    def start(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def receiver():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(WAIT_S)
        yield receiver


def test_an_event_a_datagram(open_sink, receiver, make_fix):
    receiver.bind(("127.0.0.1", 0))
    sink = open_sink(f"udp://localhost:{receiver.getsockname()[1]}", stale_s=5.0, cot_type="a-h-G")
    assert sink.publish(make_fix())
    declaration, _, event = receiver.recv(65536).decode().partition("\n")
    assert declaration == '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    assert event == fix_to_cot(make_fix(), stale_s=5.0, cot_type="a-h-G")
    wait_for(lambda: sink.sent == 1)
    assert (sink.dropped, sink.backlog, sink.skipped) == (0, 0, 0)


def test_a_multicast_group(open_sink, receiver, numbered):
    receiver.bind((GROUP, 0))
    request = struct.pack("@4s4si", socket.inet_aton(GROUP), bytes(4), socket.if_nametoindex("lo"))
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    receiver.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
    sink = open_sink(f"udp://{GROUP}:{receiver.getsockname()[1]}", interface="lo", multicast_ttl=7)
    sink.publish(numbered(3))
    data, ancillary, *_ = receiver.recvmsg(65536, 64)
    assert number(etree.fromstring(data)) == 3
    assert [struct.unpack("@i", value)[0] for *_, value in ancillary] == [7]


def test_ipv6(open_sink, numbered):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(WAIT_S)
        try:
            receiver.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on this machine")
        open_sink(f"udp://[::1]:{receiver.getsockname()[1]}").publish(numbered(4))
        assert number(etree.fromstring(receiver.recv(65536))) == 4


def test_what_fits_into_no_datagram_is_dropped_alone(open_sink, receiver, numbered):
    receiver.bind(("127.0.0.1", 0))
    sink = open_sink(f"udp://127.0.0.1:{receiver.getsockname()[1]}")
    for n, padding in ((1, 0), (2, 70_000), (3, 0)):
        assert sink.publish(numbered(n, padding))
    assert [number(etree.fromstring(receiver.recv(65536))) for _ in range(2)] == [1, 3]
    wait_for(lambda: (sink.sent, sink.dropped, sink.backlog) == (2, 1, 0))


def test_fixes_wait_for_an_interface_that_is_not_there(open_sink, numbered):
    sink = open_sink(f"udp://{GROUP}:6969", interface="none0")
    sink.publish(numbered(0))
    wait_for(lambda: "no network interface 'none0'" in sink.state)
    sink.close()
    assert (sink.sent, sink.dropped, sink.backlog) == (0, 1, 0)


def test_a_fix_without_position_has_no_event(open_sink, serve, make_fix, numbered):
    server = serve()
    sink = open_sink(f"tcp://127.0.0.1:{server.port}", linger_ms=10_000)
    assert sink.publish(make_fix(reason="silence"))
    assert sink.publish(numbered(1))
    assert sink.publish(make_fix(reason="silence"))
    sink.close()
    assert (sink.sent, sink.skipped, sink.dropped, sink.backlog) == (3, 2, 0, 0)
    wait_for(lambda: server.numbers == [1])


def test_a_stream_of_events_in_order(open_sink, serve, numbered):
    server = serve()
    sink = open_sink(f"tcp://127.0.0.1:{server.port}", linger_ms=10_000)
    for n in range(500):
        assert sink.publish(numbered(n))
    sink.close()
    assert (sink.sent, sink.dropped) == (500, 0)
    wait_for(lambda: len(server.numbers) == 500)
    assert server.numbers == [*range(500)]


def test_a_server_that_talks_all_the_time(open_sink, serve, numbered):
    server = serve(chatter=b"<event>" * 10_000)
    sink = open_sink(f"tcp://127.0.0.1:{server.port}")
    for n in range(500):
        sink.publish(numbered(n))
    wait_for(lambda: sink.sent == 500)
    wait_for(lambda: server.numbers == [*range(500)])
    assert server.connections == 1


def test_fixes_wait_for_a_server_that_comes_later(open_sink, serve, numbered):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    sink = open_sink(f"tcp://127.0.0.1:{port}", capacity=10)
    for n in range(15):
        assert sink.publish(numbered(n))
    wait_for(lambda: "refused" in sink.state)
    assert (sink.sent, sink.dropped, sink.backlog) == (0, 5, 10)
    server = serve(port=port)
    wait_for(lambda: server.numbers == [*range(5, 15)])
    wait_for(lambda: (sink.sent, sink.dropped, sink.backlog) == (10, 5, 0))


def test_nothing_is_lost_over_a_restart_of_the_server(open_sink, serve, numbered):
    """Whole events only, in order; some may come twice, as nobody acknowledges them."""
    first = serve()
    sink = open_sink(f"tcp://127.0.0.1:{first.port}", linger_ms=10_000)
    for n in range(200):
        sink.publish(numbered(n))
    wait_for(lambda: sink.sent == 200)
    wait_for(lambda: len(first.numbers) == 200)
    first.close()
    for n in range(200, 400):
        sink.publish(numbered(n))
    second = serve(port=first.port)
    sink.close()
    assert (sink.sent, sink.dropped) == (400, 0)
    wait_for(lambda: second.numbers and second.numbers[-1] == 399)
    assert list(dict.fromkeys(second.numbers)) == [*range(200, 400)]


def test_what_the_other_machine_never_got_is_not_sent(open_sink, serve, numbered):
    server = serve(reads=False)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sink = open_sink(f"tcp://127.0.0.1:{server.port}")
    sink.publish(numbered(0, 100_000))  # lies in this machine's buffer for the most part
    wait_for(lambda: server.opened and server.opened[0].recv(1, socket.MSG_PEEK))
    assert (sink.sent, sink.backlog) == (0, 1)
    server.abort()
    server.reads.set()
    wait_for(lambda: server.numbers == [0])
    wait_for(lambda: (sink.sent, sink.backlog) == (1, 0))


def test_a_server_that_does_not_read_is_left_and_holds_up_nobody(open_sink, serve, numbered, monkeypatch):
    monkeypatch.setattr(cot_sink, "STALLED_S", 0.2)
    server = serve(reads=False)
    sink = open_sink(f"tcp://127.0.0.1:{server.port}", capacity=10_000)
    count = 0
    while "gets through" not in sink.state:
        assert sink.publish(numbered(count, 50_000))
        count += 1
        time.sleep(0.001)
        assert count < 2_000
    assert sink.sent + sink.dropped + sink.backlog == count
    server.reads.set()
    wait_for(lambda: (sink.sent, sink.backlog) == (count, 0))
    wait_for(lambda: server.numbers and server.numbers[-1] == count - 1)
    assert [*dict.fromkeys(server.numbers)] == [*range(count)]


def test_closing_does_not_wait_for_a_server_that_does_not_read(open_sink, serve, numbered):
    server = serve(reads=False)
    sink = open_sink(f"tcp://127.0.0.1:{server.port}")
    for n in range(100):
        sink.publish(numbered(n, 100_000))
    wait_for(lambda: server.connections)
    sink.close()
    assert sink.dropped > 0
    assert (sink.sent + sink.dropped, sink.backlog) == (100, 0)


def test_publishing_while_closed_is_a_drop(numbered):
    sink = CotFixSink("tcp://127.0.0.1:9")
    assert not sink.publish(numbered(0))
    assert (sink.sent, sink.dropped, sink.backlog) == (0, 1, 0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with two authorities, and of each a certificate and key for localhost: ours.*, other.*."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "other"):
        made = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ]
        made += ["-subj", "/CN=takserver", "-addext", "subjectAltName=DNS:takserver", "-keyout", f"{name}.key"]
        subprocess.run([*made, "-out", f"{name}.pem"], cwd=folder, check=True, capture_output=True)
    locked = ["openssl", "pkey", "-in", "ours.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key"]
    subprocess.run(locked, cwd=folder, check=True, capture_output=True)
    return folder


def server_side(certificates, version=ssl.TLSVersion.TLSv1_3):
    """A TAK server's: it wants a certificate of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(certificates / "ours.pem", certificates / "ours.key")
    context.load_verify_locations(certificates / "ours.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_side(certificates, name="ours", ca="ours"):
    return {
        "ca_file": certificates / f"{ca}.pem",
        "cert_file": certificates / f"{name}.pem",
        "key_file": certificates / f"{name}.key",
        "server_name": "takserver",
    }


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_with_certificates_on_both_sides(open_sink, serve, numbered, certificates, version):
    server = serve(tls=server_side(certificates, version), chatter=b"<event>")
    sink = open_sink(f"tls://127.0.0.1:{server.port}", linger_ms=10_000, **client_side(certificates))
    for n in range(300):
        sink.publish(numbered(n))
    wait_for(lambda: sink.sent == 300)
    wait_for(lambda: server.numbers == [*range(300)])


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"name": "other"}, "alert"),
        ({"ca": "other"}, "CERTIFICATE_VERIFY_FAILED"),
        ({"server_name": ""}, "mismatch"),
    ],
    ids=["our certificate is turned down", "the server's is unknown", "the server is another"],
)
def test_tls_that_does_not_come_about(open_sink, serve, numbered, certificates, changes, state):
    server = serve(tls=server_side(certificates))
    names = {key: changes[key] for key in ("name", "ca") if key in changes}
    options = client_side(certificates, **names) | {k: v for k, v in changes.items() if k == "server_name"}
    sink = open_sink(f"tls://127.0.0.1:{server.port}", **options)
    sink.publish(numbered(0))
    wait_for(lambda: state in sink.state)
    wait_for(lambda: server.connections >= 3)
    assert (sink.sent, sink.backlog, server.numbers) == (0, 1, [])


def test_tls_is_not_trusted_before_the_server_had_time_to_refuse(open_sink, numbered, certificates):
    """With TLS 1.3, the handshake is done on this side before the server has looked at our certificate."""
    context = server_side(certificates)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = open_sink(f"tls://127.0.0.1:{listener.getsockname()[1]}", **client_side(certificates, "other"))
        sink.publish(numbered(0))
        connection, _ = listener.accept()
        with connection:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            server = context.wrap_bio(incoming, outgoing, server_side=True)
            incoming.write(connection.recv(65536))
            with pytest.raises(ssl.SSLWantReadError):
                server.do_handshake()
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(65536))  # our certificate; what comes now should not have been sent
            assert not select.select([connection], [], [], 0.3)[0]
            with pytest.raises(ssl.SSLError, match="verify failed"):
                server.do_handshake()
            connection.sendall(outgoing.read())
            wait_for(lambda: "alert" in sink.state)
            assert (sink.sent, sink.backlog) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "239.2.3.1:6969"}, "url"),
        ({"url": "http://host:1"}, "url"),
        ({"url": "tcp://host"}, "url"),
        ({"url": "tcp://host:0"}, "url"),
        ({"url": "tcp://host:70000"}, "url"),
        ({"url": "tcp://host:1/path"}, "url"),
        ({"url": "tcp://:1"}, "url"),
        ({"url": "tcp://[::1:1"}, "url"),
        ({"cot_type": "a u G"}, "cot_type"),
        ({"stale_s": 0.0}, "stale_s"),
        ({"stale_s": math.nan}, "stale_s"),
        ({"multicast_ttl": -1}, "multicast_ttl"),
        ({"multicast_ttl": 256}, "multicast_ttl"),
        ({"capacity": 0}, "capacity"),
        ({"linger_ms": -1}, "linger_ms"),
        ({"ca_file": "ca.pem"}, "tls://"),
        ({"server_name": "takserver"}, "tls://"),
        ({"url": "tls://host:1", "cert_file": "ours.pem"}, "cert_file and key_file: wanted both"),
        ({"url": "tls://host:1", "ca_file": "missing.pem"}, r"ca_file='missing\.pem'"),
        ({"url": "tls://host:1", "cert_file": "ours.key", "key_file": "ours.key"}, r"cert_file='ours\.key'"),
        ({"url": "tls://host:1", "cert_file": "ours.pem", "key_file": "other.key"}, r"key_file='other\.key'"),
        ({"url": "tls://host:1", "cert_file": "ours.pem", "key_file": "locked.key"}, r"key_file='locked\.key'"),
    ],
)
def test_bad_parameter_is_named(options, message, certificates, monkeypatch):
    monkeypatch.chdir(certificates)
    with pytest.raises(ConfigError, match=message):
        CotFixSink(**options)


def test_a_closed_sink_takes_nothing(make_fix):
    sink = CotFixSink("udp://127.0.0.1:6969")
    assert not sink.publish(make_fix())
    assert not sink.publish(make_fix(reason="silence"))
    assert (sink.sent, sink.skipped, sink.dropped) == (0, 0, 2)
