"""Small features that change like a video's: a smooth field on a random walk, with cells that jump now and then."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moving_field(
    seed: int,
    *,
    frames: int = 6,
    grid: tuple[int, int] = (5, 6),
    channels: int = 8,
    drift: float = 0.25,
    jumps: float = 0.15,
) -> Tensor:
    """(T, H, W, C) float32 features; `drift` is the walk's step, `jumps` the share of cells that are news."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(frames, channels, 3, 3, generator=random)
    coarse[1:] *= drift
    smooth = F.interpolate(coarse.cumsum(0), size=grid, mode="bilinear").permute(0, 2, 3, 1)
    rough = 0.2 * torch.randn(*grid, channels, generator=random)
    news = torch.rand(frames, *grid, 1, generator=random) < jumps
    jumped = torch.randn(frames, *grid, channels, generator=random)
    return torch.where(news, jumped, smooth + rough).contiguous()
