"""One camera's memory: frames in, a view to answer from out.

A window is encoded once, run through the layers below the merge with all its tokens, reduced against the frame
before, and only the survivors go on. Room for the worst case is made before reducing. Knows no questions and no wall
clock but the capture times it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine import forward as decoder
from stream_sttm.engine.cache.frame_history import Footage
from stream_sttm.engine.cache.layer_group import Band
from stream_sttm.engine.cache.positions import Grid, TimeAxis
from stream_sttm.engine.cache.rolling import RollingCache
from stream_sttm.engine.cache.room import Room
from stream_sttm.engine.fresh import behind
from stream_sttm.engine.mosaic import Mosaic
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.engine.recall.archive import Archive
from stream_sttm.engine.recall.archived import Kept
from stream_sttm.engine.recall.lookback import NOW
from stream_sttm.engine.recall.retrieval import Past, kept
from stream_sttm.engine.tiles import tiles
from stream_sttm.engine.timer import Stopwatch
from stream_sttm.engine.view import Appended, View
from stream_sttm.errors import StateError
from stream_sttm.metrics import stage
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import Reducer
from stream_sttm.visual_tokens import VisualTokens


class StreamSession:
    """Cache, reducer state and clock of one camera."""

    def __init__(
        self, model: VideoLLM, reducer: Reducer, plan: MemoryPlan, *, stream: str, fps: float
    ) -> None:
        self.stream = stream
        self.shows: int | None = None  # index of the clip whose last frame the newest features show
        self.is_pieced = False  # whether these features are of several clips
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
        self._room = Room(model, plan, self._axis, self.cache, stream=stream)
        self._state: Any = None
        self._footage = Footage()
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
        count, grid = frames * rows * columns, (rows, columns)
        evicted, rebased = self._make_room(frames, count, grid)
        whole = VisualTokens.whole(features, first_frame=self.frames)
        hidden, tokens = features, whole
        if self._plan.merge_at > 0:
            hidden = self._through(self.cache.bands[0], whole, grid).reshape(features.shape)
        with stage("merge"):
            tokens, state = self._reducer(hidden, self._state)
            self.cache.deep.absorb(*state.absorbed)
        if len(tokens):
            self._through(self.cache.deep, tokens, grid)
        past = None
        if self.archive is not None and len(tokens):
            past = kept(self._model, self._axis, self.cache.bands, (whole, tokens), grid)
        self.cache.deep.see(*state.last_seen)
        if self._plan.prune_shallow and self._plan.merge_at > 0:
            t, y, x = tokens.boxes[:, :3].unbind(1)
            corners = ((t - self.frames) * rows + y) * columns + x
            self.cache.bands[0].keep(corners, newest=count)
        self._state = state
        self._advance(features, captured, past, states=hidden)
        return Appended(count, len(tokens), evicted, rebased)

    def repeat(self, captured: Sequence[float]) -> Appended:
        """Go on by as many frames as were `captured`, all of which show what the newest frame did.

        What stands for it stands for them too, so nothing runs through any layer; that of which something has left
        the cache is appended anew. The layers below the merge, which would hold such frames in full, go without.
        """
        features = self._footage.newest(1).expand(len(captured), -1, -1, -1)
        repeated = getattr(self._reducer, "repeated", None)
        if repeated is None:
            return self.append(features, captured)
        evicted, rebased = self._make_room(len(captured), 0, self.grid)
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
        self,
        features: Tensor,
        captured: Sequence[float],
        past: Kept | None = None,
        states: Tensor | None = None,
    ) -> None:
        """Count frames (T, H, W, C) that are in the memory now, and keep what they brought into it."""
        self._footage.take(features, captured, states)
        self._footage.forget(before=self._oldest_frame())
        if self.archive is not None:
            first = self.cache.deep.emitted - (0 if past is None else len(past[0]))
            self.archive.add(past, first=first, captured=(captured[0], captured[-1]))

    def view(self, window_s: float | None = None, fresh_frames: int | None = None) -> View:
        """The memory as it is now, or what of it was to be seen in the `window_s` seconds before the newest frame.

        Its newest frames are unmerged where the plan wants a fresh view, `fresh_frames` of them where given.
        """
        wanted = self._plan.fresh_frames if fresh_frames is None else fresh_frames
        watched = self._footage.within(window_s)
        fresh = min(wanted, self._footage.at_hand, self.frames - watched[0].frame)
        if self.cache.deep.emitted == self._footage.cells:  # nothing of it is merged
            fresh = 0
        before, extra = self.frames - fresh, fresh * self.grid[0] * self.grid[1]
        first = self._whole_below(fresh)
        snapshot = self.cache.snapshot(
            before_frame=before if fresh else None,
            in_layers_from=first,
            seen_since=0 if window_s is None else watched[0].frame,
        )
        prefix: tuple[Any, ...] = (snapshot,)
        clock = Stopwatch(self._model.device) if fresh else None
        if clock is not None:
            with clock:
                newest = self._footage.newest_states if first else self._footage.newest
                tokens = VisualTokens.whole(newest(fresh), first_frame=before)
                memory = (self.cache, snapshot)
                shown = behind(self._model, self._axis, memory, tokens, self.grid, first=first)
                prefix = (snapshot, shown)
        starts = []
        for band in self.cache.bands:
            start = self._axis.text_start(band, self.grid, frame=self.frames, fresh=fresh)
            start += band.pinned
            starts.append((start - band.offset, start - band.origin))
        return View(
            prefix=prefix,
            bounds=tuple(band.first for band in self.cache.bands),
            starts=tuple(starts),
            visual=snapshot.tokens + extra,
            before_merge=sum(shot.cells for shot in watched),
            span=(watched[0].at, watched[-1].at),
            fresh=extra,
            fresh_clock=clock,
        )

    def _whole_below(self, count: int) -> int:
        """The layer below which the memory has the newest `count` frames whole: the merge layer, or 0 for none.

        None where they were pruned there too, or repeat others and did not run.
        """
        cells, before = count * self.grid[0] * self.grid[1], self.frames - count
        shallow = self.cache.bands[0]
        is_whole = len(shallow) - shallow.index.before_frame(before) == cells
        return self.cache.deep.first if is_whole and self._footage.states_at_hand >= count else 0

    def past(self, view: View) -> Past | None:
        """What the questions to a view may recall, None where nothing is kept or nothing has left the memory."""
        plan = self._plan.recall
        if self.archive is None or plan is None:
            return None
        gone = self.archive.gone(self.cache.deep.index.serials)
        if gone is None:
            return None
        now = self._footage.within(min(NOW, self.span_seconds / 2))[0].frame
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
            grid=self.grid,
            view=view,
            gone=gone,
            is_now=tuple(is_now),
            size_bias=self._plan.size_bias,
            events=tuple(self.archive.events(-inf, view.span[0])) if plan.log else (),
            text_room=self._plan.question_tokens,
        )

    def mosaic(self) -> Mosaic:
        """What stands for the newest frame; tokens of the newest window are new."""
        drawn = tiles(
            self.cache.deep,
            getattr(self._state, "shown", None),
            newest=self.frames - 1,
            since=self._footage.since,
            captured={shot.frame: shot.at for shot in self._footage.shots},
        )
        return Mosaic(
            rows=self.grid[0],
            columns=self.grid[1],
            tiles=drawn,
            before=sum(shot.cells for shot in self._footage.shots),
            after=len(self.cache.deep),
            span_s=self.span_seconds,
            captured_at=self._footage.shots[-1].at,
        )

    def saved(self) -> dict[str, Tensor]:
        """All that this memory is, for `restore`; what comes later leaves it alone."""
        tensors = self._footage.saved()
        tensors |= {f"reducer.{name}": part for name, part in self._state.saved().items()}
        for number, band in enumerate(self.cache.bands):
            tensors |= {f"band.{number}.{name}": part for name, part in band.saved().items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Be the memory that was saved; raises StateError where that is not one of this model and plan."""
        try:
            self._footage.restore(tensors, self._model.device)
            own = _below(tensors, "reducer.")
            own = {name: part.to(self._model.device) for name, part in own.items()}
            self._state = self._reducer.state.restored(own)
            for number, band in enumerate(self.cache.bands):
                band.restore(_below(tensors, f"band.{number}."))
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise StateError(f"the saved memory is not whole: {error!r}") from error

    @property
    def frames(self) -> int:
        """Token frames so far."""
        return self._footage.frames

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the newest frame's cells."""
        return self._footage.grid

    @property
    def span_seconds(self) -> float:
        """Seconds from the oldest frame in the memory to the newest."""
        return self._footage.span_seconds

    def _oldest_frame(self) -> int:
        """The oldest frame that any layer remembers."""
        firsts = [int(band.index.frames[0]) for band in self.cache.bands if len(band)]
        return min(firsts, default=self.frames - 1)

    def _make_room(self, frames: int, count: int, grid: Grid) -> tuple[int, bool]:
        """Let go of what a window of `count` tokens may need the place of; how many went, whether the others moved."""
        gone, is_rebased = self._room.make(frame=self.frames, frames=frames, count=count, grid=grid)
        if len(gone):
            self._state = self._state.expire(gone.to(self._model.device))
        return len(gone), is_rebased

    def _through(self, band: Band, tokens: VisualTokens, grid: Grid) -> Tensor:
        """Run tokens through a band's layers and commit them."""
        places = self._axis.places(band, tokens, grid, start=band.emitted)
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


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)}
