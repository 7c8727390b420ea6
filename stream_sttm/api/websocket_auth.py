"""Authentication of a WebSocket by its first message, {"token": "..."}, because browsers can't send headers.

The connection is accepted to read that message. The application gets the connection only if the token is valid.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

WITHIN = 5.0  # seconds
GONE_WITHIN = 1.0  # seconds
REFUSED = 1008  # "policy violation" of RFC 6455
_MOST_REASON = 120  # bytes


async def deny(answer: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response instead of accepting, and wait for its end. Servers report an earlier return as a bug."""
    await answer(scope, receive, send)
    ends = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(GONE_WITHIN):
            while ends < 2:  # one when the response is sent, one when the connection is closed
                ends += (await receive())["type"] == "websocket.disconnect"


class WebSocketAuth:
    """The authentication of one connection, over `receive` and `send`, which the application then uses."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._has_begun = False

    async def authorization(self) -> bytes:
        """Return the token as an `Authorization` header, empty where none came in time."""
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept"})
        try:
            async with asyncio.timeout(WITHIN):
                message = await self._receive()
        except TimeoutError:
            return b""
        try:
            token: str = json.loads(message.get("text") or "")["token"]
            return b"Bearer " + str.encode(token)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return b""

    async def refuse(self, answer: JSONResponse) -> None:
        """Close with the line that an HTTP response would have."""
        line = json.loads(bytes(answer.body))["error"].encode()[:_MOST_REASON]
        reason = line.decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": REFUSED, "reason": reason})

    async def receive(self) -> Message:
        """Receive for the application: first `websocket.connect`, then the messages."""
        if not self._has_begun:
            self._has_begun = True
            return {"type": "websocket.connect"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Send for the application, except `websocket.accept`, which was sent already."""
        if message["type"] != "websocket.accept":
            await self._send(message)
