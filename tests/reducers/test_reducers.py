"""What every reducer promises, whatever its method."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from stream_sttm import registry
from stream_sttm.errors import ConfigError
from stream_sttm.reducers import GROUP, REDUCERS, Reducer, build_reducer
from stream_sttm.visual_tokens import VisualTokens
from tests.support.moving_fields import moving_field

NAMES = registry.names(REDUCERS, GROUP)
DROPPING = {"random", "subsample"}  # what they leave out is gone; the others merge it


@pytest.fixture(params=NAMES)
def reducer(request: pytest.FixtureRequest) -> Reducer:
    return build_reducer(request.param)


def clips(frames: int = 6, size: int = 2) -> Iterator[Tensor]:
    return iter(moving_field(0, frames=frames).split(size))


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside a state or tokens, in order."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    return []


def equal(first: Any, second: Any) -> bool:
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def paint(tokens: VisualTokens, frames: int, grid: tuple[int, int]) -> Tensor:
    """How many tokens cover each cell."""
    canvas = torch.zeros(frames, *grid, dtype=torch.int64)
    for t, y0, x0, y1, x1 in tokens.boxes.tolist():
        canvas[t, y0:y1, x0:x1] += 1
    return canvas


def test_tokens_have_matching_shapes_and_the_dtype_of_the_features(reducer: Reducer) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        features = moving_field(1).to(dtype)
        tokens, _ = reducer(features)
        count = len(tokens)
        assert 0 < count <= features[..., 0].numel()
        assert tokens.features.shape == (count, 8)
        assert tokens.features.dtype == dtype
        assert tokens.boxes.shape == (count, 5)
        assert tokens.sizes.shape == (count,)
        assert tokens.boxes.dtype == tokens.sizes.dtype == torch.int64
        assert bool(tokens.features.isfinite().all())


def test_boxes_do_not_overlap_and_come_in_stream_order(reducer: Reducer) -> None:
    tokens, _ = reducer(moving_field(2))
    assert int(paint(tokens, 6, (5, 6)).max()) == 1
    corners = [tuple(box[:3]) for box in tokens.boxes.tolist()]
    assert corners == sorted(set(corners))


def test_first_frame_is_covered_whole(reducer: Reducer) -> None:
    tokens, _ = reducer(moving_field(3)[:1])
    assert torch.equal(paint(tokens, 1, (5, 6)), torch.ones(1, 5, 6, dtype=torch.int64))
    assert int(tokens.sizes.sum()) == 30


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_clip_is_counted_once_or_dropped(name: str) -> None:
    reducer, state, counted = build_reducer(name), None, []
    for clip in clips():
        tokens, state = reducer(clip, state)
        _, absorbed = state.absorbed
        counted.append(int(tokens.sizes.sum()) + int(absorbed.sum()))
    if name in DROPPING:
        assert sum(counted) < 6 * 30
        assert all(count <= 60 for count in counted)
    else:
        assert counted == [60] * 3


def test_frames_count_on_over_clips_and_tokens_never_come_from_earlier_ones(
    reducer: Reducer,
) -> None:
    state, start = None, 0
    for clip in (*clips(size=1), *clips(size=3)):
        tokens, state = reducer(clip, state)
        frames = tokens.boxes[:, 0]
        assert bool(((frames >= start) & (frames < start + clip.shape[0])).all())
        start += clip.shape[0]


def test_absorbed_names_distinct_tokens_of_earlier_clips(reducer: Reducer) -> None:
    state, emitted, start = None, 0, 0
    for clip in clips():
        tokens, state = reducer(clip, state)
        serials, cells = state.absorbed
        seen, frames = state.last_seen
        assert serials.shape == cells.shape
        assert seen.shape == frames.shape
        assert len(serials.unique()) == len(serials)
        assert bool(((serials >= 0) & (serials < emitted)).all())
        assert bool((cells > 0).all())
        assert set(serials.tolist()) <= set(seen.tolist()) < {*range(emitted + len(tokens)), -1}
        assert bool(((frames >= start) & (frames < start + 2)).all())
        emitted, start = emitted + len(tokens), start + 2


def test_same_features_and_state_give_the_same_result(reducer: Reducer) -> None:
    first, second, third = clips()
    _, state = reducer(second, reducer(first)[1])
    assert equal(reducer(third, state), reducer(third.clone(), state))


def test_features_and_state_stay_as_they_were(reducer: Reducer) -> None:
    first, second, _ = clips()
    _, state = reducer(first)
    before = copy.deepcopy((state, first, second))
    reducer(second, state)
    state.expire(torch.arange(10**4))
    reducer(first, state.expire(torch.arange(10**4)))
    assert equal(before, (state, first, second))


def test_state_and_reducer_are_frozen(reducer: Reducer) -> None:
    _, state = reducer(moving_field(4))
    for value in (state, reducer):
        field = next(iter(dataclasses.fields(value)), None)
        if field is not None:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)


def test_features_may_lie_in_memory_in_any_order(reducer: Reducer) -> None:
    features = moving_field(5)
    shuffled = features.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not shuffled.is_contiguous()
    assert equal(reducer(features), reducer(shuffled))


def test_no_graph_is_kept(reducer: Reducer) -> None:
    result = reducer(moving_field(6).requires_grad_())
    assert not any(tensor.requires_grad for tensor in tensors(result))


def test_black_frames_give_finite_tokens(reducer: Reducer) -> None:
    state = None
    for _ in range(2):
        tokens, state = reducer(torch.zeros(2, 5, 6, 8), state)
        assert bool((tokens.features == 0).all())


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (torch.zeros(5, 6, 8), "four axes"),
        (torch.zeros(2, 5, 6, 8, 1), "four axes"),
        (torch.zeros(0, 5, 6, 8), "no frame"),
        (torch.zeros(2, 5, 6, 0), "no channel"),
        (torch.zeros(2, 0, 6, 8), "at least"),
        (torch.zeros(2, 5, 6, 8, dtype=torch.int64), "floating point"),
        (torch.full((2, 5, 6, 8), torch.nan), "NaN"),
        (torch.full((2, 5, 6, 8), torch.inf), "infinite"),
    ],
)
def test_bad_features_are_refused_in_one_line(
    reducer: Reducer, features: Tensor, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        reducer(features)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["sttm", "sttm_streaming"])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"spatial_threshold": 1.5}, "spatial_threshold must be a number from -1 to 1, got 1.5"),
        ({"temporal_threshold": -2}, "temporal_threshold must be a number from -1 to 1, got -2"),
        ({"spatial_threshold": float("nan")}, "spatial_threshold must be"),
        ({"spatial_threshold": True}, "spatial_threshold must be"),
        ({"root_level": -1}, "root_level must be a whole number"),
        ({"root_level": 0.5}, "root_level must be a whole number"),
        ({"spacial_threshold": 0.5}, "did you mean 'spatial_threshold'"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        build_reducer(name, options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", sorted(DROPPING))
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"keep": 0}, "keep must be a number above 0, up to 1, got 0"),
        ({"keep": 1.5}, "keep must be a number above 0, up to 1, got 1.5"),
        ({"keep": True}, "keep must be"),
        ({"kept": 0.5}, "did you mean 'keep'"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build_reducer(name, options)


@pytest.mark.parametrize("name", sorted(DROPPING))
@pytest.mark.parametrize("keep", [0.15, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("cut", [1, 3, 40])
def test_the_share_wanted_is_kept_however_the_stream_is_cut(
    name: str, keep: float, cut: int
) -> None:
    reducer, video, state = build_reducer(name, {"keep": keep}), moving_field(0, frames=40), None
    whole, boxes = reducer(video)[0], []
    for clip in video.split(cut):
        tokens, state = reducer(clip, state)
        boxes.append(tokens.boxes)
    assert torch.equal(torch.cat(boxes), whole.boxes)
    assert abs(len(whole) - keep * 40 * 30) <= 30 + 1
    frames = whole.boxes[:, 0].bincount(minlength=40)
    if name == "subsample":
        gaps = (frames > 0).nonzero()[:, 0].diff()
        assert set(frames.tolist()) <= {0, 30}
        assert int(gaps.max() - gaps.min()) <= 1
    else:
        assert int(frames[1:].max() - frames[1:].min()) <= 1


def test_another_seed_drops_other_tokens() -> None:
    kept = [build_reducer("random", {"seed": seed})(moving_field(0))[0].boxes for seed in (0, 0, 1)]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_a_saved_state_goes_on_as_the_one_it_was_saved_from(reducer: Reducer) -> None:
    first, second, _ = clips()
    _, state = reducer(first)
    back = reducer.state.restored({name: part.clone() for name, part in state.saved().items()})
    assert (back.frames, back.tokens) == (state.frames, state.tokens)
    tokens, after = reducer(second, state)
    again, restored = reducer(second, back)
    assert equal(tokens, again)
    assert equal(after, restored)


def test_a_state_with_something_missing_is_a_key_error(reducer: Reducer) -> None:
    with pytest.raises(KeyError):
        reducer.state.restored({})
