"""Standing queries: which questions are due on a stream, and which of their answers are news.

Pure bookkeeping: the stream's clock (`pts`) and the wall clock (`now`) are passed in, nothing is awaited or sent.
A query has its own rhythm on each of its streams, starts at once, and is never asked again while its last question
there is still open; time lost to a gap, a jump or a slow model is skipped, never caught up with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from stream_sttm.config import AnsweringSettings, QuerySettings
from stream_sttm.types import Answer, Question

_CLOCK_GRAIN = 1e-6  # seconds; stream clocks are sums of floats
_LOST_AFTER = 2.0  # timeouts; by then a question that nobody settled is taken for lost


@dataclass(slots=True)
class _Rhythm:
    """Where one query stands on one stream."""

    due_at: float | None = None  # pts; None: not asked yet
    open_question: Question | None = None
    last_text: str | None = None


class StandingQueries:
    """The standing queries of a configuration, each with its rhythm on each of its streams."""

    def __init__(self, queries: Mapping[str, QuerySettings], answering: AnsweringSettings) -> None:
        self._queries = dict(queries)
        self._answering = answering
        self._rhythms = {
            (stream, name): _Rhythm() for name, query in queries.items() for stream in query.streams
        }

    def due(self, stream: str, pts: float, now: float) -> list[Question]:
        """The questions to ask of `stream` at `pts` seconds of its clock; each counts as asked from here on."""
        questions = []
        for name, query in self._queries.items():
            rhythm = self._rhythms.get((stream, name))
            if rhythm is None or self._is_open(rhythm, now) or not _is_due(rhythm, pts, query):
                continue
            rhythm.due_at = _next(rhythm.due_at, pts, query.every)
            rhythm.open_question = self._question(stream, name, query, now)
            questions.append(rhythm.open_question)
        return questions

    def settled(self, question: Question) -> None:
        """Tell that `question` was answered or has failed, so that its query may be asked again."""
        rhythm = self._rhythms.get((question.stream, question.query or ""))
        if rhythm is None or rhythm.open_question is None:
            return
        if rhythm.open_question.id == question.id:
            rhythm.open_question = None

    def is_news(self, answer: Answer) -> bool:
        """Whether to announce `answer`: on demand always, else as its query says; remembers it as the last one."""
        name = answer.question.query or ""
        rhythm = self._rhythms.get((answer.question.stream, name))
        if rhythm is None:
            return True
        text = " ".join(answer.text.split()).casefold()
        has_changed = text != rhythm.last_text
        rhythm.last_text = text
        return has_changed or self._queries[name].announce == "always"

    def _is_open(self, rhythm: _Rhythm, now: float) -> bool:
        question = rhythm.open_question
        if question is None:
            return False
        return abs(now - question.asked_at) < _LOST_AFTER * self._answering.timeout

    def _question(self, stream: str, name: str, query: QuerySettings, now: float) -> Question:
        return Question(
            id=uuid4().hex,
            stream=stream,
            text=query.ask,
            asked_at=now,
            max_new_tokens=query.max_new_tokens or self._answering.max_new_tokens,
            query=name,
            recall=query.recall,
        )


def _is_due(rhythm: _Rhythm, pts: float, query: QuerySettings) -> bool:
    if rhythm.due_at is None:
        return True
    if pts < rhythm.due_at - query.every - _CLOCK_GRAIN:
        rhythm.due_at = pts + query.every  # the clock went back: start the rhythm anew from here
    return pts >= rhythm.due_at - _CLOCK_GRAIN


def _next(due_at: float | None, pts: float, every: float) -> float:
    """The next beat of the rhythm, or one `every` from now where beats were missed."""
    if due_at is None or due_at + every <= pts + _CLOCK_GRAIN:
        return pts + every
    return due_at + every
