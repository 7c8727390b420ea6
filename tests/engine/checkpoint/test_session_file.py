"""A memory on disk: it comes back as it was, or is refused with one line and set aside."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stream_sttm.engine.checkpoint.session_file import (
    SavedMemory,
    path_of,
    read,
    remove,
    set_aside,
    write,
)
from stream_sttm.engine.checkpoint.tensor_file import misfit
from stream_sttm.errors import StateError

SAVED = SavedMemory(
    "door",
    1234.5,
    {"model": "abc", "merge_at": 2, "positions": "own", "size_bias": 0.5},
    {
        "keys": torch.arange(24, dtype=torch.bfloat16).reshape(1, 2, 3, 4),
        "serials": torch.arange(3),
        "is_alive": torch.tensor([True, False]),
        "none": torch.empty(0, 5),
    },
)


def test_a_memory_comes_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "new" / "folder", SAVED)
    found = read(tmp_path / "new" / "folder", "door")
    assert found is not None
    assert (found.stream, found.saved_at, found.fits) == ("door", 1234.5, SAVED.fits)
    assert found.tensors.keys() == SAVED.tensors.keys()
    for name, tensor in SAVED.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_views_of_a_larger_storage_are_saved_alone(tmp_path: Path) -> None:
    large = torch.zeros(1, 2, 1000, 4)
    path = write(tmp_path, replace(SAVED, tensors={"keys": large[:, :, :3]}))
    assert path.stat().st_size < 2000


def test_nothing_saved_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "door") is None
    assert read(tmp_path / "missing", "door") is None


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


def _one_bit(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)


def _retold(path: Path, **changed: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changed}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata)


def _older(path: Path) -> None:
    _retold(path, version="0")


def _other_fits(path: Path) -> None:
    _retold(path, stream_sttm=json.dumps({"stream": "door", "saved_at": 0, "fits": {}}))


def _no_story(path: Path) -> None:
    save_file({"keys": torch.zeros(3)}, path)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{" * 100)


@pytest.mark.parametrize(
    "damage",
    [_truncated, _emptied, _garbage, _one_bit, _older, _other_fits, _no_story, _a_folder, _huge_header],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line_that_names_it(tmp_path: Path, damage) -> None:
    path = write(tmp_path, SAVED)
    damage(path)
    with pytest.raises(StateError) as refused:
        read(tmp_path, "door")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_of_another_stream_is_refused(tmp_path: Path) -> None:
    write(tmp_path, SAVED).rename(path_of(tmp_path, "yard"))
    with pytest.raises(StateError, match="holds the memory of stream 'door'"):
        read(tmp_path, "yard")


def test_what_was_refused_is_set_aside_and_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, SAVED)
    aside = set_aside(tmp_path, "door")
    assert aside.exists()
    assert aside != path
    assert read(tmp_path, "door") is None


def test_of_a_stream_that_is_gone_nothing_is_left(tmp_path: Path) -> None:
    write(tmp_path, SAVED)
    set_aside(tmp_path, "door")
    write(tmp_path, SAVED)
    (tmp_path / "door.unfinished").write_bytes(b"half")
    write(tmp_path, replace(SAVED, stream="door-2"))
    remove(tmp_path, "door")
    remove(tmp_path, "door")
    assert [path.name for path in tmp_path.iterdir()] == ["door-2.safetensors"]


def test_misfits_are_told_in_words() -> None:
    assert misfit(SAVED.fits, SAVED.fits) is None
    assert misfit(SAVED.fits, {**SAVED.fits, "model": "x"}) == "it belongs to another model"
    assert misfit(SAVED.fits, {**SAVED.fits, "merge_at": 1}) == "merge_at was 2 and is 1"
    assert misfit({}, SAVED.fits) is not None


def test_a_disk_that_takes_no_more_leaves_the_last_file_and_no_rest(tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the same system call fails."""
    write(tmp_path, SAVED)
    large = replace(SAVED, tensors={"keys": torch.zeros(100_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StateError, match="can't be saved to"):
            write(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["door.safetensors"]
    found = read(tmp_path, "door")
    assert found is not None
    assert torch.equal(found.tensors["keys"], SAVED.tensors["keys"])


_WRITER = """
import sys, torch
from pathlib import Path
from stream_sttm.engine.checkpoint.session_file import SavedMemory, write
number = 0
while True:
    tensors = {"keys": torch.full((1_000_000,), float(number))}
    write(Path(sys.argv[1]), SavedMemory("door", float(number), {}, tensors))
    print(number, flush=True)
    number += 1
"""


def test_a_kill_in_the_middle_of_a_write_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    for lag in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(2 + lag)]
        deadline = 20_000
        while not list(tmp_path.glob("*.unfinished")) and deadline:  # now it is in the middle
            deadline -= 1
        writer.kill()
        rest = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        found = read(tmp_path, "door")
        assert found is not None
        assert found.saved_at >= (told + rest)[-1]
        assert bool((found.tensors["keys"] == found.saved_at).all())
        assert [path.name for path in tmp_path.iterdir()] == ["door.safetensors"]
