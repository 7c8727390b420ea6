"""Less detail with age: recent frames are whole, older ones have a token for each coarse cell, the oldest have one
token.

A cached token can't be merged any more. So thinning keeps, of the tokens in one coarse cell of the quadtree's grid, the
one that stands for most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.retention import Held
from stream_sttm.retention.fifo import oldest_first


@dataclass(frozen=True, slots=True)
class Tiered:
    """Three tiers by age. Frames older than the first two tiers keep a single token.

    Parameters
        recent (float, 0 to 1, default 0.5): share of the remembered frames that is never thinned.
        coarse (float, 0 to 1, default 0.3): share after it that keeps a token for each coarse cell. Both together are
            at most 1.
        cell (int, 2 or more, default 4): side of a coarse cell, in visual tokens.
    """

    recent: float = 0.5
    coarse: float = 0.3
    cell: int = 4

    def __post_init__(self) -> None:
        for name, share in (("recent", self.recent), ("coarse", self.coarse)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, got {share!r}")
        if self.recent + self.coarse > 1:
            raise ValueError(
                f"recent and coarse are shares of one memory, got {self.recent} + {self.coarse}"
            )
        if isinstance(self.cell, bool) or not isinstance(self.cell, int) or self.cell < 2:
            raise ValueError(f"cell must be a whole number from 2 on, got {self.cell!r}")

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """Return (N,) bool: thin the coarse tier first, then the oldest, and then, if need be, drop the oldest
        frames.
        """
        ages = torch.unique(held.frames, return_inverse=True)[1]  # 0 is the oldest frame held
        count = int(ages[-1]) + 1
        middle = ages < count - round(count * self.recent)
        oldest = ages < count - round(count * (self.recent + self.coarse))
        cells = held.boxes[:, 1:3] // self.cell
        width = int(cells[:, 1].max()) + 1
        coarse = ages * (int(cells[:, 0].max()) + 1) * width + cells[:, 0] * width + cells[:, 1]
        keep = ~middle | _largest(held, coarse)
        if int((~keep).sum()) < drop:
            keep &= ~oldest | _largest(held, ages)
        return oldest_first(held, keep, drop=drop)


def _largest(held: Held, groups: Tensor) -> Tensor:
    """Return (N,) bool: in each group the token that stands for most cells, the first of those that tie."""
    _, group = torch.unique(groups, return_inverse=True)
    most = torch.full((int(group.max()) + 1,), -torch.inf).scatter_reduce_(
        0, group, held.sizes, "amax"
    )
    tied = (held.sizes == most[group]).nonzero()[:, 0]
    first = torch.full((len(most),), len(held)).scatter_reduce_(0, group[tied], tied, "amin")
    chosen = torch.zeros(len(held), dtype=torch.bool)
    chosen[first] = True
    return chosen
