"""The arms of the comparison: what is merged or dropped, where, how much of it, and what else differs.

All arms remember the same frames, unless an arm is there to forget: only what becomes of their tokens differs. A
`Recipe` says what is wanted; `Arm` is a recipe with the thresholds that reach its budget. Knows no stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from stream_sttm.config.recall import RecallSettings
from stream_sttm.config.settings import MemorySettings, ReducerSettings, RetentionSettings
from stream_sttm.engine.plan import plan_for, with_room
from stream_sttm.errors import ConfigError
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Recall

Method = Literal["none", "sttm", "spatial", "temporal", "guarded", "random", "frames"]
BUDGETS = (50, 30, 15, 5)  # per cent of the tokens
ABLATED = 30  # the budget at which everything else is varied
LAST = 4  # frames of the arm without a memory
AT_ONCE = 1e-20  # share of the memory evicted at once: none, only what must go
_REDUCERS = {"none": "none", "random": "random", "frames": "subsample"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an arm is to be; `budget` is the share of tokens a question sees, the fresh view counted.

    `capacity`: token frames that fit into the memory, where these are fewer than it may reach back.
    """

    name: str
    method: Method
    budget: float
    at_layer: int
    size_bias: float = 0.0
    fresh: int = 0
    positions: Literal["own", "contiguous"] = "own"
    prune_shallow: bool = False
    capacity: float | None = None
    retention: str = "fifo"
    kv: Literal["auto", "int8", "fp8"] = "auto"
    recall: Recall = "never"
    seed: int = 0

    @property
    def is_searched(self) -> bool:
        """Whether its budget is reached by thresholds, which have to be found."""
        return self.method in ("sttm", "spatial", "temporal", "guarded")

    def is_like(self, other: Recipe) -> bool:
        """Whether it is the same arm under another name."""
        return self == replace(other, name=self.name)


@dataclass(frozen=True, slots=True)
class Arm:
    """A recipe in an engine's terms; arms of one name differ in their seed and count as one."""

    name: str
    reducer: ReducerSettings
    memory: MemorySettings


@dataclass(frozen=True, slots=True)
class Ground:
    """What all arms of a run share: how many token frames they remember, of how many cells.

    `reach`: seconds of stream that fill such a memory; `span`: seconds between its oldest token frame and its newest.
    """

    frames: int
    cells: int
    horizon: int
    reach: float
    span: float

    def memory(self, recipe: Recipe) -> MemorySettings:
        """Return a memory that reaches exactly as far back as every other arm's, unless its capacity ends sooner."""
        whole = self.frames * self.cells
        deep = whole if recipe.capacity is None else max(16, int(recipe.capacity * self.cells))
        is_denser = recipe.positions == "contiguous" and recipe.capacity is None
        if (
            is_denser
        ):  # renumbered, its positions say nothing of time; so much room holds about as many frames
            deep = int(whole * recipe.budget) + 2 * self.cells
        return MemorySettings(
            window_tokens=deep,
            shallow_tokens=whole if is_denser else deep,
            horizon=self.horizon if recipe.recall == "never" else with_room(self.horizon),
            evict_share=AT_ONCE,
            fresh_frames=recipe.fresh,
            positions=recipe.positions,
            prune_shallow=recipe.prune_shallow,
            retention=RetentionSettings(name=recipe.retention),
            kv=recipe.kv,
            recall=RecallSettings(when=recipe.recall, max_age=self.span),
        )


def ground(model: VideoLLM, fps: float, side: tuple[int, int], reach: float | None) -> Ground:
    """How far back this model's memory can reach on pictures of `side` (height, width), or `reach` seconds.

    Raises ConfigError where that is more than the model has positions for, or too little to be asked about.
    """
    group = model.frames_per_token
    picture = torch.zeros(group, 3, *side, dtype=torch.uint8, device=model.device)
    with torch.inference_mode():
        _, rows, columns, _ = model.encode(model.preprocess(picture)).shape
    defaults = MemorySettings()
    plan = plan_for(model, ReducerSettings(), defaults)
    grid, step = (rows, columns), model.step(fps)
    seconds = group / fps
    if reach is None:
        frames = defaults.window_tokens // (rows * columns)
        while frames > 1 and model.own_time(frames, grid, step) > plan.horizon:
            frames -= 1
    else:
        frames = round(reach / seconds)
    horizon = model.own_time(frames, grid, step)
    if horizon < 64 or frames < 2:
        raise ConfigError(
            f"a memory of {frames * seconds:g} s spans {horizon} positions; at least 64 are needed: raise --reach"
        )
    found = Ground(frames, rows * columns, horizon, frames * seconds, (frames - 1) * seconds)
    plan_for(model, ReducerSettings(), found.memory(Recipe("none", "none", 1.0, 0)))
    return found


def recipes(model: VideoLLM, *, seeds: int, budgets: Sequence[int] = BUDGETS) -> list[Recipe]:
    """Every arm of the table, the unmerged one first; `budgets` in per cent of the tokens."""
    tuned, group = model.tuned, model.frames_per_token
    layers = len(model.layers)
    plain = Recipe("none", "none", 1.0, 0)
    best = Recipe(
        "sttm",
        "sttm",
        ABLATED / 100,
        min(tuned.at_layer, layers - 1),
        tuned.size_bias,
        tuned.fresh_frames,
        tuned.positions,
    )
    wanted = [plain]
    for method in ("sttm", "spatial", "temporal", "random", "frames"):
        stem = method if method in ("sttm", "random", "frames") else f"{method}_only"
        for budget in budgets:
            one = replace(best, name=f"{stem}_{budget}", method=method, budget=budget / 100)
            drawn = range(seeds) if method == "random" else range(1)
            wanted += [replace(one, seed=seed) for seed in drawn]
    wanted.append(replace(plain, name=f"last_{LAST}", capacity=max(1, LAST // group)))
    wanted += [replace(best, name=f"layer_{layer}", at_layer=layer) for layer in range(layers)]
    wanted += [replace(best, name=f"size_bias_{bias:g}", size_bias=bias) for bias in (0, 0.5, 1)]
    wanted += [replace(best, name=f"fresh_view_{count}", fresh=count) for count in (0, 1, 4)]
    places: tuple[Literal["own", "contiguous"], ...] = ("own", "contiguous")
    wanted += [
        replace(best, name=f"positions_{place}", positions=place)
        for place in places
        if place == "own" or model.axes == 1
    ]
    if best.at_layer > 0:
        wanted.append(replace(best, name="shallow_kept"))
        wanted.append(replace(best, name="shallow_pruned", prune_shallow=True))
    eight_bits: tuple[Literal["int8", "fp8"], ...] = ("int8", "fp8")
    wanted += [replace(best, name=f"kv_{kv}", kv=kv) for kv in eight_bits]
    return [
        *wanted,
        replace(best, name="guard_off"),
        replace(best, name="guard_on", method="guarded"),
    ]


def left_out(model: VideoLLM) -> list[str]:
    """In words, the arms that this model can't have."""
    lines = []
    if model.axes > 1:
        lines.append(
            f"positions_contiguous: needs a model with one position axis; this has {model.axes}"
        )
    if model.tuned.at_layer == 0:
        lines.append("shallow_kept, shallow_pruned: this model merges before its first layer")
    return lines


def thresholds(model: VideoLLM, recipe: Recipe, scale: float) -> dict[str, Any]:
    """Options of the merging reducer: the model's own pair of thresholds, their distances from 1 times `scale`.

    The drift guard asks of a leaf to be as like its token as it must be like the leaf before it.
    """
    tuned = model.tuned

    def at(threshold: float) -> float:
        return max(-1.0, 1 - scale * max(1 - threshold, 1e-3))

    spatial, temporal = at(tuned.spatial_threshold), at(tuned.temporal_threshold)
    return {
        "spatial_threshold": 1.0 if recipe.method == "temporal" else spatial,
        "temporal_threshold": 1.0 if recipe.method == "spatial" else temporal,
        "drift_threshold": temporal if recipe.method == "guarded" else -1.0,
    }


def share(recipe: Recipe, ground: Ground) -> dict[str, Any]:
    """Options of a dropping reducer, which reach its budget without a search."""
    if recipe.method == "none":
        return {}
    fresh = recipe.fresh / ground.frames
    keep = min(1.0, max(1e-6, (recipe.budget - fresh) / (1 - fresh)))
    return {"keep": keep, "seed": recipe.seed} if recipe.method == "random" else {"keep": keep}


def arm(recipe: Recipe, ground: Ground, options: dict[str, Any]) -> Arm:
    """Return the recipe with its thresholds settled."""
    name = _REDUCERS.get(recipe.method, "sttm_streaming")
    reducer = ReducerSettings.model_validate(
        {"name": name, "at_layer": recipe.at_layer, "size_bias": recipe.size_bias, **options}
    )
    return Arm(recipe.name, reducer, ground.memory(recipe))


def named(wanted: Iterable[Recipe], names: Iterable[str]) -> list[Recipe]:
    """Those of these names; raises ConfigError for a name that none has."""
    known = list(wanted)
    names = set(names) | {"none"}
    if unknown := sorted(names - {recipe.name for recipe in known}):
        listed = ", ".join(dict.fromkeys(recipe.name for recipe in known))
        raise ConfigError(f"--arms: there is no arm {unknown[0]!r}; arms: {listed}")
    return [recipe for recipe in known if recipe.name in names]
