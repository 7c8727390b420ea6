"""How long a stream is waited for: for its next sign of life, and before it is opened again.

Knows nothing of sources; what to do when patience is at its end is decided in ingest.py.
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
    """How long to wait before a stream is opened again, in seconds.

    The pause doubles from `first` to `cap` and starts over once the stream has run for `settled`. Where access is
    denied all is `denied` times slower: cameras lock out who keeps trying.
    """

    first: float = 0.5
    cap: float = 5.0
    settled: float = 10.0
    denied: float = 4.0

    def pause(self, failures: int, error: Exception) -> float:
        """The pause after so many failures in a row, at least 1; up to half of it is left to chance."""
        pause = min(self.cap, self.first * 2.0 ** min(failures - 1, 30))
        if isinstance(error, SourceDenied):
            pause *= self.denied
        return pause * random.uniform(0.5, 1.0)


USUAL = Backoff()


class Watchdog:
    """Ends a wait when nothing has been heard for `patience` seconds; `heard` says when the last time was."""

    def __init__(self, limit: asyncio.Timeout, patience: float, heard: Callable[[], float]) -> None:
        self._limit, self._patience, self._heard = limit, patience, heard
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(patience, self._look)

    def rest(self) -> None:
        """Nothing is waited for any more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._heard() + self._patience - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._limit.reschedule(self._loop.time())
