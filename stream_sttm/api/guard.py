"""What every request passes before a route sees it: the bearer token and the limit on a body's size.

Plain ASGI, so that a body too large is refused while it is still on its way. Knows nothing of the routes but which
of them are open to everybody.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_DRAINED_BYTES = 64 * 1024 * 1024  # of a body that is refused
DRAIN_SECONDS = 0.5  # without a byte of it
OPEN_PATHS = frozenset(
    [
        *("/", "/page.js", "/page.css", "/openapi.json", "/healthz", "/readyz"),
        *(f"/v1/health/{state}" for state in ("live", "ready", "startup")),
    ]
)


def refusal(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one shape of an error: {"error": "one line"}."""
    return JSONResponse(
        {"error": " ".join(line.split())}, status, headers=dict(headers) if headers else None
    )


class Guard:
    """An ASGI application behind the token (none needed where it is None) and the limit."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not self._may_pass(scope["path"], headers.get(b"authorization", b"")):
            answer = refusal(
                401,
                "a bearer token is needed; send the header 'Authorization: Bearer TOKEN'",
                {"WWW-Authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        body = _Body(receive, send)
        try:
            if length.isdigit() and int(length) > MAX_BODY_BYTES:
                raise _TooLargeError
            await self._app(scope, body.receive, body.send)
        except _TooLargeError:
            if not body.is_answered:
                line = f"the request's body is larger than {MAX_BODY_BYTES} bytes"
                await refusal(413, line, {"Connection": "close"})(scope, receive, body.hold_open)
                # Closing on a sender that still sends would cost it the answer.
                await body.drain()
                await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:  # the server's way to end what is open when it stops
            if not body.is_answered:
                await refusal(503, "the service is stopping", {"Connection": "close"})(
                    scope, receive, send
                )

    def _may_pass(self, path: str, authorization: bytes) -> bool:
        if self._token is None or path in OPEN_PATHS:
            return True
        scheme, _, given = authorization.partition(b" ")
        is_same = hmac.compare_digest(given.strip(), self._token.encode())
        return scheme.lower() == b"bearer" and is_same


class _TooLargeError(BaseException):
    """A body went over the limit; no Exception, so that no route or framework takes it for its own."""


class _Body:
    """Counts a request's body as it comes, and whether a response has begun."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._size = 0
        self.is_answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES and not self.is_answered:
            raise _TooLargeError
        return message

    async def drain(self) -> None:
        """Read on without keeping anything while more comes, up to a limit."""
        with suppress(TimeoutError):
            while self._size <= MAX_DRAINED_BYTES:
                async with asyncio.timeout(DRAIN_SECONDS):
                    message = await self._receive()
                self._size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return

    async def send(self, message: Message) -> None:
        self.is_answered = True
        await self._send(message)

    async def hold_open(self, message: Message) -> None:
        """Send what is said, as if more were to follow."""
        is_body = message["type"] == "http.response.body"
        await self.send({**message, "more_body": True} if is_body else message)
