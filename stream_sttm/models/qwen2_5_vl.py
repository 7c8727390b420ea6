"""Qwen2.5-VL: dynamic resolution, two frames to a token, three position axes. https://arxiv.org/abs/2502.13923

Time, height and width rotate separate parts of a head (multi-axis rotary embedding). Only the time axis grows with
the stream, so only it is ever moved.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from stream_sttm.models.family import Defaults, VideoLLM
from stream_sttm.preprocess import CLIP, fit, normalize, patchify, resize
from stream_sttm.tokens import VisualTokens

_LEAST_PIXELS, _MOST_PIXELS = (
    128 * 28 * 28,
    768 * 28 * 28,
)  # per frame, as the family's video processor


class Qwen2_5VL(VideoLLM):  # noqa: N801 - the family's own name
    """A `Qwen2_5_VLForConditionalGeneration` checkpoint."""

    # Published for Qwen2-VL-7B: thresholds and layer in the STTM paper; survivors keep their own positions.
    defaults: ClassVar[Defaults] = Defaults(
        spatial_threshold=0.80, temporal_threshold=0.65, at_layer=2, positions="own"
    )
    axes: ClassVar[int] = 3
    frames_per_token: ClassVar[int] = 2

    def preprocess(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(T, 3, H, W) uint8 -> patches and their grid, at a size near the frame's own."""
        vision = self.config.vision_config
        factor = vision.patch_size * vision.spatial_merge_size
        size = self.processor.get("size") or {}
        height, width = fit(
            frames.shape[-2],
            frames.shape[-1],
            factor=factor,
            least=size.get("shortest_edge") or self.processor.get("min_pixels") or _LEAST_PIXELS,
            most=size.get("longest_edge") or self.processor.get("max_pixels") or _MOST_PIXELS,
        )
        pixels = normalize(resize(frames, height, width), CLIP.or_as(self.processor))
        patches, grid = patchify(
            pixels,
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            span=vision.temporal_patch_size,
        )
        return patches.to(self.dtype), grid

    def encode(self, pixels: tuple[Tensor, Tensor]) -> Tensor:
        """Patches and grid -> (T / 2, H, W, C)."""
        patches, grid = pixels
        out: Any = self.core.get_video_features(patches, grid)
        features = out.pooler_output if hasattr(out, "pooler_output") else out
        merge = self.config.vision_config.spatial_merge_size
        times, rows, columns = grid[0].tolist()
        return torch.cat(tuple(features)).reshape(times, rows // merge, columns // merge, -1)

    def own_positions(self, tokens: VisualTokens, grid: tuple[int, int], step: float) -> Tensor:
        """(3, N): time in steps, row, column of the box's first cell."""
        del grid
        time = (tokens.boxes[:, 0].double() * step).long()
        return torch.stack([time, tokens.boxes[:, 1], tokens.boxes[:, 2]])

    def own_time(self, frame: int, grid: tuple[int, int], step: float) -> int:
        """Time in steps, cut to a whole number."""
        del grid
        return int(frame * step)

    def text_start(self, frames: int, grid: tuple[int, int], step: float, origin: int) -> int:
        """One past the largest position on any axis, as the family was trained."""
        return max(self.own_time(frames - 1, grid, step) + 1, origin + max(grid))

    def step(self, fps: float) -> float:
        """`tokens_per_second` of the checkpoint times the seconds between two token frames."""
        vision = self.config.vision_config
        return float(vision.tokens_per_second * vision.temporal_patch_size / fps)

    def _time_frequencies(self) -> Tensor:
        frequencies: Tensor = self.text.rotary_emb.inv_freq
        sections = self.text.config.rope_parameters["mrope_section"]
        keep = torch.zeros_like(frequencies)
        keep[: sections[0]] = 1
        return frequencies * keep

    @property
    def visual_word(self) -> str:
        """`<|video_pad|>`, or what the checkpoint's tokenizer calls it."""
        word: str = self.tokenizer.convert_ids_to_tokens(self.config.video_token_id)
        return word
