"""A clip's pictures to features: all of each, or only where something changed since the clip before it."""

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
    """Features (T, H, W, C), of which so many cells were `encoded`; `kept` is what the next clip may build on."""

    features: Tensor
    encoded: int
    kept: Any | None


def encode_all(model: VideoLLM, clip: Clip) -> EncodedClip:
    """Everything, keeping nothing."""
    pixels = _pixels(model, clip)
    with metrics.stage("encode"):
        features = model.encode(pixels)
    return EncodedClip(features, features[..., 0].numel(), None)


def encode_changed(
    model: VideoLLM, clip: Clip, kept: Any | None, grid: tuple[int, int]
) -> EncodedClip:
    """What a clip says has changed since the one that `kept`, on a `grid` of cells, is of; None: everything."""
    pixels, cells = _pixels(model, clip), None
    if kept is not None and clip.changed is not None:
        blocks = torch.from_numpy(clip.changed.astype(np.float32))[None]
        cells = (
            F.adaptive_max_pool2d(blocks, grid)[0] > 0
        )  # a cell has changed where any block that it meets has
    with metrics.stage("encode"):
        features, kept = model.encode_regions(pixels, cells, kept if cells is not None else None)
    encoded = features[..., 0].numel() if cells is None else len(features) * int(cells.sum())
    return EncodedClip(features, encoded, kept)


def _pixels(model: VideoLLM, clip: Clip) -> Any:
    with metrics.stage("preprocess"):
        stacked = np.stack([frame.image for frame in clip.frames])
        frames = torch.from_numpy(stacked).to(model.device).permute(0, 3, 1, 2)
        return model.preprocess(frames)
