"""A stream's archive on disk: a small manifest, and the files of windows that it names, each written once.

A save adds new windows and removes dropped ones. The newest files are put together as long as they are small. The
oldest one is written again without the windows that were dropped. All others stay. The manifest comes last, and a file
that it does not name is ignored. So a crash loses at most what came after the last save, and the disk holds no more
than the archive does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stream_sttm.engine.checkpoint import tensor_file
from stream_sttm.engine.recall.archived import (
    ArchivedClip,
    ArchiveSnapshot,
    PastAnswer,
    SerialLineage,
)
from stream_sttm.errors import StateError

LARGEST = 8 << 20  # bytes that are rewritten at most when one window is added or dropped
_SUFFIX, _REFUSED = ".past", ".past-refused"
_MANIFEST = f"manifest{tensor_file.SUFFIX}"
Span = tuple[int, int]  # numbers of windows, end-exclusive


@dataclass(frozen=True, slots=True)
class SavedPast:
    """An archive at `saved_at` (wall clock). `fits` holds all that must be the same where it is restored."""

    stream: str
    saved_at: float
    fits: Mapping[str, Any]
    snapshot: ArchiveSnapshot


def path_of(folder: Path, stream: str) -> Path:
    """Return the folder of a stream's archive."""
    return folder / f"{stream}{_SUFFIX}"


def write(folder: Path, saved: SavedPast, *, largest: int = LARGEST) -> None:
    """Write the archive to disk. Raises StateError where that fails, and leaves the last one as it was.

    No file is larger than `largest` bytes, except one with a single window.
    """
    home, snapshot = path_of(folder, saved.stream), saved.snapshot
    known = _files_on_disk(home, snapshot.id)
    parts = plan_files(snapshot, known, largest)
    held: dict[Span, str] = {}
    try:
        for part in parts:
            held[part] = known.get(part) or _write_part(home, snapshot, part)
        _write_manifest(home, saved, held)
    except (StateError, OSError) as error:
        for part in held:  # free the disk for others
            if part not in known:
                with suppress(OSError):
                    _file_of(home, snapshot.id, part).unlink()
        raise StateError(f"stream {saved.stream!r}: its past {_error_text(home, error)}") from error
    _delete_unnamed(home, snapshot.id, held)


def read(folder: Path, stream: str) -> SavedPast | None:
    """Return what was saved last, None if nothing was.

    Raises StateError where a part is damaged or another stream's.
    """
    home = path_of(folder, stream)
    manifest = tensor_file.read(home / _MANIFEST)
    if manifest is None:
        return None
    try:
        saved = _read_past(home, manifest)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise tensor_file.unreadable(home, error) from error
    if saved.stream != stream:
        raise StateError(f"{home}: holds the past of stream {saved.stream!r}")
    _delete_unnamed(home, saved.snapshot.id, _spans(manifest.about))
    return saved


def set_aside(folder: Path, stream: str) -> Path:
    """Rename an archive that was refused, so that it is neither read again nor overwritten.

    Replaces an earlier such one.

    Returns the new path.
    """
    home = path_of(folder, stream)
    refused = home.with_suffix(_REFUSED)
    if refused.exists():
        shutil.rmtree(refused)
    return home.rename(refused)


def remove(folder: Path, stream: str) -> None:
    """Delete all that is saved of a stream's archive. Raises OSError where that fails."""
    home = path_of(folder, stream)
    for path in (home, home.with_suffix(_REFUSED)):
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def saved_before(folder: Path, moment: float) -> list[str]:
    """Return the streams whose archive was last saved before a moment (wall clock)."""
    old = [path for path in folder.glob(f"*{_SUFFIX}/{_MANIFEST}") if _is_older(path, moment)]
    return [path.parent.name.removesuffix(_SUFFIX) for path in old]


def plan_files(snapshot: ArchiveSnapshot, known: Mapping[Span, str], largest: int) -> list[Span]:
    """Return how the windows are spread over files.

    Files that are `known` stay as far as they are still valid, and small new ones are put together. New windows take in
    the newest files as long as these are no larger than they are. So each window is written again a few times at most,
    however often and how little is saved.
    """
    begin, end = snapshot.begin, snapshot.begin + len(snapshot.windows)
    sums = [0, *accumulate(window.nbytes for window in snapshot.windows)]

    def size(first: int, last: int) -> int:
        return sums[last - begin] - sums[first - begin]

    unchanged = sorted(span for span in known if begin <= span[0] and span[1] <= end)
    new = unchanged[-1][1] if unchanged else begin
    while unchanged and unchanged[-1][1] == new and size(*unchanged[-1]) <= size(new, end):
        if size(unchanged[-1][0], end) > largest:
            break
        new = unchanged.pop()[0]
    parts, at = list[Span](), begin
    for first, last in [*unchanged, (end, end)]:
        while at < first:
            cut = at + 1
            while cut < first and size(at, cut + 1) <= largest:
                cut += 1
            parts.append((at, cut))
            at = cut
        at = last
    return sorted([*parts, *unchanged])


def _files_on_disk(home: Path, id_: str) -> dict[Span, str]:
    """Return the files of an archive that are already on disk, with their checksums."""
    try:
        manifest = tensor_file.read(home / _MANIFEST)
    except StateError:
        return {}
    if manifest is None or manifest.about.get("id") != id_:
        return {}
    spans = _spans(manifest.about)
    return {
        span: checksum for span, checksum in spans.items() if _file_of(home, id_, span).exists()
    }


def _spans(about: Mapping[str, Any]) -> dict[Span, str]:
    return {(int(begin), int(end)): str(checksum) for begin, end, checksum in about["parts"]}


def _file_of(home: Path, id_: str, span: Span) -> Path:
    return home / f"{id_}-{span[0]}-{span[1]}{tensor_file.SUFFIX}"


def _read_past(home: Path, manifest: tensor_file.Content) -> SavedPast:
    """Return what a manifest and its files hold. Raises StateError for a file that is damaged or missing."""
    about, rows = manifest.about, manifest.tensors
    id_, begin = str(about["id"]), int(about["begin"])
    counts, captured = rows["counts"].tolist(), rows["captured"].tolist()
    windows: list[ArchivedClip] = []
    for span, checksum in _spans(about).items():
        path = _file_of(home, id_, span)
        part = tensor_file.read(path)
        if part is None or part.checksum != checksum:
            raise StateError(f"{path}: is not there, or not what the manifest beside it names")
        here = slice(span[0] - begin, span[1] - begin)
        windows += _windows(part.tensors, counts[here], captured[here])
    snapshot = ArchiveSnapshot(
        id=id_,
        numbering=SerialLineage.from_dict(about["numbering"]),
        begin=begin,
        windows=tuple(windows),
        firsts=tuple(rows["firsts"].tolist()),
        events=tuple(
            PastAnswer(*fields) for fields in json.loads(rows["events"].numpy().tobytes())
        ),
    )
    if not len(windows) == len(snapshot.firsts) == len(counts):
        raise ValueError(f"{len(windows)} windows, not {len(counts)}")
    return SavedPast(str(about["stream"]), float(about["saved_at"]), dict(about["fits"]), snapshot)


def _write_part(home: Path, snapshot: ArchiveSnapshot, span: Span) -> str:
    windows = snapshot.windows[span[0] - snapshot.begin : span[1] - snapshot.begin]
    tensors = {
        "features": torch.cat([window.read() for window in windows]),
        "keys": torch.cat([window.keys for window in windows], dim=1),
        "boxes": torch.cat([window.boxes for window in windows]),
        "sizes": torch.cat([window.sizes for window in windows]),
    }
    return tensor_file.write(_file_of(home, snapshot.id, span), {"id": snapshot.id}, tensors)


def _write_manifest(home: Path, saved: SavedPast, held: Mapping[Span, str]) -> None:
    snapshot = saved.snapshot
    about = {
        "stream": saved.stream,
        "saved_at": saved.saved_at,
        "fits": dict(saved.fits),
        "id": snapshot.id,
        "numbering": asdict(snapshot.numbering),
        "begin": snapshot.begin,
        "parts": [[*span, checksum] for span, checksum in held.items()],
    }
    text = json.dumps([astuple(event) for event in snapshot.events], allow_nan=False).encode()
    windows = snapshot.windows
    tensors = {
        "counts": torch.tensor([len(window) for window in windows], dtype=torch.int64),
        "captured": torch.tensor([window.captured for window in windows], dtype=torch.float64),
        "firsts": torch.tensor(snapshot.firsts, dtype=torch.int64),
        "events": torch.frombuffer(bytearray(text), dtype=torch.uint8),
    }
    tensor_file.write(home / _MANIFEST, about, tensors)


def _windows(
    part: Mapping[str, Tensor], counts: list[int], captured: Sequence[tuple[float, float]]
) -> Iterator[ArchivedClip]:
    """Yield the windows of one file. Raises KeyError, ValueError or RuntimeError where they are not complete."""
    rows = (torch.split(part[name], counts) for name in ("features", "boxes", "sizes"))
    keys = torch.split(part["keys"], counts, dim=1)
    for features, boxes, sizes, key, span in zip(*rows, keys, captured, strict=True):
        yield ArchivedClip(features, key, boxes, sizes, (span[0], span[1]), 0)


def _delete_unnamed(home: Path, id_: str, held: Iterable[Span]) -> None:
    """Delete the files that the manifest does not name. What can't be deleted now is tried again with the next save."""
    wanted = {_MANIFEST, *(_file_of(home, id_, span).name for span in held)}
    with suppress(OSError):
        for path in home.iterdir():
            if path.name not in wanted:
                path.unlink()


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except OSError:
        return False


def _error_text(home: Path, error: Exception) -> str:
    return str(error) if isinstance(error, StateError) else f"can't be saved to {home}: {error}"
