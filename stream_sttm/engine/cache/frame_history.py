"""Which frames a memory still holds: when each was captured, how many cells it had, and the newest ones' features.

Frames are counted from the stream's start. A still scene may stay in a memory for ever, so the number of records is
bounded: where there are too many, neighbours that are old become one. Knows no model and no cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stream_sttm.types import MAX_FRESH_FRAMES

MOST_RECORDS = 4096


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One frame, or several: the first one's number and the wall clock of its capture, and the count of all cells."""

    frame: int
    at: float
    cells: int


class FrameHistory:
    """The frames of one stream that are still in its memory, oldest first."""

    def __init__(self) -> None:
        self.frames = 0  # frames so far
        self.cells = 0  # cells so far; a camera may change its picture's size
        self.grid = (0, 0)  # rows and columns of the newest frame's cells
        self.since = 0  # number of the newest window's first frame
        self.records: deque[FrameRecord] = deque()
        self._ring: deque[Tensor] = deque(maxlen=MAX_FRESH_FRAMES)
        self._states: deque[Tensor] = deque(maxlen=MAX_FRESH_FRAMES)  # of the frames that ran

    def copy(self) -> FrameHistory:
        """Return a history that later changes of this one leave alone. Features are shared."""
        copied = FrameHistory()
        for name, value in vars(self).items():
            setattr(copied, name, value.copy() if isinstance(value, deque) else value)
        return copied

    def append(
        self, features: Tensor, captured: Sequence[float], states: Tensor | None = None
    ) -> None:
        """Add a window's frames (T, H, W, C), captured at those wall clocks. The newest ones' features are kept.

        `states` (T, H, W, C) are the hidden states before the merge, None where the frames did not run.
        """
        frames, rows, columns, _ = features.shape
        if self.grid != (rows, columns):
            self._ring.clear()  # only frames of one size can be stacked
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
        if len(self.records) > MOST_RECORDS:
            self._thin_out()

    def _thin_out(self) -> None:
        """Join neighbouring records, to at most a fixed share of their age. So few are left, however old the first is.

        The newest frames keep a record each.
        """
        thinned: list[FrameRecord] = []
        ends = [*(record.frame for record in self.records), self.frames][1:]
        for record, end in zip(self.records, ends, strict=True):
            last = thinned[-1] if thinned else record
            is_short = end - last.frame <= (self.frames - last.frame) // (MOST_RECORDS // 64)
            if thinned and is_short:
                thinned[-1] = replace(last, cells=last.cells + record.cells)
            else:
                thinned.append(record)
        self.records = deque(thinned)

    def drop_before(self, frame: int) -> None:
        """Delete the records of which all frames are before number `frame`."""
        while len(self.records) > 1 and self.records[1].frame <= frame:
            self.records.popleft()

    def captured_at(self, frame: int) -> float:
        """Return when a frame was captured, or one shortly before it where several share a record."""
        index = bisect_right(self.records, frame, key=lambda record: record.frame)
        return self.records[max(0, index - 1)].at

    def within(self, seconds: float | None) -> list[FrameRecord]:
        """Return the records of the last `seconds`, but at least the newest. None: return all of them."""
        newest = self.records[-1]
        return [
            record
            for record in self.records
            if seconds is None or newest.at - record.at <= seconds or record is newest
        ]

    @property
    def span_seconds(self) -> float:
        """Seconds from the oldest frame to the newest."""
        return self.records[-1].at - self.records[0].at

    @property
    def at_hand(self) -> int:
        """How many of the newest frames' features are kept."""
        return len(self._ring)

    def newest(self, count: int) -> Tensor:
        """Return the features (count, H, W, C) of the newest frames, of those that are kept."""
        return torch.stack(list(self._ring)[-count:])

    @property
    def states_at_hand(self) -> int:
        """For how many of the newest frames that ran the states before the merge are kept."""
        return len(self._states)

    def newest_states(self, count: int) -> Tensor:
        """Return the states (count, H, W, C) before the merge of the newest frames that ran, of those that are kept."""
        return torch.stack(list(self._states)[-count:])

    def saved(self) -> dict[str, Tensor]:
        """Return the history as tensors for `restore`."""
        return {
            "clock": torch.tensor([self.frames, self.cells, *self.grid]),
            "captured": torch.tensor([record.at for record in self.records], dtype=torch.float64),
            "captured.frames": torch.tensor([record.frame for record in self.records]),
            "captured.cells": torch.tensor([record.cells for record in self.records]),
            "ring": torch.stack(list(self._ring)),
            "states": torch.stack(list(self._states)),
        }

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Fill an empty history from saved tensors. Raises KeyError or ValueError where one is missing."""
        self.frames, self.cells, rows, columns = tensors["clock"].tolist()
        self.grid, self.since = (rows, columns), self.frames
        parts = (tensors[f"captured{name}"].tolist() for name in (".frames", "", ".cells"))
        self.records.extend(FrameRecord(*record) for record in zip(*parts, strict=True))
        self._ring.extend(tensors["ring"].to(device))
        self._states.extend(tensors["states"].to(device))
