"""Standing queries: rhythm, no bursts, no pile-up, and what counts as news."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from stream_sttm.config import AnsweringSettings
from stream_sttm.queries import StandingQueries
from stream_sttm.queryconfig import QuerySettings
from stream_sttm.types import Answer, Question, TokenCounts

ANSWERING = AnsweringSettings(max_new_tokens=32, timeout=10)


def standing(**queries: QuerySettings) -> StandingQueries:
    return StandingQueries(queries, ANSWERING)


def query(every: float = 2, **more: object) -> QuerySettings:
    return QuerySettings.model_validate({"streams": ["cam"], "ask": "Who?", "every": every, **more})


def answer(question: Question, text: str) -> Answer:
    return Answer(question, text, (0, 1), TokenCounts(1, 1, 1, 1), "demo", 1.0)


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
    news = [queries.is_news(answer(question, text)) for text in texts]
    assert news == [True, False, False, True, False, True]


def test_always_announces_every_answer() -> None:
    queries = standing(look=query(announce="always"))
    (question,) = queries.due("cam", 0, now=0)
    assert all(queries.is_news(answer(question, "yes")) for _ in range(3))


def test_on_change_is_kept_apart_by_stream_and_query() -> None:
    queries = standing(look=query(streams=["cam", "door"]), other=query())
    (on_door,) = queries.due("door", 0, now=0)
    look, other = queries.due("cam", 0, now=0)
    assert [queries.is_news(answer(q, "yes")) for q in (on_door, look, other)] == [True] * 3
    assert not queries.is_news(answer(look, "yes"))


def test_answer_asked_on_demand_or_of_a_forgotten_query_is_news() -> None:
    queries = standing(look=query())
    (question,) = queries.due("cam", 0, now=0)
    on_demand, forgotten = replace(question, query=None), replace(question, query="gone")
    for one in (on_demand, on_demand, forgotten, forgotten):
        assert queries.is_news(answer(one, "yes"))
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
