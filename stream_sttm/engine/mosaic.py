"""What stands for a stream's newest frame, tile by tile: the picture that shows how its memory works.

Plain frozen data, no torch, no sockets; ages are seconds before the newest frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class TileKind(StrEnum):
    """What became of a tile: a token of its own, or what an older one stands for, in its place or from elsewhere."""

    NEW = "new"
    KEPT = "kept"
    ABSORBED = "absorbed"


@dataclass(frozen=True, slots=True)
class Tile:
    """A leaf of the newest frame's quadtree and the token that stands for it.

    `box` is (y0, x0, y1, x1) in cells, end-exclusive; `token` counts the stream's tokens; `size` is how many cells,
    over all frames, that token stands for; `age_s` is of the frame from which it came.
    """

    box: tuple[int, int, int, int]
    token: int
    age_s: float
    size: int
    kind: TileKind


@dataclass(frozen=True, slots=True)
class Mosaic:
    """The newest frame as its memory holds it; `before` and `after` count the tokens of the whole memory."""

    rows: int
    columns: int
    tiles: tuple[Tile, ...]
    before: int
    after: int
    span_s: float
    captured_at: float

    def as_dict(self) -> dict[str, Any]:
        """The one JSON shape of a mosaic."""
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
