"""Visual tokens: what a reducer returns and the engine stores. Knows no model and no cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """N visual tokens, each standing for a box of grid cells of one frame, in stream order.

    `features` (N, C); `boxes` (N, 5) int64 rows (t, y0, x0, y1, x1), end-exclusive, t counting frames from the
    stream's start; `sizes` (N,) int64, how many grid cells, over all frames, the token stands for.
    """

    features: Tensor
    boxes: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]
