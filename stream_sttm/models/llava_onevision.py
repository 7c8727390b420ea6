"""LLaVA-OneVision: SigLIP, projector, 2x pooling, Qwen2, one position axis. https://arxiv.org/abs/2408.03326

Every frame is a square grid. The video ends with one learnt `image_newline` vector. We put it at the head of the
question, since a stream has no end.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from stream_sttm.models.family import Defaults, VideoLLM
from stream_sttm.models.preprocess import HALF, normalize, resize
from stream_sttm.visual_tokens import VisualTokens


class LlavaOnevision(VideoLLM):
    """A `LlavaOnevisionForConditionalGeneration` checkpoint."""

    # Published for the 7B model: thresholds and layer in the STTM paper, contiguous positions in its ablation.
    defaults: ClassVar[Defaults] = Defaults(
        spatial_threshold=0.90, temporal_threshold=0.60, at_layer=2, positions="contiguous"
    )

    def preprocess(self, frames: Tensor) -> Tensor:
        """Resize frames (T, 3, H, W) uint8 to the tower's size (T, 3, S, S), squeezed to a square as in training."""
        side = self.config.vision_config.image_size
        return normalize(resize(frames, side, side), HALF.or_as(self.processor)).to(self.dtype)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode (T, 3, S, S). Returns (T, H, W, C)."""
        out: Any = self.core.get_video_features(
            pixels[None],
            vision_feature_layer=self.config.vision_feature_layer,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
        )
        flat = out.pooler_output if hasattr(out, "pooler_output") else out
        vision = self.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)  # the family pools 2 x 2
        frames = pixels.shape[0]
        # Some versions of the library put image_newline behind the last frame here, others later.
        features: Tensor = flat[0, : frames * side * side]
        return features.reshape(frames, side, side, -1)

    def embed(self, ids: Tensor) -> Tensor:
        """Return what every family does, with `image_newline` in place of the video token."""
        embedded = super().embed(ids)
        newline = (ids == self.config.video_token_id)[..., None]
        return torch.where(newline, self.core.image_newline.to(embedded.dtype), embedded)

    def own_positions(self, tokens: VisualTokens, grid: tuple[int, int], step: float) -> Tensor:
        """Return raster order within a frame, frames one after the other."""
        del step
        boxes = tokens.boxes
        cells = boxes[:, 0] * (grid[0] * grid[1]) + boxes[:, 1] * grid[1] + boxes[:, 2]
        return cells[None]

    def own_time(self, frame: int, grid: tuple[int, int], step: float) -> int:
        """Return the position for frames of H * W positions each."""
        del step
        return frame * grid[0] * grid[1]

    @property
    def visual_word(self) -> str:
        """`<video>`, or what the checkpoint's tokenizer calls it."""
        word: str = self.tokenizer.convert_ids_to_tokens(self.config.video_token_id)
        return word

    def _video_end(self) -> list[int]:
        return [self.config.video_token_id]
