"""First in, first out: the oldest frames are evicted as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.retention import Held


@dataclass(frozen=True, slots=True)
class Fifo:
    """What was emitted first is evicted first. It has no parameters."""

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """Return (N,) bool: keep all frames but the oldest."""
        return oldest_first(held, torch.ones(len(held), dtype=torch.bool), drop=drop)


def oldest_first(held: Held, keep: Tensor, *, drop: int) -> Tensor:
    """Return `keep` (N,) bool without its oldest frames, so that at least `drop` of all tokens are not kept."""
    left = keep.nonzero()[:, 0]
    missing = drop - (len(held) - len(left))
    return keep if missing <= 0 else keep & (held.frames > held.frames[left[missing - 1]])
