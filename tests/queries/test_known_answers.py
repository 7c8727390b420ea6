"""An answer is known while its query is asked as it was, and never again after a break."""

from __future__ import annotations

from typing import Any

import pytest

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.queries.known_answers import KnownAnswers
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.types import Answer, TokenCounts

NOON, NIGHT = 43_200.0, 0.0  # of the first day, in UTC
BY_DAY = {"zone": "UTC", "hours": ["08:00-18:00"]}


def query(**more: Any) -> QuerySettings:
    base = {"streams": ["cam"], "ask": "Who?", "every": 1, "announce": "on_change"}
    return QuerySettings.model_validate({**base, "type": "yes_no", **more})


class Service:
    """Standing queries and what is known of them, as the service holds both."""

    def __init__(self, **more: Any) -> None:
        self.query, self.is_on, self.pts = query(**more), True, 0.0
        self.standing = StandingQueries({"look": self.query}, AnsweringSettings())
        self.known = KnownAnswers()
        self.follow(NOON)

    def follow(self, now: float, **more: Any) -> None:
        self.query = query(**more) if more else self.query
        self.known.follow({"look": self.query}, lambda _: self.is_on, now)
        self.standing.change({"look": self.query}, now, is_on=lambda *_: self.is_on)

    def switch(self, is_on: bool) -> None:
        self.is_on = is_on
        self.follow(NOON)

    def ask(self, now: float = NOON) -> Any:
        self.pts += 10
        return self.standing.due("cam", self.pts, now)[0]

    def answer(self, question: Any, now: float = NOON, text: str = "yes") -> None:
        given = Answer(question, text, (0, 1), TokenCounts(1, 1, 1, 1), "demo", now, False, True)
        taken = self.standing.take(given, now)
        if taken.is_news:
            self.known.take(Answer(question, text, (0, 1), given.tokens, "demo", now), now)

    def is_known(self, now: float = NOON) -> bool:
        return self.known.newest("cam", "look", now) is not None


@pytest.fixture
def service() -> Service:
    one = Service(schedule=BY_DAY)
    assert not one.is_known()  # a service that starts anew knows nothing
    one.answer(one.ask())
    assert one.is_known()
    return one


def test_a_query_switched_off_is_unknown_until_its_first_equal_answer_after(
    service: Service,
) -> None:
    service.switch(False)
    assert not service.is_known()
    service.switch(True)
    assert not service.is_known()
    service.answer(service.ask())
    assert service.is_known()


def test_a_closed_schedule_makes_unknown_until_the_first_equal_answer_after(
    service: Service,
) -> None:
    assert not service.is_known(NIGHT)
    service.standing.lapsed("cam", NIGHT)
    assert not service.is_known(NOON)
    service.answer(service.ask())
    assert service.is_known()


@pytest.mark.parametrize(
    "change",
    [
        {"ask": "What?"},
        {"type": "choice", "choices": ["yes", "no"]},
        {"type": "text"},
        {"window_s": 5},
        {"fresh_frames": 0},
    ],
)
def test_another_question_is_unknown_until_its_own_first_equal_answer(
    service: Service, change: dict[str, Any]
) -> None:
    in_flight = service.ask()
    service.follow(NOON, **change)
    assert not service.is_known()
    service.answer(in_flight)  # of the question before
    assert not service.is_known()
    service.answer(service.ask())
    assert service.is_known()


def test_an_answer_that_comes_after_the_switch_off_is_not_known_then_or_later(
    service: Service,
) -> None:
    in_flight = service.ask()
    service.switch(False)
    service.answer(in_flight)
    service.switch(True)
    assert not service.is_known()
    service.answer(service.ask())
    assert service.is_known()


@pytest.mark.parametrize("change", [{"every": 9}, {"announce": "always"}, {"priority": 3}])
def test_a_change_of_anything_else_leaves_the_answer_known(
    service: Service, change: dict[str, Any]
) -> None:
    service.follow(NOON, schedule=BY_DAY, **change)
    assert service.is_known()
