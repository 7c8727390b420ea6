"""One stream's rolling memory: one or two bands of layers, and snapshots for whoever answers from it.

Below the merge layer a band holds every visual token, from it on the survivors; each has its own length and positions.
Knows no model beyond shapes, and no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.attention import Shared
from stream_sttm.engine.cache.kv_buffer import CacheShape
from stream_sttm.engine.cache.layer_group import Band, BandView


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """What running answers read: every band's view, found by layer, with `tokens` to see above the merge.

    It is shown without its first `hidden` slots.
    """

    bands: tuple[BandView, ...]
    tokens: int
    hidden: int = 0

    def shared(self, layer: int) -> Shared:
        """Keys, values and bias of one layer."""
        band = next(band for band in reversed(self.bands) if layer >= band.first)
        keys, values = band.keys[layer - band.first], band.values[layer - band.first]
        whole = Shared(keys.numbers(), values.numbers(), band.bias)
        return whole.behind(self.hidden) if self.hidden else whole


@dataclass(slots=True)
class RollingCache:
    """The bands of one stream; transformers' layers call `update`."""

    bands: tuple[Band, ...]
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
        """An empty cache; `deep` and `shallow` are capacities in visual tokens from layer `merge_at` on and below."""
        bands = [Band(shape, merge_at, shape.layers, pinned=pinned, capacity=deep)]
        if merge_at > 0:
            bands.insert(0, Band(shape, 0, merge_at, pinned=pinned, capacity=shallow))
        return RollingCache(tuple(bands), size_bias=size_bias)

    @property
    def deep(self) -> Band:
        """The band that holds the survivors."""
        return self.bands[-1]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(band.nbytes for band in self.bands)

    def length(self, layer: int) -> int:
        """Visual tokens in one layer."""
        return len(self._band(layer))

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """What transformers' attention calls with the rotated keys and values of the tokens it runs."""
        return self._band(layer_idx).write(keys, values, layer_idx)

    def snapshot(
        self, *, before_frame: int | None = None, in_layers_from: int = 0, seen_since: int = 0
    ) -> CacheSnapshot:
        """The memory as it is now; bands from a layer on without the tokens of frames from `before_frame` on, if given.

        Nor is anything shown whose like no frame from `seen_since` on has shown.
        """
        views, tokens = [], 0
        for band in self.bands:
            length = len(band)
            if before_frame is not None and band.first >= in_layers_from:
                length = band.index.before_frame(before_frame)
            hidden = band.last_seen[:length] < seen_since
            tokens = length - int(hidden.sum()) if seen_since else length
            if tokens == 0 and band.pinned == 0:
                length = 0  # attention over nothing but what is hidden has no value
            bias = self.bias(band, length)
            if tokens < length:
                if bias is None:
                    bias = band.sizes.new_zeros(band.pinned + length)
                bias[band.pinned :].masked_fill_(hidden, -torch.inf)
            views.append(band.view(length=length, bias=bias))
        return CacheSnapshot(tuple(views), tokens)

    def bias(self, band: Band, length: int) -> Tensor | None:
        """What is added to the attention logits of a band's first keys: size_bias * log(size), 0 for the prefix."""
        if self.size_bias == 0 or band is not self.deep:
            return None
        sizes = band.sizes[:length].log() * self.size_bias
        return torch.cat([sizes.new_zeros(band.written - len(band)), sizes])

    def _band(self, layer: int) -> Band:
        return self.bands[-1] if layer >= self.bands[-1].first else self.bands[0]
