"""Who may ask: with a token and without, from other names and other pages."""

from __future__ import annotations

import pytest
from localize_core.service.service import Service

TOKEN = "0123456789abcdef"
RELOAD = "/api/v1/inference/model/reload"


@pytest.fixture
def guarded(client):
    return client(Service(), token=TOKEN)


def test_without_the_token_nothing_is_told(guarded):
    for path in ("/", "/fixes", "/fixes/stream", "/stations", "/docs", "/openapi.json", "/static/map.js", "/nowhere"):
        response = guarded.get(path)
        assert response.status_code == 401, path
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert response.json()["error"]["code"] == "unauthorized"
    assert guarded.get("/api/v1/inference/live").status_code == 200


def test_another_token_will_not_do(guarded):
    for given in ("", "Bearer", "Bearer 0123456789abcdeF", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ü"):
        assert guarded.get("/fixes", headers={"Authorization": given.encode()}).status_code == 401, given


def test_the_token_in_the_header_or_the_address(guarded):
    assert guarded.get("/fixes", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/fixes", params={"token": TOKEN}).status_code == 200
    assert guarded.get("/fixes", params={"token": "wrong"}).status_code == 401


def test_a_browser_gets_a_cookie_and_a_clean_address(guarded):
    for path, clean in (("/?token=", "./"), ("/docs?token=", "./docs"), ("/?view=1,2&token=", "./?view=1%2C2")):
        response = guarded.get(path + TOKEN)
        assert (response.status_code, response.headers["Location"]) == (303, clean)
        cookie = response.headers["Set-Cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
    assert guarded.get("/fixes").status_code == 200  # the client keeps cookies
    guarded.cookies.clear()
    guarded.cookies.set("gr_localize", TOKEN)
    assert guarded.get("/fixes").status_code == 401


def test_only_names_of_this_machine(client):
    http = client(Service())
    port = http.base_url.port
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
        assert http.get("/fixes", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example.org", f"evil.example.org:{port}", "localhost.evil.example.org", ""):
        response = http.get("/fixes", headers={"Host": host})
        assert (response.status_code, response.json()["error"]["field"]) == (421, "Host"), host


def test_with_a_token_any_name_will_do(guarded):
    headers = {"Host": "map.example.org", "Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/fixes", headers=headers).status_code == 200


def test_other_pages_change_nothing(client):
    http = client(Service())
    own = f"http://127.0.0.1:{http.base_url.port}"
    for origin in ("https://evil.example.org", "null", "http://[::1", f"http://127.0.0.1:{http.base_url.port + 1}"):
        response = http.post(RELOAD, headers={"Origin": origin})
        assert (response.status_code, response.json()["error"]["field"]) == (403, "Origin")
    assert http.post(RELOAD, headers={"Origin": own}).status_code == 503  # there is no model


def test_cross_origin_reading_is_off_unless_asked_for(client):
    here, there = "https://map.example.org", "https://evil.example.org"
    assert "Access-Control-Allow-Origin" not in client(Service()).get("/fixes", headers={"Origin": here}).headers
    http = client(Service(), cors_origins=[here], token=TOKEN)
    asked = {"Origin": here, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    allowed = http.options("/fixes", headers=asked)
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, here)
    assert "Access-Control-Allow-Origin" not in http.options("/fixes", headers=asked | {"Origin": there}).headers
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert http.get("/fixes", headers=bearer | {"Origin": here}).headers["Access-Control-Allow-Origin"] == here
    assert http.post(RELOAD, headers=bearer | {"Origin": here}).status_code == 503
    assert http.post(RELOAD, headers=bearer | {"Origin": there}).status_code == 403


def test_headers_of_every_answer(client):
    http = client(Service())
    for path in ("/", "/fixes", "/nowhere", "/static/map.js"):
        headers = http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "strict-origin-when-cross-origin"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "Server" not in headers


def test_static_files_stay_in_their_folder(client):
    http = client(Service())
    for path in ("/static/../service.py", "/static/%2e%2e/service.py", "/static/..%2fservice.py"):
        assert http.get(path).status_code == 404
