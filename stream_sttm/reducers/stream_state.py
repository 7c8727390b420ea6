"""What causal merging carries from one clip of a stream to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stream_sttm.reducers.quadtree import Leaves


@dataclass(frozen=True, slots=True)
class StreamState:
    """The last frame of a stream, so never more than H * W leaves.

    - `last`: that frame's M leaves.
    - `serials` (M,): which token stands for each leaf.
    - `is_alive` (M,): whether the cache still holds that token.
    - `anchors` (M, C) and `anchor_norms` (M,): that token's feature when it was emitted. Empty without a drift guard.
    - `frames` and `tokens`: counts from the stream's start.
    """

    last: Leaves
    serials: Tensor
    is_alive: Tensor
    anchors: Tensor
    anchor_norms: Tensor
    frames: int
    tokens: int
    absorbed: tuple[Tensor, Tensor]
    last_seen: tuple[Tensor, Tensor]

    def expire(self, evicted: Tensor) -> StreamState:
        """Return the state after the cache evicted some tokens.

        What they stand for is emitted again when it is seen.
        """
        return replace(self, is_alive=self.is_alive & ~torch.isin(self.serials, evicted))

    def repeated(self, frames: int) -> StreamState:
        """Return the state after so many more frames that equal the last one and gave no token."""
        newest = self.frames + frames - 1
        boxes = self.last.boxes.clone()
        boxes[:, 0] = newest
        serials, group = torch.unique(self.serials, return_inverse=True)
        cells = torch.zeros_like(serials).index_add_(0, group, self.last.sizes * frames)
        return replace(
            self,
            last=replace(self.last, boxes=boxes),
            frames=newest + 1,
            absorbed=(serials, cells),
            last_seen=(serials, torch.full_like(serials, newest)),
        )

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Boxes (M, 4) of the last frame's leaves, and the serials (M,) of the tokens that stand for them."""
        return self.last.boxes[:, 1:], self.serials

    def saved(self) -> dict[str, Tensor]:
        """Return all that the next call needs."""
        return {
            "features": self.last.features(),
            "norms": self.last.norms,
            "boxes": self.last.boxes,
            "owner": self.last.owner,
            "serials": self.serials,
            "is_alive": self.is_alive,
            "anchors": self.anchors,
            "anchor_norms": self.anchor_norms,
            "counts": torch.tensor([self.frames, self.tokens], device=self.serials.device),
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> StreamState:
        """Return the state that was saved. Raises KeyError where something is missing."""
        serials = tensors["serials"]
        rows = torch.arange(len(serials), device=serials.device)
        frames, tokens = tensors["counts"].tolist()
        last = (tensors[name] for name in ("norms", "boxes", "owner"))
        return cls(
            last=Leaves((tensors["features"],), rows, *last),
            serials=serials,
            is_alive=tensors["is_alive"],
            anchors=tensors["anchors"],
            anchor_norms=tensors["anchor_norms"],
            frames=frames,
            tokens=tokens,
            absorbed=(rows[:0], rows[:0]),
            last_seen=(rows[:0], rows[:0]),
        )


def restarted(state: StreamState | None, fresh: Leaves) -> StreamState:
    """Return a state without a last frame, on the grid of `fresh`. It goes on counting frames and tokens."""
    norms, ids = fresh.norms[:0], fresh.rows[:0]
    features = fresh.tables[0][:0]
    return StreamState(
        last=Leaves((features,), ids, norms, fresh.boxes[:0], fresh.owner[:0]),
        serials=ids,
        is_alive=ids.bool(),
        anchors=features,
        anchor_norms=norms,
        frames=state.frames if state is not None else 0,
        tokens=state.tokens if state is not None else 0,
        absorbed=(ids, ids),
        last_seen=(ids, ids),
    )


def absorbed(leaves: Leaves, anchor: Tensor, serial: Tensor, old: int) -> tuple[Tensor, Tensor]:
    """Return the serials of tokens of earlier clips that absorbed leaves, and how many cells each did."""
    late = (anchor[old:] < old).nonzero()[:, 0] + old
    serials, group = torch.unique(serial[late], return_inverse=True)
    cells = torch.zeros_like(serials).index_add_(0, group, leaves.sizes[late])
    return serials, cells


def seen(leaves: Leaves, serial: Tensor, old: int) -> tuple[Tensor, Tensor]:
    """Return the serials of the tokens that the clip's leaves show, and the last frame that shows each."""
    serials, group = torch.unique(serial[old:], return_inverse=True)
    frames = leaves.boxes[old:, 0]
    return serials, torch.zeros_like(serials).scatter_reduce_(0, group, frames, "amax")
