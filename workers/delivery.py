"""Answers, events and statuses out: to the store, to the live feed, and to every sink through an outbox of its own.

A slow or dead sink, or a slow disk, delays nobody else. Every answer reaches the store and the feed, only news reach
the sinks. When cancelled, what waits gets a few seconds more to leave; what then still waits is kept for the next
start where there is a backlog.
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
from workers.sink_tasks import SinkTasks, drain

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
    outlets: SinkTasks | None = None,
) -> None:
    """Deliver what comes out of `channel` until cancelled; sinks are entered and left here, store and backlog not.

    While it runs, `outlets` takes further sinks and lets go of them.
    """
    limits = limits or Limits()
    outlets = outlets or SinkTasks(limits, backlog)
    async with asyncio.TaskGroup() as group:
        archive = _Archive(store, events, limits)
        outlets.start(group)
        for sink in sinks:
            await outlets.add(sink)
        tasks = [group.create_task(archive.run(), name="store")]
        tasks += [group.create_task(archive.prune(), name="prune")]
        try:
            while True:
                _hand_on(await channel.receive(), archive, feed, outlets)
        finally:
            while len(channel):
                _hand_on(await channel.receive(), archive, feed, outlets)
            await drain([archive.level, *(box.level for box in outlets)], limits.drain)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await archive.close("shutdown")
            await outlets.close()


def limits_of(settings: Settings) -> Limits:
    """What a configuration says of what may wait."""
    keep = settings.store.keep_days
    return Limits(
        capacity=settings.outbox.capacity,
        max_age=settings.outbox.max_age,
        keep_answers=keep * 86_400 if keep else None,
    )


def told_lost(item: Outgoing) -> None:
    """Count and tell an item that had to make room ahead of delivery: neither store nor sink gets it."""
    if isinstance(item, Answer | Event):
        stream = item.question.stream if isinstance(item, Answer) else item.stream
        metrics.STORE_ERRORS.inc()
        _log.error("stream %s: an answer was lost, delivery is %d behind", stream, ANSWERS_AHEAD)


def _hand_on(item: Outgoing, archive: _Archive, feed: Feed, outboxes: Iterable[Outbox]) -> None:
    """Give `item` to everyone it concerns, without waiting for any of them."""
    now = time.time()
    if not isinstance(item, StreamStatus):
        archive.put(item, now)
    if isinstance(item, Evidence):
        return
    if isinstance(item, Answer):
        observe_lag(item, "feed", now)
    feed.publish(item, published_at=now)
    if not isinstance(item, Answer) or item.news:
        for outbox in outboxes:
            outbox.put(item)


class _Archive:
    """What waits for the store; what can't be written is counted and passed over."""

    def __init__(self, store: Store, events: EventLog | None, limits: Limits) -> None:
        self._store, self._events = store, events
        self._keep = limits.keep_answers
        self._answers: deque[tuple[Answer | Event | Evidence, float]] = deque(maxlen=_UNWRITTEN)
        self.level = Level()
        self._trouble = ""

    def put(self, item: Answer | Event | Evidence, published_at: float) -> None:
        """Queue `item`; the oldest one gives way to it where too many wait."""
        if len(self._answers) == self._answers.maxlen:
            metrics.STORE_ERRORS.inc()
        self._answers.append((item, published_at))
        self.level.set(len(self._answers))

    async def run(self) -> None:
        """Write one answer after the other, for ever."""
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
        """Delete what is older than it may be, now and then, for ever."""
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
        """Drop all that waits, counted as errors of the store."""
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
