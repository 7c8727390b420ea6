"""An attention probe: whether questions attend to what is visible now, or to what is not there any more.

A question about the present attends to the newest frames, one about the past to the rest of the memory. So the share of
the rest tells one from the other in any language, at almost no cost. Only visual tokens count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Seconds up to the newest frame, at most half a memory. What they do not show is not visible any more.
NOW = 3.0


class LookbackProbe:
    """Measures the attention of the last words of B questions, over all layers and heads.

    `prefix`: a snapshot of the memory, whose first `pinned` slots are text, and parts that show the present. `is_now`:
    per layer group of the snapshot (N,) bool, the visual tokens that stand for something visible now.
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
        """(B,): of the attention to visual tokens, the share of those that are not visible any more."""
        return self._total / max(1, self._layers)

    def observe(
        self, at: Tensor, counts: Tensor, layer: int, queries: Tensor, scale: float
    ) -> None:
        """Add one layer's queries (1, heads, n, D), at the columns `at` (B,) of the questions that `counts` (B,)
        marks.
        """
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
