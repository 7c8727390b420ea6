"""One stream's rolling KV cache: one or two layer groups, and snapshots for answers.

The group below the merge layer holds every visual token, the one from there on holds the survivors. Each has its own
length and positions. Knows no model beyond shapes, and no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.attention import PrefixKV
from stream_sttm.engine.cache.kv_buffer import CacheShape
from stream_sttm.engine.cache.layer_group import LayerGroup, LayerGroupView


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """What running answers read: a view of every layer group. The layers above the merge see `tokens` visual tokens.

    The first `hidden` slots are not shown.
    """

    groups: tuple[LayerGroupView, ...]
    tokens: int
    hidden: int = 0

    def prefix_kv(self, layer: int) -> PrefixKV:
        """Return the keys, values and bias of one layer."""
        group = next(group for group in reversed(self.groups) if layer >= group.first)
        keys, values = group.keys[layer - group.first], group.values[layer - group.first]
        whole = PrefixKV(keys.dequantized(), values.dequantized(), group.bias)
        return whole.skip(self.hidden) if self.hidden else whole


@dataclass(slots=True)
class RollingCache:
    """The layer groups of one stream. Layers of transformers call `update`."""

    groups: tuple[LayerGroup, ...]
    size_bias: float = 0.0

    @staticmethod
    def allocate(
        shape: CacheShape,
        *,
        pinned: int,
        merge_at: int,
        deep: int,
        shallow: int,
        size_bias: float = 0.0,
    ) -> RollingCache:
        """Return an empty cache.

        `deep` and `shallow` are capacities in visual tokens, from layer `merge_at` on and below it.
        """
        groups = [LayerGroup(shape, merge_at, shape.layers, pinned=pinned, capacity=deep)]
        if merge_at > 0:
            groups.insert(0, LayerGroup(shape, 0, merge_at, pinned=pinned, capacity=shallow))
        return RollingCache(tuple(groups), size_bias=size_bias)

    @property
    def deep(self) -> LayerGroup:
        """The layer group that holds the survivors of the merge."""
        return self.groups[-1]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(group.nbytes for group in self.groups)

    def mark(self) -> tuple[Mapping[str, Any], ...]:
        """Return what `roll_back` needs to undo all that is done from now on."""
        return tuple(group.mark() for group in self.groups)

    def roll_back(self, mark: tuple[Mapping[str, Any], ...]) -> None:
        """Become what the cache was when `mark` was made. Use a mark once."""
        for group, marked in zip(self.groups, mark, strict=True):
            group.roll_back(marked)

    def length(self, layer: int) -> int:
        """Return how many visual tokens one layer holds."""
        return len(self._group(layer))

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the rotated keys and values of new tokens.

        Returns all that they attend over. Attention in transformers calls it.
        """
        return self._group(layer_idx).write(keys, values, layer_idx)

    def snapshot(
        self, *, before_frame: int | None = None, in_layers_from: int = 0, seen_since: int = 0
    ) -> CacheSnapshot:
        """Return a snapshot of the cache.

        `before_frame`: leave out tokens of this frame and later ones, in layer groups that begin at `in_layers_from` or
        above. `seen_since`: hide tokens that no frame from this number on has shown.
        """
        views, tokens = [], 0
        for group in self.groups:
            length = len(group)
            if before_frame is not None and group.first >= in_layers_from:
                length = group.table.before_frame(before_frame)
            hidden = group.last_seen[:length] < seen_since
            tokens = length - int(hidden.sum()) if seen_since else length
            if tokens == 0 and group.pinned == 0:
                length = 0  # attention over nothing but what is hidden has no value
            bias = self.bias(group, length)
            if tokens < length:
                if bias is None:
                    bias = group.sizes.new_zeros(group.pinned + length)
                bias[group.pinned :].masked_fill_(hidden, -torch.inf)
            views.append(group.view(length=length, bias=bias))
        return CacheSnapshot(tuple(views), tokens)

    def bias(self, group: LayerGroup, length: int) -> Tensor | None:
        """Return what is added to the logits of a group's first keys: size_bias * log(size), and 0 for the prefix.

        Returns None where nothing is added.
        """
        if self.size_bias == 0 or group is not self.deep:
            return None
        sizes = group.sizes[:length].log() * self.size_bias
        return torch.cat([sizes.new_zeros(group.written - len(group)), sizes])

    def _group(self, layer: int) -> LayerGroup:
        return self.groups[-1] if layer >= self.groups[-1].first else self.groups[0]
