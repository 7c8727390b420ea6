"""The live feed: answers, events and statuses, fanned out inside the process to its readers (SSE, WebSocket, demo).

Publishing never waits. Each reader has a bounded queue, and a slow reader loses its oldest events, which are counted. A
short history lets a reader that was cut off resume. All calls are made from the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, assert_never

from stream_sttm import metrics
from stream_sttm.errors import TooManyReaders
from stream_sttm.types import Answer, Event, StreamStatus

# {"type": "answer" | "event" | "status", "event": its number, ...the answer, event or status}
FeedEvent = dict[str, Any]


class Subscription:
    """One reader's queue, to be iterated over until the feed closes."""

    def __init__(self, capacity: int) -> None:
        self.dropped = 0
        self._events: deque[FeedEvent] = deque()
        self._capacity = capacity
        self._arrived = asyncio.Event()
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[FeedEvent]:
        return self

    async def __anext__(self) -> FeedEvent:
        while not self._events:
            if self._is_closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()

    def offer(self, event: FeedEvent) -> None:
        """Queue `event`. Drops the oldest one where the queue is full."""
        if len(self._events) >= self._capacity:
            self._events.popleft()
            self.dropped += 1
            metrics.FEED_DROPPED.inc()
        self._events.append(event)
        self._arrived.set()

    def close(self) -> None:
        """End the iteration after the queued events."""
        self._is_closed = True
        self._arrived.set()


class Feed:
    """Answers, events and statuses as they come, for any number of readers.

    Event numbers start at the wall clock in milliseconds. They go on rising after a restart, so a reader's last number
    stays valid.
    """

    def __init__(self, *, capacity: int = 256, history: int = 256, most: int = 256) -> None:
        self._capacity, self._most = capacity, most
        self._history: deque[FeedEvent] = deque(maxlen=history)
        self._subscriptions: set[Subscription] = set()
        self._newest = int(time.time() * 1000)
        self._is_closed = False

    def publish(self, item: Answer | Event | StreamStatus, *, published_at: float) -> None:
        """Queue `item` for every reader. Returns at once. Does nothing once the feed is closed."""
        if self._is_closed:
            return
        self._newest += 1
        if isinstance(item, Answer):
            kind, body = "answer", item.as_dict(published_at=published_at)
        elif isinstance(item, Event):
            kind, body = "event", item.as_dict(published_at=published_at)
        elif isinstance(item, StreamStatus):
            kind, body = "status", item.as_dict()
        else:
            assert_never(item)
        event = {"type": kind, "event": self._newest, **body}
        self._history.append(event)
        for subscription in self._subscriptions:
            subscription.offer(event)

    def require_room(self) -> None:
        """Raise TooManyReaders where as many as may read along do so already. They hold their connections for ever."""
        if len(self._subscriptions) >= self._most:
            raise TooManyReaders(
                f"{self._most} read the live events already; try again in a moment"
            )

    @asynccontextmanager
    async def subscribe(self, *, after: int | None = None) -> AsyncIterator[Subscription]:
        """Subscribe from now, or from the first event after number `after` in the history.

        Raises TooManyReaders.
        """
        self.require_room()
        subscription = Subscription(self._capacity)
        for event in self._since(after):
            subscription.offer(event)
        if self._is_closed:
            subscription.close()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every reader's iteration after its queued events, and that of later readers."""
        self._is_closed = True
        for subscription in self._subscriptions:
            subscription.close()

    def _since(self, after: int | None) -> Iterator[FeedEvent]:
        return iter(()) if after is None else (e for e in self._history if e["event"] > after)
