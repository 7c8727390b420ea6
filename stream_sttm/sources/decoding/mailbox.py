"""The queue between the two threads of a decoder's process: one decodes and puts, the other takes and sends.

Of a live stream it holds one frame, the newest. Of a file it holds as many as there is room for, then the decoder
waits. Details of the video go before the next frame, counts with any message, the end last. Knows nothing of decoding.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from stream_sttm.sources.decoding.protocol import Image, Message


@dataclass(frozen=True, slots=True)
class Picture:
    """A converted picture: stream seconds, wall clock, and the seconds that decoding and converting it took."""

    image: Image
    pts: float
    captured_at: float
    spent: float


class Mailbox:
    """Hands frames and counts from the decoding thread to the sending one.

    `put`, `mark`, `count`, `note`, `rest` and `end` belong to the decoding thread, `take` and `close` to the other.
    """

    def __init__(self) -> None:
        self.waits = False
        self.room = 0  # bytes of pictures that may wait to be taken; one may always
        self.is_closed = False
        self._changed = threading.Condition()
        # each with what is to be told with it, or that alone
        self._waiting: deque[tuple[Message, Picture | None]] = deque()
        self._filled = 0  # bytes of those pictures
        self._notes: Message = {}
        self._counts: Counter[str] = Counter()
        self._outcome: Message | None = None

    def put(self, picture: Picture) -> None:
        """Hand a picture over, when there is room if this mailbox waits; else it replaces the one before."""
        size = picture.image.nbytes
        with self._changed:
            if self.waits:
                self._changed.wait_for(
                    lambda: not self._filled or self._filled + size <= self.room or self.is_closed
                )
            elif self._filled:
                notes, _ = self._waiting.pop()
                self._notes, self._filled = notes | self._notes, 0
                self._counts["superseded"] += 1
            self._queue(picture)

    def mark(self, **notes: Any) -> None:
        """Something to tell by itself, after the pictures before it and before those to come."""
        with self._changed:
            self._notes |= notes
            self._queue(None)

    def _queue(self, picture: Picture | None) -> None:
        self._waiting.append((self._notes, picture))
        self._notes, self._filled = {}, self._filled + _size(picture)
        self._changed.notify_all()

    def count(self, what: str, times: int = 1) -> None:
        """Add to what is told as a count: packets `received`, and frames dropped, by reason."""
        with self._changed:
            self._counts[what] += times

    def note(self, **notes: Any) -> None:
        """Something to tell as soon as anybody asks."""
        with self._changed:
            self._notes |= notes
            self._changed.notify_all()

    def rest(self, seconds: float) -> bool:
        """Wait in the decoding thread; whether anybody still asks after it."""
        with self._changed:
            return not self._changed.wait_for(lambda: self.is_closed, seconds)

    def end(self, outcome: Message) -> None:
        """Nothing more will come: `outcome` is told after all the rest."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def take(self, patience: float) -> tuple[Message, Image | None]:
        """Return the next message, at the latest after `patience` seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._notes or self._outcome is not None, patience
            )
            if self._waiting:
                notes, picture = self._waiting.popleft()
            else:
                notes, picture = self._notes | (self._outcome or {}), None
                self._notes = {}
            message: Message = notes | {"counts": dict(self._counts)}
            self._counts, self._filled = Counter(), self._filled - _size(picture)
            self._changed.notify_all()
            if picture is None:
                return message, None
            message["frame"] = {
                "shape": picture.image.shape[:2],
                "pts": picture.pts,
                "captured_at": picture.captured_at,
                "spent": picture.spent,
            }
            return message, picture.image

    def close(self) -> None:
        """Nobody asks any more: let a waiting decoder go on, to find that it may stop."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


def _size(picture: Picture | None) -> int:
    return 0 if picture is None else picture.image.nbytes
