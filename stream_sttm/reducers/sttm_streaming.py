"""STTM on an endless stream: causal, since a token that is in the cache can't change any more.

https://arxiv.org/abs/2507.07990 for the method; the causal rule is ours. A leaf either joins the token that
stands for its best match in the frame before, and is dropped, or becomes a token itself, an *anchor*. How the
stream is cut into clips changes nothing. Knows serials but no cache: it is told of evictions by `expire`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from stream_sttm.reducers import quadtree
from stream_sttm.reducers.frames import checked
from stream_sttm.reducers.quadtree import EPSILON, Leaves
from stream_sttm.reducers.sttm import (
    check_cosine,
    check_count,
    check_options,
    group_means,
    neighbours,
    row_dots,
    similarities,
)
from stream_sttm.tokens import VisualTokens


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream carries from one clip to the next: its last frame, so never more than H * W leaves.

    `last` holds that frame's M leaves; `serials` (M,) which token stands for each; `is_alive` (M,) whether the
    cache still has it; `anchors` (M, C) and `anchor_norms` (M,) what that token looked like when it was emitted,
    both empty without a drift guard. `frames` and `tokens` count from the stream's start.
    """

    last: Leaves
    serials: Tensor
    is_alive: Tensor
    anchors: Tensor
    anchor_norms: Tensor
    frames: int
    tokens: int
    absorbed: tuple[Tensor, Tensor]
    last_seen: tuple[Tensor, Tensor]

    def expire(self, gone: Tensor) -> StreamState:
        """The state after the cache dropped the tokens `gone`: what they stand for is emitted anew if it is seen."""
        return replace(self, is_alive=self.is_alive & ~torch.isin(self.serials, gone))

    def saved(self) -> dict[str, Tensor]:
        """All that the next call needs."""
        return {
            "features": self.last.features(),
            "norms": self.last.norms,
            "boxes": self.last.boxes,
            "owner": self.last.owner,
            "serials": self.serials,
            "is_alive": self.is_alive,
            "anchors": self.anchors,
            "anchor_norms": self.anchor_norms,
            "counts": torch.tensor([self.frames, self.tokens], device=self.serials.device),
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> StreamState:
        """The state that was saved; raises KeyError where something is missing."""
        serials = tensors["serials"]
        rows = torch.arange(len(serials), device=serials.device)
        frames, tokens = tensors["counts"].tolist()
        last = (tensors[name] for name in ("norms", "boxes", "owner"))
        return cls(
            last=Leaves((tensors["features"],), rows, *last),
            serials=serials,
            is_alive=tensors["is_alive"],
            anchors=tensors["anchors"],
            anchor_norms=tensors["anchor_norms"],
            frames=frames,
            tokens=tokens,
            absorbed=(rows[:0], rows[:0]),
            last_seen=(rows[:0], rows[:0]),
        )


@dataclass(frozen=True, slots=True)
class SttmStreaming:
    """Causal STTM; the default thresholds are the published setting for half the tokens.

    `drift_threshold`: the least cosine of a leaf with the token that is to stand for it; -1 is no guard.
    `window_average`: a token takes the mean of what it stands for within its own clip; else it stays as it was.
    `refresh_every`: frames whose index is a multiple of it emit all their leaves; 0 is never.
    """

    state: ClassVar = StreamState

    spatial_threshold: float = 0.85
    temporal_threshold: float = 0.65
    root_level: int = 1
    drift_threshold: float = -1.0
    window_average: bool = False
    refresh_every: int = 0

    def __post_init__(self) -> None:
        check_options(self.spatial_threshold, self.temporal_threshold, self.root_level)
        check_cosine("temporal_threshold", self.temporal_threshold)
        check_cosine("drift_threshold", self.drift_threshold)
        check_count("refresh_every", self.refresh_every)
        if not isinstance(self.window_average, bool):
            raise ValueError(f"window_average must be true or false, got {self.window_average!r}")

    def __call__(
        self, features: Tensor, state: StreamState | None = None
    ) -> tuple[VisualTokens, StreamState]:
        """Merge the next frames of a stream into what it has shown so far.

        Where the grid, the channels or the device differ from the frame before, every leaf of the clip's first
        frame is emitted, as in a refresh.
        """
        features = checked(features, min_side=2)
        fresh = quadtree.cut(
            features,
            spatial_threshold=self.spatial_threshold,
            root_level=self.root_level,
            first_frame=state.frames if state is not None else 0,
        )
        if state is None or not self._continues(state, fresh):
            state = _restarted(state, fresh)
        leaves = _following(state, fresh)
        match, joins = self._matches(leaves, state)
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

    @property
    def _has_guard(self) -> bool:
        return self.drift_threshold > -1

    def _continues(self, state: StreamState, fresh: Leaves) -> bool:
        """Whether the clip's leaves can be compared with those that the state holds."""
        last = state.last
        return (
            last.owner.shape[1:] == fresh.owner.shape[1:]
            and last.owner.device == fresh.owner.device
            and last.tables[0].shape[1] == fresh.tables[0].shape[1]
            and (state.anchors.shape[0] == len(last) or not self._has_guard)
        )

    def _matches(self, leaves: Leaves, state: StreamState) -> tuple[Tensor, Tensor]:
        """Each leaf's most similar leaf in the frame before, else itself; and whether it may join that one."""
        count, me = len(leaves), torch.arange(len(leaves), device=leaves.rows.device)
        later, earlier = neighbours(leaves)
        cosine = similarities(leaves, later, earlier)
        best = cosine.new_full((count,), -torch.inf).scatter_reduce_(0, later, cosine, "amax")
        winner = torch.where(cosine == best[later], earlier, count)
        match = me.new_full((count,), count).scatter_reduce_(0, later, winner, "amin")
        match = torch.where(match < count, match, me)
        is_alive = torch.cat([state.is_alive, state.is_alive.new_ones(count - len(state.last))])
        joins = (best >= self.temporal_threshold) & is_alive[match]
        if self.refresh_every:
            joins &= leaves.boxes[:, 0] % self.refresh_every != 0
        return match, joins

    def _guarded(self, leaves: Leaves, match: Tensor, joins: Tensor, state: StreamState) -> Tensor:
        """Each leaf's anchor when it must look like that too.

        All leaves are compared with the anchor they would have. On each chain the first that differs too much is
        sure to become an anchor itself; those after it are compared with what stands for them then.
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
            dots = row_dots(leaves, leaves.rows[unsure], rows[candidate])
            size = (leaves.norms[unsure] * norms[candidate]).clamp(min=EPSILON)
            fails = torch.zeros_like(joins)
            fails[unsure] = dots / size < self.drift_threshold
            joins = joins & ~_firsts(fails, torch.where(joins, match, me), frames)
            settled = anchor

    def _tokens(self, fresh: Leaves, token: Tensor, emitted: Tensor) -> VisualTokens:
        """The clip's tokens; `token` (N,) is the one that stands for each leaf, negative if of an earlier clip."""
        is_mine = token >= 0
        sizes = torch.zeros_like(emitted).index_add_(0, token[is_mine], fresh.sizes[is_mine])
        boxes = fresh.boxes[emitted]
        if self.window_average:
            return VisualTokens(group_means(fresh, token, len(emitted)), boxes, sizes)
        return VisualTokens(fresh.take(fresh.rows[emitted]), boxes, sizes)

    def _next(
        self, state: StreamState, leaves: Leaves, anchor: Tensor, serial: Tensor, emitted: int
    ) -> StreamState:
        """The state after a clip that emitted so many tokens; it shares no storage with the clip."""
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
            absorbed=_absorbed(leaves, anchor, serial, len(state.last)),
            last_seen=_seen(leaves, serial, len(state.last)),
        )


def _restarted(state: StreamState | None, fresh: Leaves) -> StreamState:
    """A state without a last frame, on the grid of `fresh`, that goes on counting frames and tokens."""
    norms, ids = fresh.norms[:0], fresh.rows[:0]
    features = fresh.tables[0][:0]
    return StreamState(
        last=Leaves((features,), ids, norms, fresh.boxes[:0], fresh.owner[:0]),
        serials=ids,
        is_alive=ids.bool(),
        anchors=features,
        anchor_norms=norms,
        frames=state.frames if state is not None else 0,
        tokens=state.tokens if state is not None else 0,
        absorbed=(ids, ids),
        last_seen=(ids, ids),
    )


def _following(state: StreamState, fresh: Leaves) -> Leaves:
    """The leaves of the state's last frame and, after them, those of a clip; the anchors are the last table."""
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
    """Table rows and norms of what each leaf's anchor looks like, if that leaf is where its anchor is known from.

    A leaf of the clip may be an anchor itself; one of the last frame speaks for an anchor that came before it.
    """
    count = state.anchors.shape[0]
    end = sum(table.shape[0] for table in leaves.tables)
    own = torch.arange(end - count, end, device=leaves.rows.device)
    return (
        torch.cat([own, leaves.rows[count:]]),
        torch.cat([state.anchor_norms, leaves.norms[count:]]),
    )


def _roots(match: Tensor, joins: Tensor, frames: int) -> Tensor:
    """Each leaf's anchor when every leaf that may join does: the end of its chain, by pointer jumping."""
    anchor = torch.where(joins, match, torch.arange(len(match), device=match.device))
    for _ in range((frames - 1).bit_length()):
        anchor = anchor[anchor]
    return anchor


def _firsts(marked: Tensor, parent: Tensor, frames: int) -> Tensor:
    """Which of the marked leaves have no marked one before them on their chain."""
    above = marked[parent] & (parent != torch.arange(len(parent), device=parent.device))
    for _ in range((frames - 1).bit_length()):
        above = above | above[parent]
        parent = parent[parent]
    return marked & ~above


def _absorbed(leaves: Leaves, anchor: Tensor, serial: Tensor, old: int) -> tuple[Tensor, Tensor]:
    """What went to tokens of earlier clips: their serials, and how many cells."""
    late = (anchor[old:] < old).nonzero()[:, 0] + old
    serials, group = torch.unique(serial[late], return_inverse=True)
    cells = torch.zeros_like(serials).index_add_(0, group, leaves.sizes[late])
    return serials, cells


def _seen(leaves: Leaves, serial: Tensor, old: int) -> tuple[Tensor, Tensor]:
    """The tokens that the clip's leaves show, and the last frame that shows each."""
    serials, group = torch.unique(serial[old:], return_inverse=True)
    frames = leaves.boxes[old:, 0]
    return serials, torch.zeros_like(serials).scatter_reduce_(0, group, frames, "amax")
