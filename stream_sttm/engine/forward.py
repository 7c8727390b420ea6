"""The layer loop. It calls transformers' own layers, so layer groups, merging and shared prefixes need no patch.

What a decoder does outside of its layers is not seen by the loop. So `check` compares both once, at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine import attention
from stream_sttm.engine.attention import PrefixQueries, QueryHook
from stream_sttm.engine.cache.kv_buffer import CacheShape, Format
from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.cache.rolling import RollingCache
from stream_sttm.engine.cache.rotary import rerotated
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.errors import UnsupportedModel
from stream_sttm.models.family import VideoLLM

_TRIED = "Is there anybody at the door? What is to be seen now?"
_SHIFT = 50  # positions that keys are moved by, to see whether they can be
# Greatest error of what is compared, relative to its length; rounding stays far below.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


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


@torch.inference_mode()
def check(model: VideoLLM) -> None:
    """Raise UnsupportedModel where the layer loop does not do what the model's own forward pass does.

    A few words run through both. Then they run once more at later positions, where a moved key must be the key there.
    From here on the model's layers call `attention.attend`.
    """
    words = model.tokenizer(_TRIED, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([words], device=model.device)
    model.use_attention("eager")
    wanted = model.own_logits(ids)[0]
    model.use_attention(attention.NAME)
    try:
        ours, keys = _tried(model, ids, shift=0)
        _, later = _tried(model, ids, shift=_SHIFT)
        cos, sin = model.turn(_SHIFT)
        moved = [rerotated(key, cos, sin) for key in keys]
    except torch.OutOfMemoryError:
        raise
    except (UnsupportedModel, ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        why = (str(error) or repr(error)).splitlines()[0]
        raise UnsupportedModel(
            f"model {model.name!r} can't be run layer by layer: {why}"
        ) from error
    for what, one, other in (
        ("its logits", ours, wanted),
        ("its moved keys", torch.stack(moved), torch.stack(later)),
    ):
        off = float((one.float() - other.float()).norm() / other.float().norm())
        if not off <= _TOLERANCE[model.dtype]:  # NaN is not
            raise UnsupportedModel(
                f"model {model.name!r}: {what} differ by {off:.1%} from those of transformers' own forward pass; "
                "something happens outside of its layers, or its positions are of another kind"
            )


def _tried(model: VideoLLM, ids: Tensor, *, shift: int) -> tuple[Tensor, list[Tensor]]:
    """Run token ids (1, N). Returns their logits (N, vocabulary), and each layer's keys (1, heads, N, D)."""
    count = ids.shape[1]
    cache = SuffixCache(shape_of(model), rows=1, capacity=count)
    positions = torch.arange(count, device=model.device).repeat(model.axes, 1, 1)
    positions[0] += shift
    hidden = run_layers(
        model,
        model.embed(ids),
        (0, len(model.layers)),
        positions=positions,
        mask=causal_mask(count, device=model.device),
        cache=cache,
    )
    cache.commit(count)
    keys = [cache.prefix_kv(layer).keys for layer in range(len(model.layers))]
    return model.logits(hidden[0]), keys
