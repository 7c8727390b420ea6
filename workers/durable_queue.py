"""A queue that outlives the process: the items that wait for one sink, in order, bounded by count and age.

An item that has not left within a moment is moved from memory to the outbox table. Where that can't be written, it
waits in memory, which is logged once. So a healthy service writes nothing. Drops are reported to the owner by reason.
Numbers only rise. All that memory holds is newer than all that the table holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, takewhile

from stream_sttm.errors import StoreError
from stream_sttm.storage.outbox import Entry, OutboxTable
from stream_sttm.types import Answer, Event

_IN_MEMORY = 10_000  # entries that wait to be written, at most
_SAVE_AGAIN = 5.0  # seconds after which a table that can't be written is tried again

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many items may wait for one sink, and how long in seconds."""

    capacity: int = 50_000
    max_age: float = 86_400.0
    batch: int = 256  # handed over at once, to a sink that takes several
    first_pause: float = 0.2  # before a failed hand-over is tried again; doubled each time
    longest_pause: float = 5.0
    grace: float = 0.25  # that something may wait in memory alone
    drain: float = 3.0  # at shutdown
    keep_answers: float | None = None  # in the store; None: for ever


class DurableQueue:
    """The items that wait for the sink `name`. `on_drop` is called with a reason and a count."""

    def __init__(
        self,
        name: str,
        limits: Limits,
        table: OutboxTable | None,
        *,
        on_drop: Callable[[str, int], None],
    ) -> None:
        self._name, self._limits, self._table, self._on_drop = name, limits, table, on_drop
        self._memory: deque[Entry] = deque()
        self._count = 0  # in memory and in the table
        self._newest = 0  # the last number given
        self._done = 0  # the last number that needs no place any more
        self._held = self._in_hand = 0  # being handed over: the last number, and how many
        self._saving = 0  # the last number that is being written
        self._saved = 0  # the last number that was
        self._forgotten = 0  # the last number taken out of the table again
        self._turn = asyncio.Lock()  # taken by whoever reads from the table or makes room in it
        self._has_work = asyncio.Event()  # there is something to write or to forget
        self._is_failing = False  # the table, when last written

    def __len__(self) -> int:
        return self._count

    async def open(self) -> None:
        """Take over what waits from an earlier run. Does nothing where there is no table or it can't be read."""
        if self._table is None:
            return
        with suppress(
            StoreError
        ):  # where another process writes now; what is too old is dropped in its turn
            oldest = time.time() - self._limits.max_age
            await asyncio.to_thread(self._table.forget, before=oldest)
        try:
            self._count, self._newest = await asyncio.to_thread(self._table.count, self._name)
        except StoreError as error:
            self._abandon(error)
            return
        self._saved = self._newest
        if self._count:
            _log.info("sink %s: %d answers wait from before", self._name, self._count)

    def add(self, item: Answer | Event) -> None:
        """Append `item`. May drop the oldest."""
        self._newest += 1
        self._memory.append(Entry(self._newest, time.time(), item))
        self._count += 1
        self.make_room()
        self._has_work.set()

    async def first(self, limit: int) -> list[Entry]:
        """Return the oldest items, after dropping those that are too old or can't be read. They stay until `settle`."""
        while self._count:
            entries = await self._oldest(limit)
            if not entries:  # somebody took the file away
                self._drop("lost", self._count - len(self._memory))
            for entry in takewhile(lambda one: not self._is_deliverable(one), entries):
                self.settle(entry)
                self._on_drop("unreadable" if entry.item is None else "expired", 1)
            if good := list(
                takewhile(self._is_deliverable, (e for e in entries if e.seq > self._done))
            ):
                return good
        return []

    def hold(self, entries: Sequence[Entry]) -> None:
        """Keep `entries` from being dropped while they are delivered. An empty sequence ends that."""
        self._held, self._in_hand = (entries[-1].seq if entries else 0), len(entries)

    def settle(self, entry: Entry) -> None:
        """Remove `entry`, the oldest."""
        self._done = entry.seq
        self._count -= 1
        while self._memory and self._memory[0].seq <= self._done:
            self._memory.popleft()
        if entry.seq <= self._saved:
            self._has_work.set()

    def make_room(self) -> None:
        """Drop the oldest in memory where too many wait there, but not what is held or being written."""
        most = self._limits.capacity
        if self._table is not None:
            most = min(most, _IN_MEMORY) if self._is_failing else _IN_MEMORY
        if len(self._memory) <= most:
            return
        pinned = max(self._held, self._saving)
        first = sum(1 for _ in takewhile(lambda entry: entry.seq <= pinned, self._memory))
        while len(self._memory) - first > most:
            del self._memory[first]
            self._drop("full", 1)

    async def keep(self) -> None:
        """Write what has not left within a moment and delete what has left, until cancelled."""
        while True:
            await self._has_work.wait()
            await asyncio.sleep(self._limits.grace)
            self._has_work.clear()
            if self._memory and 0 <= time.time() - self._memory[0].since < self._limits.grace:
                self._has_work.set()  # all that is there has only just come
            elif not (await self._save() and await self._forget()):
                await asyncio.sleep(_SAVE_AGAIN)
                self._has_work.set()

    async def close(self, reason: str) -> None:
        """Write what waits to the table, or drop it for `reason`. Call it once `keep` has ended."""
        if await self._save():
            await self._forget()
        if kept := self._count - len(self._memory):
            _log.info("sink %s: %d answers wait for the next start", self._name, kept)
        if lost := len(self._memory):
            _log.warning("sink %s: %d answers were not delivered (%s)", self._name, lost, reason)
            self._memory.clear()
            self._drop(reason, lost)

    async def _oldest(self, limit: int) -> list[Entry]:
        if self._table is not None and self._count > len(self._memory):
            async with self._turn:
                try:
                    return await asyncio.to_thread(
                        self._table.first, self._name, after=self._done, limit=limit
                    )
                except StoreError as error:
                    self._abandon(error)
        return list(islice(self._memory, limit))

    def _is_deliverable(self, entry: Entry) -> bool:
        return entry.item is not None and entry.since >= time.time() - self._limits.max_age

    async def _save(self) -> bool:
        """Move what waits in memory to the table. Returns whether nothing waits in memory alone."""
        async with self._turn:
            entries = list(self._memory)
            if not entries or self._table is None:
                return not entries
            self._saving = entries[-1].seq
            try:
                await asyncio.to_thread(self._table.add, self._name, entries)
                self._saved = self._saving
                while self._memory and self._memory[0].seq <= self._saved:
                    self._memory.popleft()
                await self._trim(self._table)
            except StoreError as error:
                if not self._is_failing:
                    _log.error("sink %s: answers wait in memory alone: %s", self._name, error)
                self._is_failing = True
                return False
            finally:
                self._saving = 0
            if self._is_failing:
                _log.info("sink %s: answers that wait are kept on disk again", self._name)
            self._is_failing = False
            return True

    async def _trim(self, table: OutboxTable) -> None:
        """Drop the oldest of the table where there are too many, but not what is held."""
        excess = self._count - self._in_hand - self._limits.capacity
        if excess > 0:
            after = max(self._done, self._held)
            drop = asyncio.to_thread(table.drop, self._name, after=after, count=excess)
            self._drop("full", await drop)

    async def _forget(self) -> bool:
        """Delete delivered items from the table. Returns whether that worked."""
        through = min(self._done, self._saved)
        if self._table is not None and through > self._forgotten:
            try:
                await asyncio.to_thread(self._table.remove, self._name, through=through)
            except (
                StoreError
            ):  # until it works, a restart would tell these twice; told when writing fails
                return False
            self._forgotten = through
        return True

    def _abandon(self, error: StoreError) -> None:
        """Go on without a table that can't be read. What it holds is tried again at the next start."""
        _log.error("sink %s: answers that wait on disk stay there: %s", self._name, error)
        self._count = len(self._memory)
        self._table = None

    def _drop(self, reason: str, count: int) -> None:
        self._count -= count
        if count:
            self._on_drop(reason, count)
