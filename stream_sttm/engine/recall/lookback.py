"""Where questions look while they are read: at what is there now, or at what is not there any more.

A question about the present gives its attention to the newest frames, one about the past to the rest of the memory;
so the share of the rest tells one from the other in any language, for next to nothing. Only visual tokens count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NOW = 3.0  # seconds up to the newest frame, at most half a memory; what they do not show is not there any more


class LookbackProbe:
    """The last words' attention of B questions, over all layers and heads.

    `prefix`: a memory's snapshot, whose first `pinned` slots are text, and parts that show the present; `is_now`: per
    band of the snapshot (N,) bool, which of its visual tokens stand for something that is there now.
    """

    def __init__(
        self, prefix: Sequence[Any], pinned: int, is_now: Sequence[Tensor], *, rows: int
    ) -> None:
        self._memory, *self._fresh = prefix
        self._pinned, self._is_now = pinned, is_now
        self._total = torch.zeros(rows, device=is_now[0].device)
        self._layers = 0

    @property
    def shares(self) -> Tensor:
        """(B,) of the attention to visual tokens, the share of those that are not there any more."""
        return self._total / max(1, self._layers)

    def observe(
        self, at: Tensor, counts: Tensor, layer: int, queries: Tensor, scale: float
    ) -> None:
        """Take in one layer's `queries` (1, heads, n, D) at columns `at` (B,), of those that `counts` (B,) marks."""
        asked = queries[0][:, at].transpose(0, 1)  # (B, heads, D)
        memory = self._memory.prefix_kv(layer).skip(self._pinned)
        keys = torch.cat([memory.keys, *(part.prefix_kv(layer).keys for part in self._fresh)], 2)[0]
        batch, heads, width = asked.shape
        rows = asked.reshape(batch, len(keys), heads // len(keys), width).transpose(0, 1)
        logits = (rows.flatten(1, 2) @ keys.transpose(1, 2)).float() * scale
        is_past = ~self._is_now[sum(layer >= group.first for group in self._memory.groups) - 1]
        if memory.bias is not None:
            logits[..., : len(is_past)] += memory.bias
        past = logits[..., : len(is_past)].masked_fill(~is_past, -torch.inf)
        share = (past.logsumexp(-1) - logits.logsumexp(-1)).exp()  # (kv heads, B * groups)
        share = share.reshape(len(keys), batch, -1).mean((0, 2))
        self._total += torch.where(counts, share, 0.0)
        self._layers = max(self._layers, layer + 1)
