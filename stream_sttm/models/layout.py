"""What of a decoder can be told from its configuration and its layers: whether the engine's layer loop can run it.

The engine compares the rest with the decoder's own forward pass (`engine/forward.py`).
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from stream_sttm.errors import UnsupportedModel

_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")  # what the layer loop calls
# Keys of a decoder's configuration that change what happens outside of its layers, and their value without effect.
_OUTSIDE: dict[str, tuple[Any, ...]] = {
    "embedding_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "logit_scale": (None, 1),
    "final_logit_softcapping": (None,),
}


def cache_argument(layer: nn.Module) -> str:
    """Return the name under which a decoder layer takes a cache, which is another from transformers 5.24 on.

    Raises UnsupportedModel where it takes none.
    """
    taken = inspect.signature(type(layer).forward).parameters
    for name in ("cache", "past_key_values"):
        if name in taken:
            return name
    raise UnsupportedModel(
        f"layers of the class {type(layer).__name__} take no cache that this version knows"
    )


def check_layout(text: nn.Module, name: str) -> None:
    """Raise UnsupportedModel where a decoder's parts or configuration say that our loop would run it wrongly."""
    config: Any = text.config
    missing = [part for part in _PARTS if not hasattr(text, part)]
    why = f"has a decoder without {', '.join(missing)}" if missing else ""
    why = why or _attention_fault(config) or _rotary_fault(config)
    for key, neutral in _OUTSIDE.items():
        value = getattr(config, key, None)
        if value not in neutral:
            why = why or f"has {key} {value}, which lies outside of its layers"
    if why:
        raise UnsupportedModel(f"model {name!r} {why}")


def _attention_fault(config: Any) -> str:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"has layers of kind {', '.join(sorted(kinds))}; only full attention runs"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "layer_types", None) is None:
        return f"has a sliding_window of {window} tokens; only full attention runs"
    return ""


def _rotary_fault(config: Any) -> str:
    rotary = getattr(config, "rope_parameters", None) or {}
    rope = rotary.get("rope_type", "default")
    is_of_one_length = rope == "longrope" and rotary["short_factor"] == rotary["long_factor"]
    if rope in ("dynamic", "longrope") and not is_of_one_length:
        return (
            f"scales its rotary embedding with length ({rope}), which a rolling cache can't follow"
        )
    share = rotary.get("partial_rotary_factor", 1.0)
    if share != 1:
        return f"rotates only a part ({share}) of each key, and a rolling cache moves whole keys"
    return ""
