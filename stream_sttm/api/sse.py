"""The live feed as server-sent events, with a comment as keepalive."""

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
    """Yield the events after number `after` and all later ones, until the feed closes.

    Only those of `stream`, where it is given. A comment follows after `keepalive` seconds without an event.
    """
    yield f"retry: {RETRY_MS}\n\n"
    try:
        async with feed.subscribe(after=after) as subscription:
            async for line in _events(subscription, keepalive, stream):
                yield line
    except TooManyReaders as error:  # so many came at once that all of them were let in
        yield f": {error}\n\n"


async def _events(
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
            content = json.dumps(event, ensure_ascii=False, allow_nan=False)
            yield f"id: {event['event']}\nevent: {event['type']}\ndata: {content}\n\n"
