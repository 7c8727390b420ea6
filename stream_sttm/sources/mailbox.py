"""One frame on its way from a decoder's thread into the event loop: the newest wins, or the decoder waits.

Bounded by construction: whatever the consumer does, there is one frame at most. Knows nothing of decoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from stream_sttm.types import Frame


class Mailbox:
    """A slot for one frame; `put` and `end` belong to the decoder's thread, `take` and `close` to the event loop."""

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._ended = self._closed = False
        self._error: Exception | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nobody wants any more frames."""
        return self._closed

    def put(self, frame: Frame) -> bool:
        """Hand a frame over, after room was made if this mailbox waits; True if it took the place of an untaken one."""
        with self._changed:
            if self.waits:
                self._changed.wait_for(lambda: self._frame is None or self._closed)
            replaced = self._frame is not None
            self._frame = frame
        self._wake()
        return replaced

    def end(self, error: Exception | None) -> None:
        """No more frames will come: `error` says why, None is the regular end."""
        with self._changed:
            self._ended, self._error = True, error
        self._wake()

    async def take(self) -> Frame | None:
        """The next frame, None after the last; raises what the decoder ended with."""
        while True:
            with self._changed:
                frame, self._frame = self._frame, None
                self._changed.notify_all()
                if frame is not None:
                    return frame
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Let a waiting decoder go on, to find that it may stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def rest(self, seconds: float) -> bool:
        """Wait in the decoder's thread; whether anybody still wants frames after it."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._closed, seconds)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who would listen
            self._loop.call_soon_threadsafe(self._arrived.set)
