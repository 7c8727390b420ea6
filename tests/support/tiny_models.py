"""Tiny random checkpoints of each supported family, written to disk as real ones are, loaded by the real code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from stream_sttm.models import DEMO

SPECIAL = ("<|end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")


def _grow(model: torch.nn.Module) -> None:
    """Weights large enough for attention to matter; the library's own start is nearly linear."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[1] ** 0.5 * 1.5)


def llava_onevision(folder: Path, **text: Any) -> Path:
    """Four decoder layers with grouped heads, 8 x 8 patches pooled to 4 x 4 tokens a frame.

    `text` sets further keys of the decoder's configuration.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ending, _, _, video, image = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 640,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "eos_token_id": ending,
            **text,
        },
        image_token_index=image,
        video_token_index=video,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[64, 64]],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    _grow(model)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, folder)
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    """Four decoder layers with three position axes; 4 pixel patches merged 2 x 2, two frames to a token."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    ending, start, end, video, image = tokenizer.convert_tokens_to_ids(list(SPECIAL))
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
        },
        text_config={
            "vocab_size": len(tokenizer) + 8,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "eos_token_id": ending,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _grow(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 1024, "longest_edge": 4096}}'
    )
    return folder


FAMILIES = {"llava_onevision": llava_onevision, "qwen2_5_vl": qwen2_5_vl}
