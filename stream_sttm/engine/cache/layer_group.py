"""A layer group: layers whose caches have the same length, as in vLLM's KV cache groups.

The buffers are preallocated. Their slots [0, pinned) hold the preamble, the rest hold visual tokens in stream order.
Slots that are written never change. Appends go behind them, eviction and rebasing write new buffers. So a view stays as
it is until its last reader drops it. For the same reason a mark, which is nothing but references, is enough to roll
back to. Knows no model beyond shapes, and no time.

Positions on the time axis are counted from the stream's start and never wrap. Keys are stored `offset` below that, and
`rebase` raises the offset. Attention depends on differences only, so nothing but rounding changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.cache.kv_buffer import CacheShape, KVBuffer, KVBufferView
from stream_sttm.engine.cache.rotary import rerotated
from stream_sttm.engine.cache.token_table import TokenTable

Turn = Callable[[int], tuple[Tensor, Tensor]]
_BY_TOKEN = ("sizes", "last_seen", "turns", "_serials")
_MARKED = ("table", "written", "emitted", "origin", "offset", *_BY_TOKEN)


class LayerGroup:
    """The keys and values of layers [first, last), all of one length."""

    def __init__(
        self, shape: CacheShape, first: int, last: int, *, pinned: int, capacity: int
    ) -> None:
        self.first, self.last = first, last
        self.pinned, self.capacity = pinned, capacity
        self._shape = shape
        self._keys = [self._new_buffer() for _ in range(first, last)]
        self._values = [self._new_buffer() for _ in range(first, last)]
        self._pinned_keys: list[Tensor] = []
        self.table = TokenTable.empty()
        self.sizes = torch.ones(capacity, dtype=torch.float32, device=shape.device)
        self.last_seen = torch.zeros(capacity, dtype=torch.int64, device=shape.device)
        self.turns = torch.zeros(capacity, dtype=torch.int64, device=shape.device)
        self._serials = torch.zeros(capacity, dtype=torch.int64, device=shape.device)
        self.written = 0
        self.emitted = 0
        self.origin = 0
        self.offset = 0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def evicted(self) -> int:
        """How many visual tokens have been evicted so far."""
        return self.emitted - len(self)

    @property
    def room(self) -> int:
        """How many visual tokens fit without eviction."""
        return self.capacity - len(self)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    def write(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write keys and values (1, heads, n, D) behind the committed tokens.

        Returns all of them up to there, to attend over.
        """
        end = self.written + keys.shape[2]
        k, v = self._keys[layer - self.first], self._values[layer - self.first]
        k.write(self.written, keys)
        v.write(self.written, values)
        return k.read(end), v.read(end)

    def pin(self) -> None:
        """Make the tokens just written the pinned prefix.

        Its keys are kept in float32, so that moving it adds up no errors.
        """
        self.written = self.pinned
        self._pinned_keys = [
            keys.read(self.pinned).to(torch.float32, copy=True) for keys in self._keys
        ]

    def commit(self, boxes: Tensor, times: Tensor, sizes: Tensor) -> None:
        """Make the tokens just written visual tokens: `boxes` (N, 5), `times` (N,), `sizes` (N,)."""
        start, end = len(self), len(self) + len(boxes)
        serials = torch.arange(self.emitted, self.emitted + len(boxes))
        self.sizes[start:end] = sizes
        self.last_seen[start:end] = boxes[:, 0]
        self.turns[start:end] = 0
        self._serials[start:end] = serials.to(self._serials.device)
        self.table = TokenTable.joined(self.table, TokenTable(serials, boxes.cpu(), times.cpu()))
        self.emitted += len(boxes)
        self.written += len(boxes)

    def keep(self, rows: Tensor, *, newest: int) -> None:
        """Keep only `rows` (K,), ascending, of the `newest` visual tokens. Call it before anyone has seen the others.

        The tokens that stay are numbered as if the others had never been there.
        """
        old = len(self) - newest
        start, indices = self.written - newest, rows.cpu()
        for stored in (*self._keys, *self._values):
            stored.move(start, rows)
        new = self.table.at(slice(old, None)).at(indices)
        self.table, sizes = self.table.at(slice(old)), self.sizes[old + rows]
        self.emitted -= newest
        self.written = start
        self.commit(new.boxes.to(sizes.device), new.times, sizes)

    def newest(self, layer: int, rows: Tensor, *, count: int) -> Tensor:
        """Return one layer's keys (1, heads, K, D) for `rows` (K,) among the `count` newest visual tokens."""
        return self._keys[layer - self.first].view(self.written).at(self.written - count + rows)

    def absorb(self, serials: Tensor, counts: Tensor) -> None:
        """Let tokens stand for `counts` more cells. Tokens that were evicted are left out."""
        slots, is_held = self._slots(serials)
        self.sizes = self.sizes.index_add(0, slots, counts.float() * is_held)

    def mark_seen(self, serials: Tensor, frames: Tensor) -> None:
        """Set the last frames (K,) that showed what the tokens `serials` (K,) stand for."""
        slots, is_held = self._slots(serials)
        shown = torch.where(is_held, frames, self.last_seen[slots])
        self.last_seen = self.last_seen.scatter_reduce(0, slots, shown, "amax")

    def _slots(self, serials: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows (K,) of tokens, and whether each is still held. A token that is not gets any row."""
        slots = torch.searchsorted(self._serials[: len(self)], serials)
        is_held = slots < len(self)
        slots = slots.clamp(max=self.capacity - 1)
        return slots, is_held & (self._serials[slots] == serials)

    def evict(self, keep: Tensor, turn: Turn, *, origin: int) -> Tensor:
        """Keep only the visual tokens of `keep` (N,) bool, and move the pinned prefix up to `origin` on the time axis.

        Returns the serials of the others, on the CPU.
        """
        evicted = self.table.serials[~keep]
        self._rewrite(keep.nonzero()[:, 0], turn, origin=origin, offset=self.offset)
        return evicted

    def rebase(self, turn: Turn) -> None:
        """Move all stored keys down, so that the pinned prefix is at position 0 again."""
        slots = torch.arange(len(self))
        self._rewrite(slots, turn, origin=self.origin, offset=self.origin)

    def _rewrite(self, slots: Tensor, turn: Turn, *, origin: int, offset: int) -> None:
        """Copy the visual tokens of some rows to new buffers, with keys that are rotated for a new offset."""
        prefix = turn(origin - offset)
        shift = turn(self.offset - offset) if offset != self.offset else None
        moved = partial(rerotated, cos=shift[0], sin=shift[1]) if shift else None
        kept = slots.to(self.sizes.device)
        end, first = self.pinned + len(kept), torch.arange(self.pinned, device=kept.device)
        for index, (keys, values, master) in enumerate(
            zip(self._keys, self._values, self._pinned_keys, strict=True)
        ):
            new_keys, new_values = self._new_buffer(), self._new_buffer()
            new_keys.write(0, rerotated(master, *prefix))
            keys.copy_rows(new_keys, kept + self.pinned, to=self.pinned, rerotated=moved)
            values.copy_rows(
                new_values, torch.cat([first, kept + self.pinned]), to=0, rerotated=None
            )
            self._keys[index], self._values[index] = new_keys, new_values
        for name in _BY_TOKEN:
            old = getattr(self, name)
            fresh = torch.zeros_like(old)
            fresh[: len(kept)] = old[kept]
            setattr(self, name, fresh)
        if moved:
            self.turns[: len(kept)] += 1
        self.table = self.table.at(slots)
        self.written = end
        self.origin, self.offset = origin, offset

    def mark(self) -> Mapping[str, Any]:
        """Return what `roll_back` needs to undo all that is done from now on. Nothing is copied."""
        marked = {name: getattr(self, name) for name in _MARKED}
        return marked | {"_keys": list(self._keys), "_values": list(self._values)}

    def roll_back(self, mark: Mapping[str, Any]) -> None:
        """Become what the group was when `mark` was made. Use a mark once."""
        for name, value in mark.items():
            setattr(self, name, value)

    def saved(self) -> dict[str, Tensor]:
        """Return everything as tensors for `restore`. Later appends, evictions and rebasing do not change them."""
        counts = torch.tensor([self.emitted, self.origin, self.offset])
        tensors = {
            "counts": counts,
            "serials": self.table.serials,
            "boxes": self.table.boxes,
            "times": self.table.times,
            "sizes": self.sizes[: len(self)].clone(),
            "last_seen": self.last_seen[: len(self)].clone(),
            "turns": self.turns[: len(self)].clone(),
        }
        for name, buffer in self._buffers_by_name():
            tensors |= {f"{name}.{n}": part for n, part in buffer.saved(self.written).items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill an empty group from saved tensors.

        Raises KeyError or RuntimeError where one is missing or has another shape.
        """
        self.emitted, self.origin, self.offset = tensors["counts"].tolist()
        serials, boxes, times = (tensors[name] for name in ("serials", "boxes", "times"))
        self.table = TokenTable(serials, boxes, times)
        held = len(serials)
        self.written = self.pinned + held
        self._serials[:held] = serials
        self.sizes[:held] = tensors["sizes"]
        self.last_seen[:held] = tensors["last_seen"]
        self.turns[:held] = tensors["turns"]
        for name, buffer in self._buffers_by_name():
            prefix = f"{name}."
            own = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            buffer.restore(own, self.written)

    def _buffers_by_name(self) -> Iterator[tuple[str, KVBuffer]]:
        """Yield every buffer and its name in saved files."""
        for index, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            yield f"keys.{index}", keys
            yield f"values.{index}", values

    def _new_buffer(self) -> KVBuffer:
        return KVBuffer(self._shape, self.pinned + self.capacity)

    def view(self, *, length: int, bias: Tensor | None) -> LayerGroupView:
        """Return a view of the prefix and the first `length` visual tokens."""
        end = self.pinned + length
        return LayerGroupView(
            first=self.first,
            keys=[keys.view(end) for keys in self._keys],
            values=[values.view(end) for values in self._values],
            bias=bias,
            table=self.table.at(slice(length)),
            origin=self.origin,
            offset=self.offset,
        )


@dataclass(frozen=True, slots=True)
class LayerGroupView:
    """A layer group at one moment. Later appends, evictions and rebasing do not change it."""

    first: int
    keys: list[KVBufferView]
    values: list[KVBufferView]
    bias: Tensor | None
    table: TokenTable
    origin: int
    offset: int
