"""Warnings and errors that repeat: told once a minute, with how many were left out.

What a stranger can cause again and again must not fill a disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_EVERY = 60.0  # seconds
_PER_PLACE = 30  # different lines of one place in the code, in that time
_MOST = 1024  # lines that are remembered


class OnceAMinute(logging.Filter):
    """Lets each warning or error through once a minute, and of one place in the code 30 different ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._left_out: dict[tuple[object, ...], tuple[float, int]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is told, with the number of those before it that were not."""
        if record.levelno < logging.WARNING:
            return True
        now, text = self._clock(), record.getMessage()
        place = (record.name, record.pathname, record.lineno)
        left_out = self._pass((*place, text), now, 1)
        if left_out is None:
            return False
        of_place = self._pass(place, now, _PER_PLACE)
        if of_place is None:
            return False
        if left_out := left_out + of_place:
            record.msg, record.args = f"{text} (and {left_out} times more since)", ()
        return True

    def _pass(self, key: tuple[object, ...], now: float, most: int) -> int | None:
        """Return how many of a key were left out before this one, None where this one is too."""
        since, count = self._left_out.get(key, (now - _EVERY, 0))
        if now - since >= _EVERY:
            self._left_out.pop(key, None)  # so that the newest stand last
            self._left_out[key] = (now, 1)
            if len(self._left_out) > _MOST:
                del self._left_out[next(iter(self._left_out))]
            return max(0, count - most)
        self._left_out[key] = (since, count + 1)
        return None if count >= most else 0
