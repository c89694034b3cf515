"""What stands before every page: the Host check, the password, and the headers of every answer.

Owns access to the web page as plain ASGI, outside any route, so that no file and no error page
escapes it. Logs neither addresses nor queries: a search may hold a patient's name.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from types import MappingProxyType

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.config import WebSection
from daemon.logs import ACTION, REASON
from daemon.passwords import password_matches
from daemon.role import where
from daemon.web.authentication import credentials_of

_logger = logging.getLogger(__name__)

_MOST_REMEMBERED = 256
"""Credentials known to be right; more than a hospital has accounts for one page."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)


class Gate:
    """Who may see anything: decides by user and password, remembers who was right.

    Parameters
    ----------
    section : WebSection
        User and password hash. With either of them set nobody passes without both.
    """

    def __init__(self, section: WebSection) -> None:
        self._user = section.user
        self._hash = section.password_hash.get_secret_value()
        # Credentials are remembered as a keyed hash only; the key dies with the process.
        self._key = os.urandom(32)
        self._right: set[bytes] = set()
        # scrypt takes its memory and time on purpose: one at a time, so that guessing cannot
        # exhaust the machine.
        self._checking = threading.Lock()

    @property
    def is_open(self) -> bool:
        """True when no password is configured."""
        return not self._user and not self._hash

    def remembers(self, header: str) -> bool:
        """True when exactly this header was right before."""
        return self._token(header) in self._right

    def admits(self, header: str) -> bool:
        """Check an ``Authorization`` header; slow when it was not right before."""
        if self.remembers(header):
            return True
        given = credentials_of(header)
        if given is None:
            return False
        with self._checking:
            # Both are compared always: the time taken must not tell a wrong user from a wrong
            # password.
            right_password = password_matches(given[1], self._hash)
        right_user = hmac.compare_digest(given[0].encode(), self._user.encode())
        if not (right_password and right_user and self._user):
            return False
        if len(self._right) >= _MOST_REMEMBERED:
            self._right.clear()
        self._right.add(self._token(header))
        return True

    def _token(self, header: str) -> bytes:
        return hmac.digest(self._key, header.encode(), hashlib.sha256)


def host_is_served(section: WebSection, host: str) -> bool:
    """True when a ``Host`` header may reach the page; a pure function.

    Bound to loopback, the page answers to loopback's names only, so that no foreign site can
    reach it through a name of its own that points here (DNS rebinding). Elsewhere the password
    stands guard, and the names under which a hospital reaches this host are its own affair.
    """
    name = _without_port(host).lower().rstrip(".")
    if not name:
        return False
    if not section.is_loopback:
        return True
    if name in {"localhost", section.address.lower()}:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class Protected:
    """ASGI middleware: nothing is answered before Host and password are right.

    Parameters
    ----------
    app : ASGI application
        What is protected.
    section : WebSection
        Address, user and password hash.
    """

    def __init__(self, app: ASGIApp, section: WebSection) -> None:
        self._app = app
        self._section = section
        self._gate = Gate(section)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what is allowed."""
        if scope["type"] != "http":
            return
        guarded = _with_headers(send)
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        await self._answer(scope, receive, guarded)

    async def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not host_is_served(self._section, headers.get("host", "")):
            return PlainTextResponse("This name is not served here: use localhost.\n", 421)
        if scope["method"] not in {"GET", "HEAD"}:
            return PlainTextResponse("This page is read only.\n", 405, {"Allow": "GET, HEAD"})
        if self._gate.is_open:
            return None
        header = headers.get("authorization", "")
        if self._gate.remembers(header) or await to_thread.run_sync(self._gate.admits, header):
            return None
        challenge = {"WWW-Authenticate": 'Basic realm="medimgd", charset="UTF-8"'}
        return PlainTextResponse("User and password are needed.\n", 401, challenge)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:  # noqa: BLE001 - one request must never end the server
            # The message may quote what was searched for; the place in the code cannot.
            _logger.error(
                "unexpected %s in %s", type(error).__name__, where(error),
                extra={ACTION: "request_failed", REASON: type(error).__name__},
            )  # fmt: skip
            if not started:
                answer = PlainTextResponse("Something went wrong; the log says where.\n", 500)
                await answer(scope, receive, send)


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
