"""A history of any length holds few records, and still tells when and how much, the newest frames exactly."""

from __future__ import annotations

import pytest
import torch

from stream_sttm.engine.cache.frame_history import MOST_RECORDS, FrameHistory

WINDOW = torch.zeros(4, 2, 3, 1)
CELLS = 6


def _history(frames: int) -> FrameHistory:
    """One frame a second."""
    history = FrameHistory()
    for start in range(0, frames, 4):
        history.append(WINDOW, [float(start + index) for index in range(4)])
    return history


@pytest.mark.parametrize("frames", [MOST_RECORDS, MOST_RECORDS + 4, 44_000, 400_000])
def test_records_are_bounded_and_count_every_cell(frames: int) -> None:
    history = _history(frames)
    assert len(history.records) <= MOST_RECORDS
    assert sum(record.cells for record in history.within(None)) == frames * CELLS
    assert history.span_seconds == frames - 1
    firsts = [record.frame for record in history.records]
    assert firsts == sorted(set(firsts))
    assert [record.at for record in history.records] == firsts


def test_the_newest_frames_keep_a_record_each_and_older_ones_are_told_nearly() -> None:
    history = _history(44_000)
    newest = [record.frame for record in history.records][-100:]
    assert newest == list(range(43_900, 44_000))
    for seconds in (60, 1_000, 10_000, 40_000):
        seen = sum(record.cells for record in history.within(seconds)) / CELLS
        assert seen == pytest.approx(seconds, rel=0.05, abs=1)
        at = history.captured_at(44_000 - seconds)
        assert 0 <= 44_000 - seconds - at <= 0.05 * seconds


def test_a_record_is_dropped_once_all_its_frames_are_gone() -> None:
    plain, thinned = _history(40), _history(44_000)
    plain.drop_before(17)
    assert plain.records[0].frame == 17
    first, second = (thinned.records[index].frame for index in (0, 1))
    assert second - first > 1
    thinned.drop_before(second - 1)
    assert thinned.records[0].frame == first
    thinned.drop_before(second)
    assert thinned.records[0].frame == second


def test_a_thinned_history_comes_back_as_it_was_saved() -> None:
    history, again = _history(10_000), FrameHistory()
    history.append(WINDOW, [10_000.0, 10_001.0, 10_002.0, 10_003.0], WINDOW)
    saved = history.saved()
    again.restore(saved, torch.device("cpu"))
    assert again.records == history.records
    assert (again.frames, again.cells) == (history.frames, history.cells)
