"""From a clip's pictures to features: all of each picture, or only what changed since the clip before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sttm import metrics
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Clip


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """Features (T, H, W, C), of which `encoded` cells were computed. `kept` is the tower's state for the next clip."""

    features: Tensor
    encoded: int
    kept: Any | None


def encode_all(model: VideoLLM, clip: Clip) -> EncodedClip:
    """Encode everything, and keep nothing for the next clip."""
    pixels = _pixels(model, clip)
    with metrics.stage("encode"):
        features = model.encode(pixels)
    return EncodedClip(features, features[..., 0].numel(), None)


def encode_changed(
    model: VideoLLM, clip: Clip, kept: Any | None, grid: tuple[int, int]
) -> EncodedClip:
    """Encode only the cells that a clip marks as changed since the clip that `kept` is of.

    The cells are those of a `grid` (rows, columns). Everything is encoded where `kept` is None.
    """
    pixels, cells = _pixels(model, clip), None
    if kept is not None and clip.changed is not None:
        blocks = torch.from_numpy(clip.changed.astype(np.float32))[None]
        # a cell has changed where any block that it overlaps has
        cells = F.adaptive_max_pool2d(blocks, grid)[0] > 0
    with metrics.stage("encode"):
        features, kept = model.encode_regions(pixels, cells, kept if cells is not None else None)
    encoded = features[..., 0].numel() if cells is None else len(features) * int(cells.sum())
    return EncodedClip(features, encoded, kept)


def _pixels(model: VideoLLM, clip: Clip) -> Any:
    with metrics.stage("preprocess"):
        stacked = np.stack([frame.image for frame in clip.frames])
        frames = torch.from_numpy(stacked).to(model.device).permute(0, 3, 1, 2)
        return model.preprocess(frames)
