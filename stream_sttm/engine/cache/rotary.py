"""Moving cached keys. A rotary embedding is a rotation, so a key at position p moves to p + d by a rotation by d.

RoFormer, https://arxiv.org/abs/2104.09864, with rotated halves as in transformers. `cos` and `sin` of the shift come
from float64 angles. The rotation itself is done in float32. Knows no cache.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rerotated(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return rotated keys (..., D), moved by the shift with these `cos` and `sin` (D,). The dtype stays."""
    exact = keys.float()
    first, second = exact.chunk(2, dim=-1)
    halves = torch.cat([-second, first], dim=-1)
    return (exact * cos + halves * sin).to(keys.dtype)
