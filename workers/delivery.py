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
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from stream_sttm import metrics
from stream_sttm.backlog import Backlog
from stream_sttm.config import Settings
from stream_sttm.errors import ConfigError, StoreError
from stream_sttm.sinks import Sink
from stream_sttm.sinks.feed import Feed
from stream_sttm.store import AnswerStore, Store
from stream_sttm.types import Answer, Event, StreamStatus
from workers.channel import Channel
from workers.outbox import Level, Outbox, observe_lag
from workers.waiting import Limits

Outgoing = Answer | Event | StreamStatus
_UNWRITTEN = 5000  # answers that wait for the store, at most
_PRUNE_EVERY = 3600.0  # seconds

_log = logging.getLogger(__name__)


async def run(
    channel: Channel[Outgoing],
    *,
    store: Store,
    sinks: Sequence[Sink],
    feed: Feed,
    limits: Limits | None = None,
    backlog: Backlog | None = None,
) -> None:
    """Deliver what comes out of `channel` until cancelled; sinks are entered and left here, store and backlog not."""
    limits = limits or Limits()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        archive = _Archive(store, limits)
        outboxes = [
            Outbox(await stack.enter_async_context(sink), limits, backlog) for sink in sinks
        ]
        for box in outboxes:
            await box.open()
        tasks = [group.create_task(archive.run(), name="store")]
        tasks += [group.create_task(archive.prune(), name="prune")]
        tasks += [group.create_task(box.run(), name=f"sink[{box.name}]") for box in outboxes]
        try:
            while True:
                _hand_on(await channel.receive(), archive, feed, outboxes)
        finally:
            while len(channel):
                _hand_on(await channel.receive(), archive, feed, outboxes)
            await _drain([archive.level, *(box.level for box in outboxes)], limits.drain)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await archive.close("shutdown")
            for box in outboxes:
                await box.close("shutdown")


def limits_of(settings: Settings) -> Limits:
    """What a configuration says of what may wait."""
    keep = settings.store.keep_days
    return Limits(
        capacity=settings.outbox.capacity,
        max_age=settings.outbox.max_age,
        keep_answers=keep * 86_400 if keep else None,
    )


def open_store(path: str) -> Store:
    """Where answers are kept: a SQLite file or a PostgreSQL database; raises StoreError where that can't be used."""
    if not path.startswith(("postgresql://", "postgres://")):
        return AnswerStore(path)
    try:
        from stream_sttm.store_postgres import PostgresStore
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"store.path: postgresql:// needs the package {error.name!r}: pip install 'stream-sttm[postgres]'"
        ) from error
    return PostgresStore(path)


def backlog_of(settings: Settings) -> Backlog | None:
    """Where answers wait on disk for their sinks; None where there are no sinks, no place, or none that works."""
    path = settings.outbox.path
    if path is None and settings.store.path != ":memory:" and "://" not in settings.store.path:
        store = Path(settings.store.path)
        path = str(store.with_name(f"{store.stem}-outbox{store.suffix}"))
    if path is None or not settings.sinks:
        return None
    try:
        return Backlog(path)
    except StoreError as error:
        _log.error("answers that can't be delivered wait in memory alone: %s", error)
        return None


def _hand_on(item: Outgoing, archive: _Archive, feed: Feed, outboxes: Sequence[Outbox]) -> None:
    """Give `item` to everyone it concerns, without waiting for any of them."""
    now = time.time()
    if isinstance(item, Answer):
        archive.put(item, now)
        observe_lag(item, "feed", now)
    if not isinstance(item, Event):
        feed.publish(item, published_at=now)
    if not isinstance(item, Answer) or item.news:
        for outbox in outboxes:
            outbox.put(item)


async def _drain(levels: Sequence[Level], seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for level in levels:
                await level.emptied.wait()


class _Archive:
    """What waits for the store; an answer that can't be written is counted and passed over."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._keep = limits.keep_answers
        self._answers: deque[tuple[Answer, float]] = deque(maxlen=_UNWRITTEN)
        self.level = Level()
        self._trouble = ""

    def put(self, answer: Answer, published_at: float) -> None:
        """Queue `answer`; the oldest one gives way to it where too many wait."""
        if len(self._answers) == self._answers.maxlen:
            metrics.STORE_ERRORS.inc()
        self._answers.append((answer, published_at))
        self.level.set(len(self._answers))

    async def run(self) -> None:
        """Write one answer after the other, for ever."""
        while True:
            await self.level.filled.wait()
            answer, published_at = self._answers.popleft()
            try:
                await asyncio.to_thread(self._store.add, answer, published_at=published_at)
            except StoreError as error:
                metrics.STORE_ERRORS.inc()
                self._note(str(error))
            else:
                self._note("")
            self.level.set(len(self._answers))

    async def prune(self) -> None:
        """Delete what is older than it may be, now and then, for ever."""
        while self._keep is not None:
            try:
                await asyncio.to_thread(self._store.prune, older_than=time.time() - self._keep)
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
