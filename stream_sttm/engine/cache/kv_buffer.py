"""A buffer for the keys or the values of one layer, one slot per token, in the model's dtype or quantized to 8 bits.

With 8 bits every token and head has its own scale: its greatest magnitude over the greatest code. So one outlier spoils
one vector only. Reading returns the model's dtype again. Knows no positions and no layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Format = Literal["auto", "int8", "fp8"]
_CODES: dict[str, tuple[torch.dtype, float]] = {
    "int8": (torch.int8, 127.0),
    "fp8": (torch.float8_e4m3fn, 448.0),
}


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a cache needs to know of a decoder, and the `format` in which it stores keys and values."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    format: Format = "auto"


class KVBuffer:
    """A buffer of shape (1, heads, count, D).

    `_codes` are the values as stored. `_scales` (1, heads, count, 1) are float32, None where nothing is quantized.
    """

    def __init__(self, shape: CacheShape, count: int) -> None:
        size = (1, shape.kv_heads, count, shape.head_dim)
        stored, self._max_code = _CODES.get(shape.format, (shape.dtype, 0.0))
        self._dtype = shape.dtype
        self._codes = torch.empty(size, dtype=stored, device=shape.device)
        self._scales = (
            torch.empty((*size[:3], 1), dtype=torch.float32, device=shape.device)
            if self._max_code
            else None
        )

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(part.nbytes for part in self._parts())

    def write(self, start: int, values: Tensor) -> None:
        """Write values (1, heads, n, D) to the slots from `start` on."""
        here = slice(start, start + values.shape[2])
        if self._scales is None:
            self._codes[:, :, here] = values
            return
        values = values.float()
        scales = values.abs().amax(-1, keepdim=True).div_(self._max_code).clamp_min_(1e-12)
        codes = values / scales
        if self._codes.dtype == torch.int8:
            codes = codes.round_()
        self._codes[:, :, here] = codes.to(self._codes.dtype)
        self._scales[:, :, here] = scales

    def read(self, end: int) -> Tensor:
        """Return the slots [0, end) in the model's dtype. It is a view where nothing is quantized."""
        return self.view(end).dequantized()

    def view(self, end: int) -> KVBufferView:
        """Return a view of the slots [0, end). It stays as it is for as long as nobody writes to these slots."""
        return KVBufferView(self._codes, self._scales, end, self._dtype)

    def move(self, start: int, rows: Tensor) -> None:
        """Move the slots `start + rows`, ascending, so that they lie side by side from `start` on."""
        for part in self._parts():
            part[:, :, start : start + len(rows)] = part[:, :, start + rows]

    def copy_rows(
        self, into: KVBuffer, kept: Tensor, *, to: int, rerotated: Callable[[Tensor], Tensor] | None
    ) -> None:
        """Write the slots `kept` to another buffer, from its slot `to` on, and apply `rerotated` to them where it is
        given.

        Without it the codes are copied, so nothing is rounded twice.
        """
        if rerotated is not None:
            into.write(to, rerotated(self.view(self._codes.shape[2]).at(kept)))
            return
        for old, new in zip(self._parts(), into._parts(), strict=True):
            new[:, :, to : to + len(kept)] = _rows(old, kept)

    def saved(self, end: int) -> dict[str, Tensor]:
        """Return the slots [0, end) as they are stored."""
        names = ("codes", "scales")
        return {n: part[:, :, :end] for n, part in zip(names, self._parts(), strict=False)}

    def restore(self, tensors: Mapping[str, Tensor], end: int) -> None:
        """Fill the slots [0, end) from saved tensors. Raises KeyError or RuntimeError where shape or format differ."""
        for name, part in zip(("codes", "scales"), self._parts(), strict=False):
            stored = tensors[name]
            if stored.dtype != part.dtype:
                raise RuntimeError(f"{name} are {stored.dtype}, not {part.dtype}")
            part[:, :, :end] = stored

    def _parts(self) -> list[Tensor]:
        return [self._codes] if self._scales is None else [self._codes, self._scales]


@dataclass(frozen=True, slots=True)
class KVBufferView:
    """The first `end` slots of a buffer at one moment. They never change."""

    codes: Tensor
    scales: Tensor | None
    end: int
    dtype: torch.dtype

    def dequantized(self) -> Tensor:
        """Return (1, heads, end, D) in the model's dtype."""
        return self._dequantize(
            self.codes[:, :, : self.end],
            None if self.scales is None else self.scales[:, :, : self.end],
        )

    def at(self, slots: Tensor) -> Tensor:
        """Return the slots `slots` (n,) as (1, heads, n, D) in the model's dtype."""
        scales = None if self.scales is None else _rows(self.scales, slots)
        return self._dequantize(_rows(self.codes, slots), scales)

    def _dequantize(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        if scales is None:
            return codes
        return (codes.float() * scales).to(self.dtype)


def _rows(part: Tensor, slots: Tensor) -> Tensor:
    if part.dtype == torch.float8_e4m3fn:  # float8 has no index_select, its bytes have
        return part.view(torch.uint8).index_select(2, slots).view(part.dtype)
    return part.index_select(2, slots)
