"""What a session reports of a clip, and what it shows to questions. Plain frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stream_sttm.engine.timer import DeviceTimer
from stream_sttm.types import Seconds


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

    `starts`: per layer group, where text begins on the time axis and on the other axes, as stored. `bounds`: the first
    layer of each group. The deep layers see `visual` tokens, which stand for `before_merge` cells. `span` is the wall
    clock of the oldest and the newest frame. Of the visual tokens, `recalled` had been evicted and `fresh` are
    unmerged. The clocks measure how long it took to show these.
    """

    prefix: tuple[Any, ...]
    bounds: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    visual: int
    before_merge: int
    span: tuple[float, float]
    recalled: int = 0
    fresh: int = 0
    fresh_clock: DeviceTimer | None = None
    recall_clock: DeviceTimer | None = None

    @property
    def seconds(self) -> Seconds:
        """How long it took to make the view, beyond a plain snapshot. Read it after the view has been answered from."""
        fresh, recall = self.fresh_clock, self.recall_clock
        return Seconds(fresh.seconds if fresh else 0.0, recall.seconds if recall else 0.0)
