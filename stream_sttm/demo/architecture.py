"""The bundled model's architecture, and a packed forward pass for training it fast.

An ordinary `Qwen2_5_VLForConditionalGeneration` (https://arxiv.org/abs/2502.13923), very small: 8 x 8 tokens for each
pair of frames, three position axes. In training many questions share one video: the video runs once, causally, and
every question reads its keys and values but no other question's. Equal to the class's own forward, which tests check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_sttm.demo.tokenizer import END, IMAGE, PAD, SPECIAL, VIDEO, VISION_END, VISION_START

SIDE, PATCH, SPAN = 96, 12, 2  # pixels a side, pixels and frames of a patch
GRID = SIDE // PATCH
PER_SECOND = 2  # positions per second on the time axis
CONTEXT = 4096  # positions
STILL, TIME, PLACE = 1e-9, (0.01, 0.02, 0.04, 0.08), (0.2, 0.45, 0.9, 1.5)  # radians a position


def untrained(tokenizer: Any, seed: int) -> Any:
    """Return the model before its first step, on the CPU."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 256,
            "depth": 3,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 1,
            "temporal_patch_size": SPAN,
            "tokens_per_second": PER_SECOND,
            "window_size": SIDE,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": 128,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
            "tie_word_embeddings": True,
            "rope_parameters": _rotation(),
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids[END]
    model.generation_config.pad_token_id = ids[PAD]
    _start(model)
    return model


def _rotation() -> dict[str, Any]:
    """Rotary frequencies chosen one by one, which the type `longrope` allows.

    A quarter of them stands still, so that what was seen can be found by what it is, however long ago and wherever:
    with frequencies of 0.02 and more in all of them, things more than 30 s old were found half as well.
    """
    slowness = [1 / frequency for frequency in (*[STILL] * 4, *TIME, *PLACE, *PLACE)]
    return {
        "rope_type": "longrope",
        "rope_theta": 1.0,
        "short_factor": slowness,
        "long_factor": slowness,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": CONTEXT,
        "mrope_section": [4 + len(TIME), len(PLACE), len(PLACE)],
    }


@torch.no_grad()
def _start(model: Any) -> None:
    """Initialise weights: unit gain throughout, less where a residual branch ends."""
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or "embed_tokens" in name:
            continue
        weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
            weight.mul_(0.4)
    model.model.language_model.embed_tokens.weight.normal_(0, 0.08)


@dataclass(slots=True)
class Batch:
    """Clips of equally many token frames, with questions.

    patches (B * T, G, P) normalised; times (B, T) positions of the frames on the time axis, counted from the first
    visual token; text (B, S) ids of all questions with their answers, one after the other; owner (B, S) which
    question an id belongs to, -1 for padding; offset (B, S) its place in that question; goals (B, S) the id to say
    next, -100 where nothing is to be learnt; weights (B, S) of the goals; begin (B,) where text begins on the time
    axis, counted likewise; labels: per visual token (B, T, G) int64.
    """

    patches: Tensor
    times: Tensor
    begin: Tensor
    text: Tensor
    owner: Tensor
    offset: Tensor
    goals: Tensor
    weights: Tensor
    labels: dict[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("patches", "times", "begin", "text", "owner", "offset", "goals", "weights")
        }
        return Batch(labels={k: v.to(device) for k, v in self.labels.items()}, **moved)


class Packed:
    """The packed forward pass over one model."""

    def __init__(self, model: Any, preamble: list[int]) -> None:
        self._text, self._head = model.model.language_model, model.lm_head
        self._visual = model.model.visual
        device = model.lm_head.weight.device
        self._preamble = torch.tensor(preamble, device=device)
        rows = torch.arange(GRID, device=device).repeat_interleave(GRID)
        self._cells = torch.stack([rows, torch.arange(GRID, device=device).repeat(GRID)])
        attention = self._visual.blocks[0].attn
        self._heads, width = attention.num_heads, attention.qkv.in_features // attention.num_heads
        slow = 1 / 10000 ** (torch.arange(0, width // 2, 2, device=device) / (width // 2))
        angles = (self._cells[:, :, None] * slow).transpose(0, 1).flatten(1)
        self._turn = torch.cat([angles, angles], -1)

    def see(self, patches: Tensor) -> Tensor:
        """Vision tower: (F, G, P) -> (F, G, C)."""
        tower = self._visual
        embed = tower.patch_embed.proj.weight
        hidden = F.linear(patches, embed.flatten(1))
        cos, sin = self._turn.cos(), self._turn.sin()
        for block in tower.blocks:
            fused = block.attn.qkv(block.norm1(hidden))
            parts = fused.reshape(*fused.shape[:2], 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            query, key = _turned(parts[0], cos, sin), _turned(parts[1], cos, sin)
            mixed = F.scaled_dot_product_attention(query, key, parts[2])
            hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + block.mlp(block.norm2(hidden))
        seen: Tensor = tower.merger.mlp(tower.merger.ln_q(hidden))
        return seen

    def __call__(self, batch: Batch, seen: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of the text (B, S, C), normalised, and of the video (B, T, G, C) after every layer."""
        size, frames = batch.times.shape
        first = len(self._preamble)
        opening = self._text.embed_tokens(self._preamble).expand(size, -1, -1)
        video = torch.cat([opening, seen.reshape(size, frames * GRID * GRID, -1)], 1)
        text = self._text.embed_tokens(batch.text)
        turns = self._text.rotary_emb(video, self._video_positions(batch))
        begin = first + torch.stack([batch.begin, *[batch.begin - batch.times[:, 0]] * 2])
        asked = self._text.rotary_emb(text, begin[:, :, None] + batch.offset)
        mask = self._mask(batch, video.shape[1])
        after = []
        for layer in self._text.layers:
            query, key, value = _split(layer, video, turns)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            video = _rest(layer, video, mixed)
            query, own_key, own_value = _split(layer, text, asked)
            keys, values = torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            text = _rest(layer, text, mixed)
            after.append(video[:, first:].reshape(size, frames, GRID * GRID, -1))
        return self._text.norm(text), after

    def loss(self, batch: Batch, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of the answers, and which ids (B, S) were said right."""
        learnt = batch.goals >= 0
        logits = self._head(text[learnt])
        losses = F.cross_entropy(logits, batch.goals[learnt], reduction="none")
        right = torch.ones_like(learnt)
        right[learnt] = logits.argmax(-1) == batch.goals[learnt]
        weights = batch.weights[learnt]
        return (losses * weights).sum() / weights.sum(), right

    def _video_positions(self, batch: Batch) -> Tensor:
        size, frames = batch.times.shape
        first = len(self._preamble)
        opening = torch.arange(first, device=batch.times.device).expand(3, size, -1)
        time = batch.times.repeat_interleave(GRID * GRID, 1)
        cells = self._cells.repeat(1, frames)[:, None].expand(-1, size, -1)
        return torch.cat([opening, first + torch.cat([time[None], cells])], 2)

    def _mask(self, batch: Batch, prefix: int) -> Tensor:
        """(B, 1, S, prefix + S): a question sees the whole video and itself so far."""
        own = batch.owner[:, :, None] == batch.owner[:, None, :]
        own = own.tril()
        before = own.new_ones(*own.shape[:2], prefix)
        return torch.cat([before, own], 2)[:, None]


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, -1)
    return states * cos + torch.cat([-right, left], -1) * sin


def _split(layer: nn.Module, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    attention: Any = layer.self_attn
    normed = layer.input_layernorm(hidden)  # type: ignore[operator]
    cos, sin = (part[:, None] for part in turn)
    query, key, value = (
        project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return _turned(query, cos, sin), _turned(key, cos, sin), value


def _rest(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    done: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return done
