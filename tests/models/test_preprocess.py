"""Our preprocessing against transformers' own PIL image processors, on real-looking pictures of odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from stream_sttm.errors import ModelError
from stream_sttm.models.preprocess import CLIP, HALF, fit, normalize, patchify, resize

ONE_LEVEL = 1 / 255  # what rounding to 8 bit may differ by


def _picture(height: int, width: int) -> np.ndarray:
    """Smooth shades with hard edges and some noise, (H, W, 3) uint8."""
    generator = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    shade = 90 + 60 * np.sin(x / 17) + 50 * np.cos(y / 11)
    picture = np.stack([shade, shade[::-1], 255 - shade], axis=-1)
    picture[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 40)
    return np.clip(picture + generator.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def _frames(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [(480, 640), (576, 768), (96, 96), (50, 333)])
def test_siglip_pixels_equal_the_library_to_one_grey_level(size: tuple[int, int]) -> None:
    picture = _picture(*size)
    processor = SiglipImageProcessorPil(size={"height": 384, "width": 384}, resample=3)
    wanted = processor(picture, return_tensors="pt")["pixel_values"]
    ours = normalize(resize(_frames(picture), 384, 384), HALF)
    difference = (ours - wanted).abs() / 2  # back to 0..1
    assert difference.max() <= 1.01 * ONE_LEVEL
    assert difference.mean() < 0.1 * ONE_LEVEL


@pytest.mark.parametrize("size", [(480, 640), (333, 500), (84, 1400)])
def test_qwen_patches_equal_the_library_to_one_grey_level(size: tuple[int, int]) -> None:
    picture = _picture(*size)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 200_704})
    wanted = processor(picture, return_tensors="pt")
    height, width = fit(*size, factor=28, least=3136, most=200_704)
    pixels = normalize(resize(_frames(picture), height, width), CLIP)
    patches, grid = patchify(pixels, patch=14, merge=2, span=2)
    assert grid.tolist() == wanted["image_grid_thw"].tolist()
    difference = (patches - wanted["pixel_values"]).abs() * min(CLIP.std)
    assert difference.max() <= 1.05 * ONE_LEVEL


def test_an_odd_number_of_frames_is_filled_up_with_the_last() -> None:
    pixels = torch.rand(3, 3, 28, 28)
    patches, grid = patchify(pixels, patch=14, merge=2, span=2)
    filled, _ = patchify(pixels[[0, 1, 2, 2]], patch=14, merge=2, span=2)
    assert grid.tolist() == [[2, 2, 2]]
    assert torch.equal(patches, filled)


def test_a_picture_that_is_a_line_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="2000x2 is too narrow"):
        fit(2, 2000, factor=28, least=3136, most=200_704)
