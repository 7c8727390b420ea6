"""Room for the next window, in every band of a memory: what goes for it, and stored positions that are kept low.

Made before the window is reduced, so that no token goes behind the reducer's back that stands for something which is
still on screen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stream_sttm.engine.cache.eviction import staying
from stream_sttm.engine.cache.layer_group import Band
from stream_sttm.engine.cache.positions import Grid, TimeAxis
from stream_sttm.engine.cache.rolling import RollingCache
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.errors import ConfigError
from stream_sttm.models.family import VideoLLM
from stream_sttm.retention.fifo import Fifo


class Room:
    """Makes room in one stream's cache."""

    def __init__(
        self,
        model: VideoLLM,
        plan: MemoryPlan,
        axis: TimeAxis,
        cache: RollingCache,
        *,
        stream: str,
    ) -> None:
        self._model, self._plan, self._axis, self._cache = model, plan, axis, cache
        self._stream = stream

    def make(self, *, frame: int, frames: int, count: int, grid: Grid) -> tuple[Tensor, bool]:
        """Evict what a window of `count` tokens may need, and rebase where positions got high.

        Its `frames` begin at `frame`. Returns the serials that left the deep band, and whether a band was rebased.
        """
        rebased, gone = False, torch.empty(0, dtype=torch.int64)
        for band in reversed(self._cache.bands):
            if count > band.capacity:
                raise ConfigError(
                    f"stream {self._stream!r}: one window has {count} visual tokens but the memory holds "
                    f"{band.capacity}; set memory.window_tokens to {count} or more, or clip_frames lower"
                )
            end = self._axis.end(band, grid, frame=frame + frames, count=count)
            stays = self._staying(band, end, count, gone)
            if not bool(stays.all()):
                origin = self._axis.origin(band, stays, grid, frame=frame)
                lost = band.evict(stays, self._model.turn, origin=origin)
                gone = lost if band is self._cache.deep else gone
            if band.pinned + end - band.offset > self._plan.rebase_at and band.origin > band.offset:
                band.rebase(self._model.turn)
                rebased = True
        return gone, rebased

    def _staying(self, band: Band, end: int, count: int, gone: Tensor) -> Tensor:
        """(N,) bool: what a band keeps; below the merge, where nothing stands for anything else, the newest."""
        plan, is_deep = self._plan, band is self._cache.deep
        is_mirror = plan.prune_shallow and not is_deep
        stays = staying(
            band,
            plan.retention if is_deep else Fifo(),
            room=0 if is_mirror else count,
            since=end - plan.horizon,
            share=plan.evict_share,
            horizon=plan.horizon,
        )
        return stays & ~torch.isin(band.index.serials, gone) if is_mirror else stays
