"""Answers and statuses out: to the store, to the live feed, and to every sink through an outbox of its own.

A slow or dead sink, or a slow disk, delays nobody else. A sink's outbox keeps the order, tries its head again until
it is handed over, and is bounded by count and age; what it gives up is counted. Every answer reaches the store and
the feed, only news reach the sinks. When cancelled, what waits gets a few seconds more to leave.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from stream_sttm import metrics
from stream_sttm.errors import SinkError, SinkRefused, StoreError
from stream_sttm.sinks import Sink
from stream_sttm.sinks.feed import Feed
from stream_sttm.store import AnswerStore
from stream_sttm.types import Answer, StreamStatus
from workers.channel import Channel

_PRUNE_EVERY = 3600.0  # seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait for one sink and how long, in answers and seconds."""

    capacity: int = 1000
    max_age: float = 3600.0
    first_pause: float = 0.2  # before a failed hand-over is tried again; doubled each time
    longest_pause: float = 5.0
    drain: float = 3.0  # at shutdown
    keep_answers: float | None = None  # in the store; None: for ever


async def run(
    channel: Channel[Answer | StreamStatus],
    *,
    store: AnswerStore,
    sinks: Sequence[Sink],
    feed: Feed,
    limits: Limits | None = None,
) -> None:
    """Deliver what comes out of `channel` until cancelled; the sinks are entered and left here, the store is not."""
    limits = limits or Limits()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        archive = _Archive(store, limits)
        outboxes = [_Outbox(await stack.enter_async_context(sink), limits) for sink in sinks]
        tasks = [group.create_task(archive.run(), name="store")]
        tasks += [group.create_task(archive.prune(), name="prune")]
        tasks += [group.create_task(box.run(), name=f"sink[{box.name}]") for box in outboxes]
        try:
            while True:
                _hand_on(await channel.receive(), archive, feed, outboxes)
        finally:
            while len(channel):
                _hand_on(await channel.receive(), archive, feed, outboxes)
            await _drain([archive, *outboxes], limits.drain)
            for task in tasks:
                task.cancel()


def _hand_on(
    item: Answer | StreamStatus, archive: _Archive, feed: Feed, outboxes: Sequence[_Outbox]
) -> None:
    """Give `item` to everyone it concerns, without waiting for any of them."""
    now = time.time()
    if isinstance(item, Answer):
        archive.put(item, now)
        _observe_lag(item, "feed", now)
    feed.publish(item, published_at=now)
    if isinstance(item, StreamStatus) or item.news:
        for outbox in outboxes:
            outbox.put(item)


async def _drain(boxes: Sequence[_Archive | _Outbox], seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for box in boxes:
                await box.until_empty()
    for box in boxes:
        box.give_up("shutdown")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Something in an outbox, and the loop's time at which it came."""

    item: Answer | StreamStatus
    since: float


class _Outbox:
    """What waits for one sink: answers in their order, and each stream's newest status ahead of them."""

    def __init__(self, sink: Sink, limits: Limits) -> None:
        self.name = sink.name
        self._sink = sink
        self._limits = limits
        self._answers: deque[_Waiting] = deque()
        self._statuses: dict[str, StreamStatus] = {}
        self._leaving: _Waiting | None = None  # being handed over
        self._level = _Level()
        self._dropped = 0  # since it last delivered
        self._trouble = ""
        self._count()

    def put(self, item: Answer | StreamStatus) -> None:
        """Queue `item`; the oldest answer, or the stream's older status, gives way to it."""
        if isinstance(item, StreamStatus):
            self._statuses[item.stream] = item
        else:
            if len(self._answers) >= self._limits.capacity:
                self._answers.popleft()
                self._drop("full")
            self._answers.append(_Waiting(item, asyncio.get_running_loop().time()))
        self._count()

    async def run(self) -> None:
        """Hand over one thing after the other, for ever."""
        pause = self._limits.first_pause
        while True:
            await self._level.filled.wait()
            self._leaving = self._next()
            if self._leaving is None:
                self._count()
                continue
            try:
                await self._hand_over(self._leaving.item)
            except SinkRefused as error:
                _log.warning("sink %s: an answer is given up: %s", self.name, error)
                self._drop("refused")
            except SinkError as error:
                self._take_back()
                self._note(str(error))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(self._limits.longest_pause, pause * 2)
            else:
                self._note("")
                pause = self._limits.first_pause
            self._leaving = None
            self._count()

    async def until_empty(self) -> None:
        """Return when nothing waits any more."""
        await self._level.emptied.wait()

    def give_up(self, reason: str) -> None:
        """Drop all that waits, counted under `reason`."""
        self._take_back()
        if self._answers:
            waiting = len(self._answers)
            _log.warning("sink %s: %d answers were not delivered (%s)", self.name, waiting, reason)
        while self._answers:
            self._answers.popleft()
            self._drop(reason)
        self._statuses.clear()
        self._count()

    def _next(self) -> _Waiting | None:
        """Take out what goes next, after dropping what has waited too long."""
        now = asyncio.get_running_loop().time()
        while self._answers and self._answers[0].since < now - self._limits.max_age:
            self._answers.popleft()
            self._drop("expired")
        if self._statuses:
            return _Waiting(self._statuses.pop(next(iter(self._statuses))), now)
        return self._answers.popleft() if self._answers else None

    def _take_back(self) -> None:
        """Put what could not be handed over in front again, unless something newer needs its place."""
        back, self._leaving = self._leaving, None
        if back is None:
            return
        if isinstance(back.item, StreamStatus):
            self._statuses.setdefault(back.item.stream, back.item)
        elif len(self._answers) >= self._limits.capacity:
            self._drop("full")
        else:
            self._answers.appendleft(back)

    async def _hand_over(self, item: Answer | StreamStatus) -> None:
        if isinstance(item, StreamStatus):
            await self._sink.report(item)
            return
        started = time.perf_counter()
        await self._sink.send(item)
        metrics.STAGE_DURATION.labels("publish").observe(time.perf_counter() - started)
        _observe_lag(item, self.name, time.time())

    def _drop(self, reason: str) -> None:
        if reason in ("full", "expired") and self._dropped == 0:
            _log.warning("sink %s: answers are being dropped (%s)", self.name, reason)
        self._dropped += 1
        metrics.MQTT_DROPPED.labels(self.name, reason).inc()

    def _count(self) -> None:
        waiting = len(self._answers) + len(self._statuses) + (self._leaving is not None)
        metrics.MQTT_OUTBOX.labels(self.name).set(waiting)
        self._level.set(waiting)

    def _note(self, trouble: str) -> None:
        """Log when handing over begins to fail and when it works again."""
        if trouble and not self._trouble:
            _log.warning("sink %s: answers wait: %s", self.name, trouble)
        if self._trouble and not trouble:
            _log.info("sink %s: delivering again, %d dropped", self.name, self._dropped)
            self._dropped = 0
        self._trouble = trouble


class _Archive:
    """What waits for the store; an answer that can't be written is counted and passed over."""

    def __init__(self, store: AnswerStore, limits: Limits) -> None:
        self._store = store
        self._keep = limits.keep_answers
        self._answers: deque[tuple[Answer, float]] = deque(maxlen=limits.capacity)
        self._level = _Level()
        self._trouble = ""

    def put(self, answer: Answer, published_at: float) -> None:
        """Queue `answer`; the oldest one gives way to it where too many wait."""
        if len(self._answers) == self._answers.maxlen:
            metrics.STORE_ERRORS.inc()
        self._answers.append((answer, published_at))
        self._level.set(len(self._answers))

    async def run(self) -> None:
        """Write one answer after the other, for ever."""
        while True:
            await self._level.filled.wait()
            answer, published_at = self._answers.popleft()
            try:
                await asyncio.to_thread(self._store.add, answer, published_at=published_at)
            except StoreError as error:
                metrics.STORE_ERRORS.inc()
                self._note(str(error))
            else:
                self._note("")
            self._level.set(len(self._answers))

    async def prune(self) -> None:
        """Delete what is older than it may be, now and then, for ever."""
        while self._keep is not None:
            try:
                await asyncio.to_thread(self._store.prune, older_than=time.time() - self._keep)
            except StoreError as error:
                _log.warning("%s", error)
            await asyncio.sleep(_PRUNE_EVERY)

    async def until_empty(self) -> None:
        """Return when nothing waits any more."""
        await self._level.emptied.wait()

    def give_up(self, reason: str) -> None:
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


class _Level:
    """Whether something waits, to be waited for either way."""

    def __init__(self) -> None:
        self.filled, self.emptied = asyncio.Event(), asyncio.Event()
        self.set(0)

    def set(self, waiting: int) -> None:
        """Tell how much waits."""
        (self.filled if waiting else self.emptied).set()
        (self.emptied if waiting else self.filled).clear()


def _observe_lag(answer: Answer, sink: str, now: float) -> None:
    lag = max(0.0, now - answer.captured_at)
    metrics.EVENT_TO_ANSWER.labels(answer.question.stream, sink).observe(lag)
