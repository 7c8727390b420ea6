"""The writing side of one stream's memory: windows of frames in, surviving tokens appended to the cache.

Reading it (views for questions, the mosaic) is engine/snapshot.py. Knows no questions, and of the wall clock only the
capture times that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine import forward
from stream_sttm.engine.cache.eviction import Eviction
from stream_sttm.engine.cache.frame_history import FrameHistory
from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.cache.positions import Grid, Positions
from stream_sttm.engine.cache.rolling import RollingCache
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.engine.recall.archive import Archive
from stream_sttm.engine.recall.archived import ArchiveEntry
from stream_sttm.engine.recall.retrieval import archive_entry
from stream_sttm.engine.view import Appended
from stream_sttm.errors import StateError
from stream_sttm.metrics import stage
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import Reducer
from stream_sttm.visual_tokens import VisualTokens


class StreamSession:
    """Cache, reducer state and frame history of one stream.

    What snapshot.py reads is public: `cache`, `history`, `positions`, `reducer_state` and `archive`. Only the methods
    of this class change them.
    """

    def __init__(
        self, model: VideoLLM, reducer: Reducer, plan: MemoryPlan, *, stream: str, fps: float
    ) -> None:
        self.stream = stream
        self.shows: int | None = None  # index of the clip whose last frame the newest features show
        self.is_pieced = False  # whether these features come from several clips
        self.tower_state: Any = None  # what the vision tower keeps of that frame
        self.model, self._reducer, self.plan = model, reducer, plan
        self.positions = Positions(model, plan, fps=fps)
        self._preamble = model.preamble()
        self.cache = RollingCache.allocate(
            forward.shape_of(model, plan.kv),
            pinned=len(self._preamble),
            merge_at=plan.merge_at,
            deep=plan.window_tokens,
            shallow=plan.shallow_tokens,
            size_bias=plan.size_bias,
        )
        self._eviction = Eviction(model, plan, self.positions, self.cache, stream=stream)
        self.reducer_state: Any = None
        self.history = FrameHistory()
        self.archive: Archive | None = None  # keeps what enters the memory, for recall
        self.failures = 0  # windows in a row that could not be added
        self._pin()

    def _pin(self) -> None:
        """Run the preamble once; its keys and values stay for ever."""
        count = len(self._preamble)
        if count:
            hidden = self.model.embed(torch.tensor([self._preamble], device=self.model.device))
            positions = torch.arange(count, device=self.model.device).expand(self.model.axes, -1)
            for group in self.cache.groups:
                hidden = forward.prefill(
                    self.model,
                    hidden,
                    self.cache,
                    group,
                    positions=positions,
                    sizes=torch.ones(count, device=hidden.device),
                )
        for group in self.cache.groups:
            group.pin()

    def append(self, features: Tensor, captured: Sequence[float]) -> Appended:
        """Add a window of features (T, H, W, C); `captured` (T,) is the wall clock of each token frame.

        1. Evict until a whole window fits.
        2. Run the layers below the merge on all tokens.
        3. Reduce against the frame before.
        4. Run the survivors through the other layers.
        5. Archive, prune, advance.

        The order matters: an eviction after step 3 could take an anchor. Whatever is raised, the memory is then what it
        was before. Raises ConfigError where the memory can't hold one window.
        """
        with self._undone_on_failure():
            return self._append(features, captured)

    def _append(self, features: Tensor, captured: Sequence[float]) -> Appended:
        frames, rows, columns, _ = features.shape
        count, grid = frames * rows * columns, (rows, columns)
        evicted, is_rebased = self._make_room(frames, count, grid)
        whole = VisualTokens.whole(features, first_frame=self.frames)
        states = self._run_shallow(whole, grid).reshape(features.shape)
        tokens, state = self._reduce(states)
        self._run_deep(tokens, grid)
        entry = self._archive_entry(whole, tokens, grid)
        self.cache.deep.mark_seen(*state.last_seen)
        self._prune_shallow(tokens, count, grid)
        self.reducer_state = state
        self._advance(features, captured, entry, states=states)
        return Appended(count, len(tokens), evicted, is_rebased)

    def repeat(self, captured: Sequence[float]) -> Appended:
        """Go on by frames that all show what the newest frame did; `captured` (T,) is the wall clock of each.

        The tokens that stand for the newest frame stand for these too, so nothing runs through any layer. Where one
        of these tokens was evicted, the picture is appended anew. The layers below the merge do without such frames.
        Whatever is raised, the memory is then what it was before.
        """
        with self._undone_on_failure():
            return self._repeat(captured)

    def _repeat(self, captured: Sequence[float]) -> Appended:
        features = self.history.newest(1).expand(len(captured), -1, -1, -1)
        repeated = getattr(self._reducer, "repeated", None)
        if repeated is None:
            return self._append(features, captured)
        evicted, is_rebased = self._make_room(len(captured), 0, self.grid)
        state = repeated(self.reducer_state, len(captured))
        if state is None:
            done = self._append(features, captured)
            return replace(done, evicted=done.evicted + evicted, rebased=done.rebased or is_rebased)
        self.cache.deep.absorb(*state.absorbed)
        self.cache.deep.mark_seen(*state.last_seen)
        self.reducer_state = state
        self._advance(features, captured)
        return Appended(features[..., 0].numel(), 0, evicted, is_rebased)

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Undo what the `with` body does to the memory and its archive where it fails."""
        cache, history, state = self.cache.mark(), self.history.copy(), self.reducer_state
        archived = None if self.archive is None else self.archive.mark()
        try:
            yield
        except BaseException:
            self.cache.roll_back(cache)
            if self.archive is not None and archived is not None:
                self.archive.roll_back(archived)
            self.history, self.reducer_state = history, state
            self.failures += 1
            raise
        self.failures = 0

    def saved(self) -> dict[str, Tensor]:
        """Return all that this memory is, as tensors for `restore`; later work leaves them alone."""
        # these names are those of files: they do not follow the names of classes
        tensors = self.history.saved()
        tensors |= {f"reducer.{name}": part for name, part in self.reducer_state.saved().items()}
        for number, group in enumerate(self.cache.groups):
            tensors |= {f"band.{number}.{name}": part for name, part in group.saved().items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Become the memory that was saved; raises StateError where that is not one of this model and plan."""
        try:
            self.history.restore(tensors, self.model.device)
            own = _below(tensors, "reducer.")
            own = {name: part.to(self.model.device) for name, part in own.items()}
            self.reducer_state = self._reducer.state.restored(own)
            for number, group in enumerate(self.cache.groups):
                group.restore(_below(tensors, f"band.{number}."))
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise StateError(f"the saved memory is not whole: {error!r}") from error

    @property
    def frames(self) -> int:
        """Token frames so far."""
        return self.history.frames

    @property
    def grid(self) -> Grid:
        """Rows and columns of the newest frame's cells."""
        return self.history.grid

    @property
    def cells(self) -> int:
        """Cells of the newest frame."""
        return self.grid[0] * self.grid[1]

    @property
    def span_seconds(self) -> float:
        """Seconds from the oldest frame in the memory to the newest."""
        return self.history.span_seconds

    def _make_room(self, frames: int, count: int, grid: Grid) -> tuple[int, bool]:
        """Evict until a window of `count` tokens fits; how many tokens went, and whether keys were rebased."""
        evicted, is_rebased = self._eviction.make_room(
            frame=self.frames, frames=frames, count=count, grid=grid
        )
        if len(evicted):
            self.reducer_state = self.reducer_state.expire(evicted.to(self.model.device))
        return len(evicted), is_rebased

    def _run_shallow(self, whole: VisualTokens, grid: Grid) -> Tensor:
        """Run all tokens of a window through the layers below the merge; returns their states (N, C) there."""
        if self.plan.merge_at == 0:
            return whole.features
        return self._run(self.cache.groups[0], whole, grid)

    def _reduce(self, states: Tensor) -> tuple[VisualTokens, Any]:
        """Merge states (T, H, W, C) against the frame before; returns the survivors and the reducer's next state."""
        with stage("merge"):
            tokens, state = self._reducer(states, self.reducer_state)
            self.cache.deep.absorb(*state.absorbed)
        return tokens, state

    def _run_deep(self, tokens: VisualTokens, grid: Grid) -> None:
        """Run the survivors through the layers from the merge on."""
        if len(tokens):
            self._run(self.cache.deep, tokens, grid)

    def _run(self, group: LayerGroup, tokens: VisualTokens, grid: Grid) -> Tensor:
        """Run tokens through a group's layers and commit them; returns their states (N, C) behind the last layer."""
        positions = self.positions.position_ids(group, tokens, grid, start=group.emitted)
        stored = positions.clone()
        stored[0] -= group.offset
        with stage("prefill"):
            hidden = forward.prefill(
                self.model,
                tokens.features[None],
                self.cache,
                group,
                positions=stored + group.pinned,
                sizes=tokens.sizes,
            )
        group.commit(tokens.boxes, positions[0], tokens.sizes)
        return hidden[0]

    def _archive_entry(
        self, whole: VisualTokens, tokens: VisualTokens, grid: Grid
    ) -> ArchiveEntry | None:
        """Return what recall keeps of a window, None where nothing is kept or nothing survived."""
        if self.archive is None or not len(tokens):
            return None
        return archive_entry(self.model, self.positions, self.cache.groups, (whole, tokens), grid)

    def _prune_shallow(self, tokens: VisualTokens, count: int, grid: Grid) -> None:
        """Keep of the newest `count` tokens below the merge only those that survived it, where the plan wants that."""
        if not self.plan.prune_shallow or self.plan.merge_at == 0:
            return
        t, y, x = tokens.boxes[:, :3].unbind(1)
        rows, columns = grid
        corners = ((t - self.frames) * rows + y) * columns + x
        self.cache.groups[0].keep(corners, newest=count)

    def _advance(
        self,
        features: Tensor,
        captured: Sequence[float],
        entry: ArchiveEntry | None = None,
        states: Tensor | None = None,
    ) -> None:
        """Count frames (T, H, W, C) that are in the memory now, and archive what they brought into it."""
        self.history.append(features, captured, states)
        self.history.drop_before(self._oldest_frame())
        if self.archive is not None:
            first = self.cache.deep.emitted - (0 if entry is None else len(entry[0]))
            self.archive.add(entry, first=first, captured=(captured[0], captured[-1]))

    def _oldest_frame(self) -> int:
        """Return the number of the oldest frame that any layer remembers."""
        firsts = [int(group.table.frames[0]) for group in self.cache.groups if len(group)]
        return min(firsts, default=self.frames - 1)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: part for name, part in tensors.items() if name.startswith(prefix)}
