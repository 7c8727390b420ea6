"""The quadtree of STTM, for all frames at once: frames cut into boxes of similar cells.

It is dense: means, similarities and split decisions are maps of fixed shape. Which cells are the top-left corners of
kept boxes (*leaves*) is read off once at the end. Each frame is cut alone. Knows nothing of time or streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Work is done in blocks of this many bytes. On a CPU that is its cache, since fresh memory costs more than the
# arithmetic. Elsewhere it is enough to keep the launches few.
CACHE_BYTES = 6 << 20
MEMORY_BYTES = 256 << 20
ZERO = 1e-10  # a norm below it is that of a zero vector
# A cosine of equal vectors may be rounded down, but never to this. Thresholds above it need `exact` comparisons.
NEARLY_ONE = 1 - 1e-5


@dataclass(frozen=True, slots=True)
class Leaves:
    """N kept boxes of consecutive frames, by frame, then by top-left cell in raster order.

    A leaf's float32 feature is row `rows[i]` of `tables` laid end to end. Most rows are cells of the input, which is
    not copied. `norms` (N,). `boxes` (N, 5) have rows (t, y0, x0, y1, x1). `owner` (T, H, W) is the leaf over each
    cell.
    """

    tables: tuple[Tensor, ...]
    rows: Tensor
    norms: Tensor
    boxes: Tensor
    owner: Tensor

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def sizes(self) -> Tensor:
        """How many cells each leaf covers, (N,)."""
        return (self.boxes[:, 3] - self.boxes[:, 1]) * (self.boxes[:, 4] - self.boxes[:, 2])

    def take(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the features (n, C) of `rows`, copied to a new tensor or to the first n rows of `out`."""
        taken = (
            self.norms.new_empty(len(rows), self.tables[0].shape[1])
            if out is None
            else out[: len(rows)]
        )
        if not len(rows):
            return taken
        least, most = (int(row) for row in rows.aminmax())  # mostly one or two tables are enough
        start, is_filled = 0, False
        for table in self.tables:
            end = start + table.shape[0]
            if start <= most and least < end:
                if is_filled:
                    here = ((rows >= start) & (rows < end)).nonzero()[:, 0]
                    taken.index_copy_(0, here, table.index_select(0, rows[here] - start))
                else:  # rows of other tables take any row for now
                    torch.index_select(
                        table, 0, (rows - start).clamp(max=end - start - 1), out=taken
                    )
                    is_filled = True
            start = end
        return taken

    def features(self) -> Tensor:
        """Return every leaf's feature, (N, C)."""
        return self.take(self.rows)


@dataclass(frozen=True, slots=True)
class Pyramid:
    """Frames at every resolution from the roots to the cells.

    - `cells` (T * H * W, C).
    - `nodes` (K, C): the coarser levels one after the other.
    - `norms`: one (T, h, w) per level, roots first.
    - `split_below`: one (T, h, w) per level but the last. A node splits where the threshold is above its value.
    """

    cells: Tensor
    nodes: Tensor
    norms: tuple[Tensor, ...]
    split_below: tuple[Tensor, ...]


def cut(
    features: Tensor, *, spatial_threshold: float, root_level: int, first_frame: int = 0
) -> Leaves:
    """Return the leaves of features (T, H, W, C). Raises ValueError where a value is not finite."""
    levels = pyramid(features, root_level, greatest=spatial_threshold)
    return leaves(levels, spatial_threshold, first_frame)


def cosines(dots: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return cosines, from dot products and norms. Two zero vectors are equal, a zero vector and another are not."""
    are_zero = (first < ZERO) & (second < ZERO)
    return torch.where(are_zero, 1.0, dots / (first * second).clamp(min=ZERO**2))


def pyramid(features: Tensor, root_level: int, *, greatest: float = -1.0) -> Pyramid:
    """Return means and similarities of features (T, H, W, C) at every level that `root_level` leaves.

    `greatest` is the greatest threshold that they will be cut at. Raises ValueError where a norm is not finite.
    """
    frames, height, width, channels = features.shape
    cells = features.float().contiguous()
    shapes = _shapes(height, width, root_level)
    counts = [frames * h * w for h, w in shapes[:-1]]
    nodes = cells.new_empty(sum(counts), channels)
    levels = [
        nodes[end - count : end].view(frames, h, w, channels)
        for count, end, (h, w) in zip(counts, itertools.accumulate(counts), shapes, strict=False)
    ]
    levels.append(cells)
    norms = [cells.new_empty(frames, h, w) for h, w in shapes]
    lowest = [cells.new_empty(frames, h, w) for h, w in shapes[:-1]]
    scratch = cells.new_empty(0)
    if not counts:
        norms[-1] = torch.linalg.vector_norm(cells, dim=-1)
    for level in reversed(range(len(counts))):
        for part in _blocks(levels[level + 1]):
            child = levels[level + 1][part]
            if level + 1 == len(counts):
                norms[-1][part] = torch.linalg.vector_norm(child, dim=-1)
            parent = _halved(child)
            levels[level][part] = parent
            norms[level][part] = torch.linalg.vector_norm(parent, dim=-1)
            if scratch.numel() < child.numel():
                scratch = cells.new_empty(child.numel())
            lowest[level][part] = _lowest_similarity(
                (child, norms[level + 1][part]),
                (parent, norms[level][part]),
                scratch,
                exact=greatest > NEARLY_ONE,
            )
    if not bool(torch.isfinite(norms[-1]).all()):  # one sync: bad input must not become a token
        raise ValueError("features hold NaN, infinite or huge values (a norm is not finite)")
    return Pyramid(cells.view(-1, channels), nodes, tuple(norms), tuple(_split_below(lowest)))


def leaves(pyramid: Pyramid, spatial_threshold: float, first_frame: int = 0) -> Leaves:
    """Return the boxes that stay whole at `spatial_threshold`. Their t counts from `first_frame`."""
    frames, height, width = pyramid.norms[-1].shape
    device = pyramid.cells.device
    shapes = [tuple(norm.shape[1:]) for norm in pyramid.norms]
    ys, y_starts, y_ends = _axis([h for h, _ in shapes], device)
    xs, x_starts, x_ends = _axis([w for _, w in shapes], device)
    depth = torch.zeros(frames, height, width, dtype=torch.int64, device=device)
    for level, bound in enumerate(pyramid.split_below):
        depth += (bound < spatial_threshold)[:, ys[level]][:, :, xs[level]]
    row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    top, left = y_starts[depth, row], x_starts[depth, column]
    corner = (top == row) & (left == column)
    frame = torch.arange(frames, device=device)[:, None, None]
    rank = (corner.flatten().cumsum(0) - 1)[((frame * height + top) * width + left).flatten()]
    t, y, x = corner.nonzero().unbind(1)
    kept = depth[t, y, x]
    sides = torch.tensor(shapes, device=device)
    before = torch.tensor(_starts(shapes, frames), device=device)
    rows = before[kept] + (t * sides[kept, 0] + ys[kept, y]) * sides[kept, 1] + xs[kept, x]
    norms = torch.cat([norm.flatten() for norm in (pyramid.norms[-1], *pyramid.norms[:-1])])
    boxes = torch.stack([t + first_frame, y, x, y_ends[kept, y], x_ends[kept, x]], 1)
    return Leaves(
        (pyramid.cells, pyramid.nodes), rows, norms[rows], boxes, rank.view(frames, height, width)
    )


def _shapes(height: int, width: int, root_level: int) -> list[tuple[int, int]]:
    """Return (h, w) of each level, roots first.

    The finest stays whatever `root_level` is, since a picture may be small.
    """
    shapes = [(height, width)]
    while min(shapes[0]) > 2:
        h, w = shapes[0]
        shapes.insert(0, ((h + 1) // 2, (w + 1) // 2))
    return shapes[root_level:] or shapes[-1:]


def _starts(shapes: list[tuple[int, ...]], frames: int) -> list[int]:
    """Return where each level's rows start. The cells come first, then the other levels, roots first."""
    counts = [frames * h * w for h, w in shapes]
    return [*itertools.accumulate(counts[:-2], initial=counts[-1]), 0][-len(shapes) :]


def _blocks(cells: Tensor) -> list[slice]:
    """Return runs of frames that are worked on together."""
    frames = cells.shape[0]
    step = at_once(cells.device, frames, cells[0].nbytes)
    return [slice(start, start + step) for start in range(0, frames, step)]


def at_once(device: torch.device, count: int, item_bytes: int) -> int:
    """Return how many of `count` items to work on together, at least one."""
    block = CACHE_BYTES if device.type == "cpu" else MEMORY_BYTES
    return max(1, min(count, block // item_bytes))


def _halved(child: Tensor) -> Tensor:
    """Return the mean of each parent's 1, 2 or 4 children: (T, h, w, C) to (T, ceil(h/2), ceil(w/2), C)."""
    odd = (child.shape[1] % 2, child.shape[2] % 2)
    pooled = F.avg_pool2d(child.permute(0, 3, 1, 2), 2, padding=odd, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1).contiguous()


def _lowest_similarity(
    children: tuple[Tensor, Tensor],
    parents: tuple[Tensor, Tensor],
    scratch: Tensor,
    *,
    exact: bool,
) -> Tensor:
    """Return each parent's least cosine (T, h, w) with a child that exists.

    Children and parents are features and norms. `scratch` has space for the children. With `exact` a child that equals
    its parent has a cosine of 1, which is else rounded.
    """
    (child, child_norm), (parent, parent_norm) = children, parents
    _, height, width, _ = child.shape
    similarity = torch.empty_like(child_norm)
    for ys, parent_ys, rows in _runs(height):
        for xs, parent_xs, columns in _runs(width):
            family = _grouped(child[:, ys, xs], rows, columns)
            products = scratch[: family.numel()].view(family.shape)
            above = parent[:, parent_ys, None, parent_xs, None]
            torch.mul(family, above, out=products)
            norm = _grouped(child_norm[:, ys, xs], rows, columns)
            above_norm = parent_norm[:, parent_ys, None, parent_xs, None]
            cosine = cosines(products.sum(-1), norm, above_norm)
            if exact:
                cosine = torch.where((family == above).all(-1), 1.0, cosine)
            similarity[:, ys, xs] = cosine.flatten(3, 4).flatten(1, 2)
    odd = (height % 2, width % 2)
    return -F.max_pool2d(-similarity[:, None], 2, padding=odd)[:, 0]


def _grouped(nodes: Tensor, rows: int, columns: int) -> Tensor:
    """Return a view of (T, h, w, ...) as (T, h/rows, rows, w/columns, columns, ...)."""
    frames, height, width, *rest = nodes.shape
    return nodes.view(frames, height // rows, rows, width // columns, columns, *rest)


def _runs(side: int) -> list[tuple[slice, slice, int]]:
    """Return (children, parents, children per parent) along one axis. On an odd side the first child is alone."""
    if side % 2 == 0:
        return [(slice(0, side), slice(0, side // 2), 2)]
    alone = (slice(0, 1), slice(0, 1), 1)
    return [alone, (slice(1, side), slice(1, (side + 1) // 2), 2)] if side > 1 else [alone]


def _split_below(lowest: list[Tensor]) -> Iterator[Tensor]:
    """Yield e(node): the greatest m(node) on the way from the root, since every ancestor must split too."""
    above: Tensor | None = None
    for level in lowest:
        bound = level
        if above is not None:
            _, height, width = level.shape
            y = _parents(height, level.device)
            x = _parents(width, level.device)
            bound = torch.maximum(level, above[:, y][:, :, x])
        yield bound
        above = bound


def _parents(side: int, device: torch.device) -> Tensor:
    """Return the parent of each of `side` children along one axis."""
    return (torch.arange(side, device=device) + side % 2) // 2


def _axis(sides: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return per level and cell along one axis, (L, n) each: the node over it, that node's first cell, and its end."""
    node = torch.arange(sides[-1], device=device)
    nodes = [node]
    for side in reversed(sides[1:]):
        node = _parents(side, device)[node]
        nodes.insert(0, node)
    stacked = torch.stack(nodes)
    starts = torch.searchsorted(stacked, stacked, right=False)
    ends = torch.searchsorted(stacked, stacked, right=True)
    return stacked, starts, ends
