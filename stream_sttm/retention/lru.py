"""Least recently seen first: what is still in view keep, however early it came; what left long ago goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.retention import Held


@dataclass(frozen=True, slots=True)
class LeastRecentlySeen:
    """What was last seen first goes first; of those seen last together, what was emitted first."""

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """All but the `drop` tokens that nothing has shown for the longest time."""
        order = torch.argsort(held.last_seen, stable=True)
        keep = torch.ones(len(held), dtype=torch.bool)
        keep[order[:drop]] = False
        return keep
