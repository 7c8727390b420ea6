"""Where a stream's tokens, and the text behind them, stand on the time axis: own places, or contiguous ones.

Counted from the stream's first visual token. Reads a band's index, writes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stream_sttm.engine.cache.layer_group import LayerGroup, LayerGroupView
from stream_sttm.engine.cache.token_table import TokenTable
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.models.family import VideoLLM
from stream_sttm.visual_tokens import VisualTokens

Grid = tuple[int, int]


class Positions:
    """The places of one stream, of which `fps` frames a second are looked at."""

    def __init__(self, model: VideoLLM, plan: MemoryPlan, *, fps: float) -> None:
        self._model = model
        self._contiguous_from = plan.merge_at if plan.positions == "contiguous" else None
        self._step = model.step(fps)

    def position_ids(
        self, group: LayerGroup, tokens: VisualTokens, grid: Grid, *, start: int
    ) -> Tensor:
        """(axes, N) of new tokens; `start` is where contiguous ones go on."""
        if self._is_contiguous(group):
            return torch.arange(start, start + len(tokens), device=self._model.device)[None]
        return self._model.own_positions(tokens, grid, self._step)

    def end(self, group: LayerGroup, grid: Grid, *, frame: int, count: int) -> int:
        """Where the axis will stand at most when `count` more tokens have come, before `frame`."""
        if self._is_contiguous(group):
            return group.emitted + count
        return self._model.own_time(frame, grid, self._step)

    def origin(self, group: LayerGroup, keep: Tensor, grid: Grid, *, frame: int) -> int:
        """Where the oldest frame begins of what stays (N,) bool; `frame` is the next to come."""
        left = group.table.at(keep)
        if self._is_contiguous(group):
            return int(left.times[0]) if len(left) else group.emitted
        return self._model.own_time(int(left.frames[0]) if len(left) else frame, grid, self._step)

    def after(self, group: LayerGroup, seen: TokenTable) -> int:
        """The contiguous place behind the newest token that is seen of a band."""
        return int(seen.serials[-1]) + 1 if len(seen) else group.origin

    def text_start(self, group: LayerGroup, grid: Grid, *, frame: int, fresh: int) -> int:
        """Where text begins when the next frame is `frame` and the newest `fresh` stand behind the band, unmerged."""
        if self._is_contiguous(group):
            kept = group.table.before_frame(frame - fresh) if fresh else len(group)
            return self.after(group, group.table.at(slice(kept))) + fresh * grid[0] * grid[1]
        return self._model.text_start(frame, grid, self._step, group.origin)

    def before(self, group: LayerGroupView, tokens: VisualTokens, grid: Grid) -> tuple[Tensor, int]:
        """(axes, N) places of tokens whose frames count from 0, right before all a band holds, and where they begin."""
        if self._is_contiguous(group):
            start = group.origin - len(tokens)
            return torch.arange(start, group.origin, device=self._model.device)[None], start
        frames = int(tokens.boxes[-1, 0]) + 1
        start = group.origin - self._model.own_time(frames, grid, self._step)
        position_ids = self._model.own_positions(tokens, grid, self._step)
        position_ids[0] += start
        return position_ids, start

    def frames_within(self, room: int, grid: Grid) -> int:
        """How many frames, of whatever tokens, take at most `room` positions."""
        if self._contiguous_from == 0:
            return room
        frames = 0
        while self._model.own_time(frames + 1, grid, self._step) <= room:
            frames += 1
        return frames

    def _is_contiguous(self, group: LayerGroup | LayerGroupView) -> bool:
        return group.first == self._contiguous_from
