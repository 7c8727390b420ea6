"""What a session says of a window it took in, and what it shows to questions. Plain frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Appended:
    """What one window did to a memory, in visual tokens."""

    before_merge: int
    after_merge: int
    evicted: int
    rebased: bool


@dataclass(frozen=True, slots=True)
class View:
    """A memory at one moment, ready for questions.

    `starts`: per band, where text begins on the time axis and on the other axes, as stored. `visual` tokens are seen
    in the deep layers; they stand for `before_merge`. `span` is the wall clock of the oldest and the newest frame. Of
    the visual tokens `recalled` had left the memory.
    """

    prefix: tuple[Any, ...]
    bounds: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    visual: int
    before_merge: int
    span: tuple[float, float]
    recalled: int = 0
