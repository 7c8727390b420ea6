"""Memories kept over restarts: read before the first frame, written every so often and at the end.

Knows the engine only as something that hands out memories and takes them back, in its own thread; files are written
in another, so a slow disk delays no answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stream_sttm import metrics
from stream_sttm.config import StateSettings
from stream_sttm.engine import memory_file
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import StateError

_log = logging.getLogger(__name__)
_LAST_SAVE = 10.0  # seconds that a stopping service gives to its last save


class Keeping:
    """Saves and restores the memory of all `streams`, which may change, under `settings.dir`."""

    def __init__(
        self,
        engine: Engine,
        settings: StateSettings,
        streams: Callable[[], Iterable[str]],
        *,
        thread: ThreadPoolExecutor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._settings, self._streams = engine, settings, streams
        self._thread, self._clock = thread, clock
        self._failing: set[str] = set()

    @property
    def _folder(self) -> Path | None:
        return None if self._settings.dir is None else Path(self._settings.dir)

    def restore(self) -> None:
        """Take back what was saved, stream by stream; to be called in the engine's thread before its first step.

        What can't be used is set aside, with one line that says why, and its stream starts empty.
        """
        for stream in self._streams() if self._folder else ():
            self._restore(stream)

    def _restore(self, stream: str) -> None:
        assert self._folder is not None
        try:
            saved = memory_file.read(self._folder, stream)
            if saved is None:
                return
            age = self._clock() - saved.saved_at
            if age > self._settings.max_age:
                _log.info("stream %s: its memory is %.0f s old and is left out", stream, age)
                metrics.STATE.labels(stream, "too_old").inc()
                return
            self._engine.memories.restore(saved)
        except StateError as error:
            aside = self._set_aside(stream)
            _log.warning("stream %s starts empty: %s; %s", stream, error, aside)
            metrics.STATE.labels(stream, "refused").inc()
        else:
            _log.info("stream %s: its memory of %.0f s ago is back", stream, age)
            metrics.STATE.labels(stream, "restored").inc()

    def _set_aside(self, stream: str) -> str:
        assert self._folder is not None
        try:
            return f"the file is now {memory_file.set_aside(self._folder, stream)}"
        except OSError as error:
            return f"the file can't be set aside ({error.strerror}) and will be overwritten"

    async def run(self) -> None:
        """Save every `save_every` seconds until cancelled, then once more."""
        if self._folder is None:
            return
        try:
            while True:
                await asyncio.sleep(self._settings.save_every)
                await self._save_all(self._folder)
        finally:
            try:
                async with asyncio.timeout(_LAST_SAVE):
                    await self._save_all(self._folder)
            except TimeoutError:
                _log.warning("the last save took over %g s and was given up", _LAST_SAVE)

    async def _save_all(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        for stream in tuple(self._streams()):
            saved = await loop.run_in_executor(self._thread, self._engine.memories.saved, stream)
            if saved is None:
                continue
            try:
                await asyncio.to_thread(memory_file.write, folder, saved)
            except StateError as error:
                if stream not in self._failing:  # not again for each try
                    _log.error("%s; answering goes on, saving is tried again", error)
                self._failing.add(stream)
                metrics.STATE.labels(stream, "failed").inc()
            else:
                self._failing.discard(stream)
                metrics.STATE.labels(stream, "saved").inc()
