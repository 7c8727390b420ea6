"""Memories and their pasts kept over restarts: read before the first frame, written every so often and at the end.

Knows the engine only as something that hands out memories and takes them back, in its own thread; files are written
in another, so a slow disk delays no answer. A memory and its past fail, and are refused, each on its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from stream_sttm import metrics
from stream_sttm.config.storage import StateSettings
from stream_sttm.engine.checkpoint import archive_file, session_file
from stream_sttm.engine.sessions import Sessions
from stream_sttm.errors import StateError

_log = logging.getLogger(__name__)
_LAST_SAVE = 10.0  # seconds that a stopping service gives to its last save


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the things that are kept of a stream, in words, and how it is taken out and written."""

    name: str
    taken: Callable[[str], Any]
    write: Callable[[Path, Any], object]


class Checkpoints:
    """Saves and restores what is remembered of all `streams`, which may change, under `settings.dir`."""

    def __init__(
        self,
        memories: Sessions,
        settings: StateSettings,
        streams: Callable[[], Iterable[str]],
        *,
        thread: ThreadPoolExecutor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._memories, self._settings, self._streams = memories, settings, streams
        self._thread, self._clock = thread, clock
        self._folder = None if settings.dir is None else Path(settings.dir)
        self._parts = (
            _Part("memory", memories.saved, session_file.write),
            _Part("past", memories.saved_past, archive_file.write),
        )
        self._failing: set[tuple[str, str]] = set()
        self._disk = (
            Lock()
        )  # one thread at a time; who is cancelled leaves one behind that still writes

    def restore(self) -> None:
        """Take back what was saved, stream by stream; to be called in the engine's thread before its first step.

        What can't be used is set aside, with one line that says why, and its stream starts without it.
        """
        if self._folder is None:
            return
        for stream in self._streams():
            self._restore(self._folder, stream)
            self._restore_past(self._folder, stream)
        age = self._memories.past_age
        if age is not None:
            for stream in archive_file.saved_before(self._folder, self._clock() - age):
                if stream not in self._streams():  # removed while no service ran
                    self._forget(self._folder, stream)

    def _restore(self, folder: Path, stream: str) -> None:
        try:
            saved = session_file.read(folder, stream)
            if saved is None:
                return
            age = self._clock() - saved.saved_at
            if age > self._settings.max_age:
                _log.info("stream %s: its memory is %.0f s old and is left out", stream, age)
                metrics.STATE.labels(stream, "too_old").inc()
                return
            self._memories.restore(saved)
        except StateError as error:
            aside = _set_aside(session_file.set_aside, folder, stream)
            _log.warning("stream %s starts empty: %s; %s", stream, error, aside)
            metrics.STATE.labels(stream, "refused").inc()
        else:
            _log.info("stream %s: its memory of %.0f s ago is back", stream, age)
            metrics.STATE.labels(stream, "restored").inc()

    def _restore_past(self, folder: Path, stream: str) -> None:
        if self._memories.past_age is None:
            self._remove(folder, stream, archive_file.remove)
            return
        try:
            saved = archive_file.read(folder, stream)
            if saved is None:
                return
            count = self._memories.restore_past(saved)
        except StateError as error:
            aside = _set_aside(archive_file.set_aside, folder, stream)
            _log.warning("stream %s starts without its past: %s; %s", stream, error, aside)
            metrics.STATE.labels(stream, "refused").inc()
        else:
            _log.info("stream %s: its past is back, %d windows", stream, count)

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

    async def forget(self, stream: str) -> None:
        """Leave nothing on the disk of a stream that is not one of `streams` any more."""
        if self._folder is not None:
            await asyncio.to_thread(self._forget, self._folder, stream)

    def _forget(self, folder: Path, stream: str) -> None:
        with self._disk:
            for remove in (session_file.remove, archive_file.remove):
                self._remove(folder, stream, remove)

    def _remove(self, folder: Path, stream: str, remove: Callable[[Path, str], None]) -> None:
        try:
            remove(folder, stream)
        except OSError as error:
            _log.error("stream %s: what was saved of it can't be removed: %s", stream, error)

    async def _save_all(self, folder: Path) -> None:
        for stream in tuple(self._streams()):
            for part in self._parts:
                await self._save(folder, stream, part)

    async def _save(self, folder: Path, stream: str, part: _Part) -> None:
        loop = asyncio.get_running_loop()
        saved = await loop.run_in_executor(self._thread, part.taken, stream)
        if saved is None:
            return
        try:
            await asyncio.to_thread(self._write, part, folder, saved)
        except StateError as error:
            if (stream, part.name) not in self._failing:  # not again for each try
                _log.error("%s; answering goes on, saving is tried again", error)
            self._failing.add((stream, part.name))
            metrics.STATE.labels(stream, "failed").inc()
        else:
            self._failing.discard((stream, part.name))
            metrics.STATE.labels(stream, "saved").inc()

    def _write(self, part: _Part, folder: Path, saved: Any) -> None:
        with self._disk:
            if saved.stream in self._streams():  # else it was forgotten meanwhile
                part.write(folder, saved)


def _set_aside(set_aside: Callable[[Path, str], Path], folder: Path, stream: str) -> str:
    try:
        return f"it is now {set_aside(folder, stream)}"
    except OSError as error:
        return f"it can't be set aside ({error.strerror}) and will be overwritten"
