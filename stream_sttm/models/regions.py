"""A vision tower that computes only some patches, which attend to all patches of the picture before.

A patch that did not change keeps its keys and values in every layer. Those that changed are computed again and attend
to all. It is an approximation: the patches that did not change are not updated by those that did. The idea of gating by
residuals is GRT's (https://arxiv.org/abs/2509.14199), which still runs the tower on every patch. Registered through
transformers' public AttentionInterface. Knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "stream_sttm_regions"
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class TowerState:
    """A tower's state after a token frame: features (H, W, C), and by attention layer keys and values (1, heads, N,
    D).
    """

    features: Tensor
    layers: Mapping[nn.Module, Pair]


@dataclass(slots=True)
class FullPass:
    """One pass with every patch. It records each layer's keys and values in the order in which they come."""

    seen: dict[nn.Module, list[Pair]] = field(default_factory=dict)

    def select(self, layer: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """Record a layer's keys and values. Returns them as what is attended over, and no mask."""
        self.seen.setdefault(layer, []).append((keys, values))
        return keys, values, None

    def newest(self, count: int) -> dict[nn.Module, Pair]:
        """Return each layer's last `count` keys and values."""
        return {
            layer: (
                torch.cat([keys for keys, _ in pairs], 2)[:, :, -count:].clone(),
                torch.cat([values for _, values in pairs], 2)[:, :, -count:].clone(),
            )
            for layer, pairs in self.seen.items()
        }


@dataclass(slots=True)
class PartialPass:
    """One pass with the patches `rows` (n,) of `frames` token frames. All others come from `kept`.

    `groups`: per layer, a number for each of the patches (frames * N,). Those with the same number see each other.
    None: all do.
    """

    kept: Mapping[nn.Module, Pair]
    rows: Tensor
    frames: int
    groups: Mapping[nn.Module, Tensor | None]
    seen: dict[nn.Module, Pair] = field(default_factory=dict)

    def select(
        self, layer: nn.Module, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the keys and values of every patch, with the new ones in place, and a mask (n, frames * N).

        The mask is True where a patch is seen. It is None where all are.
        """
        parts = []
        for old, new in zip(self.kept[layer], (keys, values), strict=True):
            part = old.repeat(1, 1, self.frames, 1)
            part[:, :, self.rows] = new
            parts.append(part)
        count = self.kept[layer][0].shape[2]
        newest = [
            part[:, :, -count:].contiguous() for part in parts
        ]  # a copy, so that other frames are freed
        self.seen[layer] = (newest[0], newest[1])
        groups = self.groups[layer]
        mask = None if groups is None else groups[self.rows, None] == groups[None]
        return parts[0], parts[1], mask


def register() -> None:
    """Register `attend` with transformers under NAME."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(  # noqa: PLR0913 - as the library calls it
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    regions: FullPass | PartialPass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend without a causal order, from (B, heads, n, D) to (B, n, heads, D). `regions` selects over what."""
    mask = attention_mask
    if regions is not None:
        key, value, mask = regions.select(module, key, value)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2), None
