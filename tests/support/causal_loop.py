"""The causal rules of streaming STTM, one leaf at a time: what the reducer is checked against."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stream_sttm.reducers.sttm import merge_video
from stream_sttm.reducers.sttm_streaming import SttmStreaming

MARGIN = 1e-5


@dataclass
class CausalLoop:
    """The causal rules as a loop over frames and leaves; keeps all tokens it ever emitted.

    `is_clear` turns false when a decision was too close to call in another arithmetic.
    """

    reducer: SttmStreaming
    boxes: list[list[int]] = field(default_factory=list)
    looks: list[Tensor] = field(default_factory=list)
    members: list[list[Tensor]] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    last_seen: list[int] = field(default_factory=list)
    previous: list[tuple[list[int], Tensor, int]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    frames: int = 0
    is_clear: bool = True

    def observe(self, frame: Tensor) -> list[int]:
        """Return the serial behind each leaf of the next frame, (H, W, C)."""
        leaves = merge_video(
            frame[None],
            spatial_threshold=self.reducer.spatial_threshold,
            temporal_threshold=None,
            root_level=self.reducer.root_level,
        )
        current = []
        for box, look in zip(leaves.boxes.tolist(), leaves.features.double(), strict=True):
            serial = self._found(box, look)
            if serial is None:
                serial = len(self.boxes)
                self.boxes.append([self.frames, *box[1:]])
                self.looks.append(look)
                self.members.append([])
                self.cells.append(0)
                self.last_seen.append(0)
            self.members[serial].append(look)
            self.cells[serial] += (box[3] - box[1]) * (box[4] - box[2])
            self.last_seen[serial] = self.frames
            current.append((box, look, serial))
        self.previous = current
        self.frames += 1
        return [serial for _, _, serial in current]

    def _found(self, box: list[int], look: Tensor) -> int | None:
        near = [
            (self._cosine(look, other), serial)
            for (_, y0, x0, y1, x1), other, serial in self.previous
            if y0 < box[3] and box[1] < y1 and x0 < box[4] and box[2] < x1
        ]
        if not near:
            return None
        best, serial = max(near, key=lambda pair: pair[0])
        self.is_clear &= sum(value > best - MARGIN for value, _ in near) == 1
        drift = self._cosine(look, self.looks[serial])
        limits = (self.reducer.temporal_threshold, self.reducer.drift_threshold)
        self.is_clear &= all(
            abs(value - limit) > MARGIN for value, limit in zip((best, drift), limits, strict=True)
        )
        every = self.reducer.refresh_every
        is_refresh = every > 0 and self.frames % every == 0
        is_close = best >= limits[0] and drift >= limits[1]
        return serial if is_close and serial not in self.gone and not is_refresh else None

    @staticmethod
    def _cosine(first: Tensor, second: Tensor) -> float:
        return float(torch.cosine_similarity(first, second, dim=0))
