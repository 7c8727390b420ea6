"""Bounded channels between the workers. A full one drops its oldest item, or makes the sender wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded first-in-first-out channel between tasks of one event loop.

    `offer` never waits. Where the channel is full it drops the oldest item and calls `on_drop` with it. `send` waits
    for room. `receive` waits for an item.
    """

    def __init__(self, capacity: int, *, on_drop: Callable[[T], None] | None = None) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._on_drop = on_drop
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T) -> None:
        """Put `item` in now. Drops the oldest item where there is no room."""
        if len(self._items) >= self._capacity:
            oldest = self._items.popleft()
            if self._on_drop is not None:
                self._on_drop(oldest)
        self._put(item)

    async def send(self, item: T) -> None:
        """Put `item` in as soon as there is room."""
        while len(self._items) >= self._capacity:
            self._room.clear()
            await self._room.wait()
        self._put(item)

    async def receive(self) -> T:
        """Take out the oldest item, as soon as there is one."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        item = self._items.popleft()
        self._room.set()
        return item

    def _put(self, item: T) -> None:
        self._items.append(item)
        self._arrived.set()
