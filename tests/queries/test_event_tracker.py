"""Events: begun and ended by so many answers, one at a time, never too often, told again where asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sttm.config.queries import QuerySettings
from stream_sttm.queries.event_tracker import EventTracker, reading
from stream_sttm.types import Answer, Event, EventKind, Question, Structured, TokenCounts

QUESTION = Question("q", "cam", "Anyone?", 0.0, 8, "person")
NEW, UPDATE, END = EventKind


def query(**more: Any) -> QuerySettings:
    told = {"streams": ["cam"], "ask": "Anyone?", "type": "yes_no", **more}
    return QuerySettings.model_validate(told)


def answer(says: Structured, at: float = 0.0, confidence: float | None = 0.9) -> Answer:
    question = replace(QUESTION, id=f"q{at:g}", asked_at=at)
    tokens = TokenCounts(1, 1, 1, 1)
    return Answer(
        question, str(says), (at - 5, at), tokens, "demo", at + 0.1,
        structured=says, confidence=confidence,
    )  # fmt: skip


def told(settings: QuerySettings, *says: Structured, step: float = 1.0) -> list[Event | None]:
    """What each answer tells, one every `step` seconds."""
    alarm = EventTracker()
    return [
        alarm.take(answer(each, at=index * step), settings, now=index * step)
        for index, each in enumerate(says)
    ]


def kinds(settings: QuerySettings, *says: Structured, step: float = 1.0) -> list[str]:
    return [event.kind.value if event else "" for event in told(settings, *says, step=step)]


def test_an_event_begins_with_yes_and_ends_with_no() -> None:
    assert kinds(query(), False, True, True, False, False) == ["", "new", "", "end", ""]


def test_what_is_told_of_an_event_says_when_what_and_what_it_rests_on() -> None:
    new, _, end = told(query(on_after=1), True, True, False, step=10.0)
    assert new is not None
    assert end is not None
    assert (new.stream, new.query, new.state, new.confidence) == ("cam", "person", True, 0.9)
    assert (new.started_at, new.updated_at, new.ended_at) == (0.0, 0.0, None)
    assert (end.id, end.kind, end.state) == (new.id, END, False)
    assert (end.started_at, end.updated_at, end.ended_at) == (0.0, 20.0, 20.0)
    assert (new.answer_id, end.answer_id) == ("q0", "q20")
    assert (new.span, end.span) == ((0.0, 0.0), (0.0, 10.0))


def test_it_takes_so_many_answers_in_a_row_to_begin_and_to_end() -> None:
    slow = query(on_after=3, off_after=2)
    says = [True, True, False, True, True, True, False, True, False, False]
    assert kinds(slow, *says) == ["", "", "", "", "", "new", "", "", "", "end"]


def test_the_span_begins_with_the_first_frame_that_showed_it() -> None:
    *_, new = told(query(on_after=3), False, True, True, True)
    assert new is not None
    assert new.span == (1.0, 3.0)
    assert new.started_at == 3.0


def test_an_answer_that_says_neither_neither_counts_nor_breaks_a_row() -> None:
    assert kinds(query(on_after=2), True, None, "dunno", True, None) == ["", "", "", "new", ""]


def test_an_uncertain_answer_says_neither() -> None:
    sure = query(min_confidence=0.8)
    assert reading(answer(True, confidence=0.8), sure) is True
    assert reading(answer(True, confidence=0.79), sure) is None
    assert reading(answer(True, confidence=None), sure) is None
    assert reading(answer(False, confidence=None), query()) is False


@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
def test_a_confidence_that_is_no_number_passes_no_threshold(least: float) -> None:
    settings = query(min_confidence=least)
    assert reading(answer(True, confidence=float("nan")), settings) is None
    assert EventTracker().take(answer(True, confidence=float("nan")), settings, now=0.0) is None


def test_a_choice_makes_events_of_the_values_that_alert() -> None:
    fire = query(type="choice", choices=["nothing", "smoke", "fire"], alert_on=["smoke", "fire"])
    events = told(fire, "nothing", "smoke", "smoke", "fire", "nothing", True, 1.0)
    assert [e and (e.kind, e.state) for e in events] == [
        None, (NEW, "smoke"), None, (UPDATE, "fire"), (END, "nothing"), None, None,
    ]  # fmt: skip


def test_cooldown_keeps_the_starts_of_events_apart() -> None:
    calm = query(cooldown=10)
    says = [True, False, True, True, False, True]
    assert kinds(calm, *says, step=3.0) == ["new", "end", "", "", "", "new"]


def test_a_clock_set_back_does_not_prolong_the_cooldown() -> None:
    calm, alarm = query(cooldown=10), EventTracker()
    assert alarm.take(answer(True), calm, now=1_000_000.0)
    assert alarm.take(answer(False), calm, now=1_000_001.0)
    assert alarm.take(answer(True), calm, now=5.0) is None
    assert alarm.take(answer(True), calm, now=13.9) is None
    assert alarm.take(answer(True), calm, now=14.0)


def test_an_event_that_goes_on_is_told_once_more_where_it_escalates() -> None:
    events = told(query(escalate=5), *[True] * 10, False, step=2.0)
    assert [e and (e.kind, e.escalated) for e in events] == [
        (NEW, False), None, None, (UPDATE, True), *[None] * 6, (END, True),
    ]  # fmt: skip


def test_always_tells_every_answer_of_an_event() -> None:
    assert kinds(query(announce="always"), True, True, None, True, False, False) == [
        "new", "update", "", "update", "end", "",
    ]  # fmt: skip


def test_what_nobody_asks_about_any_more_ends_with_its_state_unknown() -> None:
    alarm = EventTracker()
    assert alarm.lapse(1.0) is None
    new = alarm.take(answer(True, at=2.0), query(), now=2.0, has_snapshot=True)
    end = alarm.lapse(9.0)
    assert new is not None
    assert end == replace(new, kind=END, updated_at=9.0, ended_at=9.0, state=None, confidence=None)
    assert alarm.lapse(10.0) is None


def test_an_earlier_runs_event_goes_on() -> None:
    new = told(query(), True)[0]
    assert new is not None
    alarm = EventTracker(new, since_start=100.0)
    assert alarm.take(answer(True, at=100.0), query(), now=100.0) is None
    end = alarm.take(answer(False, at=101.0), query(), now=101.0)
    assert end is not None
    assert (end.id, end.kind) == (new.id, END)


@dataclass
class Seen:
    """An answer and the clocks with it."""

    says: bool | None
    confidence: float
    step: float


SEEN = st.builds(
    Seen,
    st.sampled_from([True, True, False, False, None]),
    st.sampled_from([0.2, 0.9]),
    st.sampled_from([0.0, 0.5, 1.0, 30.0, -1.0, -1e6, 1e6]),
)


@given(
    seen=st.lists(SEEN, max_size=60),
    on_after=st.integers(1, 4),
    off_after=st.integers(1, 4),
    cooldown=st.sampled_from([0.0, 2.0, 40.0]),
    escalate=st.sampled_from([None, 3.0]),
    announce=st.sampled_from(["always", "on_change"]),
    lapses=st.sets(st.integers(0, 59), max_size=3),
)
def test_whatever_is_answered_and_whatever_the_clock_does(
    seen: list[Seen],
    on_after: int,
    off_after: int,
    cooldown: float,
    escalate: float | None,
    announce: str,
    lapses: set[int],
) -> None:
    settings = query(
        on_after=on_after, off_after=off_after, cooldown=cooldown, escalate=escalate,
        announce=announce, min_confidence=0.5,
    )  # fmt: skip
    alarm, now, forward = EventTracker(), 1e7, 0.0
    running: Event | None = None
    started, row, ids = None, [], set()
    for index, one in enumerate(seen):
        now, forward = now + one.step, forward + max(0.0, one.step)
        if index in lapses:
            end = alarm.lapse(now)
            assert (end is None) == (running is None)
            running, row = None, []
        event = alarm.take(answer(one.says, now, one.confidence), settings, now=now)
        if one.says is not None and one.confidence >= 0.5:
            row = [*row, one.says] if row and row[-1] == one.says else [one.says]
        if event is None:
            continue
        assert event.span[0] <= event.span[1]
        assert event.started_at <= event.updated_at
        if event.kind is NEW:
            assert running is None
            assert event.id not in ids
            assert row.count(True) >= on_after
            assert started is None or forward - started >= cooldown - 1e-6
            started, running = forward, event
            ids.add(event.id)
            continue
        assert running is not None
        assert event.id == running.id
        assert event.started_at == running.started_at
        if event.kind is END:
            assert row.count(False) >= off_after
            assert event.ended_at == event.updated_at
            running, row = None, row[-1:]
        else:
            assert event.ended_at is None
            assert announce == "always" or event.escalated
    assert (alarm.event is None) == (running is None)


@pytest.mark.parametrize("kind", ["text", "number", "json"])
def test_other_types_have_no_events(kind: str) -> None:
    assert not query(type=kind).makes_events
    assert reading(answer("yes"), query(type=kind)) is not True
