"""The first message of a WebSocket whose sender can't send headers, as no browser can: {"token": "..."}.

The connection is accepted to hear it, and is the application's own only once it was let through.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

WITHIN = 5.0  # seconds
GONE_WITHIN = 1.0
REFUSED = 1008  # "policy violation" of RFC 6455
_MOST_REASON = 120  # bytes


async def deny(answer: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer instead of connecting, and stay until that is over: a server takes leaving before for a defect."""
    await answer(scope, receive, send)
    ends = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(GONE_WITHIN):
            while ends < 2:  # once as the answer is sent, once as the connection is gone
                ends += (await receive())["type"] == "websocket.disconnect"


class Greeting:
    """What comes before the application: who calls, over `receive` and `send`, which it then has for itself."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._has_begun = False

    async def authorization(self) -> bytes:
        """The token as a header would give it; empty where none came in time."""
        await self._receive()  # that somebody wants to connect
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
        """Close with the line that HTTP would answer."""
        line = json.loads(bytes(answer.body))["error"].encode()[:_MOST_REASON]
        reason = line.decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": REFUSED, "reason": reason})

    async def receive(self) -> Message:
        """As the application expects it: first that somebody wants to connect."""
        if not self._has_begun:
            self._has_begun = True
            return {"type": "websocket.connect"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Pass on all but that the connection is accepted, which it is."""
        if message["type"] != "websocket.accept":
            await self._send(message)
