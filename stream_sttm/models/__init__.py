"""Which video LLMs can be used: one file per transformers model_type, found by the checkpoint's config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_sttm import registry
from stream_sttm.errors import ModelError, ModelUnavailable, UnsupportedModel

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

    Raises ModelError where its weights can't be read, ModelUnavailable where the hub can't be reached, and
    UnsupportedModel where its family or layout is not one of ours.
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

    if fault := folder_fault(source):
        raise UnsupportedModel(fault)
    try:
        config, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        if _is_refused(error):
            raise ModelError(
                f"model {source!r}: the hub knows no such id, or wants a token for it (HF_TOKEN)"
            ) from error
        raise ModelUnavailable(
            f"model {source!r}: there is no such folder, and the hub can't be reached for it"
        ) from error
    return str(config.get("model_type", "unknown"))


def folder_fault(name: str) -> str | None:
    """Return why the model `name` can't be one, from its folder's config alone; None where that says nothing.

    A hub id is not looked up. Reads no weights and imports no torch.
    """
    folder, known = Path(name).expanduser(), registry.names(FAMILIES, GROUP)
    if not folder.is_dir():
        is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
        return f"model {name!r}: there is no such folder" if is_path else None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = str(config["model_type"])
    except FileNotFoundError:
        return f"model folder {name}: there is no config.json in it"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"model folder {name}: its config.json can't be read: {error!r}".splitlines()[0]
    if model_type in known:
        return None
    return f"model {name!r} is of the family {model_type!r}; supported: {', '.join(known)}"


def _is_refused(error: BaseException | None) -> bool:
    """Return whether the hub itself said no, for an id that it does not know or does not give to everybody."""
    while error is not None:
        if type(error).__name__ in (
            "RepositoryNotFoundError",
            "GatedRepoError",
            "HFValidationError",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
