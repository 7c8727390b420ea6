"""Tensors and a few words about them in one safetensors file that is whole or not there, and never believed unchecked.

Written beside its place, flushed, renamed; read only with the right version and checksum. Nothing in it is ever
executed. Knows nothing of what is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stream_sttm.errors import StateError

VERSION = "1"
SUFFIX, UNFINISHED = ".safetensors", ".unfinished"
_KEY = "stream_sttm"


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds, and the checksum of it."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    checksum: str


def write(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Replace the file and return its checksum; raises StateError, and leaves the old one, where that fails."""
    unfinished = path.with_suffix(UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about_json = json.dumps(about, sort_keys=True)
        checksum = _checksum(about_json, held)
        save_file(
            held, unfinished, metadata={"version": VERSION, _KEY: about_json, "checksum": checksum}
        )
        _flush(unfinished)
        unfinished.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise StateError(f"can't be saved to {path}: {_first_line(error)}") from error
    return checksum


def read(path: Path) -> Content | None:
    """What the file holds, None where there is none; raises StateError, which names it, for one that is damaged."""
    try:
        path.with_suffix(UNFINISHED).unlink(missing_ok=True)  # whoever wrote this was killed
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            version = metadata.get("version")
            if version != VERSION:
                raise StateError(f"{path}: format version {version!r}, not {VERSION!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        about_json = metadata[_KEY]
        checksum = _checksum(about_json, tensors)
        if metadata.get("checksum") != checksum:
            raise StateError(f"{path}: the checksum is wrong, the file was damaged or changed")
        return Content(dict(json.loads(about_json)), tensors, checksum)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> StateError:
    """That a file does not hold what it should, in one line."""
    return StateError(f"{path}: no saved memory can be read: {_first_line(error)}")


def misfit(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """In words, the first thing that differs between what was saved for and what there is; None if nothing does."""
    for name, value in wanted.items():
        if saved.get(name) != value:
            if name == "model":
                return "it belongs to another model"
            return f"{name} was {saved.get(name)!r} and is {value!r}"
    return None


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(about.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Have the disk hold what was written, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
