"""Which video LLMs can be used: one file per transformers model_type, found by the checkpoint's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_sttm import registry
from stream_sttm.errors import ModelError, UnsupportedModel

if TYPE_CHECKING:
    from stream_sttm.models.family import VideoLLM

GROUP = "stream_sttm.families"
FAMILIES: dict[str, str] = {
    "llava_onevision": "stream_sttm.models.llava_onevision:LlavaOnevision",
    "qwen2_5_vl": "stream_sttm.models.qwen2_5_vl:Qwen2_5VL",
}
DEMO = Path(__file__).parent.parent / "demo" / "model"


def load_model(name: str, *, device: str = "auto", dtype: str = "auto") -> VideoLLM:
    """Return the video LLM `name`: "demo", a folder with a checkpoint, or a hub id.

    Raises ModelError where there is no such checkpoint or its weights can't be read. Raises UnsupportedModel where its
    family or layout is not one of ours.
    """
    folder = DEMO if name == "demo" else Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    model_type = _model_type(source)
    if model_type not in registry.names(FAMILIES, GROUP):
        known = ", ".join(registry.names(FAMILIES, GROUP))
        raise UnsupportedModel(
            f"model {name!r} is of the family {model_type!r}; supported: {known}"
        )
    family: Any = registry.find(FAMILIES, GROUP, model_type, kind="model family")
    model: VideoLLM = family.load(source, name=name, device=device, dtype=dtype)
    return model


def _model_type(source: str) -> str:
    """Return the checkpoint's family, from its config alone, before any weight is read."""
    from transformers import PretrainedConfig

    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"model folder {source}: there is no config.json in it")
    try:
        config, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ModelError(
            f"model {source!r} is neither a readable model folder nor a hub id that can be reached"
        ) from error
    return str(config.get("model_type", "unknown"))
