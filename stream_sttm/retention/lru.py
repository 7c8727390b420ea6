"""Least recently seen first: what is in view is kept, however early it came. What left long ago is evicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.retention import Held


@dataclass(frozen=True, slots=True)
class LeastRecentlySeen:
    """What was last seen first is evicted first. Of those last seen together, the one that was emitted first.

    It has no parameters.
    """

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """Return (N,) bool: keep all but the `drop` tokens that nothing has shown for the longest time."""
        order = torch.argsort(held.last_seen, stable=True)
        keep = torch.ones(len(held), dtype=torch.bool)
        keep[order[:drop]] = False
        return keep
