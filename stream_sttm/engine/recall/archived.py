"""The records of a stream's archive: windows of tokens, answers, and which tokens were evicted.

All of it is on the host or on a disk. Knows no bounds.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.recall.offload import OffloadedTensor
from stream_sttm.visual_tokens import VisualTokens

# A window's tokens, and their keys (layers, N, heads, D).
ArchiveEntry = tuple[VisualTokens, Tensor]
# In place of a window's first serial, where the memory that emitted it was lost and can hold none of its tokens.
NOT_HELD = -1


@dataclass(frozen=True, slots=True)
class SerialLineage:
    """Identifies whose serials these are: those of a memory since its start, or since it was restored.

    A restored memory gives out serials once more that had been given out before it was cut off. `shared` maps the ids
    of earlier lineages to how many of the first serials mean the same tokens in both.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    shared: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, as_dict: Mapping[str, Any]) -> SerialLineage:
        """Return the lineage that `asdict` turned into this.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        shared = dict(as_dict["shared"])
        return cls(str(as_dict["id"]), {str(id_): int(count) for id_, count in shared.items()})

    def common(self, other: SerialLineage, emitted: int) -> int:
        """Return how many of the first `emitted` serials mean the same tokens in `other`."""
        if self.id == other.id:
            return emitted
        return min(emitted, max(self.shared.get(other.id, 0), other.shared.get(self.id, 0)))


@dataclass(slots=True, eq=False)
class ArchivedClip:
    """One window's N tokens, on the CPU. `first` is the serial of the first one, or NOT_HELD.

    `features` (N, C). `keys` (L, N, heads, D) before any rotation. `captured`: the wall clock of the oldest and newest
    frame.
    """

    features: Tensor | OffloadedTensor
    keys: Tensor
    boxes: Tensor
    sizes: Tensor
    captured: tuple[float, float]
    first: int

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes it takes, in memory and on disk."""
        return sum(part.nbytes for part in (self.features, self.keys, self.boxes, self.sizes))

    def read(self) -> Tensor:
        """Return the features. Raises OSError where the disk can't be read."""
        return self.features.read() if isinstance(self.features, OffloadedTensor) else self.features

    def tokens(self, rows: Tensor) -> VisualTokens:
        """Return the tokens of some rows. Raises OSError where the disk can't be read."""
        features = self.read()
        return VisualTokens(features[rows], self.boxes[rows].long(), self.sizes[rows].long())


@dataclass(slots=True, eq=False)
class PastAnswer:
    """A standing question's answer, and the wall clock of the newest frame when it was first and last given."""

    query: str
    question: str
    answer: str
    since: float
    until: float


@dataclass(frozen=True, slots=True, eq=False)
class EvictedTokens:
    """The N archived tokens that the memory has lost: each one's window (`owner`), and its row in that window
    (`row`).
    """

    windows: tuple[ArchivedClip, ...]
    owner: Tensor
    row: Tensor

    def __len__(self) -> int:
        return self.owner.shape[0]

    def keys(self, layer: int) -> Tensor:
        """Return the keys (N, heads, D) of one of the archived layers, by its place among these."""
        wanted = torch.unique(self.owner)
        parts = [self.windows[index].keys[layer] for index in wanted.tolist()]
        starts = torch.tensor([0, *[len(part) for part in parts]]).cumsum(0)
        return torch.cat(parts)[starts[torch.searchsorted(wanted, self.owner)] + self.row]


@dataclass(frozen=True, slots=True, eq=False)
class ArchiveSnapshot:
    """What the archive `id` holds at one moment. Later work does not change it.

    An archive numbers its windows without gaps. These are the ones from number `begin` on. `firsts` are the serials of
    their first tokens, in the lineage `numbering`.
    """

    id: str
    numbering: SerialLineage
    begin: int
    windows: tuple[ArchivedClip, ...]
    firsts: tuple[int, ...]
    events: tuple[PastAnswer, ...]
