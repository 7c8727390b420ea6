"""What runs next, without a model: the scheduler is told the time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_sttm.engine.scheduler import Append, Ask, Decode, Scheduler
from stream_sttm.errors import QuestionRejected, TooManyQuestions
from stream_sttm.types import Clip, Frame, Question


def _clip(stream: str, index: int) -> Clip:
    image = np.zeros((2, 2, 3), np.uint8)
    return Clip(stream, index, (Frame(stream, image, float(index), float(index)),))


def _question(stream: str, name: str, at: float = 0.0) -> Question:
    return Question(name, stream, "what?", at, 8)


def _scheduler(**options: float) -> Scheduler:
    return Scheduler(**{"max_waiting": 4, "max_batch": 3, **options})  # type: ignore[arg-type]


def test_questions_go_before_clips_and_open_batches_before_clips() -> None:
    scheduler = _scheduler()
    clip = _clip("a", 0)
    scheduler.add_clip(clip, 0.0)
    scheduler.add_question(_question("a", "q"))
    assert isinstance(scheduler.next(0.1), Ask)
    scheduler.add_batch(7)
    assert scheduler.next(0.1) == Decode(7)
    scheduler.remove_batch(7)
    assert scheduler.next(0.1) == Append(clip)
    assert scheduler.next(0.1) is None
    assert scheduler.is_idle


def test_a_clip_waits_no_longer_than_the_patience() -> None:
    scheduler = _scheduler(patience=1.0)
    scheduler.add_batch(1)
    scheduler.add_clip(_clip("a", 0), 0.0)
    assert scheduler.next(0.9) == Decode(1)
    assert isinstance(scheduler.next(1.1), Append)


def test_late_clips_of_many_streams_leave_every_other_step_to_answers() -> None:
    scheduler = _scheduler(patience=1.0)
    for stream in "abcd":
        scheduler.add_clip(_clip(stream, 0), 0.0)
    scheduler.add_question(_question("a", "q"))
    work = [scheduler.next(5.0)]
    work.append(scheduler.next(5.0))
    scheduler.add_batch(1)
    work += [scheduler.next(5.0) for _ in range(3)]
    scheduler.remove_batch(1)
    work.append(scheduler.next(5.0))
    kinds = [type(item) for item in work]
    assert kinds == [Append, Ask, Append, Decode, Append, Append]
    assert scheduler.is_idle


def test_questions_of_one_stream_form_one_batch_up_to_its_limit() -> None:
    scheduler = _scheduler()
    for name, stream in (("1", "a"), ("2", "b"), ("3", "a"), ("4", "a")):
        scheduler.add_question(_question(stream, name))
    first, second = scheduler.next(0.0), scheduler.next(0.0)
    assert isinstance(first, Ask)
    assert isinstance(second, Ask)
    assert [q.id for q in first.questions] == ["1", "3", "4"]
    assert [q.id for q in second.questions] == ["2"]


def test_open_batches_take_turns() -> None:
    scheduler = _scheduler()
    for number in (1, 2, 3):
        scheduler.add_batch(number)
    assert [scheduler.next(0.0) for _ in range(4)] == [Decode(1), Decode(2), Decode(3), Decode(1)]


def test_of_a_stream_that_is_behind_the_newest_clips_stay_and_others_keep_theirs() -> None:
    scheduler = _scheduler()
    scheduler.add_clip(_clip("b", 0), 0.0)
    dropped = [scheduler.add_clip(_clip("a", index), 0.1 + index) for index in range(4)]
    assert [clip.index if clip else None for clip in dropped] == [None, None, 0, 1]
    taken = [scheduler.next(0.5) for _ in range(3)]
    assert [(w.clip.stream, w.clip.index) for w in taken if isinstance(w, Append)] == [
        ("b", 0),
        ("a", 2),
        ("a", 3),
    ]


def test_one_question_too_many_is_refused_and_late_ones_are_taken_out() -> None:
    scheduler = _scheduler()
    for name in "1234":
        scheduler.add_question(_question("a", name, at=float(name)))
    with pytest.raises(QuestionRejected, match="4 questions are waiting already"):
        scheduler.add_question(_question("a", "5"))
    assert [q.id for q in scheduler.take_expired(now=13.5, timeout=11.0)] == ["1", "2"]
    assert scheduler.questions_waiting == 2


def test_a_removed_stream_leaves_nothing_behind() -> None:
    scheduler = _scheduler()
    scheduler.add_clip(_clip("a", 0), 0.0)
    scheduler.add_question(_question("a", "1"))
    scheduler.add_question(_question("b", "2"))
    assert [q.id for q in scheduler.drop_stream("a")] == ["1"]
    assert isinstance(scheduler.next(0.0), Ask)
    assert scheduler.is_idle


def test_higher_priority_is_answered_first_and_age_decides_among_equals() -> None:
    scheduler = _scheduler(max_batch=1)
    for name, priority in (("1", 0), ("2", 5), ("3", 5), ("4", -1)):
        scheduler.add_question(replace(_question("a", name), priority=priority))
    order = []
    while isinstance(work := scheduler.next(0.0), Ask):
        order += [question.id for question in work.questions]
    assert order == ["2", "3", "1", "4"]


def test_questions_that_look_at_different_spans_are_not_answered_from_one_view() -> None:
    scheduler = _scheduler()
    for name, window in (("1", None), ("2", 5.0), ("3", None), ("4", 5.0)):
        scheduler.add_question(replace(_question("a", name), window_s=window))
    first, second = scheduler.next(0.0), scheduler.next(0.0)
    assert isinstance(first, Ask)
    assert isinstance(second, Ask)
    assert [[q.id for q in work.questions] for work in (first, second)] == [["1", "3"], ["2", "4"]]


def test_questions_of_higher_priority_go_first_and_equals_in_their_order() -> None:
    scheduler = Scheduler(max_waiting=9, max_batch=2)
    for name, stream, priority in (
        ("a", "yard", 0), ("b", "door", 0), ("c", "door", 5), ("d", "door", 0), ("e", "yard", -1),
    ):  # fmt: skip
        scheduler.add_question(Question(name, stream, "?", 0.0, 8, priority=priority))
    taken = [scheduler.next(0.0) for _ in range(4)]
    assert [[q.id for q in work.questions] for work in taken if isinstance(work, Ask)] == [
        ["c", "b"], ["a", "e"], ["d"],
    ]  # fmt: skip


def _asked(caller: str | None, stream: str, name: str, priority: int = 0) -> Question:
    return replace(_question(stream, name), caller=caller, priority=priority)


def _served(scheduler: Scheduler, steps: int) -> list[Question]:
    """What is begun in so many steps, each batch ending with the step that follows it."""
    order: list[Question] = []
    for number in range(steps):
        work = scheduler.next(0.0)
        if isinstance(work, Ask):
            order += work.questions
            scheduler.add_batch(number)
            scheduler.remove_batch(number)
    return order


def test_no_caller_fills_the_queue_alone() -> None:
    scheduler = Scheduler(max_waiting=8, max_batch=1)
    for number in range(4):
        scheduler.add_question(_asked("much", "ab"[number % 2], str(number)))
    with pytest.raises(TooManyQuestions, match="4 questions of yours are waiting already"):
        scheduler.add_question(_asked("much", "c", "5"))
    for caller in ("one", "two", None, None):
        scheduler.add_question(_asked(caller, "a", f"of {caller}"))
    with pytest.raises(TooManyQuestions, match="8 questions are waiting already"):
        scheduler.add_question(_asked("three", "a", "9"))


@pytest.mark.parametrize("streams", [["a"], ["a", "b"], [f"s{n}" for n in range(16)]])
@pytest.mark.parametrize("late", ["one", None])
def test_whoever_asks_little_waits_for_one_batch_of_whoever_asks_much(
    streams: list[str], late: str | None
) -> None:
    scheduler = Scheduler(max_waiting=256, max_batch=2)
    for number in range(128):
        stream = streams[number % len(streams)]
        scheduler.add_question(_asked("much", stream, str(number)))
    _served(scheduler, 5)
    for turn in range(10):
        scheduler.add_question(_asked(late, "other", f"late {turn}"))
        assert any(q.caller == late for q in _served(scheduler, 2))


def test_streams_take_turns_where_one_caller_asks_all_of_them() -> None:
    scheduler = Scheduler(max_waiting=256, max_batch=1)
    for number in range(60):
        scheduler.add_question(_asked("x", "a" if number < 50 else "bc"[number % 2], str(number)))
    order = [question.stream for question in _served(scheduler, 15)]
    assert [order.count(stream) for stream in "abc"] == [5, 5, 5]


def test_callers_share_a_batch_in_turns() -> None:
    scheduler = Scheduler(max_waiting=256, max_batch=4)
    for number in range(20):
        scheduler.add_question(_asked("much", "a", str(number)))
    for caller in ("one", "two"):
        scheduler.add_question(_asked(caller, "a", caller))
    work = scheduler.next(0.0)
    assert isinstance(work, Ask)
    assert [question.id for question in work.questions] == ["0", "one", "two", "1"]


def test_no_caller_takes_all_open_batches() -> None:
    scheduler = Scheduler(max_waiting=256, max_batch=1, max_open=4)
    for number in range(20):
        scheduler.add_question(_asked("much", "a", str(number)))
    kinds = []
    for number in range(6):
        work = scheduler.next(0.0)
        kinds.append(type(work))
        if isinstance(work, Ask):
            scheduler.add_batch(number)
    assert kinds == [Ask, Ask, Decode, Decode, Decode, Decode]
    scheduler.add_question(_asked("one", "a", "late"))
    work = scheduler.next(0.0)
    assert isinstance(work, Ask)
    assert work.questions[0].id == "late"


def test_priority_goes_before_turns_within_what_a_caller_may_have() -> None:
    scheduler = Scheduler(max_waiting=8, max_batch=1)
    for name, caller, priority in (("0", "x", 0), ("1", "y", 5), ("2", "y", 5), ("3", "z", 0)):
        scheduler.add_question(_asked(caller, "a", name, priority))
    assert [question.id for question in _served(scheduler, 4)] == ["1", "2", "0", "3"]


def test_those_who_were_served_are_remembered_within_bounds() -> None:
    scheduler = Scheduler(max_waiting=8, max_batch=1)
    for number in range(3000):
        scheduler.add_question(_asked(f"c{number}", f"s{number}", str(number)))
        _served(scheduler, 1)
    assert max(len(scheduler._served), len(scheduler._served_streams)) <= 1024
    assert scheduler.is_idle
