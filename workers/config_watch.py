"""When the configuration is read anew: its file has changed, or SIGHUP came. What then happens is decided elsewhere.

The file is looked at, not watched by the system: that holds for editors that rename, for network folders and for links
that are exchanged. It is read once it looks the same twice, so that nobody reads half of what is being written.
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
_Looks = tuple[int, int, int] | None


class ConfigFile:
    """The file that the configuration came from, as it looked when this was made, and what reads it."""

    def __init__(self, path: str | Path, load: Callable[[], Settings]) -> None:
        self.load = load
        self._path = path
        self._taken = _looks(path)

    async def follow(self, reload: Callable[[], Awaitable[object]], *, every: float | None) -> None:
        """Call `reload` for each change and each SIGHUP until cancelled; its errors have been told by then.

        `every`: seconds between two looks at the file; None: only SIGHUP counts.
        """
        poked, before = asyncio.Event(), self._taken
        with _hang_up_pokes(poked):
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await poked.wait()
                is_poked = poked.is_set()
                poked.clear()
                now = await asyncio.to_thread(_looks, self._path)
                has_changed = now not in (None, self._taken) and now == before
                before = now
                if is_poked or has_changed:
                    self._taken = now
                    why = "SIGHUP" if is_poked else "the file has changed"
                    _log.info("configuration %s: %s", self._path, why)
                    with suppress(StreamSTTMError):
                        await reload()


@contextmanager
def _hang_up_pokes(poked: asyncio.Event) -> Iterator[None]:
    """Let SIGHUP set `poked`, where this thread may take signals."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, poked.set)
    except (ValueError, RuntimeError, NotImplementedError):  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # not deadly while all else ends


def _looks(path: str | Path) -> _Looks:
    """What tells the file's content from any other, as far as can be seen without reading; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
