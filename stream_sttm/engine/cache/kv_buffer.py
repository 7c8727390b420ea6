"""Keys or values of one layer, one slot a token: in the model's own values, or in 8 bits with a scale each.

8 bits: every token and head has a scale of its own, its greatest magnitude over the greatest code, so one outlier
spoils one vector only. Reading gives the model's numbers again. Knows no positions and no layers.
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
    """What a cache needs to know of a decoder, and in what `format` it keeps keys and values."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    format: Format = "auto"


class KVBuffer:
    """(1, heads, count, D) numbers; `codes` as they are stored, `scales` (1, heads, count, 1) float32 or None."""

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
        """Put (1, heads, n, D) at slots from `start` on."""
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
        """Slots [0, end) in the model's numbers; a view where they are stored so."""
        return self.view(end).dequantized()

    def view(self, end: int) -> KVBufferView:
        """Slots [0, end) as they are now, for as long as nobody writes there."""
        return KVBufferView(self._codes, self._scales, end, self._dtype)

    def move(self, start: int, rows: Tensor) -> None:
        """Put the slots `start + rows`, ascending, side by side from `start` on."""
        for part in self._parts():
            part[:, :, start : start + len(rows)] = part[:, :, start + rows]

    def copy_rows(
        self, into: KVBuffer, kept: Tensor, *, to: int, rerotated: Callable[[Tensor], Tensor] | None
    ) -> None:
        """Write the slots `kept` into others from slot `to` on, `rerotated` on the way; codes are not rounded twice."""
        if rerotated is not None:
            into.write(to, rerotated(self.view(self._codes.shape[2]).at(kept)))
            return
        for old, new in zip(self._parts(), into._parts(), strict=True):
            new[:, :, to : to + len(kept)] = _rows(old, kept)

    def saved(self, end: int) -> dict[str, Tensor]:
        """Slots [0, end) as they are stored."""
        names = ("codes", "scales")
        return {n: part[:, :, :end] for n, part in zip(names, self._parts(), strict=False)}

    def restore(self, tensors: Mapping[str, Tensor], end: int) -> None:
        """Take back slots [0, end); raises KeyError or RuntimeError where they are of another shape or format."""
        for name, part in zip(("codes", "scales"), self._parts(), strict=False):
            stored = tensors[name]
            if stored.dtype != part.dtype:
                raise RuntimeError(f"{name} are {stored.dtype}, not {part.dtype}")
            part[:, :, :end] = stored

    def _parts(self) -> list[Tensor]:
        return [self._codes] if self._scales is None else [self._codes, self._scales]


@dataclass(frozen=True, slots=True)
class KVBufferView:
    """The first `end` slots at one moment; they never change under it."""

    codes: Tensor
    scales: Tensor | None
    end: int
    dtype: torch.dtype

    def dequantized(self) -> Tensor:
        """(1, heads, end, D) in the model's values."""
        return self._dequantize(
            self.codes[:, :, : self.end],
            None if self.scales is None else self.scales[:, :, : self.end],
        )

    def at(self, slots: Tensor) -> Tensor:
        """(1, heads, n, D) of some slots."""
        scales = None if self.scales is None else _rows(self.scales, slots)
        return self._dequantize(_rows(self.codes, slots), scales)

    def _dequantize(self, codes: Tensor, scales: Tensor | None) -> Tensor:
        if scales is None:
            return codes
        return (codes.float() * scales).to(self.dtype)


def _rows(part: Tensor, slots: Tensor) -> Tensor:
    if part.dtype == torch.float8_e4m3fn:  # its rows can't be picked, its bytes can
        return part.view(torch.uint8).index_select(2, slots).view(part.dtype)
    return part.index_select(2, slots)
