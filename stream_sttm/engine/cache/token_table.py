"""Which token is in each row of a layer group, where it came from, and where it stands on the time axis.

It lives on the CPU, so that eviction is decided without waiting for the device. Knows no keys and no values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTable:
    """One row per visual token, int64 on the CPU: `serials` (N,), `boxes` (N, 5), `times` (N,).

    A serial counts all tokens that the group ever got. Boxes are (frame, y0, x0, y1, x1). Serials, frames and times
    rise.
    """

    serials: Tensor
    boxes: Tensor
    times: Tensor

    def __len__(self) -> int:
        return self.serials.shape[0]

    @classmethod
    def empty(cls) -> TokenTable:
        """Return a table without rows."""
        none = torch.empty(0, dtype=torch.int64)
        return cls(none, none.new_empty(0, 5), none)

    @property
    def frames(self) -> Tensor:
        """The frame that each token came from, (N,)."""
        return self.boxes[:, 0]

    def at(self, slots: Tensor | slice) -> TokenTable:
        """Return a table of some rows. They must be in rising order."""
        return TokenTable(self.serials[slots], self.boxes[slots], self.times[slots])

    def before_frame(self, frame: int) -> int:
        """Return how many tokens belong to frames before `frame`."""
        return int(torch.searchsorted(self.frames.contiguous(), frame))

    @staticmethod
    def joined(first: TokenTable, second: TokenTable) -> TokenTable:
        """Return the rows of `first`, and after them those of `second`."""
        return TokenTable(
            torch.cat([first.serials, second.serials]),
            torch.cat([first.boxes, second.boxes]),
            torch.cat([first.times, second.times]),
        )
