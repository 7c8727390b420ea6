"""Offline STTM against vectors of the published method, and what its parts promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from bench.merging import check, merge, plain_merge, scene
from stream_sttm.reducers import quadtree
from stream_sttm.reducers.sttm import components, merge_video, neighbours
from tests.support.moving_fields import moving_field

CASES = sorted((Path(__file__).parents[1] / "data" / "sttm").glob("case*.safetensors"))


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


# The method, one node and one pair at a time.

MARGIN = 1e-5
grids = st.tuples(st.integers(2, 11), st.integers(2, 11))


def parent_of(child: int, side: int) -> int:
    return (child + side % 2) // 2


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.cosine_similarity(first.double(), second.double(), dim=0))


def levels_of(frame: Tensor, root_level: int) -> list[Tensor]:
    """Return the frame at every resolution, roots first: each node the mean of its children."""
    levels = [frame]
    while min(levels[0].shape[:2]) > 2:
        children = levels[0]
        height, width, _ = children.shape
        families: dict[tuple[int, int], list[Tensor]] = {}
        for y in range(height):
            for x in range(width):
                parent = (parent_of(y, height), parent_of(x, width))
                families.setdefault(parent, []).append(children[y, x])
        means = [torch.stack(families[key]).mean(0) for key in sorted(families)]
        levels.insert(0, torch.stack(means).view((height + 1) // 2, (width + 1) // 2, -1))
    return levels[root_level:] or levels[-1:]


def leaves_of(frame: Tensor, threshold: float, root_level: int) -> dict[tuple[int, ...], Tensor]:
    """Feature by box (y0, x0, y1, x1), by recursion from the roots; assumes no decision is a close call."""
    levels = levels_of(frame, root_level)

    def below(level: int, y: int, x: int) -> list[tuple[int, int, int]]:
        height, width, _ = levels[level + 1].shape
        return [
            (level + 1, child_y, child_x)
            for child_y in range(height)
            for child_x in range(width)
            if (parent_of(child_y, height), parent_of(child_x, width)) == (y, x)
        ]

    def cells(level: int, y: int, x: int) -> list[tuple[int, int]]:
        if level == len(levels) - 1:
            return [(y, x)]
        return [cell for child in below(level, y, x) for cell in cells(*child)]

    def kept(level: int, y: int, x: int) -> list[tuple[int, int, int]]:
        if level == len(levels) - 1:
            return [(level, y, x)]
        children = below(level, y, x)
        least = min(cosine(levels[level][y, x], levels[a][b, c]) for a, b, c in children)
        assume(abs(least - threshold) > MARGIN)
        if least >= threshold:
            return [(level, y, x)]
        return [node for child in children for node in kept(*child)]

    found = {}
    for y in range(levels[0].shape[0]):
        for x in range(levels[0].shape[1]):
            for node in kept(0, y, x):
                ys, xs = zip(*cells(*node), strict=True)
                box = (min(ys), min(xs), max(ys) + 1, max(xs) + 1)
                found[box] = levels[node[0]][node[1], node[2]]
    return dict(sorted(found.items()))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    grids,
    st.sampled_from([0, 1]),
    st.sampled_from([0.3, 0.6, 0.8]),
    st.sampled_from([0.3, 0.6, 0.8]),
)
def test_any_grid_equals_a_plain_recursion_and_search(
    seed: int, grid: tuple[int, int], root_level: int, spatial: float, temporal: float
) -> None:
    features = moving_field(seed, frames=4, grid=grid)
    nodes = [
        ((t, *box), look)
        for t, frame in enumerate(features)
        for box, look in leaves_of(frame, spatial, root_level).items()
    ]
    group = list(range(len(nodes)))
    for i, (a, look) in enumerate(nodes):
        for j, (b, other) in enumerate(nodes):
            overlap = a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
            if b[0] == a[0] + 1 and overlap:
                value = cosine(look, other)
                assume(abs(value - temporal) > MARGIN)
                if value >= temporal:
                    low, high = sorted((group[i], group[j]))
                    group = [low if label == high else label for label in group]
    members = {root: [i for i, label in enumerate(group) if label == root] for root in group}
    spots = sorted(members)
    only_space = merge_video(
        features, spatial_threshold=spatial, temporal_threshold=None, root_level=root_level
    )
    assert only_space.boxes.tolist() == [list(box) for box, _ in nodes]
    tokens = merge_video(
        features, spatial_threshold=spatial, temporal_threshold=temporal, root_level=root_level
    )
    assert tokens.boxes.tolist() == [list(nodes[root][0]) for root in spots]
    looks = [torch.stack([nodes[i][1] for i in members[root]]).mean(0) for root in spots]
    torch.testing.assert_close(tokens.features, torch.stack(looks), rtol=1e-5, atol=1e-5)
    areas = [(box[3] - box[1]) * (box[4] - box[2]) for box, _ in nodes]
    assert tokens.sizes.tolist() == [sum(areas[i] for i in members[root]) for root in spots]


@pytest.mark.parametrize("side", [5, 8, 13, 14])
def test_bench_arms_return_the_same_tokens(side: int) -> None:
    features = scene(6, side, 32, "cpu")
    tokens = merge(features)
    assert len(tokens) < 6 * side * side
    check(tokens, plain_merge(features))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_components_are_found_to_the_end(count: int, pairs: list[tuple[int, int]]) -> None:
    edges = [(a % count, b % count) for a, b in pairs]
    expected = list(range(count))
    for a, b in edges:
        low, high = sorted((expected[a], expected[b]))
        expected = [low if label == high else label for label in expected]
    first, second = torch.tensor(edges, dtype=torch.int64).view(-1, 2).unbind(1)
    assert components(first, second, count).tolist() == expected


def test_a_long_chain_is_one_component() -> None:
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert bool((components(order[:-1], order[1:], 5000) == 0).all())


def test_wide_frames_that_fill_the_cache_are_cut_as_each_alone() -> None:
    features = moving_field(0, frames=3, grid=(14, 14), channels=9000)
    assert features[:1].nbytes > quadtree.CACHE_BYTES
    options = {"spatial_threshold": 0.8, "temporal_threshold": None}
    whole = merge_video(features, **options)
    alone = [merge_video(frame, **options) for frame in features.split(1)]
    assert torch.equal(whole.features, torch.cat([tokens.features for tokens in alone]))
    assert torch.equal(whole.boxes[:, 1:], torch.cat([tokens.boxes[:, 1:] for tokens in alone]))


def test_wide_frames_merge_as_their_channels_in_another_order_do() -> None:
    features = moving_field(0, frames=4, grid=(14, 14), channels=1500)
    shuffle = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    options = {"spatial_threshold": 0.8, "temporal_threshold": 0.7}
    tokens = merge_video(features, **options)
    shuffled = merge_video(features[..., shuffle], **options)
    assert 16 < len(tokens) < 4 * 196
    assert torch.equal(tokens.boxes, shuffled.boxes)
    torch.testing.assert_close(tokens.features[:, shuffle], shuffled.features)


def test_a_uniform_video_becomes_its_first_roots() -> None:
    tokens = merge_video(torch.ones(5, 14, 14, 8), spatial_threshold=0.9, temporal_threshold=0.9)
    assert len(tokens) == 16
    assert bool((tokens.boxes[:, 0] == 0).all())
    assert int(tokens.sizes.sum()) == 5 * 196
    torch.testing.assert_close(tokens.features, torch.ones(16, 8))


def test_thresholds_that_nothing_reaches_keep_every_cell() -> None:
    features = torch.randn(3, 6, 5, 8, generator=torch.Generator().manual_seed(0))
    tokens = merge_video(features, spatial_threshold=1.0, temporal_threshold=1.0)
    assert len(tokens) == 90
    assert torch.equal(tokens.features, features.view(90, 8))


def test_thresholds_of_minus_one_merge_all_that_can_meet() -> None:
    features = torch.randn(4, 14, 14, 8, generator=torch.Generator().manual_seed(0))
    tokens = merge_video(features, spatial_threshold=-1, temporal_threshold=-1)
    assert len(tokens) == 16
    torch.testing.assert_close(
        tokens.features.mean(0), features.view(-1, 8).mean(0), atol=0.2, rtol=0
    )


@pytest.mark.parametrize(
    ("features", "root_level", "complaint"),
    [
        (torch.ones(1, 1, 6, 8), 1, "at least 2x2 cells"),
        (torch.ones(1, 6, 1, 8), 1, "at least 2x2 cells"),
        (torch.full((1, 4, 4, 8), 1e30), 1, "huge"),
    ],
)
def test_what_the_tree_cannot_hold_is_refused(
    features: Tensor, root_level: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        merge_video(features, spatial_threshold=0.8, temporal_threshold=0.6, root_level=root_level)


def test_a_cell_without_a_direction_is_like_no_other_and_a_threshold_is_reached_by_its_equal() -> (
    None
):
    half = torch.zeros(2, 6, 6, 8)
    half[1] = 1.0
    apart = merge_video(half, spatial_threshold=1.0, temporal_threshold=1e-6)
    assert len(apart) == 2 * 9
    joined = merge_video(half, spatial_threshold=1.0, temporal_threshold=0.0)
    assert len(joined) == 9


def test_neighbours_are_listed_once() -> None:
    features = moving_field(7, frames=5, grid=(9, 12))
    leaves = quadtree.cut(features, spatial_threshold=0.8, root_level=0)
    pairs = torch.stack(neighbours(leaves), 1)
    assert len(pairs.unique(dim=0)) == len(pairs)
    frames = leaves.boxes[:, 0]
    assert bool((frames[pairs[:, 0]] == frames[pairs[:, 1]] + 1).all())
    met = {
        (later, earlier)
        for above, below in zip(leaves.owner[1:], leaves.owner[:-1], strict=True)
        for later, earlier in zip(above.flatten().tolist(), below.flatten().tolist(), strict=True)
    }
    assert {tuple(pair) for pair in pairs.tolist()} == met
