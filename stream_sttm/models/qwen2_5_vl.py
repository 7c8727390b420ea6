"""Qwen2.5-VL: dynamic resolution, two frames to a token, three position axes. https://arxiv.org/abs/2502.13923

Time, height and width rotate separate parts of a head (multi-axis rotary embedding). Only the time axis grows with the
stream, so only it is ever moved.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from stream_sttm.models import regions
from stream_sttm.models.family import Defaults, VideoLLM
from stream_sttm.models.preprocess import CLIP, fit, normalize, patchify, resize
from stream_sttm.models.regions import FullPass, PartialPass, TowerState
from stream_sttm.visual_tokens import VisualTokens

# Per frame, as in the family's video processor.
_LEAST_PIXELS, _MOST_PIXELS = 128 * 28 * 28, 768 * 28 * 28


class Qwen2_5VL(VideoLLM):  # noqa: N801 - the family's own name
    """A `Qwen2_5_VLForConditionalGeneration` checkpoint."""

    # Published for Qwen2-VL-7B: thresholds and layer in the STTM paper; survivors keep their own positions.
    defaults: ClassVar[Defaults] = Defaults(
        spatial_threshold=0.80, temporal_threshold=0.65, at_layer=2, positions="own"
    )
    axes: ClassVar[int] = 3
    frames_per_token: ClassVar[int] = 2

    def __init__(self, model: Any, *others: Any, **named: Any) -> None:
        super().__init__(model, *others, **named)
        regions.register()
        model.set_attn_implementation({"vision_config": regions.NAME})

    def preprocess(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches of (T, 3, H, W) uint8 and their grid, at a size near the frame's own."""
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
        """Encode patches and grid. Returns (T / 2, H, W, C)."""
        patches, grid = pixels
        out: Any = self.core.get_video_features(patches, grid)
        features = out.pooler_output if hasattr(out, "pooler_output") else out
        merge = self.config.vision_config.spatial_merge_size
        times, rows, columns = grid[0].tolist()
        return torch.cat(tuple(features)).reshape(times, rows // merge, columns // merge, -1)

    def encode_regions(
        self, pixels: tuple[Tensor, Tensor], changed: Tensor | None, kept: TowerState | None
    ) -> tuple[Tensor, TowerState]:
        """Encode only the changed cells, as in every family. Keeps the tower's keys and values of one token frame."""
        patches, grid = pixels
        times, height, width = grid[0].tolist()
        merge = self.config.vision_config.spatial_merge_size
        rows, columns = height // merge, width // merge
        if changed is None or kept is None or kept.features.shape[:2] != (rows, columns):
            whole = FullPass()
            out: Any = self.core.visual(patches, grid_thw=grid, regions=whole)
            features = out.pooler_output.reshape(times, rows, columns, -1)
            return features, TowerState(features[-1].clone(), whole.newest(height * width))
        features = kept.features.repeat(times, 1, 1, 1)
        if not bool(changed.any()):
            return features, kept
        order, ends = self._windows(grid)
        indices = changed.to(grid.device).reshape(-1).repeat(times)[order].nonzero()[:, 0]
        cells = order[indices]  # the tower's own order is by window
        offsets = torch.arange(merge * merge, device=grid.device)
        patch_ids, row_ids = (
            (of[:, None] * len(offsets) + offsets).reshape(-1) for of in (cells, indices)
        )
        part = PartialPass(kept.layers, row_ids, times, self._groups(grid, ends))
        one_sequence = torch.tensor([0, len(patch_ids)], dtype=torch.int32, device=grid.device)
        out = self.core.visual(
            patches[patch_ids],
            grid_thw=grid,
            position_ids=get_vision_position_ids(grid, merge)[patch_ids],
            cu_seqlens=one_sequence,
            cu_window_seqlens=one_sequence,
            window_index=torch.arange(len(cells), device=grid.device),
            regions=part,
        )
        features.view(-1, features.shape[-1])[cells] = out.pooler_output
        return features, TowerState(features[-1].clone(), part.seen)

    def _windows(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells (N,) in the order of their windows, and where each window ends, in patches."""
        vision = self.config.vision_config
        order, ends = get_vision_window_index(
            grid, vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
        return order.to(grid.device), ends[1:]

    def _groups(self, grid: Tensor, ends: Tensor) -> dict[nn.Module, Tensor | None]:
        """Return by attention layer which patches, in the tower's own order, see each other: a window's, or a
        frame's.
        """
        times, height, width = grid[0].tolist()
        patches = torch.arange(times * height * width, device=grid.device)
        frame = None if times == 1 else patches // (height * width)
        window = (
            torch.searchsorted(ends.long(), patches, right=True) if len(ends) > times else frame
        )
        full = self.config.vision_config.fullatt_block_indexes
        return {
            block.attn: frame if number in full else window
            for number, block in enumerate(self.core.visual.blocks)
        }

    def own_positions(self, tokens: VisualTokens, grid: tuple[int, int], step: float) -> Tensor:
        """Return (3, N): time in steps, row and column of the box's first cell."""
        del grid
        time = (tokens.boxes[:, 0].double() * step).long()
        return torch.stack([time, tokens.boxes[:, 1], tokens.boxes[:, 2]])

    def own_time(self, frame: int, grid: tuple[int, int], step: float) -> int:
        """Return time in steps, cut to a whole number."""
        del grid
        return int(frame * step)

    def text_start(self, frames: int, grid: tuple[int, int], step: float, origin: int) -> int:
        """Return one past the largest position on any axis, as the family was trained."""
        return max(self.own_time(frames - 1, grid, step) + 1, origin + max(grid))

    def step(self, fps: float) -> float:
        """Return `tokens_per_second` of the checkpoint times the seconds between two token frames."""
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
