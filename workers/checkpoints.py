"""Memories over restarts: restored before the first frame, saved every so often and at the end.

What is saved of a stream has two parts, its memory and its past. Each fails, and is refused, on its own. Knows the
engine only through its host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from stream_sttm import metrics
from stream_sttm.config.storage import StateSettings
from stream_sttm.errors import StateError
from workers.engine_host import EngineHost, Part

_log = logging.getLogger(__name__)
_LAST_SAVE = 10.0  # seconds that a stopping service gives to its last save
_PARTS: tuple[Part, ...] = ("memory", "past")


class Checkpoints:
    """Saves and restores what is remembered of all `streams`, which may change, under `settings.dir`."""

    def __init__(
        self,
        host: EngineHost,
        settings: StateSettings,
        streams: Callable[[], Iterable[str]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host, self._settings, self._streams, self._clock = host, settings, streams, clock
        self._folder = None if settings.dir is None else Path(settings.dir)
        self._failing: set[tuple[str, str]] = set()

    async def restore(self) -> None:
        """Take back what was saved, stream by stream; call it before the engine's first step.

        What can't be used is set aside with one line that says why, and its stream starts without it.
        """
        if self._folder is None:
            return
        for stream in self._streams():
            await self._restore(self._folder, stream)
            await self._restore_past(self._folder, stream)
        if (age := self._host.past_age) is not None:
            for stream in await self._host.saved_before(self._folder, self._clock() - age):
                if stream not in self._streams():  # removed while no service ran
                    await self._remove(self._folder, stream)

    async def _restore(self, folder: Path, stream: str) -> None:
        max_age = self._settings.max_age
        try:
            found = await self._host.restore("memory", folder, stream, max_age=max_age)
        except StateError as error:
            aside = await self._set_aside("memory", folder, stream)
            _log.warning("stream %s starts empty: %s; %s", stream, error, aside)
            metrics.STATE.labels(stream, "refused").inc()
            return
        if found is None:
            return
        if not found.is_taken:
            _log.info("stream %s: its memory is %.0f s old and is left out", stream, found.age)
            metrics.STATE.labels(stream, "too_old").inc()
            return
        _log.info("stream %s: its memory of %.0f s ago is back", stream, found.age)
        metrics.STATE.labels(stream, "restored").inc()

    async def _restore_past(self, folder: Path, stream: str) -> None:
        if self._host.past_age is None:
            await self._remove(folder, stream, ("past",))
            return
        try:
            found = await self._host.restore("past", folder, stream)
        except StateError as error:
            aside = await self._set_aside("past", folder, stream)
            _log.warning("stream %s starts without its past: %s; %s", stream, error, aside)
            metrics.STATE.labels(stream, "refused").inc()
            return
        if found is not None:
            _log.info("stream %s: its past is back, %d windows", stream, found.windows)

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
        """Delete what is saved of a stream that is not one of `streams` any more."""
        if self._folder is not None:
            await self._remove(self._folder, stream)

    async def _remove(self, folder: Path, stream: str, parts: Iterable[Part] = _PARTS) -> None:
        for part in parts:
            try:
                await self._host.remove(part, folder, stream)
            except OSError as error:
                _log.error("stream %s: what was saved of it can't be removed: %s", stream, error)

    async def _save_all(self, folder: Path) -> None:
        for stream in tuple(self._streams()):
            for part in _PARTS:
                await self._save(folder, stream, part)

    async def _save(self, folder: Path, stream: str, part: Part) -> None:
        try:
            is_saved = await self._host.save(part, folder, stream)
        except StateError as error:
            if (stream, part) not in self._failing:  # not again for each try
                _log.error("%s; answering goes on, saving is tried again", error)
            self._failing.add((stream, part))
            metrics.STATE.labels(stream, "failed").inc()
            return
        if is_saved:
            self._failing.discard((stream, part))
            metrics.STATE.labels(stream, "saved").inc()

    async def _set_aside(self, part: Part, folder: Path, stream: str) -> str:
        try:
            return f"it is now {await self._host.set_aside(part, folder, stream)}"
        except OSError as error:
            return f"it can't be set aside ({error.strerror}) and will be overwritten"
