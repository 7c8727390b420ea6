"""The layer loop. It calls transformers' own layers, so layer groups, merging and shared prefixes need no patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.attention import PrefixQueries, QueryHook
from stream_sttm.engine.cache.kv_buffer import CacheShape, Format
from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.cache.rolling import RollingCache
from stream_sttm.models.family import VideoLLM


def shape_of(model: VideoLLM, kv: Format = "auto") -> CacheShape:
    """Return the shape of a cache for `model` that stores keys and values in the format `kv`."""
    heads, width = model.kv_shape
    return CacheShape(len(model.layers), heads, width, model.dtype, model.device, kv)


def run_layers(
    model: VideoLLM,
    hidden: Tensor,
    layers: tuple[int, int],
    *,
    positions: Tensor,
    mask: Tensor | None,
    cache: Any,
    prefix: Sequence[Any] = (),
    query_hook: QueryHook | None = None,
    prefix_queries: Sequence[PrefixQueries | None] = (),
) -> Tensor:
    """Run hidden states (B, N, C) through layers [first, last). Returns (B, N, C).

    - `positions` (axes, B, N): as stored in the cache.
    - `mask` (B or 1, 1, N, own keys): None where all is seen.
    - `cache`: takes each layer's keys and values by `update`.
    - `prefix`: what every row sees besides its own keys.
    - `query_hook`: is called with the queries of each layer.
    - `prefix_queries`: for each of the model's layers, which tokens attend to the prefix (see `attention.attend`).
    """
    rotation = model.rotary(hidden, positions)
    for layer in model.layers[layers[0] : layers[1]]:
        out = layer(
            hidden,
            attention_mask=mask,
            position_embeddings=rotation,
            use_cache=True,
            prefix=prefix,
            query_hook=query_hook,
            prefix_queries=prefix_queries,
            **{model.cache_argument: cache},
        )
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def causal_mask(new: int, *, seen: int = 0, device: torch.device) -> Tensor | None:
    """Return a mask (1, 1, new, seen + new), True where a token may attend: to all before it and to itself.

    Returns None for a single new token, which sees everything.
    """
    if new == 1:
        return None
    return torch.ones(new, seen + new, dtype=torch.bool, device=device).tril_(seen)[None, None]


def prefill(
    model: VideoLLM,
    hidden: Tensor,
    cache: RollingCache,
    group: LayerGroup,
    *,
    positions: Tensor,
    sizes: Tensor,
) -> Tensor:
    """Run visual tokens (1, N, C) through one group's layers. Returns (1, N, C).

    Their keys and values are written behind the group's tokens, but not yet committed. `positions` is (axes, N).
    `sizes` (N,) weigh the new keys where the cache has a size bias.
    """
    new, seen = hidden.shape[1], group.written
    mask = causal_mask(new, seen=seen, device=hidden.device)
    old = cache.bias(group, len(group))
    if old is not None:
        bias = torch.cat([old, sizes.log() * cache.size_bias]).to(hidden.dtype)
        blocked = torch.finfo(hidden.dtype).min
        mask = bias.expand(1, 1, new, -1) if mask is None else torch.where(mask, bias, blocked)
    return run_layers(
        model,
        hidden,
        (group.first, group.last),
        positions=positions[:, None],
        mask=mask,
        cache=cache,
    )
