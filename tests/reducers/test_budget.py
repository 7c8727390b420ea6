"""Budgets: thresholds read off exactly, never a token more than allowed, and none merged without need."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_sttm.errors import ConfigError
from stream_sttm.reducers import build_reducer, quadtree
from stream_sttm.reducers.budget import (
    Budget,
    leaf_counts,
    spatial_threshold,
    temporal_threshold,
)
from stream_sttm.reducers.sttm_streaming import SttmStreaming
from tests.support.moving_fields import moving_field

CELLS = 5 * 6
ROOTS = 4  # the coarsest level of such a grid
quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)


def pyramid_of(seed: int, root_level: int = 0) -> quadtree.Pyramid:
    return quadtree.pyramid(moving_field(seed), root_level)


@quick
@given(seeds, st.integers(0, 1), st.floats(-1, 1))
def test_leaves_are_counted_without_cutting_them(seed: int, root: int, threshold: float) -> None:
    pyramid = pyramid_of(seed, root)
    critical, counts = leaf_counts(pyramid)
    assert int(counts[int((critical < threshold).sum())]) == len(
        quadtree.leaves(pyramid, threshold)
    )


@quick
@given(seeds, st.integers(0, 1), st.integers(0, 6 * CELLS + 5))
def test_the_spatial_threshold_leaves_as_many_as_fit_and_no_more(
    seed: int, root: int, most: int
) -> None:
    pyramid = pyramid_of(seed, root)
    critical, counts = leaf_counts(pyramid)
    threshold = spatial_threshold(pyramid, most, within=(-1.0, 1.0))
    count = len(quadtree.leaves(pyramid, threshold))
    if most >= int(counts[0]):
        assert count <= most
        finer = critical[critical > threshold]
        if len(finer) and threshold < 1:  # the next one there is would leave too many
            assert len(quadtree.leaves(pyramid, float(finer[0]) + 1e-6)) > most
    else:
        assert count == int(counts[0])


def test_the_temporal_threshold_is_the_greatest_that_drops_enough() -> None:
    ranks = torch.tensor([0.9, 0.2, 0.7, 0.7, -0.5])
    assert temporal_threshold(ranks, 0, greatest=0.95) == 0.95
    assert temporal_threshold(ranks, 1, greatest=0.95) == pytest.approx(0.9)
    assert temporal_threshold(ranks, 1, greatest=0.8) == 0.8
    assert temporal_threshold(ranks, 2, greatest=1) == pytest.approx(0.7)
    assert temporal_threshold(ranks, 5, greatest=1) == -0.5
    assert temporal_threshold(ranks, 6, greatest=1) == -inf
    assert temporal_threshold(ranks[:0], 1, greatest=1) == -inf
    assert temporal_threshold(ranks[:0], 0, greatest=0.5) == 0.5


@quick
@given(
    seeds,
    st.sampled_from([1, 2, 3, 6]),
    st.floats(0.14, 1.0),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_no_clip_gives_more_than_its_budget_whatever_was_evicted(
    seed: int, cut: int, share: float, refresh: int, average: bool, loses: bool
) -> None:
    reducer = SttmStreaming(
        root_level=0, refresh_every=refresh, window_average=average, budget={"share": share}
    )
    state, start = None, 0
    for clip in moving_field(seed).split(cut):
        most = Budget(share=share).tokens(start, len(clip), CELLS)
        if most < ROOTS:
            return
        tokens, state = reducer(clip, state)
        assert len(tokens) <= most
        assert int(tokens.sizes.sum()) + int(state.absorbed[1].sum()) == len(clip) * CELLS
        start += len(clip)
        if loses:
            state = state.expire(state.serials[:: 1 + seed % 3])


@quick
@given(seeds, st.floats(0.3, 1.0))
def test_nothing_is_merged_below_the_greatest_threshold_while_there_is_room(
    seed: int, share: float
) -> None:
    greatest = 0.9
    reducer = SttmStreaming(root_level=0, budget={"share": share, "temporal": [0.2, greatest]})
    state, start = None, 0
    for clip in moving_field(seed).split(2):
        most = Budget(share=share).tokens(start, len(clip), CELLS)
        start += len(clip)
        if most < ROOTS:
            return
        before = state
        tokens, state = reducer(clip, state)
        if len(tokens) < most:  # then all that was absorbed is alike beyond the greatest, or ties
            found, joins = reducer._within(reducer.budget, quadtree.pyramid(clip, 0), before)  # type: ignore[arg-type]
            reached = found.best[joins]
            low = reached[reached < greatest]
            assert len(low) == 0 or len(tokens) + int((low == low.min()).sum()) > most


def test_a_budget_per_frame_adds_up_its_fractions() -> None:
    budget = Budget(tokens_per_frame=2.5)
    assert [budget.tokens(first, 1, 64) for first in range(4)] == [2, 3, 2, 3]
    assert budget.tokens(0, 4, 64) == 10
    assert [Budget(share=0.1).tokens(first, 1, 64) for first in range(4)] == [6, 6, 7, 6]
    assert Budget(tokens_per_window=12).tokens(3, 7, 64) == 12


def test_a_still_scene_costs_next_to_nothing_however_large_its_budget() -> None:
    scene = moving_field(1, frames=1, jumps=0.0).expand(6, -1, -1, -1)
    tokens, state = SttmStreaming(budget={"share": 1.0})(scene)
    assert tokens.boxes[:, 0].unique().tolist() == [0]
    assert len(SttmStreaming(budget={"share": 1.0})(scene, state)[0]) == 0


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, "needs one of"),
        ({"share": 0.3, "tokens_per_window": 4}, "share"),
        ({"share": 1.5}, "above 0, up to 1"),
        ({"share": True}, "budget.share must be"),
        ({"tokens_per_window": 0}, "above 0"),
        ({"tokens_per_frame": float("nan")}, "above 0"),
        ({"share": 0.3, "temporal": [0.9, 0.2]}, "the lower first"),
        ({"share": 0.3, "spatial": [0.9]}, "two numbers"),
        ({"tokens": 3}, "no key 'tokens'"),
        (30, "must be a section"),
    ],
)
def test_a_wrong_budget_is_refused_in_one_line(budget: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        build_reducer("sttm_streaming", {"budget": budget})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("tokens", [1, 3, 3.9])
def test_a_budget_too_small_for_any_picture_is_a_fault_of_the_configuration(tokens: float) -> None:
    with pytest.raises(ConfigError, match="a new picture needs 4 tokens at least"):
        build_reducer("sttm_streaming", {"budget": {"tokens_per_window": tokens}})


@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (2, 9), (4, 14), (14, 4), (7, 7), (5, 40)])
@pytest.mark.parametrize("root_level", [0, 1, 3])
def test_a_budget_holds_on_every_grid_however_few_levels_it_has(
    grid: tuple[int, int], root_level: int
) -> None:
    features = torch.randn(6, *grid, 8, generator=torch.Generator().manual_seed(3))
    cells, state, start = grid[0] * grid[1], None, 0
    coarsest = quadtree.pyramid(features, 0).norms[0][0].numel()
    for share in (0.1, 0.4, 1.0):
        reducer = SttmStreaming(root_level=root_level, budget={"share": share})
        for clip in features.split([1, 3, 2]):
            before, most = state, Budget(share=share).tokens(start, len(clip), cells)
            tokens, state = reducer(clip, before)
            assert len(tokens) <= (most if before else max(most, coarsest))
            covered = int(tokens.sizes.sum()) + int(state.absorbed[1].sum())
            assert covered == len(clip) * cells
            start += len(clip)


@pytest.mark.parametrize("amount", [{"tokens_per_frame": 3}, {"share": 0.05}])
def test_a_short_clip_in_which_nothing_is_new_costs_nothing_whatever_its_budget(
    amount: dict[str, float],
) -> None:
    reducer = SttmStreaming(budget=amount)
    scene = 1 + 0.1 * torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    _, state = reducer(scene.expand(8, -1, -1, -1))
    tokens, after = reducer(scene, state)
    assert len(tokens) == 0
    assert (after.frames, after.tokens) == (9, state.tokens)


def test_a_short_clip_that_begins_a_memory_is_kept_in_its_coarsest_cut() -> None:
    scene = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    tokens, state = SttmStreaming(budget={"tokens_per_frame": 3})(scene)
    assert len(tokens) == 4
    gone = state.expire(state.serials)
    assert len(SttmStreaming(budget={"tokens_per_frame": 3})(scene, gone)[0]) == 4


def test_a_budget_and_a_drift_guard_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="leave one out"):
        build_reducer("sttm_streaming", {"budget": {"share": 0.3}, "drift_threshold": 0.5})
