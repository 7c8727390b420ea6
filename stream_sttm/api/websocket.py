"""The live feed by WebSocket: what server-sent events tell, a JSON text each, for programs that like these better.

Whoever reads too slowly is told so and cut off, instead of silently missing something. What a reader says is not
heard; that it may read at all is checked in guard.py.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect

from stream_sttm.api.feed import Feed, Subscription
from stream_sttm.errors import TooManyReaders

PATH = "/api/v1/ws"
TOO_SLOW, ENDING = 1013, 1012  # "try again later" and "service restart" of RFC 6455's registry
_SEQ_MAX = 2**63 - 1
Filter = Annotated[str | None, Query(pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


def routes(feed: Feed, *, patience: float = 10.0) -> APIRouter:
    """The route over `feed`; a reader that takes nothing for `patience` seconds is left."""
    router = APIRouter()

    @router.websocket(PATH)
    async def tell(
        socket: WebSocket,
        stream: Filter = None,
        after: Annotated[int | None, Query(ge=0, le=_SEQ_MAX)] = None,
    ) -> None:
        await socket.accept()
        try:
            async with feed.subscribe(after=after) as subscription:
                reason = await _told(socket, subscription, stream, patience)
        except TooManyReaders as error:
            reason = TOO_SLOW, str(error)
        if reason is not None:
            with suppress(WebSocketDisconnect, TimeoutError):
                async with asyncio.timeout(patience):
                    await socket.close(*reason)

    return router


async def _told(
    socket: WebSocket, subscription: Subscription, stream: str | None, patience: float
) -> tuple[int, str] | None:
    """Tell until there is a reason to end, which is given, or the reader has left."""
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(_tell(socket, subscription, stream, patience), name="ws")
        hearing = group.create_task(_hear(socket), name="ws[heard]")
        await asyncio.wait((telling, hearing), return_when=asyncio.FIRST_COMPLETED)
        has_left = hearing.done()
        telling.cancel()
        hearing.cancel()
    return None if has_left or telling.cancelled() else telling.result()


async def _tell(
    socket: WebSocket, subscription: Subscription, stream: str | None, patience: float
) -> tuple[int, str] | None:
    try:
        async for event in subscription:
            if subscription.dropped:
                return (
                    TOO_SLOW,
                    f"read too slowly: {subscription.dropped} events lost; go on with ?after=",
                )
            if stream in (None, event.get("stream")):
                async with asyncio.timeout(patience):
                    await socket.send_text(json.dumps(event, ensure_ascii=False))
    except TimeoutError:
        return TOO_SLOW, f"nothing was read for {patience:g} s"
    except WebSocketDisconnect:
        return None
    return ENDING, "the service is stopping"


async def _hear(socket: WebSocket) -> None:
    """Take what the reader says until it leaves."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
