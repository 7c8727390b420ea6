"""How many tokens a window may give, and the thresholds that give so many. They are read off, never searched for.

Every quadtree node has a critical threshold above which it splits. Every leaf has a similarity below which it stays a
token of its own. Sorted, both give at once the count of tokens that any threshold leaves. Knows no stream and no
anchors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import floor, inf
from typing import Any

import torch
from torch import Tensor

from stream_sttm.errors import ConfigError
from stream_sttm.reducers.quadtree import Pyramid

LEAST_PICTURE = 4  # tokens of the coarsest cut of any picture: two by two
_KINDS = ("tokens_per_second", "tokens_per_frame", "tokens_per_window", "share")


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many tokens. Exactly one of the first four parameters is set.

    Within `spatial` and `temporal` the thresholds follow from the budget. Above the upper end things are so alike that
    they merge although there is room. Below the lower end merging costs too much accuracy. The budget itself is held in
    any case, if need be with thresholds outside of these ranges. Only a picture that has nothing before it to join is
    given in its coarsest cut even so: without it a memory would have nothing to show.

    Parameters
        tokens_per_second (float, above 0, default None): tokens for each second of the stream.
        tokens_per_frame (float, above 0, default None): tokens for each token frame.
        tokens_per_window (float, 4 or more, default None): tokens for each clip.
        share (float, above 0, up to 1, default None): share of all cells.
        spatial (two floats from -1 to 1, the lower first, default 0.5, 0.98): range of the spatial threshold.
        temporal (two floats from -1 to 1, the lower first, default 0.3, 0.98): range of the temporal threshold.
    """

    tokens_per_second: float | None = None
    tokens_per_frame: float | None = None
    tokens_per_window: float | None = None
    share: float | None = None
    spatial: tuple[float, float] = (0.5, 0.98)
    temporal: tuple[float, float] = (0.3, 0.98)

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"budget needs one of {', '.join(_KINDS)}, got {' and '.join(given) or 'none'}"
            )
        amount = getattr(self, given[0])
        if not _is_number(amount) or not 0 < amount < inf or (given == ["share"] and amount > 1):
            upper = ", up to 1" if given == ["share"] else ""
            raise ValueError(f"budget.{given[0]} must be a number above 0{upper}, got {amount!r}")
        if given == ["tokens_per_window"] and amount < LEAST_PICTURE:
            raise ValueError(
                f"budget.tokens_per_window: a new picture needs {LEAST_PICTURE} tokens at least, got {amount!r}"
            )
        for name in ("spatial", "temporal"):
            ends = tuple(getattr(self, name))
            if (
                len(ends) != 2
                or not all(map(_is_number, ends))
                or not -1 <= ends[0] <= ends[1] <= 1
            ):
                raise ValueError(
                    f"budget.{name} must be two numbers from -1 to 1, the lower first, got {list(ends)}"
                )
            object.__setattr__(self, name, ends)

    @classmethod
    def of(cls, given: Any) -> Budget:
        """Return a budget from what is configured. Raises ValueError where that is none."""
        if isinstance(given, Budget):
            return given
        if not isinstance(given, Mapping):
            raise ValueError(
                f"budget must be a section with one of {', '.join(_KINDS)}, got {given!r}"
            )
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ValueError(f"budget has no key {name!r}; known: {', '.join(known)}")
        return cls(**given)

    @staticmethod
    def at_rate(given: Any, rate: float) -> Any:
        """Return a configured budget with `tokens_per_second`, if it has any, as `tokens_per_frame`.

        `rate` is in token frames per second. Anything without such a number is returned as it is.
        """
        if not isinstance(given, Mapping):
            return given
        amount = given.get("tokens_per_second")
        if not isinstance(amount, int | float):
            return given
        others = {name: value for name, value in given.items() if name != "tokens_per_second"}
        return {**others, "tokens_per_frame": amount / rate}

    def tokens(self, first: int, frames: int, cells: int) -> int:
        """Return how many tokens frames [first, first + frames) of so many cells may give.

        Fractions of a token add up over frames.

        Raises ConfigError where the budget is per second, since it knows no frame rate.
        """
        if self.tokens_per_window is not None:
            return floor(self.tokens_per_window)
        if self.tokens_per_second is not None:
            raise ConfigError("budget.tokens_per_second needs a frame rate; say tokens_per_frame")
        each = self.share * cells if self.share is not None else (self.tokens_per_frame or 0.0)
        return floor((first + frames) * each + 1e-9) - floor(first * each + 1e-9)


def leaf_counts(pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """Return critical thresholds (K,), ascending, and the count of leaves if the first 0 to K nodes split (K + 1,)."""
    bounds, gains = [], []
    for level, bound in enumerate(pyramid.split_below):
        _, height, width = bound.shape
        finer = pyramid.norms[level + 1].shape[1:]
        rows, columns = _children(finer[0], bound.device), _children(finer[1], bound.device)
        bounds.append(bound.flatten())
        gains.append((rows[:, None] * columns - 1).expand(bound.shape[0], height, width).flatten())
    roots = pyramid.norms[0].numel()
    if not bounds:
        return pyramid.cells.new_empty(0), torch.tensor([roots], device=pyramid.cells.device)
    critical, order = torch.cat(bounds).sort()
    counts = torch.cat([order.new_tensor([roots]), roots + torch.cat(gains)[order].cumsum(0)])
    return critical, counts


def spatial_threshold(pyramid: Pyramid, most: float, *, within: tuple[float, float]) -> float:
    """Return the greatest spatial threshold that leaves at most `most` leaves, or the end of `within` next to it."""
    critical, counts = leaf_counts(pyramid)
    if not len(critical):  # nothing can split
        return within[1]
    fitting = int((counts <= most).sum()) - 1  # counts rise: so many nodes may split
    threshold = float(critical[max(0, fitting)]) if fitting < len(critical) else within[1]
    return min(within[1], max(within[0], threshold))


def temporal_threshold(ranks: Tensor, drop: int, *, greatest: float) -> float:
    """Return the greatest threshold, up to `greatest`, that at least `drop` of the ranks reach.

    It is -inf with too few.
    """
    if drop <= 0 or not len(ranks):
        return greatest if drop <= 0 else -inf
    if drop > len(ranks):
        return -inf
    return min(greatest, float(ranks.topk(drop).values[-1]))


def _children(side: int, device: torch.device) -> Tensor:
    """Return how many children each parent has along an axis of `side` children: two, but the first one on an odd
    side.
    """
    counts = torch.full(((side + 1) // 2,), 2, device=device)
    if side % 2:
        counts[0] = 1
    return counts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
