"""A decoder that our layer loop would run wrongly is refused at the start, in words that say what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stream_sttm.engine import attention
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import UnsupportedModel
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.models.layout import check_layout
from tests.support import tiny_models

FULL = ["full_attention"] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"model_type": "mistral"}, "a sliding_window of 4096"),
        ({"model_type": "mistral", "sliding_window": 8}, "a sliding_window of 8"),
        ({"model_type": "gemma2"}, "layers of kind full_attention, sliding_attention"),
        (
            {"model_type": "gemma2", "layer_types": FULL, "final_logit_softcapping": None},
            "its attention has softcap",
        ),
        ({"model_type": "gemma2", "layer_types": FULL}, "final_logit_softcapping 30"),
        (
            {
                "model_type": "gpt_oss",
                "layer_types": FULL,
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
            },
            "its attention has s_aux",
        ),
        ({"model_type": "granite", "embedding_multiplier": 12.0}, "embedding_multiplier 12"),
        ({"model_type": "granite", "logits_scaling": 8.0}, "logits_scaling 8"),
        ({"model_type": "phi3", "partial_rotary_factor": 0.5, "pad_token_id": 0}, r"part \(0.5\)"),
        (  # its halves are interleaved
            {"model_type": "glm", "head_dim": 12, "partial_rotary_factor": 1.0, "pad_token_id": 0},
            "its moved keys differ by",
        ),
    ],
)
def test_a_decoder_that_the_loop_would_run_wrongly_is_refused(
    tmp_path: Path, text: dict[str, Any], said: str
) -> None:
    folder = tiny_models.llava_onevision(tmp_path, **text)
    with pytest.raises(UnsupportedModel, match=said) as refused:
        Engine(load_model(str(folder)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "llama"},
        {"model_type": "granite", "residual_multiplier": 0.22, "attention_multiplier": 0.1},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_decoder_that_the_loop_runs_rightly_is_taken(
    tmp_path: Path, text: dict[str, Any], dtype: str
) -> None:
    Engine(load_model(str(tiny_models.llava_onevision(tmp_path, **text)), dtype=dtype))


def test_a_decoder_without_the_parts_that_the_loop_calls_is_refused() -> None:
    decoder: Any = nn.Module()
    decoder.layers, decoder.norm, decoder.config = nn.ModuleList(), nn.Identity(), None
    with pytest.raises(UnsupportedModel, match="a decoder without embed_tokens, rotary_emb"):
        check_layout(decoder, "some")


@pytest.fixture
def own_model(tiny_folder: Path) -> VideoLLM:
    return load_model(str(tiny_folder))


def test_what_a_model_does_outside_of_its_layers_is_found_whatever_its_name(
    own_model: VideoLLM,
) -> None:
    def scale(_: nn.Module, __: Any, out: Any) -> Any:
        out.last_hidden_state *= 1.5
        return out

    own_model.core.register_forward_hook(scale)
    with pytest.raises(UnsupportedModel, match="its logits differ by"):
        Engine(own_model)


def test_an_argument_of_attention_that_nobody_knows_is_refused(own_model: VideoLLM) -> None:
    Engine(own_model)
    own_model.text.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, named: ((), named | {"softcap": 3.0}), with_kwargs=True
    )
    with pytest.raises(UnsupportedModel, match="its attention has softcap"):
        Engine(own_model)


@pytest.mark.parametrize(
    ("named", "is_fine"),
    [
        ({"dropout": 0.0, "sliding_window": None, "position_ids": 1, "use_cache": True}, True),
        ({"sliding_window": 4}, False),
        ({"softcap": 50.0}, False),
        ({"s_aux": torch.zeros(2)}, False),
        ({"dropout": 0.1}, False),
        ({"something_new": 0}, False),
    ],
)
def test_attention_takes_no_argument_that_changes_what_it_gives(
    named: dict[str, Any], is_fine: bool
) -> None:
    part: Tensor = torch.zeros(1, 2, 1, 4)
    if is_fine:
        out, _ = attention.attend(nn.Module(), part, part, part, None, **named)
        assert out.shape == (1, 1, 2, 4)
    else:
        with pytest.raises(UnsupportedModel, match=next(iter(named))):
            attention.attend(nn.Module(), part, part, part, None, **named)
