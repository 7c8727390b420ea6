"""Baselines for merging methods: keep all, drop at random, drop whole frames. Knows no similarity.

What is dropped is lost: no token stands for it, so the sizes of these tokens are 1. How the stream is cut into clips
changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import ClassVar

import torch
from torch import Tensor

from stream_sttm.reducers.frames import Progress, checked, progressed
from stream_sttm.visual_tokens import VisualTokens


@dataclass(frozen=True, slots=True)
class KeepAll:
    """No merging: every cell of every frame is a token. It has no parameters."""

    state: ClassVar = Progress

    def __call__(
        self, features: Tensor, state: Progress | None = None
    ) -> tuple[VisualTokens, Progress]:
        """Return the cells of the next frames, by frame, then in raster order."""
        tokens = _whole(features, state)
        return tokens, progressed(state, features.shape[0], len(tokens), features.device)


@dataclass(frozen=True, slots=True)
class RandomDrop:
    """A share of each frame's cells, drawn anew for every frame. A stream's first frame stays whole.

    Parameters
        keep (float, above 0, up to 1, default 0.5): share of the cells that is kept.
        seed (int, default 0): seed of the draws. A frame's draw depends on it and on the frame's number alone.
    """

    state: ClassVar = Progress

    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_share(self.keep)

    def __call__(
        self, features: Tensor, state: Progress | None = None
    ) -> tuple[VisualTokens, Progress]:
        """Return the cells of the next frames that are drawn, in raster order."""
        whole = _whole(features, state)
        first = state.frames if state is not None else 0
        frames, cells = features.shape[0], features.shape[1] * features.shape[2]
        drawn = [self._draw(first + index, cells) for index in range(frames)]
        tokens = _chosen(whole, torch.cat(drawn).to(features.device))
        return tokens, progressed(state, frames, len(tokens), features.device)

    def _draw(self, frame: int, cells: int) -> Tensor:
        """Return (cells,) bool: which cells of a frame are kept.

        Over all frames so far it is the share, to the nearest cell.
        """
        if frame == 0:
            return torch.ones(cells, dtype=torch.bool)
        count = floor((frame + 1) * cells * self.keep) - floor(frame * cells * self.keep)
        generator = torch.Generator().manual_seed(hash((self.seed, frame)) % 2**63)
        kept = torch.zeros(cells, dtype=torch.bool)
        kept[torch.randperm(cells, generator=generator)[:count]] = True
        return kept


@dataclass(frozen=True, slots=True)
class Subsample:
    """A share of the frames, evenly spaced and whole, beginning with a stream's first.

    Parameters
        keep (float, above 0, up to 1, default 0.5): share of the frames that is kept.
    """

    state: ClassVar = Progress

    keep: float = 0.5

    def __post_init__(self) -> None:
        _check_share(self.keep)

    def __call__(
        self, features: Tensor, state: Progress | None = None
    ) -> tuple[VisualTokens, Progress]:
        """Return the cells of those of the next frames that are kept, by frame, then in raster order."""
        whole = _whole(features, state)
        tokens = _chosen(whole, self._kept_frames(whole.boxes[:, 0]))
        return tokens, progressed(state, features.shape[0], len(tokens), features.device)

    def _kept_frames(self, frames: Tensor) -> Tensor:
        before = ((frames - 1).double() * self.keep).floor()
        return (frames == 0) | ((frames.double() * self.keep).floor() > before)


def _whole(features: Tensor, state: Progress | None) -> VisualTokens:
    """Return every cell of the next frames, by frame, then in raster order.

    Raises ValueError for NaN or infinite values.
    """
    features = checked(features)
    if not bool(features.isfinite().all()):  # one sync: bad input must not become a token
        raise ValueError("features hold NaN or infinite values")
    first = state.frames if state is not None else 0
    return VisualTokens.whole(features, first_frame=first)


def _chosen(whole: VisualTokens, kept: Tensor) -> VisualTokens:
    return VisualTokens(whole.features[kept], whole.boxes[kept], whole.sizes[kept])


def _check_share(keep: float) -> None:
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise ValueError(f"keep must be a number above 0, up to 1, got {keep!r}")
