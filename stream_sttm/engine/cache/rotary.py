"""Moving cached keys: a rotary embedding is a rotation, so a key at p becomes the key at p + d by turning it by d.

RoFormer, https://arxiv.org/abs/2104.09864; rotating halves, as in transformers. Knows no cache; `cos` and `sin` of
the shift come from float64 angles, the turn itself is done in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rerotated(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(..., D) rotated keys, moved by the shift whose (D,) `cos` and `sin` are given, in their own dtype."""
    exact = keys.float()
    first, second = exact.chunk(2, dim=-1)
    halves = torch.cat([-second, first], dim=-1)
    return (exact * cos + halves * sin).to(keys.dtype)
