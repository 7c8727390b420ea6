"""Keys and values in fewer bits: how far off they are, and that whoever reads them sees no change."""

from __future__ import annotations

import pytest
import torch

from stream_sttm.engine.cache.kv_buffer import CacheShape, Format, KVBuffer

HEADS, WIDTH, COUNT = 2, 64, 20
WORST = {"int8": 0.5 / 127, "fp8": 1 / 16}  # half a step, of the greatest number of a vector


def slots(kv: Format, dtype: torch.dtype = torch.float32) -> KVBuffer:
    return KVBuffer(CacheShape(1, HEADS, WIDTH, dtype, torch.device("cpu"), kv), COUNT)


def numbers(seed: int, count: int = COUNT) -> torch.Tensor:
    drawn = torch.randn(1, HEADS, count, WIDTH, generator=torch.Generator().manual_seed(seed))
    drawn[:, :, ::3, 5] *= 30  # some channels stand out, as they do in real keys
    return drawn


def test_plain_slots_are_exact_and_read_without_a_copy() -> None:
    held = slots("auto")
    held.write(0, numbers(1))
    assert torch.equal(held.read(COUNT), numbers(1))
    assert held.read(3).data_ptr() == held.read(5).data_ptr()


@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_off_by_half_a_step_of_each_vectors_own_scale(
    kv: Format, dtype: torch.dtype
) -> None:
    held, exact = slots(kv, dtype), numbers(2).to(dtype)
    held.write(0, exact)
    back = held.read(COUNT)
    assert back.dtype == dtype
    most = exact.float().abs().amax(-1, keepdim=True)
    rounding = 1 / 256 if dtype == torch.bfloat16 else 1e-6
    off = ((back.float() - exact.float()).abs() / most).max()
    assert 0 < off <= WORST[kv] + rounding


def test_a_vector_of_zeros_stays_zero() -> None:
    held = slots("int8")
    held.write(0, torch.zeros(1, HEADS, 2, WIDTH))
    assert torch.equal(held.read(2), torch.zeros(1, HEADS, 2, WIDTH))


@pytest.mark.parametrize(("kv", "share"), [("auto", 1.0), ("int8", 0.27), ("fp8", 0.27)])
def test_eight_bits_take_about_a_quarter_of_float32(kv: Format, share: float) -> None:
    assert slots(kv).nbytes <= share * slots("auto").nbytes


@pytest.mark.parametrize("kv", ["auto", "int8", "fp8"])
def test_a_view_does_not_change_when_more_is_written_behind_it(kv: Format) -> None:
    held = slots(kv)
    held.write(0, numbers(3, 5))
    view = held.view(5)
    before = view.dequantized().clone()
    held.write(5, numbers(4, 5))
    assert torch.equal(view.dequantized(), before)
    assert held.read(10).shape == (1, HEADS, 10, WIDTH)


@pytest.mark.parametrize("kv", ["auto", "int8", "fp8"])
def test_copies_and_moves_do_not_round_again(kv: Format) -> None:
    held, other = slots(kv), slots(kv)
    held.write(0, numbers(5))
    kept = torch.tensor([1, 4, 5, 19])
    before = held.view(COUNT).at(kept)
    held.copy_rows(other, kept, to=2, rerotated=None)
    assert torch.equal(other.view(6).dequantized()[:, :, 2:], before)
    held.move(10, torch.tensor([1, 7]))
    assert torch.equal(held.read(12)[:, :, 10:], slots_of(kv, [11, 17]))


def slots_of(kv: Format, rows: list[int]) -> torch.Tensor:
    held = slots(kv)
    held.write(0, numbers(5))
    return held.view(COUNT).at(torch.tensor(rows))


@pytest.mark.parametrize("kv", ["auto", "int8", "fp8"])
def test_saved_slots_come_back_as_they_were_and_only_in_their_own_format(kv: Format) -> None:
    held, back = slots(kv), slots(kv)
    held.write(0, numbers(6))
    back.restore(held.saved(7), 7)
    assert torch.equal(back.read(7), held.read(7))
    other = slots("int8" if kv != "int8" else "auto")
    with pytest.raises((RuntimeError, KeyError)):
        other.restore(held.saved(7), 7)
