"""A real Redis: what it keeps, and what becomes of whoever asks while it is away, hangs, is full or talks nonsense."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis
from localize_core.cache.redis_store import MAX_WRITES, RedisStore
from localize_core.errors import ConfigError, MissingExtraError

WAIT_S = 30.0
NEVER_S = 0.5
"""What nobody who asks may wait, on however busy a machine; the store's own limit is a hundredth of it."""


@pytest.fixture
def stores() -> Iterator[Callable[..., RedisStore]]:
    """A maker of stores that are started, and closed after the test."""
    made: list[RedisStore] = []

    def make(url: str, *, timeout_s: float = 0.05, **options: Any) -> RedisStore:
        made.append(RedisStore(url, timeout_s=timeout_s, **options))
        made[-1].start()
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def ready(stores) -> Callable[..., RedisStore]:
    def make(url: str, **options: Any) -> RedisStore:
        store = stores(url, **options)
        wait_until(lambda: store.is_ready)
        return store

    return make


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.005)


def found(store: RedisStore, key: str) -> bytes | None:
    """The value, as soon as the store has a connection to ask over."""
    values: list[bytes | None] = []

    def asked() -> bool:
        before = store.stats()
        values.append(store.get(key))
        after = store.stats()
        return (after.hits, after.misses) != (before.hits, before.misses)

    wait_until(asked)
    return values[-1]


def put(store: RedisStore, key: str, value: bytes, ttl_s: float = 100.0) -> None:
    store.set(key, value, ttl_s)
    assert store.flush(WAIT_S)


def test_what_one_has_set_another_finds(start_redis, ready) -> None:
    server = start_redis()
    one, other = ready(server.url), ready(server.url)
    put(one, "a", b"\x00\xff value")
    assert found(other, "a") == b"\x00\xff value"
    assert found(other, "b") is None
    wait_until(lambda: other.get_many(["b", "a", "c"]) == [None, b"\x00\xff value", None])
    assert other.get_many([]) == []
    one.delete("a")
    assert one.flush(WAIT_S)
    assert found(other, "a") is None
    assert other.stats().errors == one.stats().errors == 0
    assert other.stats().state == "ready"


def test_keys_have_a_prefix_and_an_end(start_redis, ready) -> None:
    server = start_redis()
    put(ready(f"redis://127.0.0.1:{server.port}/3", prefix="site:"), "a", b"1", 77.0)
    with redis.Redis(port=server.port, db=3) as client:
        assert client.keys("*") == [b"site:a"]
        assert 70 <= client.ttl("site:a") <= 77


def test_a_user_with_the_three_commands_that_it_takes(start_redis, ready, stores) -> None:
    server = start_redis()
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            *("ACL", "SETUSER", "station", "on", ">s@cret", "~gr-localize:*", "+mget", "+set", "+del")
        )
        client.execute_command("ACL", "SETUSER", "default", "off")
    store = ready(f"redis://station:s%40cret@127.0.0.1:{server.port}")
    put(store, "a", b"1")
    assert found(store, "a") == b"1"
    assert store.stats().errors == 0

    refused = stores(f"redis://station:wrong@127.0.0.1:{server.port}")
    wait_until(lambda: "password" in refused.stats().state)
    assert "wrong" not in refused.stats().state
    foreign = stores(f"redis://station:s%40cret@127.0.0.1:{server.port}", prefix="other:")
    wait_until(lambda: "permission" in foreign.stats().state.lower())
    assert foreign.get("a") is None


def test_over_tls(start_redis, ready, stores, tmp_path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    start_redis("--tls-port", str(port), "--tls-auth-clients", "no", *files)
    store = ready(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
    put(store, "a", b"1")
    assert found(store, "a") == b"1"
    distrustful = stores(f"rediss://127.0.0.1:{port}")
    wait_until(lambda: "certificate" in distrustful.stats().state.lower())


def ask(store: RedisStore, count: int = 100) -> np.ndarray:
    """Ask for something that is not there, as a stream would; the time of each, seconds."""
    spent_s = np.empty(count)
    for index in range(count):
        began_s = time.perf_counter()
        value = store.get("wanted")
        store.set(f"k{index}", b"v", 10.0)
        spent_s[index] = time.perf_counter() - began_s
        assert value is None
        time.sleep(0.002)
    return spent_s


def test_stopped_and_started_again(start_redis, ready) -> None:
    server = start_redis()
    store = ready(server.url)
    put(store, "a", b"1")
    server.stop()
    spent_s = ask(store)
    assert spent_s.max() < NEVER_S
    assert store.stats().state != "ready"
    assert store.stats().errors > 0
    assert store.stats().dropped > 0
    server.start()
    wait_until(lambda: store.is_ready)
    assert found(store, "a") is None  # it keeps nothing on disk
    put(store, "a", b"2")
    assert found(store, "a") == b"2"


def test_restarted_between_two_questions(start_redis, ready) -> None:
    server = start_redis()
    store = ready(server.url)
    put(store, "a", b"1")
    server.stop()
    server.start()
    assert found(store, "a") is None
    put(store, "a", b"2")
    assert found(store, "a") == b"2"


def test_hung_and_awake_again(start_redis, ready) -> None:
    server = start_redis()
    store = ready(server.url, timeout_s=0.005)
    put(store, "a", b"1")
    server.hang()
    spent_s = ask(store)
    assert spent_s.max() < NEVER_S
    # Few wait for an answer that does not come: of the others nobody is asked.
    assert (spent_s > 0.005).mean() < 0.2
    wait_until(lambda: not store.is_ready)
    server.wake()
    wait_until(lambda: store.is_ready)
    assert found(store, "a") == b"1"


def test_never_there(stores) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = stores(f"redis://127.0.0.1:{port}")
    assert ask(store).max() < NEVER_S
    figures = store.stats()
    assert (figures.hits, figures.misses) == (0, 0)
    assert figures.skipped == figures.dropped == 100
    assert str(port) in figures.state or "refused" in figures.state


def test_full(start_redis, ready) -> None:
    """What it has can still be read; writes are refused, which is counted, and tried again after a pause."""
    server = start_redis("--maxmemory-policy", "noeviction")
    store = ready(server.url)
    put(store, "a", b"1")
    with redis.Redis(port=server.port) as client:
        client.config_set("maxmemory", 1)
    store.set("b", b"2", 100.0)
    assert store.flush(WAIT_S)
    wait_until(lambda: store.stats().errors > 0)
    assert ask(store).max() < NEVER_S
    assert store.stats().dropped > 50
    assert store.is_ready
    assert found(store, "a") == b"1"
    assert found(store, "b") is None


def serve(answer: Callable[[socket.socket], None]) -> tuple[int, Callable[[], None]]:
    """A server of something else; its port, and what ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answer(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threads.append(threading.Thread(target=handle, args=(connection,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()

    def end() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for connection in connections:
            connection.close()
        for thread in threads:
            thread.join(WAIT_S)

    return listener.getsockname()[1], end


def each_time(reply: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(reply)

    return answer


def endless(connection: socket.socket) -> None:
    """As a receiver's server sends its samples, asked or not: no line ever ends."""
    while True:
        connection.sendall(bytes(1000))
        time.sleep(0.001)


def fine_at_first(connection: socket.socket) -> None:
    """Log-in and trial go well, and then come bytes of another protocol."""
    while b"probe" not in (asked := connection.recv(65536)):
        if not asked:
            return
        connection.sendall(b"+OK\r\n" * asked.count(b"SETINFO"))
    connection.sendall(b"*1\r\n$-1\r\n")
    each_time(b"HTTP/1.1 400 Bad Request\r\n\r\n")(connection)


NONSENSE = {
    "another protocol": each_time(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "no answer to the question": each_time(b"$5\r\nhello\r\n"),
    "a length that is none": each_time(b"$many\r\nhello\r\n"),
    "a length beyond all bounds": each_time(b"$999999999999\r\n"),
    "lists in lists": each_time(b"*1\r\n" * 5000),
    "noise": each_time(np.random.default_rng(1).bytes(4096)),
    "half an answer": each_time(b"*1\r\n$100\r\nhal"),
    "an end": lambda connection: connection.close(),
    "an endless line": endless,
    "nonsense after a good beginning": fine_at_first,
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense(kind: str, stores) -> None:
    port, end = serve(NONSENSE[kind])
    store = stores(f"redis://127.0.0.1:{port}", timeout_s=0.005)
    try:
        assert ask(store).max() < NEVER_S
        wait_until(lambda: store.stats().errors > 0)
        assert store.stats().hits == 0
    finally:
        store.close()
        end()


def test_many_at_once(start_redis, ready) -> None:
    """Each of many threads finds what is there, as soon as there are connections enough."""
    store = ready(start_redis().url)
    for key in range(50):
        store.set(str(key), f"value {key}".encode(), 100.0)
    assert store.flush(WAIT_S)
    wrong: list[Any] = []

    def hammer() -> None:
        for key in range(50):
            value = store.get(str(key))
            if value not in (None, f"value {key}".encode()):
                wrong.append(value)

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.stats().hits > 0


def test_more_writes_than_can_wait(start_redis, ready) -> None:
    server = start_redis()
    store = ready(server.url)
    server.hang()
    for key in range(3 * MAX_WRITES):
        store.set(str(key), b"1", 10.0)
    assert len(store._writes) <= MAX_WRITES
    assert store.stats().dropped > 0
    server.wake()


def test_closing_carries_out_what_waits_and_leaves_no_thread(start_redis, ready) -> None:
    server = start_redis()
    store = ready(server.url)
    for key in range(100):
        store.set(str(key), b"1", 100.0)
    store.close()
    store.close()
    assert store.get("1") is None
    assert store.stats().state == "closed"
    assert not any(thread.name == "localize-redis" for thread in threading.enumerate())
    with redis.Redis(port=server.port) as client:
        assert client.dbsize() == 100
    store.start()
    wait_until(lambda: store.is_ready)
    assert found(store, "1") == b"1"


def test_closing_while_it_hangs_takes_no_time(start_redis, stores) -> None:
    server = start_redis()
    server.hang()
    store = stores(server.url)
    began_s = time.monotonic()
    store.close()
    assert time.monotonic() - began_s < 5.0
    server.wake()


def test_an_address_that_is_none() -> None:
    with pytest.raises(ConfigError, match="wanted redis://"):
        RedisStore("localhost")


@pytest.mark.parametrize("package", ["redis", "pybreaker"])
def test_without_the_extra(package: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"cache.redis needs .* install 'gr-localize\[redis\]'"):
        RedisStore("redis://localhost")


def test_core_needs_no_redis() -> None:
    code = (
        "import sys; sys.modules['redis'] = sys.modules['pybreaker'] = sys.modules['gnuradio'] = None;"
        "import localize_core.serving.engine, localize_core.cache.redis_store"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
