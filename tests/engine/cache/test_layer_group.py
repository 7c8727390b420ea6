"""Keys that have been turned, evicted and moved for as long as a camera runs are still the keys that were written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stream_sttm.engine.cache.kv_buffer import CacheShape
from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.cache.rotary import rerotated

PER_WINDOW, PINNED, CAPACITY = 4, 3, 256
HORIZON, REBASE_AT = 300, 700  # positions; a window takes one
LASTING = 3  # every so many windows one token stays, whatever comes
FREQUENCIES = 1e4 ** -(torch.arange(8, dtype=torch.float64) / 8)


def turn(shift: int) -> tuple[Tensor, Tensor]:
    angles = (shift * FREQUENCIES).repeat(2)
    return angles.cos().float(), angles.sin().float()


def exact(keys: Tensor, places: Tensor) -> Tensor:
    """(1, heads, N, D) unturned keys at (N,) places, in float64."""
    angles = places.double()[:, None] * FREQUENCIES
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = keys.double().chunk(2, dim=-1)
    return keys.double() * cos + torch.cat([-second, first], dim=-1) * sin


@pytest.mark.parametrize(
    ("windows", "dtype", "unit"),
    [(10_000, torch.bfloat16, 2**-8), (1000, torch.float16, 2**-11), (1000, torch.float32, 2**-22)],
)
def test_error_of_keys_grows_with_their_turns_and_never_with_the_stream(
    windows: int, dtype: torch.dtype, unit: float
) -> None:
    shape = CacheShape(1, 2, 16, dtype, torch.device("cpu"))
    group = LayerGroup(shape, 0, 1, pinned=PINNED, capacity=CAPACITY)
    noise = torch.Generator().manual_seed(0)
    raw = torch.zeros(1, 2, 0, 16)  # what each held token was before any turn
    prefix = torch.randn(1, 2, PINNED, 16, generator=noise)
    group.write(exact(prefix, torch.arange(PINNED)).to(dtype), prefix.to(dtype), 0)
    group.pin()
    most_turns, worst = 0, 0.0
    for window in range(windows):
        if group.room < PER_WINDOW:
            # half of what is there goes, but a few tokens stay for as long as the horizon lets them
            slots = torch.arange(len(group))
            is_young = slots >= len(group) // 2
            stays = is_young | (group.table.serials % (LASTING * PER_WINDOW) == 0)
            stays &= group.table.times > window - HORIZON
            raw = raw[:, :, stays]
            group.evict(stays, turn, origin=int(group.table.times[stays][0]))
        if PINNED + window - group.offset > REBASE_AT:
            group.rebase(turn)
        keys = torch.randn(1, 2, PER_WINDOW, 16, generator=noise)
        places = torch.full((PER_WINDOW,), window)
        group.write(exact(keys, places - group.offset + PINNED).to(dtype), keys.to(dtype), 0)
        boxes = torch.tensor([[window, 0, 0, 1, 1]]).repeat(PER_WINDOW, 1)
        group.commit(boxes, places, torch.ones(PER_WINDOW))
        raw = torch.cat([raw, keys], dim=2)
        if window % 97 == 0 or window == windows - 1:
            stored = group.view(length=len(group), bias=None).keys[0].dequantized()
            right = exact(raw, group.table.times - group.offset + PINNED)
            off = (stored[:, :, PINNED:].double() - right).norm(dim=-1) / right.norm(dim=-1)
            turns = group.turns[: len(group)]
            assert bool((off <= unit * (turns + 1)).all())
            most_turns, worst = max(most_turns, int(turns.max())), max(worst, float(off.max()))
            kept = exact(prefix, torch.arange(PINNED) + group.origin - group.offset)
            off = (stored[:, :, :PINNED].double() - kept).norm(dim=-1) / kept.norm(dim=-1)
            assert bool((off <= 2 * unit).all())  # the prefix is turned anew from what was written
    assert group.emitted == windows * PER_WINDOW
    assert 1 <= most_turns <= -(-HORIZON // (REBASE_AT - HORIZON)) + 1
    assert worst > 0


def test_turning_there_and_back_is_no_change() -> None:
    keys = torch.randn(1, 1, 5, 16, generator=torch.Generator().manual_seed(1))
    back = rerotated(rerotated(keys, *turn(12_345)), *turn(-12_345))
    torch.testing.assert_close(back, keys, atol=1e-5, rtol=0)
