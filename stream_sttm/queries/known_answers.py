"""What is known of each standing query now: its newest announced answer, while that answer counts.

It no longer counts once the query is switched off, its schedule closes, or its question or answer type changes. Nobody
knows then, until the first answer after. Pure: the wall clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stream_sttm.config.queries import QuerySettings
from stream_sttm.types import Answer

Place = tuple[str, str]  # a stream and a query


class KnownAnswers:
    """The newest announced answers of standing queries."""

    def __init__(self) -> None:
        self._newest: dict[Place, Answer] = {}
        self._queries: Mapping[str, QuerySettings] = {}
        self._is_on: Callable[[Place], bool] = lambda _: True

    def follow(
        self, queries: Mapping[str, QuerySettings], is_on: Callable[[Place], bool], now: float
    ) -> None:
        """Use other queries and switches from now on. Answers that no longer count are forgotten."""
        self._queries, self._is_on = queries, is_on
        for stream, query in list(self._newest):
            self.newest(stream, query, now)

    def take(self, answer: Answer, now: float) -> None:
        """Keep `answer` where it is announced and counts."""
        question = answer.question
        if answer.news and question.query is not None and self._counts(answer, now):
            self._newest[question.stream, question.query] = answer

    def newest(self, stream: str, query: str, now: float) -> Answer | None:
        """Return the newest answer, None where nobody knows. One that has ceased to count never counts again."""
        answer = self._newest.get((stream, query))
        if answer is not None and not self._counts(answer, now):
            del self._newest[stream, query]
            return None
        return answer

    def _counts(self, answer: Answer, now: float) -> bool:
        question = answer.question
        name = question.query or ""
        query = self._queries.get(name)
        return (
            query is not None
            and question.stream in query.streams
            and self._is_on((question.stream, name))
            and query.is_open(now)
            and query.asks(question)
        )
