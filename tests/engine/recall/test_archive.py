"""An archive keeps what it is given, within its bounds of bytes and age, on the host or on a disk that may be full."""

from __future__ import annotations

import gc
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stream_sttm.engine.recall.archive import EVENTS, Archive, Archives
from stream_sttm.types import Answer, Question, TokenCounts
from stream_sttm.visual_tokens import VisualTokens

WIDTH, HEADS, D = 24, 2, 4
NONE = torch.empty(0, dtype=torch.int64)


def _kept(
    count: int, *, frame: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[VisualTokens, Tensor]:
    generator = torch.Generator().manual_seed(count + 31 * frame)
    features = torch.randn(count, WIDTH, generator=generator).to(dtype)
    cells = torch.arange(count)
    boxes = torch.stack([cells * 0 + frame, cells, cells * 0, cells + 1, cells * 0 + 1], 1)
    keys = torch.randn(2, count, HEADS, D, generator=generator).to(dtype)
    return VisualTokens(features, boxes, torch.full((count,), 3)), keys


def _fill(archive: Archive, counts: list[int], step: float = 1.0) -> None:
    first = 0
    for index, count in enumerate(counts):
        kept = _kept(count, frame=index) if count else None
        archive.add(kept, first=first, captured=(index * step, index * step + 0.5))
        first += count


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=40),
    most_bytes=st.integers(200, 20_000),
    max_age=st.floats(0.5, 30),
    step=st.floats(0, 5),
)
def test_neither_bytes_nor_age_ever_go_beyond_their_bounds(
    counts: list[int], most_bytes: int, max_age: float, step: float
) -> None:
    archive, first, at = Archive("cam", most_bytes=most_bytes, max_age=max_age), 0, 0.0
    for index, count in enumerate(counts):
        at += step
        kept = _kept(count, frame=index) if count else None
        archive.add(kept, first=first, captured=(at, at))
        first += count
        windows = archive._windows
        assert archive.nbytes == sum(window.nbytes for window in windows) <= most_bytes
        assert all(window.captured[1] >= at - max_age for window in windows)
        gone = archive.evicted(NONE)
        assert (0 if gone is None else len(gone)) == sum(map(len, windows))
    serials = [window.first for window in archive._windows]
    assert serials == sorted(serials), "what is left is what came last"


def test_the_newest_windows_are_those_that_stay() -> None:
    size = Archive("cam", most_bytes=1 << 20, max_age=1e9)
    _fill(size, [10])
    archive = Archive("cam", most_bytes=3 * size.nbytes, max_age=1e9)
    _fill(archive, [10] * 8)
    assert [window.first for window in archive._windows] == [50, 60, 70]
    assert archive.span == (5.0, 7.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_tokens_come_back_as_they_were_to_sixteen_bits(
    tmp_path: Path, is_on_disk: bool, dtype: torch.dtype
) -> None:
    archive = Archive(
        "cam", most_bytes=1 << 20, max_age=1e9, folder=tmp_path / "past" if is_on_disk else None
    )
    whole, keys = _kept(9, dtype=dtype)
    archive.add((whole, keys), first=5, captured=(1.0, 2.0))
    gone = archive.evicted(torch.tensor([5, 7]))
    assert gone is not None
    assert gone.row.tolist() == [1, 3, 4, 5, 6, 7, 8]
    tokens = gone.windows[0].tokens(gone.row)
    assert tokens.features.dtype == (torch.float16 if dtype == torch.float32 else dtype)
    torch.testing.assert_close(
        tokens.features.float(), whole.features[gone.row].float(), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(tokens.boxes, whole.boxes[gone.row])
    assert torch.equal(tokens.sizes, whole.sizes[gone.row])
    torch.testing.assert_close(
        gone.keys(1).float(), keys[1][gone.row].float(), rtol=1e-3, atol=1e-3
    )


def test_a_magnitude_beyond_sixteen_bits_is_cut() -> None:
    archive = Archive("cam", most_bytes=1 << 20, max_age=1e9)
    tokens, keys = _kept(2)
    tokens.features[0, 0] = 1e9
    archive.add((tokens, keys), first=0, captured=(0.0, 0.0))
    gone = archive.evicted(NONE)
    assert gone is not None
    assert bool(gone.windows[0].tokens(gone.row).features.isfinite().all())


def test_of_a_memory_that_was_lost_everything_is_recallable_and_stays_so() -> None:
    archives = Archives(most_bytes=1 << 20, max_age=1e9, folder=None)
    archive = archives.for_new_session("cam")
    _fill(archive, [4, 4])
    assert archive.evicted(torch.arange(8)) is None
    assert archives.for_new_session("cam") is archive
    archive.add(_kept(3, frame=9), first=0, captured=(9.0, 9.0))  # serials begin anew
    gone = archive.evicted(torch.arange(2))
    assert gone is not None
    assert list(zip(gone.owner.tolist(), gone.row.tolist(), strict=True)) == [
        *((0, row) for row in range(4)),
        *((1, row) for row in range(4)),
        (2, 2),
    ]
    archives.drop("cam")
    assert archives.for_new_session("cam") is not archive


@contextmanager
def _disk_with(most_bytes: int) -> Iterator[None]:
    """No file of this process can be longer, which the system refuses as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_once_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive("cam", most_bytes=1 << 20, max_age=1e9, folder=tmp_path)
    with caplog.at_level(logging.ERROR), _disk_with(2000):
        _fill(archive, [10] * 12)  # 480 bytes of features each
    assert len(caplog.records) == 1
    assert "cam: its past can't be kept on disk" in caplog.text
    on_disk = [not isinstance(window.features, Tensor) for window in archive._windows]
    assert on_disk == [True] * 4 + [False] * 8
    archive.add(_kept(10, frame=12), first=120, captured=(12.0, 12.0))
    assert not isinstance(archive._windows[-1].features, Tensor), "it is tried again"
    for index, window in enumerate(archive._windows):
        tokens = window.tokens(torch.arange(10))
        torch.testing.assert_close(
            tokens.features.float(), _kept(10, frame=index)[0].features, rtol=1e-3, atol=1e-3
        )


def test_a_folder_that_can_not_be_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    archive = Archive("cam", most_bytes=1 << 20, max_age=1e9, folder=tmp_path / "file" / "past")
    with caplog.at_level(logging.ERROR):
        _fill(archive, [5] * 4)
    assert len(caplog.records) == 1
    assert len(archive) == 4


def test_nothing_is_left_on_disk_or_open_once_it_is_let_go_of(tmp_path: Path) -> None:
    def opened() -> int:
        return sum(
            str(tmp_path) in os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{name}") or os.path.islink(f"/proc/self/fd/{name}")
        )

    archive = Archive("cam", most_bytes=20_000, max_age=1e9, folder=tmp_path)
    _fill(archive, [10] * 200)
    assert list(tmp_path.iterdir()) == []
    assert 1 <= opened() <= 10
    archive.add(None, first=0, captured=(1e12, 1e12))
    assert len(archive) == 0
    del archive
    gc.collect()
    assert opened() == 0


def _answer(text: str, at: float, query: str | None = "person") -> Answer:
    question = Question("q", "cam", "Is someone there?", at, 8, query)
    return Answer(question, text, (at - 9, at), TokenCounts(1, 1, 1, 1), "demo", at + 0.1)


def test_answers_that_repeat_are_one_event_that_lasts() -> None:
    archive = Archive("cam", most_bytes=1 << 20, max_age=60.0)
    for at, text in ((0.0, "no"), (2.0, "yes"), (4.0, "yes"), (6.0, "no")):
        archive.record(_answer(text, at))
        archive.record(_answer("open", at, query="gate"))
        archive.record(_answer("whatever", at, query=None))
    told = [(e.query, e.answer, e.since, e.until) for e in archive.events(0.0, 10.0)]
    assert told == [
        ("person", "no", 0.0, 0.0),
        ("gate", "open", 0.0, 6.0),
        ("person", "yes", 2.0, 4.0),
        ("person", "no", 6.0, 6.0),
    ]
    assert [e.answer for e in archive.events(3.0, 4.5)] == ["open", "yes"]
    archive.record(_answer("yes", 100.0))
    assert [e.answer for e in archive.events(0.0, 200.0)] == ["yes"]


def test_events_are_bounded_in_number() -> None:
    archive = Archive("cam", most_bytes=1 << 20, max_age=1e9)
    for index in range(EVENTS + 50):
        archive.record(_answer(str(index), index / 10))
    assert len(list(archive.events(0.0, 1e9))) == EVENTS
