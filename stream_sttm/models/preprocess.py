"""From camera frames to a vision tower's input, in plain torch on the model's device.

Follows the arithmetic of transformers' PIL image processors and is tested against them: bicubic with antialiasing on
8-bit pictures, then scale and normalise. Knows no model. Each family chooses which steps it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sttm.errors import ModelError


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """Mean and deviation per channel, of values in 0..1, that a vision tower was trained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def or_as(self, processor: Mapping[str, Any]) -> PixelSpec:
        """Return the values of a checkpoint's processor settings, else this spec."""
        mean, std = processor.get("image_mean"), processor.get("image_std")
        return PixelSpec(tuple(mean), tuple(std)) if mean and std else self


HALF = PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = PixelSpec(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize (T, 3, H, W) uint8. Returns (T, 3, height, width) float32 in 0..255.

    The width is resized first, then the height. Both results are rounded to 8 bit, as Pillow does it.
    """
    pixels = frames.to(torch.float32)
    for size in ((frames.shape[-2], width), (height, width)):
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
            pixels = pixels.round_().clamp_(0, 255)
    return pixels


def normalize(pixels: Tensor, spec: PixelSpec) -> Tensor:
    """Return pixels (T, 3, H, W) of 0..255, scaled to 0..1, less the mean, over the deviation."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(spec.std, device=pixels.device).view(3, 1, 1)
    return (pixels / 255 - mean) / std


def fit(height: int, width: int, *, factor: int, least: int, most: int) -> tuple[int, int]:
    """Return the picture size nearest to (height, width) with sides divisible by `factor` and least..most pixels.

    The rule of Qwen2-VL (https://arxiv.org/abs/2409.12191), which keeps the aspect ratio as nearly as it can. Raises
    ModelError for a picture over 200 times as long as wide, which the rule does not cover.
    """
    if max(height, width) > 200 * min(height, width):
        raise ModelError(
            f"a picture of {width}x{height} is too narrow; its sides may differ 200-fold"
        )
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def patchify(pixels: Tensor, *, patch: int, merge: int, span: int) -> tuple[Tensor, Tensor]:
    """Return flat patches (N, 3 * span * patch * patch) of (T, 3, H, W) in merge-block order, and their (1, 3) grid.

    `span` frames form one patch in time. Where `span` does not divide T, the last frame is repeated.
    """
    if missing := -pixels.shape[0] % span:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    frames, channels, height, width = pixels.shape
    times, rows, columns = frames // span, height // patch, width // patch
    blocks = pixels.reshape(
        times, span, channels, rows // merge, merge, patch, columns // merge, merge, patch
    )
    flat = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(times * rows * columns, -1)
    return flat, torch.tensor([[times, rows, columns]], device=pixels.device)
