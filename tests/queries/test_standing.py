"""Standing queries: rhythm, calls, no bursts, no pile-up, what counts as news, and events over changes of all that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.queries.cadence import CALL_LASTS
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.types import Answer, Event, EventKind, Question, Structured, TokenCounts

ANSWERING = AnsweringSettings(max_new_tokens=32, timeout=10)


def standing(**queries: QuerySettings) -> StandingQueries:
    return StandingQueries(queries, ANSWERING)


def query(every: float | None = 2, **more: object) -> QuerySettings:
    return QuerySettings.model_validate({"streams": ["cam"], "ask": "Who?", "every": every, **more})


def answer(question: Question, text: str) -> Answer:
    return Answer(question, text, (0, 1), TokenCounts(1, 1, 1, 1), "demo", 1.0)


def is_news(queries: StandingQueries, question: Question, text: str = "yes") -> bool:
    return queries.take(answer(question, text), now=1.0).is_news


def asked_at(queries: StandingQueries, times: list[float]) -> list[float]:
    """The stream times at which a question was due, each settled at once."""
    asked = []
    for pts in times:
        for question in queries.due("cam", pts, now=1000 + pts):
            queries.settled(question)
            asked.append(pts)
    return asked


def test_first_question_is_due_at_once_and_then_every_so_many_seconds() -> None:
    assert asked_at(standing(look=query(2)), [0, 0.5, 1, 1.5, 2, 2.5, 3, 4]) == [0, 2, 4]


def test_question_carries_the_query_its_text_and_its_limit() -> None:
    queries = standing(look=query(ask="A cat?"), brief=query(max_new_tokens=4))
    look, brief = queries.due("cam", 0, now=77.0)
    assert (look.stream, look.query, look.text) == ("cam", "look", "A cat?")
    assert (look.asked_at, look.max_new_tokens, brief.max_new_tokens) == (77.0, 32, 4)
    assert look.id != brief.id


def test_rhythm_keeps_its_average_on_times_that_do_not_divide() -> None:
    times = [index * 0.3 for index in range(101)]  # 30 s
    assert len(asked_at(standing(look=query(2)), times)) == 16


def test_gap_asks_once_not_for_every_missed_beat() -> None:
    assert asked_at(standing(look=query(1)), [0, 1, 3600, 3600.2, 3600.4, 3601]) == [
        0,
        1,
        3600,
        3601,
    ]


def test_clock_that_goes_back_neither_bursts_nor_silences_the_query() -> None:
    assert asked_at(standing(look=query(2)), [5000, 10, 10.5, 11, 12, 13, 14]) == [5000, 12, 14]


def test_question_still_open_is_not_asked_again_until_settled() -> None:
    queries = standing(look=query(1))
    (first,) = queries.due("cam", 0, now=0)
    assert [queries.due("cam", pts, now=pts) for pts in (1, 2, 3)] == [[], [], []]
    queries.settled(first)
    (second,) = queries.due("cam", 3.5, now=3.5)
    assert second.id != first.id
    assert queries.due("cam", 3.6, now=3.6) == []


def test_settling_an_older_question_does_not_free_a_newer_one() -> None:
    queries = standing(look=query(1))
    (first,) = queries.due("cam", 0, now=0)
    queries.settled(first)
    queries.due("cam", 1, now=1)
    queries.settled(first)
    assert queries.due("cam", 2, now=2) == []


def test_question_that_nobody_settles_is_taken_for_lost_after_two_timeouts() -> None:
    queries = standing(look=query(1))
    queries.due("cam", 0, now=0)
    assert queries.due("cam", 19, now=19) == []
    assert len(queries.due("cam", 20, now=20)) == 1


def test_streams_of_one_query_have_rhythms_of_their_own() -> None:
    queries = standing(look=query(2, streams=["cam", "door"]))
    assert len(queries.due("cam", 0, now=0)) == 1
    assert len(queries.due("door", 1, now=1)) == 1
    assert queries.due("cam", 1, now=1) == []
    assert queries.due("yard", 1, now=1) == []


def test_open_question_of_one_query_does_not_hold_up_another() -> None:
    queries = standing(slow=query(1), quick=query(1))
    slow, quick = queries.due("cam", 0, now=0)
    queries.settled(quick)
    assert [q.query for q in queries.due("cam", 1, now=1)] == ["quick"]
    assert slow.query == "slow"


def test_on_change_announces_only_what_differs_in_words() -> None:
    queries = standing(look=query(announce="on_change"))
    (question,) = queries.due("cam", 0, now=0)
    texts = ["Yes", " yes ", "YES\n", "no", "No", "yes"]
    news = [is_news(queries, question, text) for text in texts]
    assert news == [True, False, False, True, False, True]


def test_always_announces_every_answer() -> None:
    queries = standing(look=query(announce="always"))
    (question,) = queries.due("cam", 0, now=0)
    assert all(is_news(queries, question) for _ in range(3))


def test_on_change_is_kept_apart_by_stream_and_query() -> None:
    queries = standing(look=query(streams=["cam", "door"]), other=query())
    (on_door,) = queries.due("door", 0, now=0)
    look, other = queries.due("cam", 0, now=0)
    assert [is_news(queries, q) for q in (on_door, look, other)] == [True] * 3
    assert not is_news(queries, look)


def test_answer_asked_on_demand_or_of_a_forgotten_query_is_news() -> None:
    queries = standing(look=query())
    (question,) = queries.due("cam", 0, now=0)
    on_demand, forgotten = replace(question, query=None), replace(question, query="gone")
    for one in (on_demand, on_demand, forgotten, forgotten):
        assert is_news(queries, one)
        queries.settled(one)


@given(
    every=st.integers(1, 400),
    steps=st.lists(st.integers(-4000, 4000), min_size=1, max_size=80),
)
def test_whatever_the_clock_does_each_further_question_costs_a_full_beat_of_forward_time(
    every: int, steps: list[int]
) -> None:
    queries = standing(look=query(every / 4))
    pts, forward, asked = 0, 0, 0  # in quarters of a second, so that floats are exact
    for step in [0, *steps]:
        pts, forward = pts + step, forward + max(step, 0)
        for question in queries.due("cam", pts / 4, now=forward / 4):
            queries.settled(question)
            asked += 1
    assert 1 <= asked <= 1 + forward // every


# --- calls


def test_a_call_asks_at_once_and_the_rhythm_goes_on_from_there() -> None:
    queries = standing(look=query(10))
    assert asked_at(queries, [0, 4]) == [0]
    question = queries.call("cam", "look", now=1004.5)
    assert question is not None
    queries.settled(question)
    assert asked_at(queries, [5, 10, 13.9, 14, 15]) == [14]


def test_a_call_while_its_question_is_open_is_heard_afterwards_once() -> None:
    queries = standing(look=query(None, min_gap=0))
    first = queries.call("cam", "look", now=0)
    assert first is not None
    assert [queries.call("cam", "look", now=now) for now in (1, 2)] == [None, None]
    assert queries.due("cam", 2, now=2) == []
    queries.settled(first)
    (second,) = queries.due("cam", 3, now=3)
    queries.settled(second)
    assert queries.due("cam", 4, now=4) == []


def test_calls_keep_their_gap_and_are_forgotten_after_a_while() -> None:
    queries = standing(look=query(None, min_gap=5))
    first = queries.call("cam", "look", now=0)
    assert first is not None
    queries.settled(first)
    assert queries.call("cam", "look", now=1) is None
    assert queries.due("cam", 4.9, now=4.9) == []
    assert len(queries.due("cam", 5, now=5)) == 1
    queries = standing(look=query(None, min_gap=5))
    queries.call("cam", "look", now=0)
    queries.call("cam", "look", now=1)
    assert queries.due("cam", 100, now=1 + CALL_LASTS + 1) == []


def test_a_change_of_the_picture_asks_only_who_waits_for_one() -> None:
    queries = standing(look=query(None, on_event=["change"]), other=query(None))
    assert queries.due("cam", 0, now=0) == []
    assert [q.query for q in queries.due("cam", 1, now=1, has_changed=True)] == ["look"]


def test_a_query_without_a_rhythm_asks_only_when_called() -> None:
    queries = standing(look=query(None))
    assert asked_at(queries, [0, 10, 1000]) == []
    assert queries.call("cam", "look", now=1) is not None
    assert queries.call("cam", "gone", now=1) is None
    assert queries.call("gone", "look", now=1) is None


def test_disabled_and_out_of_hours_nothing_is_asked() -> None:
    hours = {"zone": "UTC", "hours": ["00:01-00:02"]}
    queries = standing(off=query(1, enabled=False), night=query(1, schedule=hours))
    assert queries.due("cam", 0, now=0, has_changed=True) == []
    assert queries.call("cam", "off", now=0) is None
    assert [q.query for q in queries.due("cam", 60, now=60)] == ["night"]


def test_question_carries_its_priority_and_a_deadline_that_drops() -> None:
    queries = standing(
        told=query(deadline=3, priority=5), dropped=query(deadline=3, late="drop"), free=query()
    )
    asked = {q.query: (q.priority, q.timeout) for q in queries.due("cam", 0, now=0)}
    assert asked == {"told": (5, None), "dropped": (0, 3.0), "free": (0, None)}


def test_question_carries_what_its_query_looks_at() -> None:
    queries = standing(
        past=query(recall="always"), last=query(window_s=5, fresh_frames=2), free=query()
    )
    asked = {q.query: (q.recall, *q.look) for q in queries.due("cam", 0, now=0)}
    assert asked == {
        "past": ("always", None, None),
        "last": (None, 5, 2),
        "free": (None, None, None),
    }


def test_a_late_answer_is_told_or_dropped_as_its_query_says() -> None:
    queries = standing(told=query(deadline=3), dropped=query(deadline=3, late="drop"))
    tell, drop = queries.due("cam", 0, now=0)
    in_time = queries.take(answer(tell, "1"), now=3)
    assert (in_time.is_kept, in_time.is_late) == (True, False)
    late = queries.take(answer(tell, "2"), now=3.1)
    assert (late.is_kept, late.is_late, late.is_news) == (True, True, True)
    late = queries.take(answer(drop, "2"), now=3.1)
    assert (late.is_kept, late.is_late, late.is_news) == (False, True, False)


# --- events


def yes_no(**more: Any) -> QuerySettings:
    return query(**{"every": 1, "type": "yes_no", **more})


def says(question: Question, value: Structured, at: float = 0.0) -> Answer:
    return replace(answer(question, str(value)), structured=value, confidence=0.9, span=(at, at))


def tell(
    queries: StandingQueries, value: Structured, at: float, stream: str = "cam"
) -> Event | None:
    """Ask and answer every query due at `at`; what the last one tells."""
    event = None
    for question in queries.due(stream, at, now=at):
        event = queries.take(says(question, value, at), now=at).event
    return event


def test_an_answer_begins_and_ends_an_event_and_is_told_from_an_unclear_one() -> None:
    queries = standing(look=yes_no())
    new, end = tell(queries, True, 0), tell(queries, False, 1)
    assert [e and e.kind for e in (new, end)] == [EventKind.NEW, EventKind.END]
    (question,) = queries.due("cam", 2, now=2)
    taken = queries.take(answer(question, "perhaps"), now=2)
    assert (taken.event, taken.is_clear) == (None, False)


def test_an_answer_to_a_question_given_up_makes_no_event() -> None:
    queries = standing(look=yes_no())
    (question,) = queries.due("cam", 0, now=0)
    queries.settled(question)
    assert queries.take(says(question, True), now=1).event is None


def test_an_uncertain_answer_is_no_news() -> None:
    queries = standing(look=yes_no(min_confidence=0.95))
    (question,) = queries.due("cam", 0, now=0)
    assert not queries.take(says(question, True), now=1).is_news


def test_an_event_ends_with_its_hours() -> None:
    queries = standing(look=yes_no(schedule={"zone": "UTC", "hours": ["00:00-00:01"]}))
    new = tell(queries, True, 50)
    assert queries.lapsed("cam", 59) == []
    (end,) = queries.lapsed("cam", 60)
    assert new is not None
    assert (end.id, end.kind, end.state) == (new.id, EventKind.END, None)
    assert queries.lapsed("cam", 61) == []


def test_a_change_that_leaves_the_meaning_leaves_the_event_and_the_cooldown() -> None:
    queries = standing(look=yes_no(cooldown=100))
    new = tell(queries, True, 0)
    assert queries.change({"look": yes_no(cooldown=100, every=3, priority=2)}, now=1) == []
    end = tell(queries, False, 2)
    assert new is not None
    assert end is not None
    assert end.id == new.id
    off = yes_no(cooldown=100, enabled=False)
    assert queries.change({"look": off}, now=3) == []
    assert queries.change({"look": yes_no(cooldown=100)}, now=4) == []
    assert tell(queries, True, 50) is None
    assert tell(queries, True, 101) is not None


@pytest.mark.parametrize(
    "after",
    [
        {},
        {"look": yes_no(enabled=False)},
        {"look": yes_no(ask="Something else?")},
        {"look": yes_no(streams=["door"])},
        {"look": query(1)},
    ],
)
def test_what_nobody_asks_about_any_more_ends_its_event(after: dict[str, QuerySettings]) -> None:
    queries = standing(look=yes_no())
    new = tell(queries, True, 0)
    (end,) = queries.change(after, now=5)
    assert new is not None
    assert (end.id, end.kind, end.ended_at) == (new.id, EventKind.END, 5)
    assert queries.change(after, now=6) == []


def test_a_query_that_is_as_it_was_goes_on_undisturbed_by_the_change_of_another() -> None:
    queries = standing(look=query(10), other=query(10))
    first, _ = queries.due("cam", 0, now=0)
    queries.change({"look": query(10), "new": query(10)}, now=1)
    assert [q.query for q in queries.due("cam", 5, now=5)] == ["new"]
    queries.settled(first)
    assert [q.query for q in queries.due("cam", 10, now=10)] == ["look"]


def test_an_earlier_runs_event_goes_on_or_is_ended() -> None:
    event = tell(standing(look=yes_no()), True, 0)
    assert event is not None
    gone, over = (
        replace(event, id="1", query="gone"),
        replace(event, id="2", stream="x", ended_at=1),
    )
    queries = standing(look=yes_no(cooldown=10))
    assert [e.id for e in queries.resume([event, gone, over], now=5)] == ["1"]
    end = tell(queries, False, 6)
    assert end is not None
    assert end.id == event.id
    assert tell(queries, True, 8) is None
    assert tell(queries, True, 10) is not None


class Machine(RuleBasedStateMachine):
    """Two streams, whatever is answered, called, changed, switched and lost, with a clock that jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled, self.hours, self.ask = True, True, "Who?"
        self.now, self.pts = 1e6, 0.0
        self.open: dict[tuple[str, str], str] = {}  # events that have begun and not ended
        self.asked: list[Question] = []
        self.queries = standing(**self.configured())

    def configured(self) -> dict[str, QuerySettings]:
        hours = None if self.hours else {"quiet": ["00:00-24:00"]}
        look = yes_no(streams=["cam", "door"], on_after=2, ask=self.ask, schedule=hours,
                      enabled=self.enabled)  # fmt: skip
        return {"look": look, "calm": yes_no(cooldown=50, on_event=["change", "manual"])}

    def hear(self, event: Event | None) -> None:
        if event is None:
            return
        place = event.stream, event.query
        if event.kind is EventKind.NEW:
            assert place not in self.open
            self.open[place] = event.id
            return
        assert self.open[place] == event.id
        if event.kind is EventKind.END:
            del self.open[place]

    @rule(stream=st.sampled_from(["cam", "door"]), step=st.sampled_from([0.5, 1, 5, 100, -3, -1e5]),
          has_changed=st.booleans())  # fmt: skip
    def clip(self, stream: str, step: float, has_changed: bool) -> None:
        self.now, self.pts = self.now + step, self.pts + max(step, -3)
        asked = self.queries.due(stream, self.pts, self.now, has_changed=has_changed)
        if not (self.enabled and self.hours):
            assert "look" not in {question.query for question in asked}
        for event in self.queries.lapsed(stream, self.now):
            self.hear(event)
        self.asked += asked

    @rule(name=st.sampled_from(["look", "calm"]))
    def call(self, name: str) -> None:
        if (question := self.queries.call("cam", name, self.now)) is not None:
            assert name == "calm" or (self.enabled and self.hours)
            self.asked.append(question)

    @rule(value=st.sampled_from([True, True, False, None]), takes=st.booleans())
    def answered(self, value: bool | None, takes: bool) -> None:
        if not self.asked:
            return
        question = self.asked.pop(0)
        if not takes:
            self.queries.settled(question)
            return
        self.hear(self.queries.take(says(question, value, self.now), self.now).event)

    @rule(enabled=st.booleans(), hours=st.booleans(), ask=st.sampled_from(["Who?", "What?"]))
    def change(self, enabled: bool, hours: bool, ask: str) -> None:
        self.enabled, self.hours, self.ask = enabled, hours, ask
        for event in self.queries.change(self.configured(), self.now):
            self.hear(event)

    @invariant()
    def a_query_that_is_off_has_no_event(self) -> None:
        assert self.enabled or not {place for place in self.open if place[1] == "look"}


TestMachine = Machine.TestCase


# --- what can be configured


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"every": None, "on_event": []}, "would never be asked"),
        ({"on_event": ["motion"]}, "each must be change, manual"),
        ({"on_event": ["frigate:"]}, "each must be change, manual"),
        ({"alert_on": ["a"]}, "alert_on belongs to type choice"),
        ({"type": "choice", "choices": ["a", "b"], "alert_on": ["c"]}, "one of the choices"),
        ({"on_after": 2}, "on_after: only type yes_no"),
        ({"type": "choice", "choices": ["a", "b"], "cooldown": 5}, "cooldown: only type yes_no"),
        ({"min_confidence": 0.5}, "nothing says how certain a text is"),
        ({"min_confidence": 1.5}, "less than or equal to 1"),
        ({"deadline": 0}, "greater than 0"),
        ({"late": "never"}, "'tell' or 'drop'"),
        ({"schedule": {"hours": ["always"]}}, "HH:MM-HH:MM"),
        ({"schedule": {"hour": []}}, "Extra inputs"),
    ],
)
def test_what_can_not_be_is_told_in_a_line(told: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        query(**told)


def test_triggers_are_read_in_any_case() -> None:
    assert query(on_event=[" Change", "frigate:Person"]).on_event == ["change", "frigate:person"]
