"""Who may ask: a token, other sites' pages kept out, and what browsers are told about ours."""

from __future__ import annotations

import hashlib
import hmac
import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localize_core.service.errors import ApiError
from localize_core.service.inference import OPEN_PATH
from localize_core.service.settings import HttpSettings, is_loopback

COOKIE = "gr_localize"
PAGES = ("/", "/docs")
"""What a browser opens: a token in the address is put away in a cookie there."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
COOKIE_S = 30 * 86_400


class Guard:
    """Lets requests through that may pass, and puts the headers on every answer.

    Without a token only this machine can ask, and only under a name of this machine: pages of other sites can make a
    browser ask for theirs and have it lead here (DNS rebinding). Reading our answers is for our own pages; changing
    something from another site's page is refused.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._token = settings.token.encode()
        self._cookie = hmac.new(self._token, b"gr-localize cookie", hashlib.sha256).hexdigest()
        self._host = settings.host
        self._origins = frozenset(settings.cors_origins)
        self._policy = _content_policy(settings.tiles)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                # Tile servers want to know which site asks, and need not know more.
                headers["Referrer-Policy"] = "strict-origin-when-cross-origin"
                headers["Content-Security-Policy"] = self._policy
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, marked)

    def _refusal(self, scope: Scope) -> Response | None:
        """What to say instead of an answer, None where the request may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._token and not self._is_own_name(host):
            return ApiError(421, "this server answers to localhost only", field="Host", received=host).response()
        origin = headers.get("origin")
        foreign = origin is not None and origin not in self._origins and origin.partition("://")[2] != host
        if foreign and scope["method"] not in SAFE_METHODS:
            return ApiError(403, "pages of other sites may not do this", field="Origin", received=origin).response()
        if self._token and scope["path"] != OPEN_PATH:
            return self._challenge(scope, headers)
        return None

    def _is_own_name(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).strip("[]").lower()
        return is_loopback(name) or name == self._host

    def _challenge(self, scope: Scope, headers: Headers) -> Response | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(key == "token" and self._is_token(value) for key, value in query):
            if scope["path"] not in PAGES or scope["method"] != "GET":
                return None
            kept = urlencode([(key, value) for key, value in query if key != "token"])
            # Relative: whatever stands before it where a proxy passes requests on.
            clean = f"./{scope['path'].lstrip('/')}" + (f"?{kept}" if kept else "")
            redirect = RedirectResponse(clean, 303, {"Cache-Control": "no-store"})
            secure = scope.get("scheme") == "https"
            redirect.set_cookie(COOKIE, self._cookie, COOKIE_S, httponly=True, samesite="strict", secure=secure)
            return redirect
        if _same(_cookie_in(headers), self._cookie):
            return None
        return ApiError(401, "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN in a browser").response(
            {"WWW-Authenticate": 'Bearer realm="gr-localize"'}
        )

    def _is_token(self, given: str) -> bool:
        return _same(given, self._token.decode())


def _same(given: str, wanted: str) -> bool:
    """Compared in a time that says nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _cookie_in(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _content_policy(tiles: str) -> str:
    """Everything from here, map tiles from where they are."""
    parts = urlsplit(tiles)
    host = re.sub(r"\{[^}]*\}", "*", parts.netloc)  # {s}.tiles.example.org is any of its servers
    images = " ".join(["'self'", "data:", "blob:", *([f"{parts.scheme}://{host}"] if host else [])])
    return (
        f"default-src 'self'; img-src {images}; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
