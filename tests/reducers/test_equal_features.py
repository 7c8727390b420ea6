"""Equal features merge at every threshold, up to 1, and so do features that are zero; others do not for that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stream_sttm.reducers import quadtree
from stream_sttm.reducers.sttm import Sttm
from stream_sttm.reducers.sttm_streaming import SttmStreaming


def _still(frames: int, channels: int, seed: int = 0) -> Tensor:
    scene = torch.randn(1, 7, 9, channels, generator=torch.Generator().manual_seed(seed))
    return scene.expand(frames, -1, -1, -1).clone()


def _streaming(**options: Any) -> SttmStreaming:
    return SttmStreaming(**{"spatial_threshold": 1.0, "temporal_threshold": 1.0, **options})


@pytest.mark.parametrize("channels", [1, 3, 48, 896, 3584])
@pytest.mark.parametrize("threshold", [0.65, 0.999_999, 0.999_999_9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_frames_merge_at_every_temporal_threshold(
    channels: int, threshold: float, dtype: torch.dtype
) -> None:
    video = _still(4, channels).to(dtype)
    whole, _ = Sttm(1.0, threshold)(video)
    first, state = _streaming(temporal_threshold=threshold)(video[:2])
    more, _ = _streaming(temporal_threshold=threshold)(video[2:], state)
    assert set(whole.boxes[:, 0].tolist()) == {0}
    assert set(first.boxes[:, 0].tolist()) == {0}
    assert len(more) == 0
    assert int(whole.sizes.sum()) == 4 * 7 * 9


def test_equal_frames_merge_under_a_drift_guard_and_a_budget_of_1() -> None:
    video = _still(4, 896)
    for options in (
        {"drift_threshold": 1.0},
        {"budget": {"share": 1.0, "spatial": (0.5, 1.0), "temporal": (0.3, 1.0)}},
    ):
        tokens, _ = _streaming(**options)(video)
        assert set(tokens.boxes[:, 0].tolist()) == {0}


@pytest.mark.parametrize("channels", [1, 48, 3584])
@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (3, 5)])
def test_equal_cells_of_a_frame_stay_one_leaf_at_a_spatial_threshold_of_1(
    channels: int, grid: tuple[int, int]
) -> None:
    cell = torch.randn(channels, generator=torch.Generator().manual_seed(1))
    frame = cell.expand(1, *grid, channels)
    for reducer in (Sttm(1.0, None, root_level=0), _streaming(root_level=0)):
        tokens, _ = reducer(frame)
        assert len(tokens) == quadtree.pyramid(frame, 0).norms[0].numel()


def test_features_that_differ_do_not_merge_at_1() -> None:
    video = _still(2, 48)
    video[1] += 1e-2 * _still(1, 48, seed=5)[0]
    for reducer in (Sttm(1.0, 1.0), _streaming()):
        assert len(reducer(video)[0]) == 2 * 7 * 9


@pytest.mark.parametrize("size", [0.0, 1e-20])
def test_zero_features_merge_with_zero_features_and_with_nothing_else(size: float) -> None:
    video = size * _still(4, 48)
    for reducer in (Sttm(), SttmStreaming(), SttmStreaming(drift_threshold=0.5)):
        tokens, _ = reducer(video)
        assert set(tokens.boxes[:, 0].tolist()) == {0}
        assert len(tokens) < 7 * 9, "and within a frame"
    mixed = _still(2, 48)
    mixed[1] = size
    assert set(_streaming(temporal_threshold=0.1)(mixed)[0].boxes[:, 0].tolist()) == {0, 1}
