"""Streaming STTM against golden vectors, and each of its rules by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stream_sttm.reducers.sttm_streaming import StreamState, SttmStreaming
from stream_sttm.visual_tokens import VisualTokens
from tests.reducers.test_reducers import equal, tensors
from tests.reducers.test_sttm import CASES, load
from tests.support.causal_loop import MARGIN
from tests.support.moving_fields import moving_field


def stream(
    reducer: SttmStreaming, clips: Iterator[Tensor] | list[Tensor]
) -> tuple[VisualTokens, StreamState]:
    """All tokens of a stream, sizes as they are in the end, and its last state."""
    state: StreamState | None = None
    parts: list[VisualTokens] = []
    sizes = torch.zeros(0, dtype=torch.int64)
    for clip in clips:
        tokens, state = reducer(clip, state)
        serials, cells = state.absorbed
        sizes = torch.cat([sizes.index_add(0, serials, cells), tokens.sizes])
        parts.append(tokens)
    assert state is not None
    features, boxes = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("features", "boxes")
    )
    return VisualTokens(features, boxes, sizes), state


@pytest.mark.parametrize("size", [1, 3, 99])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_emitted_leaves_and_anchors_equal_the_golden_ones(path: Path, size: int) -> None:
    golden, chosen = load(path)
    reducer = SttmStreaming(**chosen)
    anchors = golden["causal_anchor"].long()
    is_emitted = anchors == torch.arange(len(anchors))
    serials = (is_emitted.cumsum(0) - 1)[anchors]
    leaf_frames = golden["leaf_boxes"][:, 0]
    state, parts, start = None, [], 0
    for clip in golden["features"].split(size):
        tokens, state = reducer(clip, state)
        parts.append(tokens)
        start += clip.shape[0]
        assert torch.equal(state.serials, serials[leaf_frames == start - 1])
    assert torch.equal(
        torch.cat([tokens.boxes for tokens in parts]), golden["leaf_boxes"][is_emitted].long()
    )
    torch.testing.assert_close(
        torch.cat([tokens.features for tokens in parts]),
        golden["leaf_features"][is_emitted],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_leaf_joins_exactly_when_the_golden_match_says_so(path: Path) -> None:
    golden, chosen = load(path)
    tokens, _ = SttmStreaming(**chosen)(golden["features"])
    unmatched = golden["leaf_boxes"][golden["causal_match"] < 0].long()
    assert torch.equal(tokens.boxes, unmatched)


@pytest.mark.parametrize("guard", [-1.0, 0.5])
def test_state_stays_as_small_after_many_clips_as_after_one(guard: float) -> None:
    reducer = SttmStreaming(drift_threshold=guard, spatial_threshold=0.9)
    most = 0
    state: StreamState | None = None
    bound = 30 * (2 * 8 * 4 + 2 * 4 + 5 * 8 + 8 * 8)
    for seed in range(60):
        _, state = reducer(moving_field(seed, frames=4), state)
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(state)
        }
        most = max(most, sum(held.values()))
    assert 0 < most <= bound


def test_a_still_scene_is_emitted_once_and_again_when_its_tokens_are_evicted() -> None:
    scene = moving_field(1, frames=1, jumps=0.0).expand(3, -1, -1, -1)
    reducer = SttmStreaming(spatial_threshold=0.95)
    first, state = reducer(scene)
    assert first.boxes[:, 0].unique().tolist() == [0]
    again, state = reducer(scene, state)
    assert len(again) == 0
    assert torch.equal(state.absorbed[0], torch.arange(len(first)))
    assert state.absorbed[1].sum() == 90
    assert state.last_seen[1].unique().tolist() == [5]
    half = len(first) // 2
    anew, state = reducer(scene, state.expire(torch.arange(half)))
    assert torch.equal(anew.boxes[:, 1:], first.boxes[:half, 1:])
    assert anew.boxes[:, 0].unique().tolist() == [6]
    assert torch.equal(anew.features, first.features[:half])
    none, _ = reducer(scene, state.expire(torch.arange(half)))
    assert len(none) == 0


def test_what_was_evicted_stays_so() -> None:
    scene = moving_field(1, frames=1, jumps=0.0)
    reducer = SttmStreaming(spatial_threshold=0.95)
    first, state = reducer(scene)
    anew, _ = reducer(scene, state.expire(torch.arange(len(first))).expire(torch.arange(1)))
    assert torch.equal(anew.features, first.features)


def test_drift_guard_ends_a_slow_slide_that_frame_to_frame_matching_follows_for_ever() -> None:
    angles = torch.linspace(0, torch.pi, 40)
    slide = torch.stack([angles.cos(), angles.sin()], 1)[:, None, None, :].expand(-1, 4, 4, -1)
    loose, _ = SttmStreaming(temporal_threshold=0.9)(slide)
    assert loose.boxes[:, 0].unique().tolist() == [0]
    guarded, _ = stream(
        SttmStreaming(temporal_threshold=0.9, drift_threshold=0.8), list(slide.split(8))
    )
    frames = guarded.boxes[:, 0].unique()
    kept = slide[frames, 0, 0]
    assert len(frames) > 3
    for start, end, look in zip(frames, [*frames[1:].tolist(), 40], kept, strict=True):
        assert bool((slide[start:end, 0, 0] @ look >= 0.8 - MARGIN).all())


def test_window_average_takes_the_mean_of_its_own_clip_only() -> None:
    base = moving_field(2, frames=1, jumps=0.0)
    clip = torch.cat([base, base * 3])
    tokens, state = SttmStreaming(window_average=True, root_level=0)(clip)
    plain, _ = SttmStreaming(root_level=0)(clip[:1])
    torch.testing.assert_close(tokens.features, plain.features * 2)
    later, state = SttmStreaming(window_average=True, root_level=0)(clip * 5, state)
    assert len(later) == 0
    assert state.absorbed[1].sum() == 60


@pytest.mark.parametrize("change", ["grid", "channels"])
def test_a_changed_grid_emits_everything_and_goes_on_counting(change: str) -> None:
    reducer = SttmStreaming(drift_threshold=0.0)
    first, state = reducer(moving_field(3))
    other = moving_field(3, grid=(4, 7)) if change == "grid" else moving_field(3, channels=9)
    fresh, _ = reducer(other)
    tokens, after = reducer(other, state)
    assert torch.equal(tokens.boxes[:, 1:], fresh.boxes[:, 1:])
    assert torch.equal(tokens.boxes[:, 0], fresh.boxes[:, 0] + 6)
    assert (after.frames, after.tokens) == (12, len(first) + len(tokens))
    assert len(after.absorbed[0]) == 0
    assert bool((after.serials >= len(first)).all())


def test_a_state_kept_without_a_guard_starts_afresh_under_one() -> None:
    features = moving_field(4)
    _, state = SttmStreaming()(features)
    tokens, after = SttmStreaming(drift_threshold=0.2)(features, state)
    assert len(tokens) == len(SttmStreaming(drift_threshold=0.2)(features)[0])
    assert after.frames == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_decides_as_its_float32_copy_does(dtype: torch.dtype) -> None:
    features = moving_field(5, frames=8).to(dtype)
    reducer = SttmStreaming(drift_threshold=0.3, window_average=True)
    low, low_state = stream(reducer, list(features.split(3)))
    full, full_state = stream(reducer, list(features.float().split(3)))
    assert torch.equal(low.boxes, full.boxes)
    assert torch.equal(low.sizes, full.sizes)
    assert torch.equal(low.features, full.features.to(dtype))
    assert equal(low_state, full_state)


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"drift_threshold": 1.1}, "drift_threshold must be a number from -1 to 1"),
        ({"temporal_threshold": None}, "temporal_threshold must be a number from -1 to 1"),
        ({"refresh_every": -1}, "refresh_every must be a whole number"),
        ({"window_average": 1}, "window_average must be true or false"),
    ],
)
def test_bad_options_are_refused(chosen: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SttmStreaming(**chosen)


def test_a_leaf_whose_similarity_equals_the_threshold_joins() -> None:
    black = torch.zeros(3, 6, 6, 8)
    tokens, _ = SttmStreaming(spatial_threshold=0.0, temporal_threshold=0.0)(black)
    assert tokens.sizes.tolist() == torch.full((9,), 12).tolist()


def test_a_tie_goes_to_the_leaf_that_comes_first() -> None:
    wall, spot = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    spotted = wall.expand(1, 4, 4, 16).clone()
    spotted[0, 0, 0] = spot
    reducer = SttmStreaming(spatial_threshold=0.9, temporal_threshold=0.9, root_level=0)
    first, state = reducer(spotted)
    assert [box[1:3] for box in first.boxes.tolist()[:5]] == [
        [0, 0],
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 1],
    ]
    _, state = reducer(wall.expand(1, 4, 4, 16), state)
    assert state.serials.tolist() == [1, 2, 5, 6]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_accelerator_merges_as_the_processor_does() -> None:
    features = moving_field(6, frames=8, grid=(14, 14), channels=64)
    reducer = SttmStreaming(drift_threshold=0.3, window_average=True)
    here, _ = stream(reducer, list(features.split(3)))
    there, _ = stream(reducer, list(features.cuda().split(3)))
    assert torch.equal(here.boxes, there.boxes.cpu())
    assert torch.equal(here.sizes, there.sizes.cpu())
    torch.testing.assert_close(here.features, there.features.cpu())
