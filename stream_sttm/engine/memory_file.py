"""A stream's memory on disk: one safetensors file with a version, what it fits, and a checksum.

A file appears whole or not at all: written beside its place, flushed, renamed. Nothing in it is ever executed. Knows
no session: tensors and their fittings in, the same out.
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
SUFFIX, UNFINISHED, REFUSED = ".safetensors", ".unfinished", ".refused"
_KEY = "stream_sttm"


@dataclass(frozen=True, slots=True)
class SavedMemory:
    """A memory at `saved_at` (wall clock); `fits` names all that must be the same where it is to live on."""

    stream: str
    saved_at: float
    fits: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def path_of(folder: Path, stream: str) -> Path:
    """Where a stream's memory is kept."""
    return folder / f"{stream}{SUFFIX}"


def write(folder: Path, saved: SavedMemory) -> Path:
    """Replace the stream's file; raises StateError where the disk won't take it, and leaves the old one then."""
    path = path_of(folder, saved.stream)
    unfinished = path.with_suffix(UNFINISHED)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in saved.tensors.items()}
        told = {"stream": saved.stream, "saved_at": saved.saved_at, "fits": dict(saved.fits)}
        about = json.dumps(told, sort_keys=True)
        metadata = {"version": VERSION, _KEY: about, "checksum": _checksum(about, tensors)}
        save_file(tensors, unfinished, metadata=metadata)
        _flush(unfinished)
        unfinished.replace(path)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise StateError(
            f"stream {saved.stream!r}: its memory can't be saved to {path}: {_first_line(error)}"
        ) from error
    return path


def read(folder: Path, stream: str) -> SavedMemory | None:
    """What was saved last, None if nothing was; raises StateError for a file that is damaged or another's."""
    path = path_of(folder, stream)
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
        if metadata.get("checksum") != _checksum(metadata[_KEY], tensors):
            raise StateError(f"{path}: the checksum is wrong, the file was damaged or changed")
        about = json.loads(metadata[_KEY])
        saved = SavedMemory(
            str(about["stream"]), float(about["saved_at"]), dict(about["fits"]), tensors
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StateError(f"{path}: no saved memory can be read: {_first_line(error)}") from error
    if saved.stream != stream:
        raise StateError(f"{path}: holds the memory of stream {saved.stream!r}")
    return saved


def set_aside(folder: Path, stream: str) -> Path:
    """Rename a file that was refused, so that it is neither read again nor overwritten; the last one refused stays."""
    path = path_of(folder, stream)
    return path.replace(path.with_suffix(REFUSED))


def misfit(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """In words, the first thing that differs between what a memory fits and what there is; None if nothing does."""
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
