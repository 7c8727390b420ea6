"""STTM on an endless stream. It is causal, since a token that is in the cache can't change any more.

https://arxiv.org/abs/2507.07990 for the method. The causal rule is ours. A leaf may join the token that stands for its
best match in the frame before, and is dropped. Else it becomes a token itself, an *anchor*. How the stream is cut into
clips changes nothing. Knows serials but no cache: `expire` reports evictions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from stream_sttm.reducers import quadtree
from stream_sttm.reducers.budget import Budget, spatial_threshold, temporal_threshold
from stream_sttm.reducers.frames import checked, seconds_to_frames
from stream_sttm.reducers.quadtree import Leaves, Pyramid
from stream_sttm.reducers.stream_state import StreamState, absorbed, restarted, seen
from stream_sttm.reducers.sttm import (
    check_cosine,
    check_count,
    check_options,
    group_means,
    neighbours,
    row_cosines,
    similarities,
)
from stream_sttm.visual_tokens import VisualTokens


@dataclass(frozen=True, slots=True)
class Compared:
    """A clip's leaves behind the last frame's leaves, M in all.

    `match` (M,) is each leaf's most similar leaf in the frame before. `best` (M,) is the cosine with it. `may_join`
    (M,) says whether the leaf may join it.
    """

    fresh: Leaves
    state: StreamState
    leaves: Leaves
    match: Tensor
    best: Tensor
    may_join: Tensor

    def emitted(self, threshold: float) -> int:
        """Return how many tokens the clip gives at a temporal threshold."""
        return len(self.fresh) - int((self.may_join & (self.best >= threshold)).sum())

    def threshold(self, most: int, *, greatest: float) -> float:
        """Return the greatest temporal threshold that leaves at most `most` tokens, -inf where none does."""
        drop = len(self.fresh) - most
        return temporal_threshold(self.best[self.may_join], drop, greatest=greatest)


@dataclass(frozen=True, slots=True)
class SttmStreaming:
    """Causal STTM. The default thresholds are the published setting for half the tokens.

    With a budget the thresholds follow from each clip. The spatial one begins with what is set here. A refresh then
    goes as far as the budget allows. A budget and a drift guard exclude each other.

    Parameters
        spatial_threshold (float, -1 to 1, default the model's, else 0.85): a quadtree node splits where its least
            cosine with a child is below it.
        temporal_threshold (float, -1 to 1, default the model's, else 0.65): least cosine with its best match in
            the frame before at which a leaf joins that one's token.
        root_level (int, 0 or more, default 1): how many of the coarsest quadtree levels are left out.
        drift_threshold (float, -1 to 1, default -1): least cosine of a leaf with the token that is to stand for it. -1
            is no guard.
        window_average (bool, default False): a token's feature is the mean of what it stands for within its own clip.
            Else it stays as it was.
        refresh_every (int, 0 or more, default 0): frames whose number is a multiple of it emit all their leaves. 0 is
            never. It is configured in seconds.
        budget (Budget or its fields, default None): the most tokens that a clip may give.
    """

    state: ClassVar = StreamState
    tuned_options: ClassVar = ("spatial_threshold", "temporal_threshold")
    timed_options: ClassVar = {"refresh_every": seconds_to_frames, "budget": Budget.at_rate}

    spatial_threshold: float = 0.85
    temporal_threshold: float = 0.65
    root_level: int = 1
    drift_threshold: float = -1.0
    window_average: bool = False
    refresh_every: int = 0
    budget: Budget | None = None

    def __post_init__(self) -> None:
        check_options(self.spatial_threshold, self.temporal_threshold, self.root_level)
        check_cosine("temporal_threshold", self.temporal_threshold)
        check_cosine("drift_threshold", self.drift_threshold)
        check_count("refresh_every", self.refresh_every)
        if not isinstance(self.window_average, bool):
            raise ValueError(f"window_average must be true or false, got {self.window_average!r}")
        if self.budget is not None:
            object.__setattr__(self, "budget", Budget.of(self.budget))
            if self._has_guard:
                raise ValueError("a budget and a drift guard can't both be held; leave one out")

    def __call__(
        self, features: Tensor, state: StreamState | None = None
    ) -> tuple[VisualTokens, StreamState]:
        """Merge the next frames of a stream into what it has shown so far. Returns the new tokens and the next state.

        Where the grid, the channels or the device have changed, every leaf of the clip's first frame is emitted, as in
        a refresh.
        """
        features = checked(features, min_side=2)
        spatial = self.spatial_threshold if self.budget is None else self.budget.spatial[1]
        pyramid = quadtree.pyramid(features, self.root_level, greatest=spatial)
        if self.budget is None:
            found = self._compared(pyramid, self.spatial_threshold, state)
            joins = found.may_join & (found.best >= self.temporal_threshold)
        else:
            found, joins = self._within(self.budget, pyramid, state)
        fresh, state, leaves, match = found.fresh, found.state, found.leaves, found.match
        if self._has_guard:
            anchor = self._guarded(leaves, match, joins, state)
        else:
            anchor = _roots(match, joins, leaves.owner.shape[0])
        old = len(state.last)
        # A token of this clip has itself for an anchor; its rank among them continues the stream's serials.
        is_emitted = anchor[old:] == torch.arange(old, len(anchor), device=anchor.device)
        serial = torch.cat([state.serials, state.tokens + is_emitted.cumsum(0) - 1])[anchor]
        tokens = self._tokens(fresh, serial[old:] - state.tokens, is_emitted.nonzero()[:, 0])
        tokens = replace(tokens, features=tokens.features.to(features.dtype))
        return tokens, self._next(state, leaves, anchor, serial, len(tokens))

    def repeated(self, state: StreamState, frames: int) -> StreamState | None:
        """Return the state after so many more frames that equal the last one, None where they give tokens."""
        coming = range(state.frames, state.frames + frames)
        is_refresh = bool(self.refresh_every) and any(t % self.refresh_every == 0 for t in coming)
        is_evicted = not bool(state.is_alive.all())  # one sync: evicted tokens are emitted again
        return None if is_refresh or is_evicted else state.repeated(frames)

    @property
    def _has_guard(self) -> bool:
        return self.drift_threshold > -1

    def _continues(self, state: StreamState, fresh: Leaves) -> bool:
        """Return whether the clip's leaves can be compared with those that the state holds."""
        last = state.last
        return (
            last.owner.shape[1:] == fresh.owner.shape[1:]
            and last.owner.device == fresh.owner.device
            and last.tables[0].shape[1] == fresh.tables[0].shape[1]
            and (state.anchors.shape[0] == len(last) or not self._has_guard)
        )

    def _compared(
        self, pyramid: Pyramid, spatial_threshold: float, state: StreamState | None
    ) -> Compared:
        """Return the clip's leaves at a threshold, and each one's most similar leaf in the frame before."""
        first = state.frames if state is not None else 0
        fresh = quadtree.leaves(pyramid, spatial_threshold, first)
        if state is None or not self._continues(state, fresh):
            state = restarted(state, fresh)
        leaves = _following(state, fresh)
        count, me = len(leaves), torch.arange(len(leaves), device=leaves.rows.device)
        later, earlier = neighbours(leaves)
        temporal = self.temporal_threshold if self.budget is None else self.budget.temporal[1]
        cosine = similarities(leaves, later, earlier, greatest=temporal)
        best = cosine.new_full((count,), -torch.inf).scatter_reduce_(0, later, cosine, "amax")
        winner = torch.where(cosine == best[later], earlier, count)
        match = me.new_full((count,), count).scatter_reduce_(0, later, winner, "amin")
        match = torch.where(match < count, match, me)
        is_alive = torch.cat([state.is_alive, state.is_alive.new_ones(count - len(state.last))])
        may_join = is_alive[match] & (match != me)
        if self.refresh_every:
            is_refresh = leaves.boxes[:, 0] % self.refresh_every == 0
            if self.budget is None:
                may_join &= ~is_refresh
            else:  # as far as there is room: its leaves are the last to join
                best = best - 4.0 * is_refresh
        return Compared(fresh, state, leaves, match, best, may_join)

    def _within(
        self, budget: Budget, pyramid: Pyramid, state: StreamState | None
    ) -> tuple[Compared, Tensor]:
        """Return leaves, and which of them join, so that the clip gives what its budget allows, and no more."""
        frames, height, width = pyramid.norms[-1].shape
        first = state.frames if state is not None else 0
        most = budget.tokens(first, frames, height * width)
        least, greatest = budget.spatial
        begin = min(greatest, max(least, self.spatial_threshold))
        found = self._compared(pyramid, begin, state)
        wanted = found.threshold(most, greatest=budget.temporal[1])
        if wanted < budget.temporal[0] or wanted >= budget.temporal[1]:
            # Too many differ, or there is room for finer ones: about as many leaves as survive at this rate.
            nearest = max(budget.temporal[0], min(budget.temporal[1], wanted))
            survive = max(1, found.emitted(nearest))
            leaves = most * len(found.fresh) / survive
            again = spatial_threshold(pyramid, leaves, within=budget.spatial)
            found = self._compared(pyramid, again, state)
            wanted = found.threshold(most, greatest=budget.temporal[1])
        if wanted == -inf:  # what is new alone is too much: coarse leaves, whatever the limits say
            roots = pyramid.norms[0].numel()
            again = spatial_threshold(pyramid, max(most, roots), within=(-1.0, 1.0))
            found = self._compared(pyramid, again, state)
            wanted = found.threshold(most, greatest=budget.temporal[1])
        level = self.root_level
        while wanted == -inf and level > 0:  # still too much: the coarsest cuts, left out else
            level -= 1
            cells = pyramid.cells.view(frames, height, width, -1)
            found = self._compared(quadtree.pyramid(cells, level), -1.0, state)
            wanted = found.threshold(most, greatest=budget.temporal[1])
        return found, found.may_join & (found.best >= wanted)

    def _guarded(self, leaves: Leaves, match: Tensor, joins: Tensor, state: StreamState) -> Tensor:
        """Return each leaf's anchor under the drift guard: the leaf must look like its anchor too.

        All leaves are compared with the anchor they would have. On each chain the first that differs too much must
        become an anchor itself. Those after it are compared with what stands for them then.
        """
        rows, norms = _looks(leaves, state)
        frames = leaves.owner.shape[0]
        settled = me = torch.arange(len(leaves), device=match.device)
        while True:
            anchor = _roots(match, joins, frames)
            unsure = ((anchor != settled) & (anchor != me)).nonzero()[:, 0]
            if not len(unsure):
                return anchor
            candidate = anchor[unsure]
            cosine = row_cosines(
                leaves,
                (leaves.rows[unsure], leaves.norms[unsure]),
                (rows[candidate], norms[candidate]),
                greatest=self.drift_threshold,
            )
            fails = torch.zeros_like(joins)
            fails[unsure] = cosine < self.drift_threshold
            joins = joins & ~_firsts(fails, torch.where(joins, match, me), frames)
            settled = anchor

    def _tokens(self, fresh: Leaves, token: Tensor, emitted: Tensor) -> VisualTokens:
        """Return the clip's tokens.

        `token` (N,) is the one that stands for each leaf, negative if it is of an earlier clip.
        """
        is_mine = token >= 0
        sizes = torch.zeros_like(emitted).index_add_(0, token[is_mine], fresh.sizes[is_mine])
        boxes = fresh.boxes[emitted]
        if self.window_average:
            return VisualTokens(group_means(fresh, token, len(emitted)), boxes, sizes)
        return VisualTokens(fresh.take(fresh.rows[emitted]), boxes, sizes)

    def _next(
        self, state: StreamState, leaves: Leaves, anchor: Tensor, serial: Tensor, emitted: int
    ) -> StreamState:
        """Return the state after a clip that emitted so many tokens. It shares no storage with the clip."""
        first = int(leaves.owner[-1, 0, 0])
        count = len(leaves) - first
        last = Leaves(
            (leaves.take(leaves.rows[first:]),),
            torch.arange(count, device=anchor.device),
            leaves.norms[first:].clone(),
            leaves.boxes[first:].clone(),
            leaves.owner[-1:] - first,
        )
        rows, norms = _looks(leaves, state)
        guarded = anchor[first:] if self._has_guard else anchor[:0]
        return StreamState(
            last=last,
            serials=serial[first:].clone(),
            is_alive=torch.ones(count, dtype=torch.bool, device=anchor.device),
            anchors=leaves.take(rows[guarded]),
            anchor_norms=norms[guarded],
            frames=state.frames + leaves.owner.shape[0] - state.last.owner.shape[0],
            tokens=state.tokens + emitted,
            absorbed=absorbed(leaves, anchor, serial, len(state.last)),
            last_seen=seen(leaves, serial, len(state.last)),
        )


def _following(state: StreamState, fresh: Leaves) -> Leaves:
    """Return the leaves of the state's last frame and, after them, those of a clip. The anchors are the last table."""
    last = state.last
    start = sum(table.shape[0] for table in fresh.tables)
    return Leaves(
        (*fresh.tables, *last.tables, state.anchors),
        torch.cat([last.rows + start, fresh.rows]),
        torch.cat([last.norms, fresh.norms]),
        torch.cat([last.boxes, fresh.boxes]),
        torch.cat([last.owner, fresh.owner + len(last)]),
    )


def _looks(leaves: Leaves, state: StreamState) -> tuple[Tensor, Tensor]:
    """Return table rows and norms of each leaf's anchor, if the anchor is known from that leaf.

    A leaf of the clip may be an anchor itself. One of the last frame stands in for an anchor that came before it.
    """
    count = state.anchors.shape[0]
    end = sum(table.shape[0] for table in leaves.tables)
    own = torch.arange(end - count, end, device=leaves.rows.device)
    return (
        torch.cat([own, leaves.rows[count:]]),
        torch.cat([state.anchor_norms, leaves.norms[count:]]),
    )


def _roots(match: Tensor, joins: Tensor, frames: int) -> Tensor:
    """Return each leaf's anchor when every leaf that may join does: the end of its chain, by pointer jumping."""
    anchor = torch.where(joins, match, torch.arange(len(match), device=match.device))
    for _ in range((frames - 1).bit_length()):
        anchor = anchor[anchor]
    return anchor


def _firsts(marked: Tensor, parent: Tensor, frames: int) -> Tensor:
    """Return which of the marked leaves have no marked one before them on their chain."""
    above = marked[parent] & (parent != torch.arange(len(parent), device=parent.device))
    for _ in range((frames - 1).bit_length()):
        above = above | above[parent]
        parent = parent[parent]
    return marked & ~above
