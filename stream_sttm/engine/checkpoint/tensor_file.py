"""Tensors and a JSON object in one safetensors file. It is written as a whole or not at all, and always checked.

It is written beside its place, flushed and renamed. It is read only with the right version and checksum. Nothing in it
is ever executed. Knows nothing of what is stored.
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
    """What a file holds, and its checksum."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    checksum: str


def write(path: Path, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Replace the file and return its checksum. Raises StateError where that fails, and leaves the old file."""
    unfinished = path.with_suffix(UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about_json = json.dumps(about, sort_keys=True, allow_nan=False)
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
    """Return what the file holds, None where there is none. Raises StateError, which names it, for a damaged one."""
    try:
        path.with_suffix(UNFINISHED).unlink(missing_ok=True)  # its writer was killed
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
    """Return an error that says in one line that a file does not hold what it should."""
    return StateError(f"{path}: no saved memory can be read: {_first_line(error)}")


def misfit(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Return in words the first difference between what was saved and what there is now, None if there is none."""
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
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
