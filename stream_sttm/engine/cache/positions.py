"""The position ids of a stream's tokens, and of the text behind them: the tokens' own, or contiguous ones.

Positions are counted from the stream's first visual token. Reads a layer group's table, writes nothing.
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
    """The position ids of one stream with `fps` sampled frames per second."""

    def __init__(self, model: VideoLLM, plan: MemoryPlan, *, fps: float) -> None:
        self._model = model
        self._contiguous_from = plan.merge_at if plan.positions == "contiguous" else None
        self._step = model.step(fps)

    def position_ids(
        self, group: LayerGroup, tokens: VisualTokens, grid: Grid, *, start: int
    ) -> Tensor:
        """Return the position ids (axes, N) of new tokens. Contiguous ones begin at `start`."""
        if self._is_contiguous(group):
            return torch.arange(start, start + len(tokens), device=self._model.device)[None]
        return self._model.own_positions(tokens, grid, self._step)

    def end(self, group: LayerGroup, grid: Grid, *, frame: int, count: int) -> int:
        """Return the greatest position that the time axis can reach with `count` more tokens, all before `frame`."""
        if self._is_contiguous(group):
            return group.emitted + count
        return self._model.own_time(frame, grid, self._step)

    def origin(self, group: LayerGroup, keep: Tensor, grid: Grid, *, frame: int) -> int:
        """Return where the oldest kept frame begins. `keep` is (N,) bool, `frame` is the number of the next frame."""
        left = group.table.at(keep)
        if self._is_contiguous(group):
            return int(left.times[0]) if len(left) else group.emitted
        return self._model.own_time(int(left.frames[0]) if len(left) else frame, grid, self._step)

    def after(self, group: LayerGroup, seen: TokenTable) -> int:
        """Return the contiguous position behind the newest token of `seen`, the visible part of a group's table."""
        return int(seen.serials[-1]) + 1 if len(seen) else group.origin

    def text_start(self, group: LayerGroup, grid: Grid, *, frame: int, fresh: int) -> int:
        """Return where text begins.

        The next frame is number `frame`, the newest `fresh` ones stand behind the group, unmerged.
        """
        if self._is_contiguous(group):
            kept = group.table.before_frame(frame - fresh) if fresh else len(group)
            return self.after(group, group.table.at(slice(kept))) + fresh * grid[0] * grid[1]
        return self._model.text_start(frame, grid, self._step, group.origin)

    def before(self, group: LayerGroupView, tokens: VisualTokens, grid: Grid) -> tuple[Tensor, int]:
        """Return position ids (axes, N) right before all that a group holds, and where they begin.

        The frames of `tokens` count from 0.
        """
        if self._is_contiguous(group):
            start = group.origin - len(tokens)
            return torch.arange(start, group.origin, device=self._model.device)[None], start
        frames = int(tokens.boxes[-1, 0]) + 1
        start = group.origin - self._model.own_time(frames, grid, self._step)
        position_ids = self._model.own_positions(tokens, grid, self._step)
        position_ids[0] += start
        return position_ids, start

    def frames_within(self, room: int, grid: Grid) -> int:
        """Return how many frames, whatever their tokens, take at most `room` positions."""
        if self._contiguous_from == 0:
            return room
        frames = 0
        while self._model.own_time(frames + 1, grid, self._step) <= room:
            frames += 1
        return frames

    def _is_contiguous(self, group: LayerGroup | LayerGroupView) -> bool:
        return group.first == self._contiguous_from
