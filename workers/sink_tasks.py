"""One task per sink with its outbox. Sinks come and go without touching one another.

Knows nothing of how things are handed over (workers/outbox.py), nor of who decides which sinks there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

from stream_sttm import metrics
from stream_sttm.sinks import Sink
from stream_sttm.storage.outbox import OutboxTable
from stream_sttm.types import Answer, Event, StreamStatus
from workers.durable_queue import Limits
from workers.outbox import Level, Outbox

_IN_A_GAP = 10_000  # items, at most


class SinkTasks:
    """Serves sinks as tasks of one group. All calls are made from the event loop's thread."""

    def __init__(self, limits: Limits | None = None, table: OutboxTable | None = None) -> None:
        self._limits, self._table = limits or Limits(), table
        self._boxes: dict[Sink, Outbox] = {}
        self._gaps: dict[str, Gap] = {}  # by the name of the sink that is about to begin
        self._tasks: dict[Sink, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def __iter__(self) -> Iterator[Outbox | Gap]:
        return iter((*self._boxes.values(), *self._gaps.values()))

    def start(self, group: asyncio.TaskGroup) -> None:
        """Serve sinks as tasks of `group`."""
        self._group = group

    async def add(self, sink: Sink) -> None:
        """Open `sink` and serve it. Returns once its outbox takes items."""
        assert self._group is not None
        box, is_open = Outbox(sink, self._limits, self._table), asyncio.Event()
        serving = self._serve(sink, box, is_open)
        self._tasks[sink] = self._group.create_task(serving, name=f"sink[{sink.name}]")
        await is_open.wait()

    async def remove(self, sink: Sink) -> None:
        """Close a sink after a short drain. The outbox table keeps what still waits."""
        box = self._boxes.pop(sink)
        await drain([box.level], self._limits.drain)
        await self._end(sink)
        metrics.forget_sink(sink.name)

    async def replace(self, old: Sink, new: Sink) -> None:
        """Serve `new` instead of `old`, a sink of the same name. What comes meanwhile waits for the new one.

        They share a place in the outbox table, and may share a session with their other side. So the old one is gone
        before the new one begins.
        """
        await drain([self._boxes[old].level], self._limits.drain)
        self._gaps[new.name] = Gap()
        del self._boxes[old]
        await self._end(old)
        await self.add(new)
        self._gaps.pop(new.name, None)

    async def close(self) -> None:
        """Close every sink."""
        for sink in tuple(self._tasks):
            await self._end(sink)

    async def _end(self, sink: Sink) -> None:
        task = self._tasks.pop(sink)
        task.cancel()
        await asyncio.wait([task])

    async def _serve(self, sink: Sink, box: Outbox, is_open: asyncio.Event) -> None:
        try:
            metrics.begin_sink(sink.name)
            async with sink:
                await box.open()
                self._boxes[sink] = box
                if (gap := self._gaps.pop(sink.name, None)) is not None:
                    gap.move_to(box)
                is_open.set()
                try:
                    await box.run()
                finally:
                    await box.close("shutdown")
        finally:
            self._boxes.pop(sink, None)
            is_open.set()


class Gap:
    """Keeps what is to be sent between the end of a sink and the beginning of the next of its name."""

    def __init__(self) -> None:
        self.level = Level()
        self._items: deque[Answer | Event | StreamStatus] = deque(maxlen=_IN_A_GAP)

    def put(self, item: Answer | Event | StreamStatus) -> None:
        """Keep `item`."""
        self._items.append(item)

    def move_to(self, box: Outbox) -> None:
        """Hand over all that is kept, in order."""
        for item in self._items:
            box.put(item)
        self._items.clear()


async def drain(levels: Sequence[Level], seconds: float) -> None:
    """Wait until every level is empty, for at most `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for level in levels:
                await level.emptied.wait()
