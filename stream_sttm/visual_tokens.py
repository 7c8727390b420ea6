"""Visual tokens: what a reducer returns and the engine stores. Knows no model and no cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class VisualTokens:
    """N visual tokens in stream order. Each stands for a box of grid cells of one frame.

    - `features` (N, C).
    - `boxes` (N, 5) int64: rows (t, y0, x0, y1, x1), end-exclusive, t counts frames from the stream's start.
    - `sizes` (N,) int64: how many grid cells of all frames the token stands for.
    """

    features: Tensor
    boxes: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]

    @classmethod
    def whole(cls, features: Tensor, *, first_frame: int = 0) -> VisualTokens:
        """Return every cell of features (T, H, W, C) as a token of its own, by frame, then in raster order."""
        count, height, width, channels = features.shape
        axes = (torch.arange(side, device=features.device) for side in (count, height, width))
        t, y, x = torch.cartesian_prod(*axes).unbind(1)
        boxes = torch.stack([t + first_frame, y, x, y + 1, x + 1], 1)
        return cls(features.reshape(-1, channels), boxes, torch.ones_like(t))
