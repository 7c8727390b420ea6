"""The outbox of one sink: delivers items in order, retries, and counts every drop.

A sink gets each item at least once and in order. A crash or a lost acknowledgement can deliver it twice, with the same
id. Each stream's newest status goes ahead of answers and is not kept. Knows nothing of what a sink is, nor of where
items wait (workers/durable_queue.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

from stream_sttm import metrics
from stream_sttm.errors import SinkError, SinkHungUp, SinkRefused
from stream_sttm.sinks import BatchSink, Sink
from stream_sttm.storage.outbox import Entry, OutboxTable
from stream_sttm.types import Answer, Event, StreamStatus
from workers.durable_queue import DurableQueue, Limits

_HANG_UPS = 3  # after which it is found out whether one thing alone is to blame
_LOGGED = ("full", "expired", "lost", "unreadable")  # reasons whose first drop is logged

_log = logging.getLogger(__name__)


class Outbox:
    """Carries items to one sink, from `put` to the sink's acknowledgement."""

    def __init__(self, sink: Sink, limits: Limits, table: OutboxTable | None = None) -> None:
        self.name = sink.name
        self.level = Level()
        self._sink, self._limits = sink, limits
        self._batch = limits.batch if isinstance(sink, BatchSink) else 1
        self._waiting = DurableQueue(sink.name, limits, table, on_drop=self._drop)
        self._statuses: dict[str, StreamStatus] = {}
        self._suspect = self._hang_ups = 0  # the entry at which the sink hung up, and how often
        self._dropped = 0  # since it last delivered
        self._trouble = self._refusal = ""
        self._count()

    async def open(self) -> None:
        """Take over what waits from an earlier run."""
        await self._waiting.open()
        self._count()

    def put(self, item: Answer | Event | StreamStatus) -> None:
        """Queue `item`. May drop the oldest answer; replaces the stream's older status."""
        if isinstance(item, StreamStatus):
            self._statuses[item.stream] = item
        else:
            self._waiting.add(item)
        self._count()

    async def run(self) -> None:
        """Deliver one item after the other until cancelled, and keep what can't leave."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(), name=f"send[{self.name}]")
            group.create_task(self._waiting.keep(), name=f"keep[{self.name}]")

    async def close(self, reason: str) -> None:
        """Keep what waits for the next start, or drop it, counted under `reason`. Call it once `run` has ended."""
        await self._waiting.close(reason)
        self._statuses.clear()
        self._count()

    async def _send(self) -> None:
        pause = self._limits.first_pause
        while True:
            await self.level.filled.wait()
            try:
                if self._statuses:
                    await self._report()
                elif entries := await self._waiting.first(max(2, self._batch)):
                    await self._hand_over(entries)
                else:  # all of it was too old
                    self._count()
                    continue
            except SinkError as error:
                self._note(str(error))
                self._waiting.make_room()
                self._count()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(self._limits.longest_pause, pause * 2)
            else:
                self._note("")
                pause = self._limits.first_pause
            self._count()

    async def _report(self) -> None:
        stream = next(iter(self._statuses))
        status = self._statuses.pop(stream)
        try:
            await self._sink.report(status)
        except SinkRefused as error:
            self._give_up(error)
        except BaseException:
            self._statuses.setdefault(stream, status)  # unless a newer one has come
            raise

    async def _hand_over(self, entries: Sequence[Entry]) -> None:
        """Deliver the first of `entries`, or as many as the sink takes at once."""
        started = time.perf_counter()
        self._waiting.hold(entries)
        try:
            results = await self._deliver([_item(entry) for entry in entries])
        except SinkHungUp:
            is_known = entries[0].seq == self._suspect
            self._suspect, self._hang_ups = entries[0].seq, self._hang_ups + 1 if is_known else 1
            raise
        finally:
            self._waiting.hold(())
        self._hang_ups = 0
        took, now = (time.perf_counter() - started) / len(results), time.time()
        for entry, refusal in zip(entries, results, strict=False):
            self._waiting.settle(entry)
            if refusal is not None:
                self._give_up(refusal)
            else:
                metrics.STAGE_DURATION.labels("publish").observe(took)
                observe_lag(_item(entry), self.name, now)

    async def _deliver(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        """Deliver as many items as is wise.

        An item at which the sink hung up is sent alone. After several hang-ups the item behind it is sent instead. If
        that one is taken, the first is to blame and is refused. Else the sink itself is in trouble.
        """
        if self._hang_ups < _HANG_UPS or len(items) < 2:
            return await self._give(items[:1] if self._hang_ups else items)
        (outcome, *_) = await self._give(items[1:2])
        return [SinkRefused(f"{self.name} hangs up on it"), outcome]

    async def _give(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        """Send `items`, at least the first. Returns None for each that was taken, else why it never will be."""
        if isinstance(self._sink, BatchSink):
            return await self._sink.send_all(items)
        item = items[0]
        try:
            if isinstance(item, Answer):
                await self._sink.send(item)
            else:
                await self._sink.send_event(item)
        except SinkRefused as error:
            return [error]
        return [None]

    def _give_up(self, refusal: SinkRefused) -> None:
        if str(refusal) != self._refusal:
            _log.warning("sink %s: an answer is given up: %s", self.name, refusal)
        self._refusal = str(refusal)
        self._drop("refused", 1)

    def _drop(self, reason: str, count: int) -> None:
        if self._dropped == 0 and reason in _LOGGED:
            _log.warning("sink %s: answers are being dropped (%s)", self.name, reason)
        self._dropped += count
        metrics.SINK_DROPPED.labels(self.name, reason).inc(count)
        self._count()

    def _count(self) -> None:
        waiting = len(self._waiting) + len(self._statuses)
        metrics.SINK_OUTBOX_DEPTH.labels(self.name).set(waiting)
        self.level.set(waiting)

    def _note(self, trouble: str) -> None:
        """Log when delivery begins to fail and when it works again."""
        if trouble and not self._trouble:
            _log.warning("sink %s: answers wait: %s", self.name, trouble)
        if self._trouble and not trouble:
            _log.info("sink %s: delivering again, %d dropped", self.name, self._dropped)
            self._dropped = 0
        self._trouble = trouble


class Level:
    """Whether something waits, as two events that tasks can wait for."""

    def __init__(self) -> None:
        self.filled, self.emptied = asyncio.Event(), asyncio.Event()
        self.set(0)

    def set(self, waiting: int) -> None:
        """Set how many items wait."""
        (self.filled if waiting else self.emptied).set()
        (self.emptied if waiting else self.filled).clear()


def observe_lag(item: Answer | Event, sink: str, now: float) -> None:
    """Observe the seconds from an answer's newest frame to its delivery."""
    if isinstance(item, Answer):
        lag = max(0.0, now - item.captured_at)
        metrics.EVENT_TO_ANSWER.labels(item.question.stream, sink).observe(lag)


def _item(entry: Entry) -> Answer | Event:
    assert entry.item is not None
    return entry.item
