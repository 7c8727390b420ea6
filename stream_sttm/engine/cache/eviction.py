"""Which tokens a band keeps when a window needs room or its memory spans too much. Writes nothing, knows no model."""

from __future__ import annotations

import torch
from torch import Tensor

from stream_sttm.engine.cache.layer_group import Band
from stream_sttm.retention import Held, RetentionPolicy


def staying(
    band: Band, policy: RetentionPolicy, *, room: int, since: int, share: float, horizon: int
) -> Tensor:
    """(N,) bool: what a band keeps so that `room` tokens fit and nothing stands before `since` on the time axis.

    If anything must go then at least a `share` of the capacity, or of the `horizon`, so that it happens rarely.
    """
    index = band.index
    stays = torch.ones(len(band), dtype=torch.bool)
    if len(band) and int(index.times[0]) < since:
        first = int(torch.searchsorted(index.times, since + int(horizon * share)))
        stays = index.frames > index.frames[first - 1]  # whole frames
    left = int(stays.sum())
    missing = room - (band.capacity - left)
    if missing > 0:
        drop = min(max(missing, int(band.capacity * share)), left)
        stays[stays.clone()] = policy(_held(band, stays), drop=drop)
    return stays


def _held(band: Band, stays: Tensor) -> Held:
    where = stays.to(band.sizes.device)
    return Held(
        band.index.boxes[stays],
        band.last_seen[: len(band)][where].cpu(),
        band.sizes[: len(band)][where].cpu(),
    )
