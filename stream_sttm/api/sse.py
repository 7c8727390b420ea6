"""The live feed as server-sent events: answers and statuses as they come, a comment where nothing does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from stream_sttm.api.feed import Feed, Subscription
from stream_sttm.errors import TooManyReaders

RETRY_MS = 2000  # how long a browser waits before it reconnects


async def lines(
    feed: Feed, *, after: int | None, keepalive: float, stream: str | None = None
) -> AsyncIterator[str]:
    """The events past number `after` and all to come, until the feed closes; a comment each `keepalive` seconds.

    Only those of one `stream`, where it is given.
    """
    yield f"retry: {RETRY_MS}\n\n"
    try:
        async with feed.subscribe(after=after) as subscription:
            async for line in _told(subscription, keepalive, stream):
                yield line
    except TooManyReaders as error:  # so many came at once that all of them were let in
        yield f": {error}\n\n"


async def _told(
    subscription: Subscription, keepalive: float, stream: str | None
) -> AsyncIterator[str]:
    while True:
        try:
            async with asyncio.timeout(keepalive):
                event = await anext(subscription)
        except TimeoutError:
            yield ": keepalive\n\n"
        except StopAsyncIteration:
            return
        else:
            if stream not in (None, event.get("stream")):
                continue
            content = json.dumps(event, ensure_ascii=False)
            yield f"id: {event['event']}\nevent: {event['type']}\ndata: {content}\n\n"
