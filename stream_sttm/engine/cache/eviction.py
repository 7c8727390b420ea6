"""Eviction: which tokens leave a full memory, and moving stored positions back before they grow too large.

Room is made before a window is reduced. An eviction after that could take a token that the window's own tokens are
about to be absorbed by. Writes only to the cache that it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.cache.positions import Grid, Positions
from stream_sttm.engine.cache.rolling import RollingCache
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.errors import ConfigError
from stream_sttm.models.family import VideoLLM
from stream_sttm.retention import Held, RetentionPolicy
from stream_sttm.retention.fifo import Fifo


class Eviction:
    """Makes room in the cache of one stream."""

    def __init__(
        self,
        model: VideoLLM,
        plan: MemoryPlan,
        positions: Positions,
        cache: RollingCache,
        *,
        stream: str,
    ) -> None:
        self._model, self._plan, self._positions, self._cache = model, plan, positions, cache
        self._stream = stream

    def make_room(self, *, frame: int, frames: int, count: int, grid: Grid) -> tuple[Tensor, bool]:
        """Evict until a window of `count` tokens fits, and rebase where stored positions are near the limit.

        The window's `frames` begin at number `frame`. Returns the serials (K,) that left the deep group, on the CPU,
        and whether a group was rebased. Raises ConfigError where a whole window is larger than the memory.
        """
        is_rebased, evicted = False, torch.empty(0, dtype=torch.int64)
        for group in reversed(self._cache.groups):
            if count > group.capacity:
                raise ConfigError(
                    f"stream {self._stream!r}: one window has {count} visual tokens but the memory holds "
                    f"{group.capacity}; set memory.window_tokens to {count} or more, or clip_frames lower"
                )
            end = self._positions.end(group, grid, frame=frame + frames, count=count)
            keep = self._to_keep(group, end, count, evicted)
            if not bool(keep.all()):
                origin = self._positions.origin(group, keep, grid, frame=frame)
                serials = group.evict(keep, self._model.turn, origin=origin)
                evicted = serials if group is self._cache.deep else evicted
            is_high = group.pinned + end - group.offset > self._plan.rebase_at
            if is_high and group.origin > group.offset:
                group.rebase(self._model.turn)
                is_rebased = True
        return evicted, is_rebased

    def _to_keep(self, group: LayerGroup, end: int, count: int, evicted: Tensor) -> Tensor:
        """Return (N,) bool: the tokens that a group keeps.

        Below the merge no token stands for another, so the oldest go. With `prune_shallow` these layers hold the same
        tokens as the deep ones, so what left there leaves here.
        """
        plan, is_deep = self._plan, group is self._cache.deep
        is_mirror = plan.prune_shallow and not is_deep
        keep = tokens_to_keep(
            group,
            plan.retention if is_deep else Fifo(),
            room=0 if is_mirror else count,
            since=end - plan.horizon,
            share=plan.evict_share,
            horizon=plan.horizon,
        )
        return keep & ~torch.isin(group.table.serials, evicted) if is_mirror else keep


def tokens_to_keep(
    group: LayerGroup,
    policy: RetentionPolicy,
    *,
    room: int,
    since: int,
    share: float,
    horizon: int,
) -> Tensor:
    """Return (N,) bool: the tokens to keep so that `room` more fit and none is older than `since` on the time axis.

    If anything must go, at least a `share` of the capacity goes, or of the `horizon`. So eviction is rare.
    """
    table = group.table
    keep = torch.ones(len(group), dtype=torch.bool)
    if len(group) and int(table.times[0]) < since:
        first = int(torch.searchsorted(table.times, since + int(horizon * share)))
        keep = table.frames > table.frames[first - 1]  # whole frames
    left = int(keep.sum())
    missing = room - (group.capacity - left)
    if missing > 0:
        drop = min(max(missing, int(group.capacity * share)), left)
        keep[keep.clone()] = policy(_held(group, keep), drop=drop)
    return keep


def _held(group: LayerGroup, keep: Tensor) -> Held:
    where = keep.to(group.sizes.device)
    return Held(
        group.table.boxes[keep],
        group.last_seen[: len(group)][where].cpu(),
        group.sizes[: len(group)][where].cpu(),
    )
