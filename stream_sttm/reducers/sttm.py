"""STTM: Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration of Video LLMs, ICCV 2025.

https://arxiv.org/abs/2507.07990. In space, each frame becomes quadtree leaves. In time, leaves of consecutive frames
that share a cell and look alike join. A group keeps the place of its earliest, top-left leaf. Here the whole clip is
seen before anything is returned. sttm_streaming.py is the form for an endless stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sttm.reducers import quadtree
from stream_sttm.reducers.frames import Progress, checked, progressed
from stream_sttm.reducers.quadtree import NEARLY_ONE, Leaves, cosines
from stream_sttm.visual_tokens import VisualTokens


def merge_video(
    features: Tensor,
    *,
    spatial_threshold: float,
    temporal_threshold: float | None,
    root_level: int = 1,
) -> VisualTokens:
    """Return the merged tokens of one video's features (T, H, W, C). `temporal_threshold=None` merges in space only.

    Similarities and means are float32. The returned features have the input's dtype.
    """
    return Sttm(spatial_threshold, temporal_threshold, root_level)(features)[0]


@dataclass(frozen=True, slots=True)
class Sttm:
    """Offline STTM, each clip for itself. The defaults are the published setting for half the tokens.

    Parameters
        spatial_threshold (float, -1 to 1, default the model's, else 0.85): a quadtree node splits where its least
            cosine with a child is below it.
        temporal_threshold (float, -1 to 1, or None, default the model's, else 0.65): least cosine at which leaves of
            consecutive frames join. None merges in space only.
        root_level (int, 0 or more, default 1): how many of the coarsest quadtree levels are left out.
    """

    state: ClassVar = Progress
    tuned_options: ClassVar = ("spatial_threshold", "temporal_threshold")

    spatial_threshold: float = 0.85
    temporal_threshold: float | None = 0.65
    root_level: int = 1

    def __post_init__(self) -> None:
        check_options(self.spatial_threshold, self.temporal_threshold, self.root_level)

    def __call__(
        self, features: Tensor, state: Progress | None = None
    ) -> tuple[VisualTokens, Progress]:
        """Merge the frames of one clip among themselves. Returns the tokens and the next state."""
        features = checked(features, min_side=2)
        leaves = quadtree.cut(
            features,
            spatial_threshold=self.spatial_threshold,
            root_level=self.root_level,
            first_frame=state.frames if state is not None else 0,
        )
        if self.temporal_threshold is None:
            merged = VisualTokens(leaves.features(), leaves.boxes, leaves.sizes)
        else:
            later, earlier = neighbours(leaves)
            cosine = similarities(leaves, later, earlier, greatest=self.temporal_threshold)
            linked = cosine >= self.temporal_threshold
            root = components(later[linked], earlier[linked], len(leaves))
            merged = joined(leaves, root)
        tokens = VisualTokens(merged.features.to(features.dtype), merged.boxes, merged.sizes)
        return tokens, progressed(state, features.shape[0], len(tokens), features.device)


def neighbours(leaves: Leaves) -> tuple[Tensor, Tensor]:
    """Return every pair of leaves of consecutive frames that share a cell, once: (later (P,), earlier (P,)).

    Such leaves are nested, so the smaller one's top-left cell finds the larger one in the other frame.
    """
    count, (last, *_) = len(leaves), leaves.owner.shape
    t, y, x, *_ = leaves.boxes.unbind(1)
    t = t - t[0]
    me = torch.arange(count, device=t.device)
    before = leaves.owner[(t - 1).clamp(min=0), y, x]
    after = leaves.owner[(t + 1).clamp(max=last - 1), y, x]
    size = leaves.sizes
    inside = ((t > 0) & (size[before] >= size)).nonzero()[:, 0]
    ahead = ((t < last - 1) & (size[after] > size)).nonzero()[:, 0]
    return torch.cat([me[inside], after[ahead]]), torch.cat([before[inside], me[ahead]])


def similarities(leaves: Leaves, first: Tensor, second: Tensor, *, greatest: float) -> Tensor:
    """Return cosines (P,) of leaf first[i] and leaf second[i].

    `greatest` is the greatest threshold that they will be compared with.
    """
    ones, others = (
        (leaves.rows[first], leaves.norms[first]),
        (leaves.rows[second], leaves.norms[second]),
    )
    return row_cosines(leaves, ones, others, greatest=greatest)


def row_cosines(
    leaves: Leaves,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    *,
    greatest: float,
) -> Tensor:
    """Return cosines (P,) of the features of two lists of table rows, each given with their norms.

    Where `greatest`, the greatest threshold that they will be compared with, is near 1, equal features have exactly 1.
    """
    cosine = cosines(row_dots(leaves, first[0], second[0]), first[1], second[1])
    if greatest > NEARLY_ONE:
        near = (cosine > NEARLY_ONE).nonzero()[:, 0]
        cosine[near[_are_equal(leaves, first[0][near], second[0][near])]] = 1.0
    return cosine


def _are_equal(leaves: Leaves, first: Tensor, second: Tensor) -> Tensor:
    """Return (P,) bool: whether the features of two lists of table rows are equal."""
    count, channels = first.shape[0], leaves.tables[0].shape[1]
    step = quadtree.at_once(first.device, count, 4 * channels)
    equal = torch.empty(count, dtype=torch.bool, device=first.device)
    for start in range(0, count, step):
        part = slice(start, start + step)
        equal[part] = (leaves.take(first[part]) == leaves.take(second[part])).all(-1)
    return equal


def row_dots(leaves: Leaves, first: Tensor, second: Tensor) -> Tensor:
    """Return dot products (P,) of the features of two lists of table rows."""
    count, channels = first.shape[0], leaves.tables[0].shape[1]
    step = quadtree.at_once(first.device, count, 4 * channels)
    dots = leaves.norms.new_empty(count)
    left, right = leaves.tables[0].new_empty(2, step, channels)
    for start in range(0, count, step):
        part = slice(start, start + step)
        products = leaves.take(first[part], left).mul_(leaves.take(second[part], right))
        torch.sum(products, -1, out=dots[part])
    return dots


def components(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Return (count,): the lowest node that each node is connected to by the edges (first[i], second[i])."""
    label = torch.arange(count, device=first.device)
    while True:
        a, b = label[first], label[second]
        low = torch.minimum(a, b)
        lower = label.scatter_reduce(0, a, low, "amin").scatter_reduce_(0, b, low, "amin")
        for _ in range(3):
            lower = lower[lower]
        if torch.equal(lower, label):  # a sync per round; few rounds: chains halve
            return label
        label = lower


def joined(leaves: Leaves, root: Tensor) -> VisualTokens:
    """Return one token for each leaf that is its own root: its box, and the mean feature and the cells of its group."""
    count = len(leaves)
    is_root = root == torch.arange(count, device=root.device)
    roots = is_root.nonzero()[:, 0]
    group = (is_root.cumsum(0) - 1)[root]
    sizes = torch.zeros_like(roots).index_add_(0, group, leaves.sizes)
    return VisualTokens(group_means(leaves, group, roots.shape[0]), leaves.boxes[roots], sizes)


def group_means(leaves: Leaves, group: Tensor, groups: int) -> Tensor:
    """Return the mean feature of the leaves of each group, (groups, C). A group of -1 is left out."""
    start = 0
    total: Tensor | None = None
    members = torch.bincount(group[group >= 0], minlength=groups)
    for table in leaves.tables:
        end = start + table.shape[0]
        here = ((leaves.rows >= start) & (leaves.rows < end) & (group >= 0)).nonzero()[:, 0]
        # Sorted bags are summed in a fixed order on every device, unlike a scatter with atomics.
        order = here[group[here].argsort(stable=True)]
        counts = torch.bincount(group[here], minlength=groups)
        bags = counts.cumsum(0) - counts
        part = F.embedding_bag(leaves.rows[order] - start, table, bags, mode="sum")
        total = part if total is None else total.add_(part)
        start = end
    assert total is not None
    return total.div_(members[:, None])


def check_options(
    spatial_threshold: float, temporal_threshold: float | None, root_level: int
) -> None:
    """Raise ValueError for the first option that STTM can't work with."""
    check_cosine("spatial_threshold", spatial_threshold)
    if temporal_threshold is not None:
        check_cosine("temporal_threshold", temporal_threshold)
    check_count("root_level", root_level)


def check_cosine(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a number from -1 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
        raise ValueError(f"{name} must be a number from -1 to 1, got {value!r}")


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a whole number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number, 0 or more, got {value!r}")
