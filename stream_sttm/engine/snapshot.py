"""The reading side of a session: what questions see of it, what they may recall, and the mosaic of its newest frame.

Every function reads a session and writes nothing to it. The cache is append-only, so a view is a set of references.
Later appends and evictions leave it as it is.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine import forward
from stream_sttm.engine.cache.rolling import CacheSnapshot
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.engine.outcomes import Mosaic, Tile, TileKind
from stream_sttm.engine.recall.lookback import NOW
from stream_sttm.engine.recall.retrieval import RecallContext
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.timer import DeviceTimer
from stream_sttm.engine.view import View
from stream_sttm.visual_tokens import VisualTokens


def take_view(
    session: StreamSession, window_s: float | None = None, fresh_frames: int | None = None
) -> View:
    """Return the memory as questions see it now.

    `window_s`: show only what was seen in that many seconds before the newest frame; None: all of it.
    `fresh_frames`: how many of the newest frames are shown unmerged; None: as many as the plan says.
    """
    history, cache = session.history, session.cache
    wanted = session.plan.fresh_frames if fresh_frames is None else fresh_frames
    watched = history.within(window_s)
    fresh = min(wanted, history.at_hand, session.frames - watched[0].frame)
    if cache.deep.emitted == history.cells:  # nothing of it is merged
        fresh = 0
    before, fresh_tokens = session.frames - fresh, fresh * session.cells
    first = _first_layer(session, fresh)
    snapshot = cache.snapshot(
        before_frame=before if fresh else None,
        in_layers_from=first,
        seen_since=0 if window_s is None else watched[0].frame,
    )
    prefix: tuple[Any, ...] = (snapshot,)
    clock = DeviceTimer(session.model.device) if fresh else None
    if clock is not None:
        with clock:
            newest = history.newest_states if first else history.newest
            tokens = VisualTokens.whole(newest(fresh), first_frame=before)
            prefix = (snapshot, _run_fresh(session, snapshot, tokens, first=first))
    starts = []
    for group in cache.groups:
        start = session.positions.text_start(group, session.grid, frame=session.frames, fresh=fresh)
        start += group.pinned
        starts.append((start - group.offset, start - group.origin))
    return View(
        prefix=prefix,
        bounds=tuple(group.first for group in cache.groups),
        starts=tuple(starts),
        visual=snapshot.tokens + fresh_tokens,
        before_merge=sum(record.cells for record in watched),
        span=(watched[0].at, watched[-1].at),
        fresh=fresh_tokens,
        fresh_clock=clock,
    )


def _first_layer(session: StreamSession, count: int) -> int:
    """Return the first layer that the newest `count` frames must run through to be shown unmerged.

    That is the merge layer where the layers below it hold these frames whole. It is 0 where they were pruned there,
    or where they repeat others and did not run.
    """
    shallow, before = session.cache.groups[0], session.frames - count
    is_whole = len(shallow) - shallow.table.before_frame(before) == count * session.cells
    is_whole = is_whole and session.history.states_at_hand >= count
    return session.cache.deep.first if is_whole else 0


def _run_fresh(
    session: StreamSession, snapshot: CacheSnapshot, tokens: VisualTokens, *, first: int
) -> SuffixCache:
    """Run whole frames from layer `first` on, behind a snapshot whose groups from there on lack them."""
    model, positions = session.model, session.positions
    suffix = SuffixCache(forward.shape_of(model), rows=1, capacity=len(tokens), first=first)
    hidden = tokens.features[None]
    mask = forward.causal_mask(len(tokens), device=hidden.device)
    for group, seen in zip(session.cache.groups, snapshot.groups, strict=True):
        if group.first < first:
            continue
        start = positions.after(group, seen.table)
        stored = positions.position_ids(group, tokens, session.grid, start=start).clone()
        stored[0] -= group.offset
        hidden = forward.run_layers(
            model,
            hidden,
            (group.first, group.last),
            positions=(stored + group.pinned)[:, None],
            mask=mask,
            cache=suffix,
            prefix=(snapshot,),
        )
    suffix.commit(len(tokens))
    return suffix


def recall_context(session: StreamSession, view: View) -> RecallContext | None:
    """Return what the questions to a view may recall; None where nothing is archived or nothing was evicted."""
    plan, archive = session.plan.recall, session.archive
    if archive is None or plan is None:
        return None
    evicted = archive.evicted(session.cache.deep.table.serials)
    if evicted is None:
        return None
    now = session.history.within(min(NOW, session.span_seconds / 2))[0].frame
    is_now = []
    for group, shown in zip(session.cache.groups, view.prefix[0].groups, strict=True):
        seen, since_now = group.last_seen, now
        if group is not session.cache.deep:
            # it lacks frames that repeat its newest one, which is in view for as long as they do
            seen = shown.table.frames
            since_now = min(now, int(group.table.frames[-1])) if len(group) else now
        is_now.append(seen[: len(shown.table)].to(session.model.device) >= since_now)
    return RecallContext(
        stream=session.stream,
        model=session.model,
        plan=plan,
        positions=session.positions,
        grid=session.grid,
        view=view,
        evicted=evicted,
        is_now=tuple(is_now),
        size_bias=session.plan.size_bias,
        events=tuple(archive.events(-inf, view.span[0])) if plan.log else (),
        text_room=session.plan.question_tokens,
    )


def draw_mosaic(session: StreamSession) -> Mosaic:
    """Return what stands for each part of the newest frame; tokens of the newest window are new."""
    records = session.history.records
    return Mosaic(
        rows=session.grid[0],
        columns=session.grid[1],
        tiles=_tiles(session),
        before=sum(record.cells for record in records),
        after=len(session.cache.deep),
        span_s=session.span_seconds,
        captured_at=records[-1].at,
    )


def _tiles(session: StreamSession) -> tuple[Tile, ...]:
    """Return the tiles of the newest frame.

    A reducer's state may say which token stands for which leaf: boxes (M, 4) and serials (M,). Where it does not, the
    tokens last seen in the newest frame stand for themselves.
    """
    group, newest = session.cache.deep, session.frames - 1
    table = group.table
    if not len(table):
        return ()
    shown: tuple[Tensor, Tensor] | None = getattr(session.reducer_state, "shown", None)
    if shown is None:
        slots = (group.last_seen[: len(group)].cpu() == newest).nonzero()[:, 0]
        boxes = table.boxes[slots, 1:]
    else:
        boxes, serials = shown[0].cpu(), shown[1].cpu()
        slots = torch.searchsorted(table.serials, serials).clamp(max=len(table) - 1)
        is_held = table.serials[slots] == serials
        boxes, slots = boxes[is_held], slots[is_held]
    own = table.boxes[slots]
    is_new, is_in_place = own[:, 0] >= session.history.since, (own[:, 1:] == boxes).all(1)
    sizes = group.sizes[: len(group)].cpu()[slots].round().to(torch.int64)
    captured_at = session.history.captured_at
    now = captured_at(newest)
    rows = zip(
        boxes.tolist(),
        table.serials[slots].tolist(),
        own[:, 0].tolist(),
        sizes.tolist(),
        is_new.tolist(),
        is_in_place.tolist(),
        strict=True,
    )
    return tuple(
        Tile((y0, x0, y1, x1), serial, now - captured_at(frame), size, _kind(new, in_place))
        for (y0, x0, y1, x1), serial, frame, size, new, in_place in rows
    )


def _kind(is_new: bool, is_in_place: bool) -> TileKind:
    if is_new:
        return TileKind.NEW
    return TileKind.KEPT if is_in_place else TileKind.ABSORBED
