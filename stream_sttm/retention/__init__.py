"""What a full memory lets go of: one file per policy, found by name. Tensors only, no cache, no clock.

A policy decides about tokens that are already in the cache, and only when room is needed. What it drops although it
is still in view is emitted anew by the reducer, so no policy can hide what is there now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from stream_sttm import registry

GROUP = "stream_sttm.retention"
POLICIES: dict[str, str] = {
    "fifo": "stream_sttm.retention.fifo:Fifo",
    "lru": "stream_sttm.retention.lru:LeastRecentlySeen",
    "tiered": "stream_sttm.retention.tiered:Tiered",
}


@dataclass(frozen=True, slots=True)
class Held:
    """A memory's N visual tokens in the order in which they were emitted, on the CPU.

    `boxes` (N, 5) int64, rows (frame, y0, x0, y1, x1); `last_seen` (N,) int64, the last frame that showed what a token
    stands for; `sizes` (N,) float32, how many cells of all frames it stands for.
    """

    boxes: Tensor
    last_seen: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def frames(self) -> Tensor:
        """The frame each token came from, (N,), rising."""
        return self.boxes[:, 0]


class RetentionPolicy(Protocol):
    """A pure function: same memory and need, same choice."""

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """(N,) bool: which tokens stay; at least `drop` of them (1 to N) do not."""
        ...


def build_policy(name: str, options: Mapping[str, Any] | None = None) -> RetentionPolicy:
    """The policy `name` with `options` as its fields; raises ConfigError for an unknown name or option."""
    cls = registry.find(POLICIES, GROUP, name, kind="retention policy")
    policy: RetentionPolicy = registry.build(cls, options or {}, kind=f"memory.retention {name!r}")
    return policy
