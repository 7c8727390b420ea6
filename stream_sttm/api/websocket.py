"""The live feed over a WebSocket: the same events as over SSE, a JSON text each.

A reader that is too slow is disconnected with a reason, instead of silently missing events. Incoming messages are
ignored. The token is checked in middleware.py.
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
    """Return the route over `feed`. A reader that takes nothing for `patience` seconds is disconnected."""
    router = APIRouter()

    @router.websocket(PATH)
    async def stream_feed(
        socket: WebSocket,
        stream: Filter = None,
        after: Annotated[int | None, Query(ge=0, le=_SEQ_MAX)] = None,
    ) -> None:
        await socket.accept()
        try:
            async with feed.subscribe(after=after) as subscription:
                reason = await _serve(socket, subscription, stream, patience)
        except TooManyReaders as error:
            reason = TOO_SLOW, str(error)
        if reason is not None:
            with suppress(WebSocketDisconnect, TimeoutError):
                async with asyncio.timeout(patience):
                    await socket.close(*reason)

    return router


async def _serve(
    socket: WebSocket, subscription: Subscription, stream: str | None, patience: float
) -> tuple[int, str] | None:
    """Send events until there is a reason to end, which is returned. None where the reader has left."""
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(_send(socket, subscription, stream, patience), name="ws")
        leaving = group.create_task(_until_disconnected(socket), name="ws[reader]")
        await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        has_left = leaving.done()
        sending.cancel()
        leaving.cancel()
    return None if has_left or sending.cancelled() else sending.result()


async def _send(
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
                    await socket.send_text(json.dumps(event, ensure_ascii=False, allow_nan=False))
    except TimeoutError:
        return TOO_SLOW, f"nothing was read for {patience:g} s"
    except WebSocketDisconnect:
        return None
    return ENDING, "the service is stopping"


async def _until_disconnected(socket: WebSocket) -> None:
    """Discard incoming messages until the reader disconnects."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
