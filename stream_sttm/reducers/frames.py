"""Checks of a reducer's input, and the state of reducers that remember nothing but how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a reducer that looks at no earlier clip: how many frames and tokens came before."""

    frames: int
    tokens: int
    absorbed: tuple[Tensor, Tensor]
    last_seen: tuple[Tensor, Tensor]

    def expire(self, evicted: Tensor) -> Progress:
        """Return the state itself. Nothing in it depends on what the cache still holds."""
        return self

    def saved(self) -> dict[str, Tensor]:
        """Return the counts of frames and tokens, for `restored`."""
        return {"counts": torch.tensor([self.frames, self.tokens], device=self.last_seen[0].device)}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Progress:
        """Return the state that was saved. Raises KeyError where something is missing."""
        frames, tokens = tensors["counts"].tolist()
        return progressed(None, frames, tokens, tensors["counts"].device)


def progressed(state: Progress | None, frames: int, tokens: int, device: torch.device) -> Progress:
    """Return the state after `frames` more frames gave `tokens` more tokens."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    done = (state.frames, state.tokens) if state is not None else (0, 0)
    return Progress(done[0] + frames, done[1] + tokens, (none, none), (none, none))


def seconds_to_frames(seconds: Any, rate: float) -> Any:
    """Return how many frames `seconds` are at `rate` frames per second, at least 1. 0 stays 0.

    Anything but a number is returned as it is, for the field's own check to refuse.
    """
    if not seconds or not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return seconds
    return max(1, round(seconds * rate))


def checked(features: Tensor, *, min_side: int = 1) -> Tensor:
    """Return `features` without their graph. Raises ValueError for anything but floating point (T, H, W, C)."""
    if features.ndim != 4:
        raise ValueError(
            f"features must have four axes (T, H, W, C), got {features.ndim}: {_shape(features)}"
        )
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}")
    frames, height, width, channels = features.shape
    if frames < 1 or channels < 1:
        raise ValueError(f"features hold no frame or no channel: {_shape(features)}")
    if min(height, width) < min_side:
        raise ValueError(
            f"features need a grid of at least {min_side}x{min_side} cells per frame, got {height}x{width}"
        )
    return features.detach()


def _shape(features: Tensor) -> str:
    return "(" + ", ".join(str(side) for side in features.shape) + ")"
