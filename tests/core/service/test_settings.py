"""Where the service listens, and that nobody else reaches it without a token."""

from __future__ import annotations

import pytest
from localize_core.errors import ConfigError
from localize_core.service.server import HttpServer
from localize_core.service.service import Service
from localize_core.service.settings import http_settings, is_loopback, read_token

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "http://here"}, "http.host='http://here'"),
        ({"port": 65_536}, "http.port=65536"),
        ({"history": 0}, "http.history=0"),
        ({"tiles": "https://tiles.example.org/"}, "http.tiles="),
        ({"tiles": "https://a.org; script-src *//{z}/{x}/{y}"}, "http.tiles="),
        ({"tiles": "javascript:{z}{x}{y}"}, "http.tiles="),
        ({"cors_origins": ["*"]}, "http.cors_origins.0='*'"),
        ({"colour": "red"}, "http.colour='red'"),
    ],
)
def test_what_cannot_work_is_named(values, message):
    with pytest.raises(ConfigError) as raised:
        http_settings(**values)
    assert message in str(raised.value)


@pytest.mark.parametrize("token", ["short", "with a space in it", "ünprintable-in-ascii"])
def test_a_token_that_is_none_is_not_repeated(token):
    with pytest.raises(ConfigError, match=r"http\.token: wanted 16 or more") as raised:
        http_settings(token=token)
    assert token not in str(raised.value)
    assert TOKEN not in repr(http_settings(token=TOKEN))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "station.example.org"])
def test_others_need_a_token(host):
    with pytest.raises(ConfigError, match=r"a token is needed.*openssl rand"):
        HttpServer(Service(), http_settings(host=host))
    HttpServer(Service(), http_settings(host=host, token=TOKEN))


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "localhost.example.org", "")] == [False] * 4


def test_a_token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\nand a comment\n")
    path.chmod(0o640)
    assert read_token(path) == TOKEN
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(path)
