"""Which frames a memory remembers: when each was captured, how many cells it had, and the newest ones as they were.

Counts frames from the stream's start. Knows no model and no cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.types import MAX_FRESH_FRAMES


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One remembered frame: its number, the wall clock it was captured at, its cells."""

    frame: int
    at: float
    cells: int


class FrameHistory:
    """The remembered frames of one camera, oldest first."""

    def __init__(self) -> None:
        self.frames = 0  # so far
        self.cells = 0  # of all of them; a camera may change its picture's size
        self.grid = (0, 0)  # rows and columns of the newest one's
        self.since = 0  # the newest window's first
        self.records: deque[FrameRecord] = deque()
        self._ring: deque[Tensor] = deque(maxlen=MAX_FRESH_FRAMES)
        self._states: deque[Tensor] = deque(maxlen=MAX_FRESH_FRAMES)  # of those that ran

    def append(
        self, features: Tensor, captured: Sequence[float], states: Tensor | None = None
    ) -> None:
        """Count a window's frames (T, H, W, C), captured at those wall clocks, and keep the newest as they are.

        `states` is what they are before the merge; None where they did not run.
        """
        frames, rows, columns, _ = features.shape
        if self.grid != (rows, columns):
            self._ring.clear()  # only what has one size can be stacked
            self._states.clear()
        self.grid, self.since = (rows, columns), self.frames
        self.frames += frames
        self.cells += frames * rows * columns
        numbers = range(self.since, self.frames)
        self.records.extend(
            FrameRecord(n, at, rows * columns) for n, at in zip(numbers, captured, strict=True)
        )
        self._ring.extend(features)
        self._states.extend([] if states is None else states)

    def drop_before(self, frame: int) -> None:
        """Let go of all frames before one of them."""
        while self.records[0].frame < frame:
            self.records.popleft()

    def within(self, seconds: float | None) -> list[FrameRecord]:
        """The remembered frames of the last `seconds`, the newest in any case; all of them for None."""
        newest = self.records[-1]
        return [
            record
            for record in self.records
            if seconds is None or newest.at - record.at <= seconds or record is newest
        ]

    @property
    def span_seconds(self) -> float:
        """Seconds from the oldest remembered frame to the newest."""
        return self.records[-1].at - self.records[0].at

    @property
    def at_hand(self) -> int:
        """How many of the newest frames' features are kept."""
        return len(self._ring)

    def newest(self, count: int) -> Tensor:
        """(count, H, W, C) features of the newest frames, of those that are kept."""
        return torch.stack(list(self._ring)[-count:])

    @property
    def states_at_hand(self) -> int:
        """Of how many frames, the newest that ran, the states before the merge are kept."""
        return len(self._states)

    def newest_states(self, count: int) -> Tensor:
        """(count, H, W, C) states before the merge of the newest frames that ran, of those that are kept."""
        return torch.stack(list(self._states)[-count:])

    def saved(self) -> dict[str, Tensor]:
        """All of it, for `restore`."""
        return {
            "clock": torch.tensor([self.frames, self.cells, *self.grid]),
            "captured": torch.tensor([record.at for record in self.records], dtype=torch.float64),
            "captured.frames": torch.tensor([record.frame for record in self.records]),
            "captured.cells": torch.tensor([record.cells for record in self.records]),
            "ring": torch.stack(list(self._ring)),
            "states": torch.stack(list(self._states)),
        }

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Remember what was saved; raises KeyError or ValueError where something of it is missing."""
        self.frames, self.cells, rows, columns = tensors["clock"].tolist()
        self.grid, self.since = (rows, columns), self.frames
        parts = (tensors[f"captured{name}"].tolist() for name in (".frames", "", ".cells"))
        self.records.extend(FrameRecord(*record) for record in zip(*parts, strict=True))
        self._ring.extend(tensors["ring"].to(device))
        self._states.extend(tensors["states"].to(device))
