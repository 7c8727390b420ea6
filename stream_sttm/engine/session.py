"""One camera's memory: frames in, a view to answer from out.

A window is encoded once, run through the layers below the merge with all its tokens, reduced against the frame
before, and only the survivors go on. Room for the worst case is made before reducing, so that no token that stands
for something still on screen can be evicted behind the reducer's back. Knows no questions and no wall clock but the
capture times it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine import decoder
from stream_sttm.engine.archive import Archive, Kept
from stream_sttm.engine.band import Band
from stream_sttm.engine.cache import CacheSnapshot, RollingCache
from stream_sttm.engine.eviction import staying
from stream_sttm.engine.gaze import NOW
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.engine.recall import Past, kept
from stream_sttm.engine.stopwatch import Stopwatch
from stream_sttm.engine.suffix import Suffix
from stream_sttm.engine.tiles import tiles
from stream_sttm.engine.time_axis import TimeAxis
from stream_sttm.engine.view import Appended, View
from stream_sttm.errors import ConfigError, StateError
from stream_sttm.metrics import stage
from stream_sttm.models.family import VideoLLM
from stream_sttm.mosaic import Mosaic
from stream_sttm.reducers import Reducer
from stream_sttm.retention.fifo import Fifo
from stream_sttm.tokens import VisualTokens
from stream_sttm.types import MAX_FRESH_FRAMES


class StreamSession:
    """Cache, reducer state and clock of one camera."""

    def __init__(
        self, model: VideoLLM, reducer: Reducer, plan: MemoryPlan, *, stream: str, fps: float
    ) -> None:
        self.stream = stream
        self.frames = 0
        self.shows: int | None = None  # index of the clip whose last frame the newest features show
        self.kept: Any = None  # what the vision tower keeps of that frame
        self._model, self._reducer, self._plan = model, reducer, plan
        self._axis = TimeAxis(model, plan, fps=fps)
        self._preamble = model.preamble()
        self.cache = RollingCache.allocate(
            decoder.shape_of(model, plan.kv),
            pinned=len(self._preamble),
            merge_at=plan.merge_at,
            deep=plan.window_tokens,
            shallow=plan.shallow_tokens,
            size_bias=plan.size_bias,
        )
        self._state: Any = None
        self._grid = (0, 0)
        self._since = 0  # the newest window's first frame
        self._seen = 0  # cells of all frames so far; a camera may change its picture's size
        self._captured: deque[tuple[int, float, int]] = deque()  # frame, wall clock, cells
        self._ring: deque[Tensor] = deque(maxlen=MAX_FRESH_FRAMES)
        self.archive: Archive | None = None  # where what enters is kept for recall, if anywhere
        self._pin()

    def _pin(self) -> None:
        """Run the preamble once and keep it for ever."""
        count = len(self._preamble)
        if count:
            hidden = self._model.embed(torch.tensor([self._preamble], device=self._model.device))
            places = torch.arange(count, device=self._model.device).expand(self._model.axes, -1)
            for band in self.cache.bands:
                hidden = decoder.append(
                    self._model,
                    hidden,
                    self.cache,
                    band,
                    positions=places,
                    sizes=torch.ones(count, device=hidden.device),
                )
        for band in self.cache.bands:
            band.pin()

    def append(self, features: Tensor, captured: Sequence[float]) -> Appended:
        """Merge a window's features (T, H, W, C) against the window before and append what survives.

        `captured` (T,) wall clock of each token frame. Raises ConfigError where the memory can't hold one window.
        """
        frames, rows, columns, _ = features.shape
        count = frames * rows * columns
        if self._grid != (rows, columns):
            self._ring.clear()  # a fresh view stacks its frames
        self._grid = (rows, columns)
        evicted, rebased = self._make_room(frames, count)
        whole = VisualTokens.whole(features, first_frame=self.frames)
        hidden, tokens = features, whole
        if self._plan.merge_at > 0:
            hidden = self._through(self.cache.bands[0], whole).reshape(features.shape)
        with stage("merge"):
            tokens, state = self._reducer(hidden, self._state)
            self.cache.deep.absorb(*state.absorbed)
        if len(tokens):
            self._through(self.cache.deep, tokens)
        past = None
        if self.archive is not None and len(tokens):
            past = kept(self._model, self._axis, self.cache.bands, (whole, tokens), self._grid)
        self.cache.deep.see(*state.last_seen)
        if self._plan.prune_shallow and self._plan.merge_at > 0:
            t, y, x = tokens.boxes[:, :3].unbind(1)
            corners = ((t - self.frames) * rows + y) * columns + x
            self.cache.bands[0].keep(corners, newest=count)
        self._state = state
        self._advance(features, captured, past)
        return Appended(count, len(tokens), evicted, rebased)

    def repeat(self, captured: Sequence[float]) -> Appended:
        """Go on by as many frames as were `captured`, all of which show what the newest frame did.

        What stands for it stands for them too, so nothing runs through any layer; that of which something has left
        the cache is appended anew. The layers below the merge, which would hold such frames in full, go without.
        """
        features = self._ring[-1].expand(len(captured), -1, -1, -1)
        repeated = getattr(self._reducer, "repeated", None)
        if repeated is None:
            return self.append(features, captured)
        evicted, rebased = self._make_room(len(captured), 0)
        state = repeated(self._state, len(captured))
        if state is None:
            done = self.append(features, captured)
            return replace(done, evicted=done.evicted + evicted, rebased=done.rebased or rebased)
        self.cache.deep.absorb(*state.absorbed)
        self.cache.deep.see(*state.last_seen)
        self._state = state
        self._advance(features, captured)
        return Appended(features[..., 0].numel(), 0, evicted, rebased)

    def _advance(
        self, features: Tensor, captured: Sequence[float], past: Kept | None = None
    ) -> None:
        """Count frames (T, H, W, C) that are in the memory now, and keep what they brought into it."""
        frames, rows, columns, _ = features.shape
        first = self._since = self.frames
        self.frames += frames
        self._seen += frames * rows * columns
        cells = [rows * columns] * frames
        self._captured.extend(zip(range(first, self.frames), captured, cells, strict=True))
        while self._captured[0][0] < self._oldest_frame():
            self._captured.popleft()
        self._ring.extend(features)
        if self.archive is not None:
            first = self.cache.deep.emitted - (0 if past is None else len(past[0]))
            self.archive.add(past, first=first, captured=(captured[0], captured[-1]))

    def view(self, window_s: float | None = None, fresh_frames: int | None = None) -> View:
        """The memory as it is now, or what of it was to be seen in the `window_s` seconds before the newest frame.

        Its newest frames are unmerged where the plan wants a fresh view, `fresh_frames` of them where given.
        """
        wanted = self._plan.fresh_frames if fresh_frames is None else fresh_frames
        fresh = min(wanted, len(self._ring), self.frames)
        watched = self._watched(window_s)
        if not self._is_merging():
            fresh = 0
        fresh = min(fresh, self.frames - watched[0][0])
        snapshot = self.cache.snapshot(
            before_frame=self.frames - fresh if fresh else None,
            seen_since=0 if window_s is None else watched[0][0],
        )
        prefix: tuple[Any, ...] = (snapshot,)
        visual = snapshot.tokens
        extra = fresh * self._grid[0] * self._grid[1]
        clock = Stopwatch(self._model.device) if fresh else None
        if clock is not None:
            with clock:
                prefix = (snapshot, self._fresh(snapshot, fresh))
        starts = []
        for band in self.cache.bands:
            start = self._axis.text_start(band, self._grid, frame=self.frames, fresh=fresh)
            pinned = band.pinned
            starts.append((pinned + start - band.offset, pinned + start - band.origin))
        return View(
            prefix=prefix,
            bounds=tuple(band.first for band in self.cache.bands),
            starts=tuple(starts),
            visual=visual + extra,
            before_merge=sum(cells for _, _, cells in watched),
            span=(watched[0][1], watched[-1][1]),
            fresh=extra,
            fresh_clock=clock,
        )

    def past(self, view: View) -> Past | None:
        """What the questions to a view may recall, None where nothing is kept or nothing has left the memory."""
        plan = self._plan.recall
        if self.archive is None or plan is None:
            return None
        gone = self.archive.gone(self.cache.deep.index.serials)
        if gone is None:
            return None
        since = self._captured[-1][1] - min(NOW, self.span_seconds / 2)
        now = next(frame for frame, at, _ in self._captured if at >= since)
        is_now = []
        for band, shown in zip(self.cache.bands, view.prefix[0].bands, strict=True):
            seen, since_now = band.last_seen, now
            if band is not self.cache.deep:
                # it goes without frames that repeat its newest one, which is there for as long as they go on
                seen = shown.index.frames
                since_now = min(now, int(band.index.frames[-1])) if len(band) else now
            is_now.append(seen[: len(shown.index)].to(self._model.device) >= since_now)
        return Past(
            stream=self.stream,
            model=self._model,
            plan=plan,
            axis=self._axis,
            grid=self._grid,
            view=view,
            gone=gone,
            is_now=tuple(is_now),
            size_bias=self._plan.size_bias,
            events=tuple(self.archive.events(-inf, view.span[0])) if plan.log else (),
            text_room=self._plan.question_tokens,
        )

    def _watched(self, window_s: float | None) -> list[tuple[int, float, int]]:
        """Of the remembered frames those of the last `window_s` seconds, the newest in any case."""
        newest = self._captured[-1][1]
        return [
            one
            for one in self._captured
            if window_s is None or newest - one[1] <= window_s or one is self._captured[-1]
        ]

    def mosaic(self) -> Mosaic:
        """What stands for the newest frame; tokens of the newest window are new."""
        drawn = tiles(
            self.cache.deep,
            getattr(self._state, "shown", None),
            newest=self.frames - 1,
            since=self._since,
            captured={frame: at for frame, at, _ in self._captured},
        )
        return Mosaic(
            rows=self._grid[0],
            columns=self._grid[1],
            tiles=drawn,
            before=sum(cells for _, _, cells in self._captured),
            after=len(self.cache.deep),
            span_s=self.span_seconds,
            captured_at=self._captured[-1][1],
        )

    def saved(self) -> dict[str, Tensor]:
        """All that this memory is, for `restore`; what comes later leaves it alone."""
        frames, captured, cells = zip(*self._captured, strict=True)
        tensors = {
            "clock": torch.tensor([self.frames, self._seen, *self._grid]),
            "captured": torch.tensor(captured, dtype=torch.float64),
            "captured.frames": torch.tensor(frames),
            "captured.cells": torch.tensor(cells),
            "ring": torch.stack(list(self._ring)),
        }
        tensors |= {f"reducer.{name}": part for name, part in self._state.saved().items()}
        for number, band in enumerate(self.cache.bands):
            tensors |= {f"band.{number}.{name}": part for name, part in band.saved().items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Be the memory that was saved; raises StateError where that is not one of this model and plan."""
        try:
            self.frames, self._seen, *grid = tensors["clock"].tolist()
            self._grid, self._since = (grid[0], grid[1]), self.frames
            parts = (tensors[f"captured{name}"].tolist() for name in (".frames", "", ".cells"))
            self._captured.extend(zip(*parts, strict=True))
            self._ring.extend(tensors["ring"].to(self._model.device))
            own = _below(tensors, "reducer.")
            own = {name: part.to(self._model.device) for name, part in own.items()}
            self._state = self._reducer.state.restored(own)
            for number, band in enumerate(self.cache.bands):
                band.restore(_below(tensors, f"band.{number}."))
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise StateError(f"the saved memory is not whole: {error!r}") from error

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the newest frame's cells."""
        return self._grid

    @property
    def span_seconds(self) -> float:
        """Seconds from the oldest frame in the memory to the newest."""
        return self._captured[-1][1] - self._captured[0][1]

    def _is_merging(self) -> bool:
        return self.cache.deep.emitted < self._seen

    def _oldest_frame(self) -> int:
        """The oldest frame that any layer remembers."""
        firsts = [int(band.index.frames[0]) for band in self.cache.bands if len(band)]
        return min(firsts, default=self.frames - 1)

    def _make_room(self, frames: int, count: int) -> tuple[int, bool]:
        """Evict in every band what a window of `count` tokens may need, and rebase where positions got high."""
        rebased, gone = False, torch.empty(0, dtype=torch.int64)
        for band in reversed(self.cache.bands):
            if count > band.capacity:
                raise ConfigError(
                    f"stream {self.stream!r}: one window has {count} visual tokens but the memory holds "
                    f"{band.capacity}; set memory.window_tokens to {count} or more, or clip_frames lower"
                )
            end = self._axis.end(band, self._grid, frame=self.frames + frames, count=count)
            stays = self._staying(band, end, count, gone)
            if not bool(stays.all()):
                origin = self._axis.origin(band, stays, self._grid, frame=self.frames)
                lost = band.evict(stays, self._model.turn, origin=origin)
                gone = lost if band is self.cache.deep else gone
            if band.pinned + end - band.offset > self._plan.rebase_at and band.origin > band.offset:
                band.rebase(self._model.turn)
                rebased = True
        if len(gone):
            self._state = self._state.expire(gone.to(self._model.device))
        return len(gone), rebased

    def _staying(self, band: Band, end: int, count: int, gone: Tensor) -> Tensor:
        """(N,) bool: what a band keeps; below the merge, where nothing stands for anything else, the newest."""
        plan, is_deep = self._plan, band is self.cache.deep
        is_mirror = plan.prune_shallow and not is_deep
        stays = staying(
            band,
            plan.retention if is_deep else Fifo(),
            room=0 if is_mirror else count,
            since=end - plan.horizon,
            share=plan.evict_share,
            horizon=plan.horizon,
        )
        return stays & ~torch.isin(band.index.serials, gone) if is_mirror else stays

    def _through(self, band: Band, tokens: VisualTokens) -> Tensor:
        """Run tokens through a band's layers and commit them."""
        places = self._axis.places(band, tokens, self._grid, start=band.emitted)
        stored = places.clone()
        stored[0] -= band.offset
        with stage("prefill"):
            hidden = decoder.append(
                self._model,
                tokens.features[None],
                self.cache,
                band,
                positions=stored + band.pinned,
                sizes=tokens.sizes,
            )
        band.commit(tokens.boxes, places[0], tokens.sizes)
        return hidden[0]

    def _fresh(self, snapshot: CacheSnapshot, count: int) -> Suffix:
        """The newest `count` frames, unmerged, behind a snapshot that lacks them."""
        features = torch.stack(list(self._ring)[-count:])
        tokens = VisualTokens.whole(features, first_frame=self.frames - count)
        suffix = Suffix(decoder.shape_of(self._model), rows=1, capacity=len(tokens))
        hidden = tokens.features[None]
        mask = decoder.causal(len(tokens), device=hidden.device)
        for band, seen in zip(self.cache.bands, snapshot.bands, strict=True):
            start = self._axis.after(band, seen.index)
            places = self._axis.places(band, tokens, self._grid, start=start)
            stored = places.clone()
            stored[0] -= band.offset
            hidden = decoder.walk(
                self._model,
                hidden,
                (band.first, band.last),
                positions=(stored + band.pinned)[:, None],
                mask=mask,
                cache=suffix,
                prefix=(snapshot,),
            )
        suffix.commit(len(tokens))
        return suffix


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)}
