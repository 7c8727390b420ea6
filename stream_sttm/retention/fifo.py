"""First in, first out: the oldest frames go, whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.retention import Held


@dataclass(frozen=True, slots=True)
class Fifo:
    """What was emitted first goes first."""

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """All frames but the oldest."""
        return oldest_first(held, torch.ones(len(held), dtype=torch.bool), drop=drop)


def oldest_first(held: Held, keep: Tensor, *, drop: int) -> Tensor:
    """`keep` (N,) bool without its oldest frames, so many that at least `drop` of all tokens go."""
    left = keep.nonzero()[:, 0]
    missing = drop - (len(held) - len(left))
    return keep if missing <= 0 else keep & (held.frames > held.frames[left[missing - 1]])
