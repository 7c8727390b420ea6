"""Timing of reconnections: the pause before a stream is opened again, and the watchdog of an open one.

Knows nothing of sources. What follows a timeout is decided in ingest.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from stream_sttm.errors import SourceDenied


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter, in seconds.

    The pause doubles from `first` to `cap`. It starts over once the stream has run for `settled`. Where access is
    denied the pause is `denied` times as long, because cameras lock out clients that keep trying.
    """

    first: float = 0.5
    cap: float = 5.0
    settled: float = 10.0
    denied: float = 4.0

    def pause(self, failures: int, error: Exception) -> float:
        """Return the pause after `failures` in a row, at least 1. Up to half of it is jitter."""
        pause = min(self.cap, self.first * 2.0 ** min(failures - 1, 30))
        if isinstance(error, SourceDenied):
            pause *= self.denied
        return pause * random.uniform(0.5, 1.0)


USUAL = Backoff()


class Watchdog:
    """Ends a wait when there was no sign of life for `patience` seconds; `heard` returns the last one (monotonic)."""

    def __init__(self, limit: asyncio.Timeout, patience: float, heard: Callable[[], float]) -> None:
        self._limit, self._patience, self._heard = limit, patience, heard
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(patience, self._look)

    def rest(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._heard() + self._patience - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._limit.reschedule(self._loop.time())
