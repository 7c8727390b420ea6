"""What a merging method is measured against. Knows no similarity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.reducers.frames import Progress, checked, progressed
from stream_sttm.tokens import VisualTokens


@dataclass(frozen=True, slots=True)
class KeepAll:
    """No merging: every cell of every frame is a token."""

    def __call__(
        self, features: Tensor, state: Progress | None = None
    ) -> tuple[VisualTokens, Progress]:
        """The cells of the next frames, by frame, then in raster order."""
        features = checked(features)
        if not bool(features.isfinite().all()):  # one sync: bad input must not become a token
            raise ValueError("features hold NaN or infinite values")
        first = state.frames if state is not None else 0
        count, height, width, channels = features.shape
        axes = (torch.arange(side, device=features.device) for side in (count, height, width))
        t, y, x = torch.cartesian_prod(*axes).unbind(1)
        boxes = torch.stack([t + first, y, x, y + 1, x + 1], 1)
        tokens = VisualTokens(features.reshape(-1, channels), boxes, torch.ones_like(t))
        return tokens, progressed(state, count, len(tokens), features.device)
