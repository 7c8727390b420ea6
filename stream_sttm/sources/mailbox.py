"""Between the two threads of a decoder's process: one decodes and puts, the other takes and tells.

Holds one frame at most: of a live stream the newest wins, a file's decoder waits. What else there is to tell (counts,
what the video is like, how it ended) is gathered until the next message. Knows nothing of decoding.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from stream_sttm.sources.wire import Image, Message


@dataclass(frozen=True, slots=True)
class Picture:
    """A converted picture: stream seconds, wall clock, and the seconds that decoding and converting it took."""

    image: Image
    pts: float
    captured_at: float
    spent: float


class Mailbox:
    """`put`, `count`, `note`, `rest` and `end` belong to the decoding thread, `take` and `close` to the other."""

    def __init__(self) -> None:
        self.waits = False
        self.is_closed = False
        self._changed = threading.Condition()
        self._picture: Picture | None = None
        self._notes: Message = {}
        self._counts: Counter[str] = Counter()
        self._outcome: Message | None = None

    def put(self, picture: Picture) -> None:
        """Hand a picture over, after the one before was taken if this mailbox waits; else it is replaced."""
        with self._changed:
            if self.waits:
                self._changed.wait_for(lambda: self._picture is None or self.is_closed)
            if self._picture is not None:
                self._counts["superseded"] += 1
            self._picture = picture
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
        """What there is to tell, at the latest after `patience` seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._picture is not None or self._notes or self._outcome, patience
            )
            picture, self._picture = self._picture, None
            message: Message = self._notes | {"counts": dict(self._counts)}
            self._notes, self._counts = {}, Counter()
            self._changed.notify_all()
            if picture is None:
                return message | (self._outcome or {}), None
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
