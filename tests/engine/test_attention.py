"""Attention over shared prefixes against one plain softmax over everything."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from stream_sttm.engine import attention
from stream_sttm.engine.attention import PrefixKV, PrefixQueries, attend


@dataclass(frozen=True)
class _OneLayer:
    part: PrefixKV

    def prefix_kv(self, layer: int) -> PrefixKV:
        del layer
        return self.part


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """One softmax, heads repeated by hand; (B, n, heads, D)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("prefixes", [1, 2])
@pytest.mark.parametrize("most_logits", [None, 64, 1 << 26])
def test_joined_parts_equal_one_softmax(
    kv_heads: int, prefixes: int, most_logits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the CPU's own kernel, and as on other devices, in pieces and at once."""
    if most_logits is not None:
        monkeypatch.setattr(attention, "_FUSED", None)
        monkeypatch.setattr(attention, "_MOST_LOGITS", most_logits)
    batch, heads, count, width, own = 3, 6, 4, 8, 5
    query = _random(batch, heads, count, width, seed=1)
    key, value = (_random(batch, kv_heads, own, width, seed=seed) for seed in (2, 3))
    mask = torch.ones(count, own, dtype=torch.bool).tril(own - count).expand(batch, 1, -1, -1)
    parts = [
        PrefixKV(
            _random(1, kv_heads, 7 + i, width, seed=10 + i),
            _random(1, kv_heads, 7 + i, width, seed=20 + i),
            _random(7 + i, seed=30 + i) if i == 0 else None,
        )
        for i in range(prefixes)
    ]
    ours, _ = attend(
        SimpleNamespace(layer_idx=0),
        query,
        key,
        value,
        mask,
        prefix=[_OneLayer(part) for part in parts],
    )
    keys = torch.cat([*(part.keys.expand(batch, -1, -1, -1) for part in parts), key], 2)
    values = torch.cat([*(part.values.expand(batch, -1, -1, -1) for part in parts), value], 2)
    seen = [
        (part.bias if part.bias is not None else torch.zeros(part.keys.shape[2])).expand(
            batch, 1, count, -1
        )
        for part in parts
    ]
    assert torch.allclose(
        ours, _plain(query, keys, values, torch.cat([*seen, mask.log()], 3)), atol=1e-5
    )


@pytest.mark.parametrize(("first", "end"), [(0, 1200), (520, 1100), (600, 1800)])
def test_stretches_of_hidden_keys_longer_than_the_kernels_blocks_change_nothing(
    first: int, end: int
) -> None:
    """As padding between a short question and its answer is beside a very long one, and what other questions read."""
    query = _random(2, 4, 5, 8, seed=1)
    key, value = (_random(2, 4, 1800, 8, seed=seed) for seed in (2, 3))
    part = PrefixKV(_random(1, 4, 7, 8, seed=4), _random(1, 4, 7, 8, seed=5), None)
    mask = torch.ones(2, 1, 5, 1800, dtype=torch.bool)
    mask[0, :, :, first:end] = False
    mask[1, :, ::2, first:end] = False
    module = SimpleNamespace(layer_idx=0)
    ours, _ = attend(module, query, key, value, mask, prefix=[_OneLayer(part)])
    keys, values = (
        torch.cat([shared.expand(2, -1, -1, -1), own], 2)
        for shared, own in ((part.keys, key), (part.values, value))
    )
    bias = torch.cat([torch.zeros(2, 1, 5, 7), mask.log()], 3)
    assert torch.allclose(ours, _plain(query, keys, values, bias), atol=1e-5)


def test_tokens_that_are_alike_look_at_the_prefix_once_for_all_of_them() -> None:
    query = _random(2, 6, 4, 8, seed=1)
    query[1, :, :2] = query[0, :, :2]  # two rows that begin alike, in batch and columns
    key, value = (_random(2, 2, 4, 8, seed=seed) for seed in (2, 3))
    key[1, :, :2], value[1, :, :2] = key[0, :, :2], value[0, :, :2]
    part = PrefixKV(_random(1, 2, 7, 8, seed=4), _random(1, 2, 7, 8, seed=5), None)
    once = PrefixQueries(torch.tensor([0, 1, 2, 3, 6, 7]), torch.tensor([0, 1, 2, 3, 0, 1, 4, 5]))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    module, given = SimpleNamespace(layer_idx=0), {"prefix": [_OneLayer(part)]}
    ours, _ = attend(module, query, key, value, mask, prefix_queries=[once], **given)
    every, _ = attend(module, query, key, value, mask, **given)
    assert torch.allclose(ours, every, atol=1e-6)


def test_without_a_prefix_it_is_plain_attention() -> None:
    query, key, value = (_random(2, heads, 5, 8, seed=heads) for heads in (4, 2, 2))
    ours, _ = attend(SimpleNamespace(layer_idx=0), query, key, value, None)
    assert torch.allclose(ours, _plain(query, key, value, torch.zeros(())), atol=1e-5)
