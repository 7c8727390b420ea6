"""Delivers answers, events and statuses to the store, the live feed, and every sink through its own outbox.

A slow or dead sink, or a slow disk, delays nobody else. Every answer reaches the store and the feed. Only news reach
the sinks. When cancelled, waiting items get a few seconds to leave. An outbox table keeps the rest for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence

from stream_sttm import metrics
from stream_sttm.api.feed import Feed
from stream_sttm.config.settings import Settings
from stream_sttm.errors import StoreError
from stream_sttm.sinks import Sink
from stream_sttm.sources.images import jpeg
from stream_sttm.storage.answers import Store
from stream_sttm.storage.events import EventLog
from stream_sttm.storage.outbox import OutboxTable
from stream_sttm.types import Answer, Event, Evidence, StreamStatus
from workers.channel import Channel
from workers.durable_queue import Limits
from workers.outbox import Level, Outbox, observe_lag
from workers.sink_tasks import Gap, SinkTasks, drain

Outgoing = Answer | Event | Evidence | StreamStatus
ANSWERS_AHEAD = 4096  # of delivery, at most
_UNWRITTEN = 5000  # answers that wait for the store, at most
_PRUNE_EVERY = 3600.0  # seconds

_log = logging.getLogger(__name__)


async def run(  # noqa: PLR0913 - the seams of delivery, each named
    channel: Channel[Outgoing],
    *,
    store: Store,
    sinks: Sequence[Sink],
    feed: Feed,
    limits: Limits | None = None,
    backlog: OutboxTable | None = None,
    events: EventLog | None = None,
    sink_tasks: SinkTasks | None = None,
) -> None:
    """Deliver what comes out of `channel` until cancelled.

    Sinks are opened and closed here; store and outbox table are not. While it runs, `sink_tasks` adds and removes
    further sinks.
    """
    limits = limits or Limits()
    sink_tasks = sink_tasks or SinkTasks(limits, backlog)
    async with asyncio.TaskGroup() as group:
        store_queue = _StoreQueue(store, events, limits)
        sink_tasks.start(group)
        for sink in sinks:
            await sink_tasks.add(sink)
        tasks = [group.create_task(store_queue.run(), name="store")]
        tasks += [group.create_task(store_queue.prune(), name="prune")]
        try:
            while True:
                _dispatch(await channel.receive(), store_queue, feed, sink_tasks)
        finally:
            while len(channel):
                _dispatch(await channel.receive(), store_queue, feed, sink_tasks)
            await drain([store_queue.level, *(box.level for box in sink_tasks)], limits.drain)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await store_queue.close("shutdown")
            await sink_tasks.close()


def limits_of(settings: Settings) -> Limits:
    """Return the limits of what may wait, from a configuration."""
    keep = settings.store.keep_days
    return Limits(
        capacity=settings.outbox.capacity,
        max_age=settings.outbox.max_age,
        keep_answers=keep * 86_400 if keep else None,
    )


def count_lost(item: Outgoing) -> None:
    """Count and log an item that was dropped ahead of delivery. Neither store nor sink gets it."""
    if isinstance(item, Answer | Event):
        stream = item.question.stream if isinstance(item, Answer) else item.stream
        metrics.STORE_ERRORS.inc()
        _log.error("stream %s: an answer was lost, delivery is %d behind", stream, ANSWERS_AHEAD)


def _dispatch(
    item: Outgoing, store_queue: _StoreQueue, feed: Feed, outboxes: Iterable[Outbox | Gap]
) -> None:
    """Give `item` to everyone it concerns without waiting for any of them."""
    now = time.time()
    if not isinstance(item, StreamStatus):
        store_queue.put(item, now)
    if isinstance(item, Evidence):
        return
    if isinstance(item, Answer):
        observe_lag(item, "feed", now)
    feed.publish(item, published_at=now)
    if not isinstance(item, Answer) or item.news:
        for outbox in outboxes:
            outbox.put(item)


class _StoreQueue:
    """The queue in front of the store. What can't be written is counted and skipped."""

    def __init__(self, store: Store, events: EventLog | None, limits: Limits) -> None:
        self._store, self._events = store, events
        self._keep = limits.keep_answers
        self._answers: deque[tuple[Answer | Event | Evidence, float]] = deque(maxlen=_UNWRITTEN)
        self.level = Level()
        self._trouble = ""

    def put(self, item: Answer | Event | Evidence, published_at: float) -> None:
        """Queue `item`. Drops the oldest one where too many wait."""
        if len(self._answers) == self._answers.maxlen:
            metrics.STORE_ERRORS.inc()
        self._answers.append((item, published_at))
        self.level.set(len(self._answers))

    async def run(self) -> None:
        """Write one item after the other until cancelled."""
        while True:
            await self.level.filled.wait()
            item, published_at = self._answers.popleft()
            try:
                await asyncio.to_thread(self._write, item, published_at)
            except StoreError as error:
                metrics.STORE_ERRORS.inc()
                self._note(str(error))
            else:
                self._note("")
            self.level.set(len(self._answers))

    def _write(self, item: Answer | Event | Evidence, published_at: float) -> None:
        if isinstance(item, Answer):
            self._store.add(item, published_at=published_at)
        elif self._events is None:
            return
        elif isinstance(item, Event):
            self._events.add(item, published_at=published_at)
        else:
            self._events.add_snapshot(item.event, jpeg(item.frame.image))

    async def prune(self) -> None:
        """Delete what is too old once an hour until cancelled."""
        while self._keep is not None:
            older_than = time.time() - self._keep
            try:
                await asyncio.to_thread(self._store.prune, older_than=older_than)
                if self._events is not None:
                    await asyncio.to_thread(self._events.prune, older_than=older_than)
            except StoreError as error:
                _log.warning("%s", error)
            await asyncio.sleep(_PRUNE_EVERY)

    async def close(self, reason: str) -> None:
        """Drop what waits, counted as errors of the store."""
        if self._answers:
            _log.warning("store: %d answers were not written (%s)", len(self._answers), reason)
        metrics.STORE_ERRORS.inc(len(self._answers))
        self._answers.clear()

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            _log.error("answers are not being kept: %s", trouble)
        if self._trouble and not trouble:
            _log.info("answers are being kept again")
        self._trouble = trouble
