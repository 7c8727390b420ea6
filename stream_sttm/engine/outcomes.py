"""Outcomes of the engine's work: clips that are in a memory or lost, questions with and without an answer, mosaics.

Plain frozen data, no torch, no sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from stream_sttm.errors import StreamSTTMError
from stream_sttm.types import Answer, Clip, Question


@dataclass(frozen=True, slots=True)
class Observed:
    """A clip that is now in its stream's memory, counted in visual tokens."""

    clip: Clip
    before_merge: int
    after_merge: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A clip that did not get into its stream's memory, and why."""

    clip: Clip
    error: StreamSTTMError


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question that got no answer, and why; `is_rejected` where it was never taken up."""

    question: Question
    error: StreamSTTMError
    is_rejected: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """The text so far of an answer that is still being written."""

    question: Question
    text: str


Outcome = Answer | Observed | Lost | Unanswered | Progress


class TileKind(StrEnum):
    """What stands for a tile: a new token, or an older one, from the same place or from elsewhere."""

    NEW = "new"
    KEPT = "kept"
    ABSORBED = "absorbed"


@dataclass(frozen=True, slots=True)
class Tile:
    """A leaf of the newest frame's quadtree, and the token that stands for it.

    `box` is (y0, x0, y1, x1) in cells, end-exclusive. `token` counts the stream's tokens. `size` is how many cells of
    all frames that token stands for. `age_s` is the age of the token's own frame.
    """

    box: tuple[int, int, int, int]
    token: int
    age_s: float
    size: int
    kind: TileKind


@dataclass(frozen=True, slots=True)
class Mosaic:
    """The newest frame as its memory holds it. `before` and `after` count the tokens of the whole memory."""

    rows: int
    columns: int
    tiles: tuple[Tile, ...]
    before: int
    after: int
    span_s: float
    captured_at: float

    def as_dict(self) -> dict[str, Any]:
        """Return the mosaic as the JSON object of the HTTP API."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "tokens": [
                {
                    "box": list(tile.box),
                    "token": tile.token,
                    "age_s": round(tile.age_s, 3),
                    "size": tile.size,
                    "kind": tile.kind.value,
                }
                for tile in self.tiles
            ],
            "before": self.before,
            "after": self.after,
            "span_s": round(self.span_s, 3),
            "captured_at": self.captured_at,
        }
