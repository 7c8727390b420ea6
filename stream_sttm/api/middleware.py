"""ASGI middleware before every route: origin, token, rate limit, and the limit on a body's size.

A WebSocket passes the same checks, except for the body. Plain ASGI, so that a body that is too large is refused while
it still arrives. Of the routes it knows only which are open to everybody.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from uuid import uuid4

from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_sttm.api import origins
from stream_sttm.api.auth import OPEN_PATHS, Tokens
from stream_sttm.api.websocket_auth import WebSocketAuth, deny

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_DRAINED_BYTES = 64 * 1024 * 1024  # of a body that is refused
DRAIN_SECONDS = 0.5  # without a byte of it


class ErrorBody(BaseModel):
    """An error in one line."""

    error: str


def refusal(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error in its only JSON form: {"error": "one line"}."""
    # it may repeat half of a surrogate pair
    text = " ".join(line.split()).encode(errors="replace").decode()
    return JSONResponse({"error": text}, status, headers=dict(headers) if headers else None)


class Guard:
    """An ASGI application behind the tokens, if there are any, and the limits."""

    def __init__(self, app: ASGIApp, tokens: Tokens, cors: Sequence[str] = ()) -> None:
        self._app, self._tokens, self._cors = app, tokens, cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._pass_websocket(scope, receive, send)
            return
        if scope["type"] != "http":  # the server's lifespan
            await self._app(scope, receive, send)
            return
        line = self._unwelcome(scope, scope["method"])
        answer = refusal(403, line) if line else self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, send)
            return
        headers = dict(scope["headers"])
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
                # A sender whose connection is closed while it sends would not get the response.
                await body.drain()
                await send({"type": "http.response.body", "body": b""})
        except asyncio.CancelledError:  # the server cancels open requests when it stops
            if not body.is_answered:
                await refusal(503, "the service is stopping", {"Connection": "close"})(
                    scope, receive, send
                )

    async def _pass_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept a WebSocket whose origin and token may connect. A browser sends the token as its first message."""
        headers = dict(scope["headers"])
        if line := self._unwelcome(scope, "CONNECT"):
            await deny(refusal(403, line), scope, receive, send)
        elif not self._tokens or b"authorization" in headers:
            if answer := self._refusal(scope):
                await deny(answer, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        else:
            auth = WebSocketAuth(receive, send)
            if answer := self._refusal(scope, await auth.authorization()):
                await auth.refuse(answer)
            else:
                await self._app(scope, auth.receive, auth.send)

    def _unwelcome(self, scope: Scope, method: str) -> str | None:
        """Return why the calling page may not call, None where it may. For WebSockets browsers leave that to us."""
        is_open = not self._tokens
        return origins.refusal(scope["headers"], method, self._cors, is_open=is_open)

    def _refusal(self, scope: Scope, authorization: bytes | None = None) -> JSONResponse | None:
        """Return the response to a request that may not pass, None where it may. Stores the caller in `scope`."""
        if not self._tokens or scope["path"] in OPEN_PATHS:
            return None
        if authorization is None:
            authorization = dict(scope["headers"]).get(b"authorization", b"")
        caller = self._tokens.caller(authorization)
        if caller is None:
            line = "a bearer token is needed; send the header 'Authorization: Bearer TOKEN'"
            return refusal(401, line, {"WWW-Authenticate": "Bearer"})
        if wait := caller.take():
            line = f"token {caller.name!r} has had more than {caller.rate:g} requests a second"
            return refusal(429, line, {"Retry-After": str(math.ceil(wait))})
        query = scope.get("query_string", b"").decode("latin-1")
        if reason := caller.refusal(scope.get("method", "GET"), scope["path"], query):
            return refusal(403, reason)
        scope.setdefault("state", {})["caller"] = caller
        return None


class Numbered:
    """An ASGI application whose answers below some paths have a number of their own, which people tell in reports."""

    def __init__(self, app: ASGIApp, concerns: Callable[[str], bool]) -> None:
        self._app, self._concerns = app, concerns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                number = (b"x-request-id", f"req_{uuid4().hex}".encode())
                message = {**message, "headers": [*message.get("headers", ()), number]}
            await send(message)

        is_concerned = scope["type"] == "http" and self._concerns(scope["path"])
        await self._app(scope, receive, numbered if is_concerned else send)


class _TooLargeError(BaseException):
    """A body is over the limit. Not an Exception, so that no route or framework handles it."""


class _Body:
    """Counts a request's body as it arrives, and whether a response has begun."""

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
        """Read and discard the rest of the body, up to a limit."""
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
        """Send `message`, marked as if more of the body followed."""
        is_body = message["type"] == "http.response.body"
        await self.send({**message, "more_body": True} if is_body else message)
