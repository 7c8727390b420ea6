"""Offline STTM against vectors of the published method, and what its parts promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from stream_sttm.reducers.sttm import merge_video

CASES = sorted((Path(__file__).parent / "data" / "sttm").glob("case*.safetensors"))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, float | int]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        options = file.metadata()
    return tensors, {
        "spatial_threshold": float(options["spatial_threshold"]),
        "temporal_threshold": float(options["temporal_threshold"]),
        "root_level": int(options["root_level"]),
    }


def test_there_are_twelve_golden_cases() -> None:
    assert len(CASES) == 12


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_spatial_step_equals_the_golden_leaves(path: Path) -> None:
    golden, options = load(path)
    tokens = merge_video(golden["features"], **{**options, "temporal_threshold": None})
    assert torch.equal(tokens.boxes, golden["leaf_boxes"].long())
    torch.testing.assert_close(tokens.features, golden["leaf_features"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_merged_video_equals_the_golden_tokens(path: Path) -> None:
    golden, options = load(path)
    tokens = merge_video(golden["features"], **options)
    assert torch.equal(tokens.boxes, golden["merged_boxes"].long())
    assert torch.equal(tokens.sizes, golden["merged_patches"].long())
    torch.testing.assert_close(tokens.features, golden["merged_features"], rtol=1e-5, atol=1e-6)
