"""A stream's memory on disk: one file, which also says what it fits.

Knows no session: tensors and what they fit go in, the same come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from stream_sttm.engine.checkpoint import tensor_file
from stream_sttm.engine.recall.archived import SerialLineage
from stream_sttm.errors import StateError

REFUSED = ".refused"


@dataclass(frozen=True, slots=True)
class SavedMemory:
    """A memory at `saved_at` (wall clock). `fits` holds all that must be the same where it is restored.

    A saved archive refers to the memory's tokens by `numbering`, which is None where there is no archive.
    """

    stream: str
    saved_at: float
    fits: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    numbering: SerialLineage | None = None


def path_of(folder: Path, stream: str) -> Path:
    """Return the file of a stream's memory."""
    return folder / f"{stream}{tensor_file.SUFFIX}"


def write(folder: Path, saved: SavedMemory) -> Path:
    """Replace the stream's file and return its path. Raises StateError where that fails, and leaves the old file."""
    path = path_of(folder, saved.stream)
    about = {
        "stream": saved.stream,
        "saved_at": saved.saved_at,
        "fits": dict(saved.fits),
        "numbering": None if saved.numbering is None else asdict(saved.numbering),
    }
    try:
        tensor_file.write(path, about, saved.tensors)
    except StateError as error:
        raise StateError(f"stream {saved.stream!r}: its memory {error}") from error
    return path


def read(folder: Path, stream: str) -> SavedMemory | None:
    """Return what was saved last, None if nothing was.

    Raises StateError for a file that is damaged or another stream's.
    """
    path = path_of(folder, stream)
    content = tensor_file.read(path)
    if content is None:
        return None
    about = content.about
    try:
        numbering = about.get("numbering")
        saved = SavedMemory(
            str(about["stream"]),
            float(about["saved_at"]),
            dict(about["fits"]),
            content.tensors,
            None if numbering is None else SerialLineage.from_dict(numbering),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise tensor_file.unreadable(path, error) from error
    if saved.stream != stream:
        raise StateError(f"{path}: holds the memory of stream {saved.stream!r}")
    return saved


def set_aside(folder: Path, stream: str) -> Path:
    """Rename a file that was refused, so that it is neither read again nor overwritten. Replaces an earlier such one.

    Returns the new path.
    """
    path = path_of(folder, stream)
    return path.replace(path.with_suffix(REFUSED))


def remove(folder: Path, stream: str) -> None:
    """Delete all that is saved of a stream's memory. Raises OSError where that fails."""
    path = path_of(folder, stream)
    for suffix in (tensor_file.SUFFIX, tensor_file.UNFINISHED, REFUSED):
        with suppress(IsADirectoryError):  # a folder is not one of our files
            path.with_suffix(suffix).unlink(missing_ok=True)
