"""Runs the work until it ends, or until SIGINT or SIGTERM stops it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from stream_sttm.errors import StreamSTTMError


class Stop:
    """Handles SIGINT and SIGTERM at any time: before the work has begun, while it runs, while it ends."""

    def __init__(self) -> None:
        self._halt: Callable[[], object] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    async def run(self, work: Coroutine[Any, Any, int | None]) -> int:
        """Run the work. Returns its result, or 0 where it was stopped."""
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        self._halt = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await task or 0
        except asyncio.CancelledError:
            return 0
        finally:
            self._halt = lambda: None

    def _asked(self, *_: object) -> None:
        if self._halt is None:
            os._exit(0)  # imports take seconds, and nothing is open yet
        self._halt()


def until_stopped(stop: Stop, work: Coroutine[Any, Any, int | None]) -> int:
    """Run to the end, or until stopped. Of several errors the first is raised."""
    try:
        return asyncio.run(stop.run(work))
    except BaseExceptionGroup as group:
        known = group.subgroup(StreamSTTMError)
        if known is None:
            raise
        raise _first(known) from group
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # the interpreter would put back what kills
            signal.signal(number, signal.SIG_IGN)


def _first(group: BaseExceptionGroup[StreamSTTMError]) -> StreamSTTMError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, StreamSTTMError)
    return error
