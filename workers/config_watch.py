"""Triggers a reload when the configuration file has changed, or on SIGHUP.

The file is polled. Polling works for editors that rename, for network folders and for links that are exchanged. The
file is read once it looks the same twice, so a half-written file is never read.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stream_sttm.config.settings import Settings
from stream_sttm.errors import StreamSTTMError

_log = logging.getLogger(__name__)
_Fingerprint = tuple[int, int, int] | None


class ConfigFile:
    """The file that the configuration came from, and the function that loads it."""

    def __init__(self, path: str | Path, load: Callable[[], Settings]) -> None:
        self.load = load
        self._path = path
        self._current = _fingerprint(path)

    async def follow(self, reload: Callable[[], Awaitable[object]], *, every: float | None) -> None:
        """Call `reload` for each change and each SIGHUP until cancelled. `reload` logs its own errors.

        `every`: seconds between two polls; None: only SIGHUP counts.
        """
        hung_up, before = asyncio.Event(), self._current
        with _set_on_sighup(hung_up):
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await hung_up.wait()
                is_hung_up = hung_up.is_set()
                hung_up.clear()
                now = await asyncio.to_thread(_fingerprint, self._path)
                has_changed = now not in (None, self._current) and now == before
                before = now
                if is_hung_up or has_changed:
                    self._current = now
                    why = "SIGHUP" if is_hung_up else "the file has changed"
                    _log.info("configuration %s: %s", self._path, why)
                    with suppress(StreamSTTMError):
                        await reload()


@contextmanager
def _set_on_sighup(hung_up: asyncio.Event) -> Iterator[None]:
    """Set `hung_up` on each SIGHUP, where this thread may take signals."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    except (ValueError, RuntimeError, NotImplementedError):  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # not deadly while all else ends


def _fingerprint(path: str | Path) -> _Fingerprint:
    """Return inode, modification time and size of the file, None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
