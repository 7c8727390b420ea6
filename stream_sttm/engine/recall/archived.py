"""What a stream's archive is made of: windows of tokens, answers, and which of the tokens the memory has lost.

All of it on the host, or on a disk. Knows no bounds.
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

ArchiveEntry = tuple[
    VisualTokens, Tensor
]  # a window's tokens, and their keys (layers, N, heads, D)
NOT_HELD = -1  # in index of a window's first serial, once its memory was lost and none of its tokens can be held


@dataclass(frozen=True, slots=True)
class SerialLineage:
    """Tells whose serials these are: a memory's, from its start, or from when it was restored, on.

    A restored memory gives out serials once more that had been given out before it was cut off. `shared` says of each
    numbering that it was restored from how many of the first serials mean the same tokens in both.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    shared: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, as_dict: Mapping[str, Any]) -> SerialLineage:
        """What `asdict` once made of one; raises KeyError, TypeError or ValueError where it is none."""
        shared = dict(as_dict["shared"])
        return cls(str(as_dict["id"]), {str(id_): int(count) for id_, count in shared.items()})

    def common(self, other: SerialLineage, emitted: int) -> int:
        """How many of the first `emitted` serials mean the same tokens in `other`."""
        if self.id == other.id:
            return emitted
        return min(emitted, max(self.shared.get(other.id, 0), other.shared.get(self.id, 0)))


@dataclass(slots=True, eq=False)
class ArchivedClip:
    """What one window put into a memory: N tokens, on the CPU; `first` is the serial of the first one.

    `features` (N, C); `keys` (L, N, heads, D), turned by no position; `captured` the wall clock of its oldest and
    newest frame.
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
        """Bytes it takes, wherever they are."""
        return sum(part.nbytes for part in (self.features, self.keys, self.boxes, self.sizes))

    def read(self) -> Tensor:
        """Its features; raises OSError where the disk does not give them back."""
        return self.features.read() if isinstance(self.features, OffloadedTensor) else self.features

    def tokens(self, rows: Tensor) -> VisualTokens:
        """Some of its tokens; raises OSError where the disk does not give them back."""
        features = self.read()
        return VisualTokens(features[rows], self.boxes[rows].long(), self.sizes[rows].long())


@dataclass(slots=True, eq=False)
class PastAnswer:
    """A standing question's answer, and the newest frames, by wall clock, of when it was first and last given."""

    query: str
    question: str
    answer: str
    since: float
    until: float


@dataclass(frozen=True, slots=True, eq=False)
class EvictedTokens:
    """Of an archive's windows the N tokens that their memory has lost: each one's window, and its row there."""

    windows: tuple[ArchivedClip, ...]
    owner: Tensor
    row: Tensor

    def __len__(self) -> int:
        return self.owner.shape[0]

    def keys(self, layer: int) -> Tensor:
        """(N, heads, D) of the so-manieth layer that is kept."""
        wanted = torch.unique(self.owner)
        parts = [self.windows[index].keys[layer] for index in wanted.tolist()]
        starts = torch.tensor([0, *[len(part) for part in parts]]).cumsum(0)
        return torch.cat(parts)[starts[torch.searchsorted(wanted, self.owner)] + self.row]


@dataclass(frozen=True, slots=True, eq=False)
class ArchiveSnapshot:
    """What an archive, told from others by its `id`, holds at one moment; later work leaves it alone.

    An archive numbers its windows without a gap; these are the ones from number `begin` on. `firsts` are their first
    serials, by `numbering`.
    """

    id: str
    numbering: SerialLineage
    begin: int
    windows: tuple[ArchivedClip, ...]
    firsts: tuple[int, ...]
    events: tuple[PastAnswer, ...]
