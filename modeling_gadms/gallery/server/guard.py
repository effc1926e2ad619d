"""Who may ask: the Host, the origin and the token of a request, looked at before anything else of it is read."""

import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGIN = "/login"
_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",  # whom somebody looked for is nobody else's business; images say otherwise
}


class Door:
    """The token of a server, and the cookie that a browser is given for it.

    Args:
        token: what a client must know; `None` lets everybody in who reaches the server.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else _digest(token)
        # the cookie is not the token, and is worth nothing after a restart
        self._session = secrets.token_urlsafe(32)
        # cookies know no ports: two galleries of one machine need two names
        self.cookie = f"gallery_{secrets.token_hex(4)}"

    @property
    def is_locked(self) -> bool:
        return self._token is not None

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in a time that does not depend on how much of it is right."""
        return self._token is not None and hmac.compare_digest(_digest(given), self._token)

    def admits(self, request: Request) -> bool:
        """Whether a request carries the token, as `Authorization: Bearer ...`, or the cookie that stands for it."""
        if not self.is_locked:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        cookie = request.cookies.get(self.cookie, "")
        return hmac.compare_digest(cookie.encode("utf-8", "replace"), self._session.encode("ascii"))

    def let_in(self, request: Request, response: Response) -> None:
        """Give the browser its cookie. Scripts cannot read it, and requests from other sites do not carry it."""
        is_secure = request.url.scheme == "https"
        response.set_cookie(self.cookie, self._session, httponly=True, samesite="strict", secure=is_secure)


class Guard:
    """ASGI middleware that refuses strangers and adds the headers that keep other sites out.

    Args:
        app: what is guarded.
        door ([`Door`]): the token.
        public: a demonstration for everybody, under any host name and in a frame of another site, such as a Space.
    """

    def __init__(self, app: ASGIApp, door: Door, public: bool = False) -> None:
        self._app, self._door, self._public = app, door, public
        frames = b"*" if public else b"'none'"
        self._headers = {**_HEADERS, b"content-security-policy": b"frame-ancestors " + frames}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                own = [(name, value) for name, value in self._headers.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        refusal = self._refusal(Request(scope))
        await (refusal or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        # A page of another site can make its own name point to this machine (DNS rebinding), but not change the name.
        # With a token the name may be anything: the cookie belongs to the name under which it was given.
        if not self._public and not self._door.is_locked and _name(host) not in _LOOPBACK_NAMES:
            return _refuse(403, "Host: not a name of this machine; open http://127.0.0.1 with the gallery's port")
        origin = request.headers.get("origin")
        if not self._public and origin is not None and urlsplit(origin).netloc != host:
            return _refuse(403, "Origin: another site may not ask this gallery; open its own page")
        # one answer for all that is not let in, so that nobody learns which addresses exist
        if request.url.path != LOGIN and not self._door.admits(request):
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                return RedirectResponse(LOGIN, 303)
            refusal = _refuse(401, "Authorization: missing or wrong; send the header Authorization: Bearer TOKEN")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        return None


def _refuse(status: int, problem: str) -> Response:
    return JSONResponse({"error": problem}, status)


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
