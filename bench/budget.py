"""Which thresholds leave so many tokens: found on streams that are not asked about, by replaying what a reducer sees.

What reaches the merge layer does not depend on any threshold while the layers below keep all their tokens, so it is
recorded once and merged as often as it takes. A replay counts the tokens that questions would see; it knows no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.arms import Ground, Recipe, thresholds
from bench.exam import STREAM, Footage
from stream_sttm.config.settings import ReducerSettings
from stream_sttm.engine import attention
from stream_sttm.engine.plan import plan_for
from stream_sttm.engine.session import StreamSession
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import Reducer, build_reducer
from stream_sttm.reducers.frames import Progress, progressed
from stream_sttm.types import Clip
from stream_sttm.visual_tokens import VisualTokens

STEPS = 14  # cuts of the range of scales, at most
CLOSE = 0.003  # share of all tokens by which a budget may be missed
LEAST = 1e-4  # smallest scale that is tried


@dataclass(frozen=True, slots=True)
class Settled:
    """A recipe's options, the share of tokens they leave on the calibration streams, and whether that is its budget."""

    recipe: Recipe
    options: dict[str, Any]
    share: float
    is_reached: bool


@dataclass
class Recorder:
    """A reducer that keeps what it is given and lets nothing through."""

    state: ClassVar = Progress
    windows: list[Tensor] = field(default_factory=list)

    def __call__(
        self, features: Tensor, state: Progress | None = None
    ) -> tuple[VisualTokens, Progress]:
        self.windows.append(features.clone())
        none = torch.empty(0, dtype=torch.int64, device=features.device)
        empty = VisualTokens(features.reshape(-1, features.shape[-1])[:0], none.reshape(0, 5), none)
        return empty, progressed(state, features.shape[0], 0, features.device)


@dataclass(frozen=True, slots=True)
class Reel:
    """A calibration stream's windows behind the vision tower, (T, H, W, C) each, and its frame rate."""

    windows: list[Tensor]
    fps: float


@torch.inference_mode()
def encode(model: VideoLLM, footage: Footage) -> Reel:
    """Return a stream's windows, put through the vision tower once for every search."""
    windows = []
    for clip in footage.script():
        if isinstance(clip, Clip):
            stacked = torch.stack([torch.from_numpy(frame.image) for frame in clip.frames])
            pixels = model.preprocess(stacked.to(model.device).permute(0, 3, 1, 2))
            windows.append(model.encode(pixels))
    return Reel(windows, footage.fps)


@torch.inference_mode()
def record(model: VideoLLM, at_layer: int, ground: Ground, reel: Reel) -> list[Tensor]:
    """Return the states at decoder layer `at_layer`, window by window, with nothing merged below it."""
    seen = Recorder()
    session = _session(model, Recipe("none", "none", 1.0, at_layer), ground, reel, seen)
    for features in reel.windows:
        session.append(features, [0.0] * len(features))
    return seen.windows


@torch.inference_mode()
def played_shares(
    model: VideoLLM, recipe: Recipe, ground: Ground, reel: Reel, reducer: Reducer
) -> list[float]:
    """As `seen_shares`, from a memory that runs all its layers: for recipes whose merging changes what is merged."""
    session, shares = _session(model, recipe, ground, reel, reducer), []
    for place, features in enumerate(reel.windows):
        session.append(features, [0.0] * len(features))
        cells = features.shape[1] * features.shape[2]
        if session.frames >= ground.frames or place == len(reel.windows) - 1:
            kept = session.cache.deep.table.before_frame(session.frames - recipe.fresh)
            whole = min(ground.frames, session.frames) * cells
            shares.append((kept + recipe.fresh * cells) / whole)
    return shares


def _session(
    model: VideoLLM, recipe: Recipe, ground: Ground, reel: Reel, reducer: Reducer
) -> StreamSession:
    attention.register()
    model.use_attention(attention.NAME)
    settings = ReducerSettings(name="none", at_layer=recipe.at_layer)
    plan = plan_for(model, settings, ground.memory(recipe))
    return StreamSession(model, reducer, plan, stream=STREAM, fps=reel.fps)


@torch.inference_mode()
def seen_shares(
    windows: Sequence[Tensor], reducer: Reducer, *, frames: int, fresh: int
) -> list[float]:
    """After each window that fills a memory of `frames`, or the last: the share of its tokens a question would see."""
    state: Any = None
    counts: list[int] = []  # tokens by the frame they came from
    shares = []
    for features in windows:
        first, newest = len(counts), len(counts) + features.shape[0]
        oldest = max(0, newest - frames)
        if state is not None:
            state = state.expire(torch.arange(sum(counts[:oldest])))
        tokens, state = reducer(features, state)
        counts += (tokens.boxes[:, 0] - first).bincount(minlength=features.shape[0]).tolist()
        if newest >= frames or features is windows[-1]:
            cells = features.shape[1] * features.shape[2]
            kept = sum(counts[oldest : newest - fresh]) + fresh * cells
            shares.append(kept / (min(frames, newest) * cells))
    return shares


def settle(
    model: VideoLLM,
    recipe: Recipe,
    ground: Ground,
    reels: Sequence[Reel],
    recorded: Sequence[Sequence[Tensor]],
) -> Settled:
    """Return the thresholds that bring a recipe nearest to its budget; `recorded` at its layer, one for each reel."""

    def kept(options: dict[str, Any]) -> float:
        reducer = build_reducer("sttm_streaming", options)
        if recipe.prune_shallow:  # slower, so on fewer streams
            found = [played_shares(model, recipe, ground, reel, reducer) for reel in reels[::4]]
        else:
            frames, fresh = ground.frames, recipe.fresh
            found = [seen_shares(one, reducer, frames=frames, fresh=fresh) for one in recorded]
        return fmean(share for shares in found for share in shares)

    def searched(root_level: int) -> Settled:
        def options(scale: float) -> dict[str, Any]:
            return {**thresholds(model, recipe, scale), "root_level": root_level}

        scale, share = nearest(
            lambda scale: kept(options(scale)), recipe.budget, most=_widest(model)
        )
        return Settled(recipe, options(scale), share, abs(share - recipe.budget) <= 3 * CLOSE)

    found = searched(root_level=1)
    if not found.is_reached and found.share > recipe.budget:
        found = searched(
            root_level=0
        )  # the published setting merges no further than a quarter in space
    return found


def nearest(
    kept: Callable[[float], float], wanted: float, *, least: float = LEAST, most: float
) -> tuple[float, float]:
    """Return the scale between `least` and `most` whose share comes nearest to `wanted`, and that share.

    `kept` falls as the scale grows, give or take a little. The range is halved, or cut nearer to where a straight
    line through its ends would meet the budget, in turn.
    """
    tried = [(scale, kept(scale)) for scale in (least, most)]
    (low, high), (above, below) = (log(least), log(most)), (tried[0][1], tried[1][1])
    if not above > wanted > below:
        return min(tried, key=lambda one: abs(one[1] - wanted))
    for step in range(STEPS):
        part = (above - wanted) / (above - below) if step % 2 else 0.5
        middle = low + (high - low) * min(0.9, max(0.1, part))
        share = kept(exp(middle))
        tried.append((exp(middle), share))
        if abs(share - wanted) <= CLOSE:
            break
        if share > wanted:
            low, above = middle, share
        else:
            high, below = middle, share
    return min(tried, key=lambda one: abs(one[1] - wanted))


def _widest(model: VideoLLM) -> float:
    """Return the scale at which both thresholds are -1: everything that touches merges."""
    tuned = model.tuned
    return 2 / max(1e-3, 1 - max(tuned.spatial_threshold, tuned.temporal_threshold))
