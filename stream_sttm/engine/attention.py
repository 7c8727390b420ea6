"""Attention over shared prefixes: many questions read one memory's keys and values once.

It is registered with transformers' public AttentionInterface, so no class is patched. The rows of a batch that share a
prefix (one stream's questions) multiply against it as one matrix. The parts, prefix and own, are joined by their
log-sum-exp, as in Hydragen (https://arxiv.org/abs/2402.05099). Knows neither caches nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sttm.errors import UnsupportedModel

NAME = "stream_sttm"
QueryHook = Callable[[int, Tensor, float], None]  # layer, queries (B, heads, n, D), their scale
# Told to every kind of attention; positions are in the keys already, and the mask is given.
_WITHOUT_EFFECT = ("use_cache", "position_ids", "cache_position", "output_attentions", "is_causal")
_MOST_LOGITS = 1 << 26  # float32 logits held at once for one prefix: 256 MB
# What torch's attention calls on a CPU, which alone gives the log-sum-exp as well; not there in every build.
_FUSED = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """Keys and values (1, heads, P, D) of one layer that every row of a batch sees. `bias` is (P,) or None."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None

    def skip(self, count: int) -> PrefixKV:
        """Return the same without the first `count` tokens."""
        bias = None if self.bias is None else self.bias[count:]
        return PrefixKV(self.keys[:, :, count:], self.values[:, :, count:], bias)


@dataclass(frozen=True, slots=True)
class PrefixQueries:
    """Which tokens of a batch (B, n) attend to the prefix. Of equal tokens one attends for all of them.

    `tokens` (U,): indices into B * n. `of` (B * n,): whose output each token takes, an index into `tokens`.
    """

    tokens: Tensor
    of: Tensor


def register() -> None:
    """Register `attend` with transformers under NAME."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix: Sequence[Any] = (),
    query_hook: QueryHook | None = None,
    prefix_queries: Sequence[PrefixQueries | None] = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend with `query` (B, heads, n, D) over every prefix of this layer and over `key`/`value` (B, kv heads, m, D).

    - `attention_mask` (B or 1, 1, n, m): for the own keys only, True or 0 where they are seen.
    - `prefix`: views with a method `prefix_kv(layer) -> PrefixKV`.
    - `query_hook`: is called with the layer, the queries and their scale.
    - `prefix_queries`: layer by layer, which tokens attend to the prefix. All do where it is empty or None.

    Returns (B, n, heads, D), and None for the weights. Raises UnsupportedModel for arguments that it does not know,
    such as a sliding window, a cap on logits or attention sinks.
    """
    unknown = [name for name, value in others.items() if _matters(name, value)]
    if unknown:
        raise UnsupportedModel(
            f"its attention has {', '.join(sorted(unknown))}, and only plain full attention runs"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if query_hook is not None:
        query_hook(module.layer_idx, query, scale)
    prefixes = [view.prefix_kv(module.layer_idx) for view in prefix]
    prefixes = [part for part in prefixes if part.keys.shape[2]]
    if not prefixes:
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=grouped
        )
        return out.transpose(1, 2), None
    queries = prefix_queries[module.layer_idx] if prefix_queries else None
    parts = [_attend_prefix(query, part, scale, queries) for part in prefixes]
    parts.append(_attend_own(query, key, value, attention_mask, scale))
    return _merge_by_lse(parts).to(query.dtype).transpose(1, 2), None


def _matters(name: str, value: Any) -> bool:
    """Return whether an argument of attention that we do not take changes what attention gives."""
    return (
        value is not None and name not in _WITHOUT_EFFECT and not (name == "dropout" and not value)
    )


def _attend_prefix(
    query: Tensor, part: PrefixKV, scale: float, queries: PrefixQueries | None
) -> tuple[Tensor, Tensor]:
    """Attend over one prefix, with all rows as one matrix per kv head.

    Returns the output (B, heads, n, D) and its log-sum-exp (B, heads, n, 1), float32.
    """
    batch, heads, count, width = query.shape
    tokens = query.transpose(0, 1).reshape(heads, batch * count, width)
    if queries is not None:
        tokens = tokens[:, queries.tokens]
    rows = tokens.reshape(1, part.keys.shape[1], -1, width)
    bias = None if part.bias is None else part.bias[None, None, None]
    out, lse = _attention(rows, part.keys, part.values, bias, scale)
    out, lse = out.reshape(*tokens.shape), lse.reshape(*tokens.shape[:2], 1)
    if queries is not None:
        out, lse = out[:, queries.of], lse[:, queries.of]
    return (
        out.reshape(heads, batch, count, width).transpose(0, 1),
        lse.reshape(heads, batch, count, 1).transpose(0, 1),
    )


def _attend_own(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend over each row's own keys and values. Returns the same as `_attend_prefix`."""
    batch, heads, count, width = query.shape
    kv_heads = key.shape[1]
    rows = query.reshape(batch, kv_heads, heads // kv_heads * count, width)
    bias = None
    if mask is not None:
        bias = mask.log() if mask.dtype == torch.bool else mask
        bias = bias.expand(-1, -1, count, -1)
        bias = bias.repeat(1, 1, heads // kv_heads, 1) if heads > kv_heads else bias
    out, lse = _attention(rows, key, value, bias, scale)
    return out.reshape(batch, heads, count, width), lse.reshape(batch, heads, count, 1)


def _attention(
    rows: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend with rows (B, kv heads, R, D) over (B, kv heads, m, D). Returns the output and its log-sum-exp.

    `bias` (B or 1, 1, R or 1, m) is added to the logits. A CPU's own kernel never holds all logits, and takes a fourth
    of the time.
    """
    count = rows.shape[2]
    if _FUSED is not None and rows.device.type == "cpu":
        bias = None if bias is None else bias.to(rows.dtype).expand(-1, -1, count, -1)
        out, lse = _FUSED(rows, keys, values, attn_mask=bias, scale=scale)
        return out.float(), lse[..., None]
    at_once = max(1, _MOST_LOGITS // (rows.shape[0] * keys.shape[1] * keys.shape[2]))
    bias = None if bias is None else bias.expand(-1, -1, count, -1)
    done = []
    for start in range(0, count, at_once):
        piece = slice(start, start + at_once)
        logits = (rows[:, :, piece] @ keys.transpose(2, 3)).float() * scale
        if bias is not None:
            logits += bias[:, :, piece]
        lse = logits.logsumexp(dim=-1, keepdim=True)
        done.append((((logits - lse).exp_().to(values.dtype) @ values).float(), lse))
    out, lse = (torch.cat(parts, dim=2) for parts in zip(*done, strict=True))
    return out, lse


def _merge_by_lse(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the softmax over all parts, from each part's own softmax and log-sum-exp."""
    total = reduce(torch.logaddexp, (lse for _, lse in parts))
    return reduce(torch.add, (out * (lse - total).exp() for out, lse in parts))
