"""Which token stands for which part of the newest frame. Reads a band and what a reducer shows, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stream_sttm.engine.cache.layer_group import Band
from stream_sttm.engine.mosaic import Tile, TileKind


def tiles(
    band: Band,
    shown: tuple[Tensor, Tensor] | None,
    *,
    newest: int,
    since: int,
    captured: Mapping[int, float],
) -> tuple[Tile, ...]:
    """The tiles of frame `newest`; tokens of frames from `since` on are new.

    `shown`: boxes (M, 4) of the frame's leaves and the serials (M,) of what stands for them, None where nothing says;
    then the tokens last seen in that frame stand for themselves. `captured`: wall clock by frame.
    """
    index = band.index
    if not len(index):
        return ()
    if shown is None:
        slots = (band.last_seen[: len(band)].cpu() == newest).nonzero()[:, 0]
        boxes = index.boxes[slots, 1:]
    else:
        boxes, serials = shown[0].cpu(), shown[1].cpu()
        slots = torch.searchsorted(index.serials, serials).clamp(max=len(index) - 1)
        is_held = index.serials[slots] == serials
        boxes, slots = boxes[is_held], slots[is_held]
    own = index.boxes[slots]
    is_new, is_in_place = own[:, 0] >= since, (own[:, 1:] == boxes).all(1)
    sizes = band.sizes[: len(band)].cpu()[slots].round().to(torch.int64)
    now = captured[newest]
    rows = zip(
        boxes.tolist(),
        index.serials[slots].tolist(),
        own[:, 0].tolist(),
        sizes.tolist(),
        is_new.tolist(),
        is_in_place.tolist(),
        strict=True,
    )
    return tuple(
        Tile((y0, x0, y1, x1), serial, now - captured[frame], size, _kind(new, in_place))
        for (y0, x0, y1, x1), serial, frame, size, new, in_place in rows
    )


def _kind(is_new: bool, is_in_place: bool) -> TileKind:
    if is_new:
        return TileKind.NEW
    return TileKind.KEPT if is_in_place else TileKind.ABSORBED
