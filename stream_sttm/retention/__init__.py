"""What a full memory evicts: one file per policy, found by name. Tensors only, no cache, no clock.

A policy decides about tokens that are already in the cache, and only when room is needed. Where it drops what is still
in view, the reducer emits that again. So no policy can hide what is visible now.
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

    - `boxes` (N, 5) int64: rows (frame, y0, x0, y1, x1).
    - `last_seen` (N,) int64: the last frame that showed what a token stands for.
    - `sizes` (N,) float32: how many cells of all frames it stands for.
    """

    boxes: Tensor
    last_seen: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @property
    def frames(self) -> Tensor:
        """The frame that each token came from, (N,), rising."""
        return self.boxes[:, 0]


class RetentionPolicy(Protocol):
    """A pure function: the same memory and need give the same choice."""

    def __call__(self, held: Held, *, drop: int) -> Tensor:
        """Return (N,) bool: which tokens to keep. At least `drop` of them (1 to N) are not kept."""
        ...


def build_policy(name: str, options: Mapping[str, Any] | None = None) -> RetentionPolicy:
    """Return the policy `name` with `options` as its fields. Raises ConfigError for an unknown name or option."""
    cls = registry.find(POLICIES, GROUP, name, kind="retention policy")
    policy: RetentionPolicy = registry.build(cls, options or {}, kind=f"memory.retention {name!r}")
    return policy
