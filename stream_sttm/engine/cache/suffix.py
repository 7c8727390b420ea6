"""Keys and values behind a memory for a while: those of fresh frames, questions and their answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.attention import PrefixKV
from stream_sttm.engine.cache.kv_buffer import CacheShape


class SuffixCache:
    """Keys and values behind a snapshot: B rows of one length, dropped when their answers are finished.

    Layers below `first` have none.
    """

    def __init__(self, shape: CacheShape, *, rows: int, capacity: int, first: int = 0) -> None:
        self._shape, self._first = shape, first
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self._keys = [
            torch.empty(size, dtype=shape.dtype, device=shape.device)
            for _ in range(first, shape.layers)
        ]
        self._values = [torch.empty_like(keys) for keys in self._keys]
        self.length = 0
        # the columns that the next tokens see; None: all
        self.visible: Tensor | None = None
        self.bias: dict[
            int, Tensor
        ] = {}  # by layer, the bias of its columns where it serves as a prefix

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens.

        Returns each row's own ones so far, of the columns that are visible.
        """
        end = self.length + keys.shape[2]
        k, v = self._keys[layer_idx - self._first], self._values[layer_idx - self._first]
        k[:, :, self.length : end] = keys
        v[:, :, self.length : end] = values
        if self.visible is None:
            return k[:, :, :end], v[:, :, :end]
        seen_keys, seen_values = k[:, :, self.visible], v[:, :, self.visible]
        return torch.cat([seen_keys, keys], dim=2), torch.cat([seen_values, values], dim=2)

    def commit(self, count: int) -> None:
        """Keep the `count` columns that every layer has just written."""
        self.length += count

    def expand(self, paths: Tensor, *, room: int) -> SuffixCache:
        """Return a cache of R rows from the only row of this one.

        Row by row, `paths` (R, n) names its columns. There is space for `room` more.
        """
        rows, length = paths.shape
        other = SuffixCache(self._shape, rows=rows, capacity=length + room, first=self._first)
        stored = zip(self._keys, self._values, strict=True)
        for layer, (keys, values) in enumerate(stored, self._first):
            rows_keys, rows_values = (part[0][:, paths].transpose(0, 1) for part in (keys, values))
            other.update(rows_keys, rows_values, layer)
        other.commit(length)
        return other

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only the rows `rows`, in this order."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]

    def prefix_kv(self, layer: int) -> PrefixKV:
        """Return one layer's keys and values of the only row, as a prefix for others."""
        index, length = max(0, layer - self._first), self.length if layer >= self._first else 0
        return PrefixKV(
            self._keys[index][:, :, :length],
            self._values[index][:, :, :length],
            self.bias.get(layer),
        )
