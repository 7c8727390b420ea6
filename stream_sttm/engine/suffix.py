"""What stands behind a memory for a while: the keys and values of fresh frames, questions and their answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.attention import Shared
from stream_sttm.engine.slots import CacheShape


class Suffix:
    """Keys and values behind a snapshot: B rows of one length, thrown away when their answers are done."""

    def __init__(self, shape: CacheShape, *, rows: int, capacity: int) -> None:
        self._shape = shape
        size = (rows, shape.kv_heads, capacity, shape.head_dim)
        self._keys = [
            torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(shape.layers)
        ]
        self._values = [torch.empty_like(keys) for keys in self._keys]
        self.length = 0
        self.bias: dict[int, Tensor] = {}  # by layer, what weighs its columns as a prefix

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers' attention calls; returns each row's own keys and values so far."""
        end = self.length + keys.shape[2]
        k, v = self._keys[layer_idx], self._values[layer_idx]
        k[:, :, self.length : end] = keys
        v[:, :, self.length : end] = values
        return k[:, :, :end], v[:, :, :end]

    def commit(self, count: int) -> None:
        """Keep the `count` columns that every layer just wrote."""
        self.length += count

    def of_row(self, row: int, *, rows: int, room: int) -> Suffix:
        """One row as it is now, `rows` times, with room for that many more columns."""
        other = Suffix(self._shape, rows=rows, capacity=self.length + room)
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            seen = slice(row, row + 1), slice(None), slice(self.length)
            other.update(keys[seen], values[seen], layer)
        other.commit(self.length)
        return other

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]

    def shared(self, layer: int) -> Shared:
        """Its only row, as a prefix for others."""
        return Shared(
            self._keys[layer][:, :, : self.length],
            self._values[layer][:, :, : self.length],
            self.bias.get(layer),
        )
