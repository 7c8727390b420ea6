"""A stream's past on disk: written once, whole or not at all, within its bounds, refused where it was changed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from stream_sttm.engine.checkpoint.archive_file import (
    SavedPast,
    path_of,
    plan_files,
    read,
    remove,
    set_aside,
    write,
)
from stream_sttm.engine.recall.archive import Archive
from stream_sttm.engine.recall.archived import ArchiveSnapshot, SerialLineage
from stream_sttm.errors import StateError
from tests.engine.recall.test_archive import NONE, _answer, _fill, _kept

FITS = {"model": "abc", "layers": [0, 2]}


def _archive(windows: int, *, most_bytes: int = 1 << 20, max_age: float = 1e9) -> Archive:
    archive = Archive("door", most_bytes=most_bytes, max_age=max_age)
    _fill(archive, [10 + index % 3 for index in range(windows)])
    return archive


def _save(folder: Path, archive: Archive, *, largest: int = 4000) -> SavedPast:
    saved = SavedPast("door", 1234.5, FITS, archive.snapshot())
    write(folder, saved, largest=largest)
    return saved


def _again(folder: Path) -> SavedPast:
    found = read(folder, "door")
    assert found is not None
    return found


def _same(found: ArchiveSnapshot, saved: ArchiveSnapshot) -> bool:
    windows = zip(found.windows, saved.windows, strict=True)
    return (
        (found.id, found.numbering, found.begin, found.firsts)
        == (saved.id, saved.numbering, saved.begin, saved.firsts)
        and [astuple(event) for event in found.events] == [astuple(e) for e in saved.events]
        and all(
            one.captured == other.captured
            and all(
                torch.equal(a, b) and a.dtype == b.dtype
                for a, b in (
                    (one.read(), other.read()),
                    (one.keys, other.keys),
                    (one.boxes, other.boxes),
                    (one.sizes, other.sizes),
                )
            )
            for one, other in windows
        )
    )


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    parts = (path for path in path_of(folder, "door").iterdir() if path.name[0] != "m")
    return {path.name: (path.stat().st_ino, path.stat().st_size) for path in parts}


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_past_comes_back_as_it_was(tmp_path: Path, is_on_disk: bool) -> None:
    shelf = tmp_path / "shelf" if is_on_disk else None
    archive = Archive("door", most_bytes=1 << 20, max_age=1e9, folder=shelf)
    _fill(archive, [3, 0, 12, 7, 1])
    archive.record(_answer("yes", 2.0))
    archive.record(_answer('no, "neither"\n', 4.0))
    saved = _save(tmp_path / "new" / "folder", archive)
    found = _again(tmp_path / "new" / "folder")
    assert (found.stream, found.saved_at, found.fits) == ("door", 1234.5, FITS)
    assert _same(found.snapshot, saved.snapshot)


def test_an_empty_past_comes_back_and_nothing_saved_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "door") is None
    saved = _save(tmp_path, _archive(0))
    assert _same(_again(tmp_path).snapshot, saved.snapshot)
    archive = Archive("door", most_bytes=1 << 20, max_age=1e9)
    archive.restore(_again(tmp_path).snapshot, emitted=0, now=0.0)
    assert (len(archive), archive.nbytes) == (0, 0)


def test_what_is_saved_stays_untouched_by_later_saves(tmp_path: Path) -> None:
    archive = _archive(40)
    _save(tmp_path, archive)
    before = _files(tmp_path)
    assert len(before) > 5
    for index in range(40, 50):
        archive.add(_kept(10, frame=index), first=10_000 + index, captured=(index, index + 0.5))
        _save(tmp_path, archive)
    after = _files(tmp_path)
    kept = set(before.items()) & set(after.items())
    assert len(kept) >= len(before) - 1
    assert _same(_again(tmp_path).snapshot, archive.snapshot())


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=30),
    largest=st.integers(1, 30),
)
def test_files_hold_every_window_once_and_few_are_written_anew(
    steps: list[tuple[int, int]], largest: int
) -> None:
    """Windows of one byte come and go; `plan_files` must be a partition into files of at most `largest` bytes."""
    begin = end = written = 0
    known: dict[tuple[int, int], str] = {}
    for come, go in steps:
        end += come
        begin = min(end, begin + go)
        window = Archive("cam", most_bytes=1 << 20, max_age=1e9)
        _fill(window, [1])
        one = window.snapshot().windows[0]
        contents = replace(
            window.snapshot(), begin=begin, windows=(one,) * (end - begin), firsts=()
        )
        parts = plan_files(contents, known, largest * one.nbytes)
        numbers = [number for part in parts for number in range(*part)]
        assert numbers == list(range(begin, end))
        assert all(0 < last - first <= largest for first, last in parts)
        written += sum(last - first for first, last in parts if (first, last) not in known)
        known = dict.fromkeys(parts, "checksum")
    most = end * (1 + largest.bit_length()) + len(steps) * largest
    assert written <= most, "each window a few times, and the oldest file once a save"


def test_neither_bytes_nor_age_go_beyond_their_bounds_on_disk(tmp_path: Path) -> None:
    archive = Archive("door", most_bytes=20_000, max_age=50.0)
    for index in range(120):
        at = float(index)
        archive.add(_kept(10, frame=index), first=10 * index, captured=(at, at))
        if index % 7 == 0 or index > 110:
            _save(tmp_path, archive)
            contents = _again(tmp_path).snapshot
            assert sum(window.nbytes for window in contents.windows) <= 20_000
            assert all(window.captured[1] >= at - 50 for window in contents.windows)
            files = _files(tmp_path)
            headers = 700 * len(files)
            assert sum(size for _, size in files.values()) <= 20_000 + headers
    archive.add(None, first=0, captured=(1e9, 1e9))
    _save(tmp_path, archive)
    assert _files(tmp_path) == {}


def test_of_the_memory_it_was_saved_with_the_same_is_gone_after_it_is_back(tmp_path: Path) -> None:
    archive = _archive(6)
    held = torch.tensor([5, 30, 31])
    wanted = archive.evicted(held)
    assert wanted is not None
    _save(tmp_path, archive)

    def back(numbering: SerialLineage, emitted: int) -> Archive:
        again = Archive("door", most_bytes=1 << 20, max_age=1e9)
        again.numbering = numbering
        again.restore(_again(tmp_path).snapshot, emitted=emitted, now=6.0)
        return again

    again = back(archive.numbering, 1000)
    found = again.evicted(held)
    assert found is not None
    assert torch.equal(found.owner, wanted.owner)
    assert torch.equal(found.row, wanted.row)
    assert torch.equal(found.keys(1), wanted.keys(1))
    assert again.nbytes == archive.nbytes
    assert again.numbering != archive.numbering

    older = back(archive.numbering, 33)  # the memory was saved before the last windows came
    assert [window.first for window in older._windows] == [0, 10, 21, -1, -1, -1]
    other = back(SerialLineage(), 1000)
    gone = other.evicted(held)
    assert gone is not None
    assert len(gone) == sum(map(len, other._windows)), "nothing of it is in that memory"


def test_a_past_that_is_back_goes_on_in_the_same_files(tmp_path: Path) -> None:
    archive = _archive(40)
    _save(tmp_path, archive)
    before = _files(tmp_path)
    again = Archive("door", most_bytes=1 << 20, max_age=1e9)
    again.restore(_again(tmp_path).snapshot, emitted=0, now=40.0)
    again.add(_kept(10), first=0, captured=(41.0, 41.0))
    _save(tmp_path, again)
    after = _files(tmp_path)
    assert len(set(before.items()) & set(after.items())) >= len(before) - 1
    assert _same(_again(tmp_path).snapshot, again.snapshot())


@pytest.mark.parametrize(
    ("most_bytes", "max_age", "now"), [(5_000, 1e9, 40.0), (1 << 20, 10.0, 45.0), (1, 1e9, 0.0)]
)
def test_what_is_back_obeys_the_bounds_of_now(
    tmp_path: Path, most_bytes: int, max_age: float, now: float
) -> None:
    archive = _archive(40)
    archive.record(_answer("yes", 2.0))
    _save(tmp_path, archive)
    again = Archive("door", most_bytes=most_bytes, max_age=max_age)
    again.restore(_again(tmp_path).snapshot, emitted=0, now=now)
    assert again.nbytes == sum(window.nbytes for window in again._windows) <= most_bytes
    assert all(window.captured[1] >= now - max_age for window in again._windows)
    assert [window.captured for window in again._windows] == [
        window.captured for window in archive._windows
    ][len(archive) - len(again) :]
    assert len(list(again.events(0.0, 1e9))) == (0 if max_age == 10 else 1)
    _save(tmp_path, again)
    assert _same(_again(tmp_path).snapshot, again.snapshot())


def _some_part(folder: Path) -> Path:
    return next(path for path in sorted(path_of(folder, "door").iterdir()) if path.name[0] != "m")


def _manifest(folder: Path) -> Path:
    return path_of(folder, "door") / "manifest.safetensors"


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _one_bit(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


def _older(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "version": "0"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata)


def _of_another(path: Path) -> None:
    """Whole in itself, and not what is named."""
    other = path.parents[1] / "other"
    _save(other, _archive(3))
    path.write_bytes(_some_part(other).read_bytes())


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        (which, damage)
        for which in (_some_part, _manifest)
        for damage in (_truncated, _one_bit, _garbage, _older, _of_another)
    ]
    + [(_some_part, Path.unlink)],
)
def test_what_is_damaged_is_refused_in_one_line_and_set_aside(
    tmp_path: Path, which: Callable[[Path], Path], damage: Callable[[Path], None]
) -> None:
    archive = _archive(20)
    _save(tmp_path, archive)
    path = which(tmp_path)
    damage(path)
    with pytest.raises(StateError) as refused:
        read(tmp_path, "door")
    assert str(path_of(tmp_path, "door")) in str(refused.value)
    assert "\n" not in str(refused.value)
    aside = set_aside(tmp_path, "door")
    assert aside.exists()
    assert read(tmp_path, "door") is None
    _save(tmp_path, archive)
    set_aside(tmp_path, "door")  # the last one stays
    assert sorted(one.name for one in tmp_path.iterdir() if one.name != "other") == [
        "door.past-refused"
    ]


def test_the_past_of_another_stream_is_refused(tmp_path: Path) -> None:
    _save(tmp_path, _archive(3))
    path_of(tmp_path, "door").rename(path_of(tmp_path, "yard"))
    with pytest.raises(StateError, match="holds the past of stream 'door'"):
        read(tmp_path, "yard")


def test_of_a_stream_that_is_gone_nothing_is_left(tmp_path: Path) -> None:
    remove(tmp_path, "door")
    for _ in range(2):
        _save(tmp_path, _archive(9))
        if not path_of(tmp_path, "door").with_suffix(".past-refused").exists():
            set_aside(tmp_path, "door")
    write(tmp_path, SavedPast("door-2", 0.0, FITS, _archive(1).snapshot()))
    remove(tmp_path, "door")
    assert [path.name for path in tmp_path.iterdir()] == ["door-2.past"]


def test_another_archive_of_the_stream_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    _save(tmp_path, _archive(20))
    other = _archive(2)
    _save(tmp_path, other)
    assert len(_files(tmp_path)) == 1
    assert _same(_again(tmp_path).snapshot, other.snapshot())


@contextmanager
def _full_disk(most: int) -> Iterator[None]:
    """Limit the size of files, which stands for a full disk: the same system call fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_takes_no_more_leaves_what_was_saved_last_and_no_rest(tmp_path: Path) -> None:
    archive = _archive(20)
    saved = _save(tmp_path, archive)
    before = sorted(path.name for path in path_of(tmp_path, "door").iterdir())
    for index in range(20, 60):
        archive.add(_kept(10, frame=index), first=index, captured=(index, index))
    with (
        _full_disk(5_000),
        pytest.raises(StateError, match="stream 'door': its past can't be saved"),
    ):
        _save(tmp_path, archive, largest=20_000)
    assert sorted(path.name for path in path_of(tmp_path, "door").iterdir()) == before
    assert _same(_again(tmp_path).snapshot, saved.snapshot)
    _save(tmp_path, archive)
    assert _same(_again(tmp_path).snapshot, archive.snapshot())


_WRITER = """
import sys, torch
from pathlib import Path
from stream_sttm.engine.recall.archive import Archive
from stream_sttm.engine.checkpoint.archive_file import SavedPast, write
from tests.engine.recall.test_archive import _kept
archive = Archive("door", most_bytes=400_000, max_age=1e9)
number = 0
while True:
    for _ in range(50):
        archive.add(_kept(10, frame=number), first=10 * number, captured=(number, number))
        number += 1
    write(Path(sys.argv[1]), SavedPast("door", float(number), {}, archive.snapshot()), largest=50_000)
    print(number, flush=True)
"""


def test_a_kill_in_the_middle_of_a_save_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    for lag in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(3 + lag)]
        deadline = 20_000
        home = path_of(tmp_path, "door")
        while not list(home.glob("*.unfinished")) and deadline:  # now it is in the middle
            deadline -= 1
        writer.kill()
        rest = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        found = _again(tmp_path)
        assert found.saved_at >= (told + rest)[-1]
        for window in found.snapshot.windows:
            number = int(window.captured[0])
            tokens, keys = _kept(10, frame=number)
            assert torch.equal(window.read(), tokens.features.half())
            assert torch.equal(window.keys, keys.half())
        assert found.snapshot.windows[-1].captured[0] == found.saved_at - 1
        named = json.dumps(sorted(path.name for path in home.iterdir()))
        assert "unfinished" not in named
        assert len(json.loads(named)) <= 30
        remove(tmp_path, "door")
        assert found.snapshot.firsts[-1] == 10 * (found.saved_at - 1)
        assert not list(tmp_path.iterdir())
        archive = Archive("door", most_bytes=400_000, max_age=1e9)
        archive.restore(found.snapshot, emitted=0, now=found.saved_at)
        assert archive.evicted(NONE) is not None
