"""Standing queries: which questions are due on a stream, which of their answers are news, and their events.

Pure: the stream's clock (`pts`) and the wall clock (`now`) are passed in, nothing is awaited or sent. For each query
and stream, cadence.py decides when it is asked, and event_tracker.py what its answers mean. This module keeps both,
over changes of the configuration too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.queries.cadence import Cadence
from stream_sttm.queries.event_tracker import EventTracker, is_sure, reading
from stream_sttm.types import Answer, Event, Question

_LOST_AFTER = 2.0  # timeouts after which a question without an outcome counts as lost


@dataclass(frozen=True, slots=True)
class Taken:
    """What follows from an answer: whether it is kept, is news, came late, is clear, and its event, if any."""

    is_kept: bool = True
    is_news: bool = True
    is_late: bool = False
    is_clear: bool = True
    event: Event | None = None


@dataclass(slots=True)
class _Standing:
    """One query on one stream."""

    query: QuerySettings
    is_on: bool
    cadence: Cadence = field(default_factory=Cadence)
    tracker: EventTracker = field(default_factory=EventTracker)
    last_text: str | None = None

    def is_asked(self, now: float) -> bool:
        """Return whether it is asked at this time."""
        return self.is_on and self.query.is_open(now)


class StandingQueries:
    """The standing queries of a configuration, each with its timing and its events on each of its streams."""

    def __init__(self, queries: Mapping[str, QuerySettings], answering: AnsweringSettings) -> None:
        self.answering = answering  # limits, which may be replaced
        self._standing: dict[str, dict[str, _Standing]] = {}  # by stream and query
        self.change(queries, now=0.0)

    def due(
        self, stream: str, pts: float, now: float, *, has_changed: bool = False
    ) -> list[Question]:
        """Return the questions to ask of `stream` at `pts` seconds of its clock. Each counts as asked from now on.

        `has_changed`: whether the newest clip shows something new, which is the trigger `change`.
        """
        questions = []
        for name, one in self._standing.get(stream, {}).items():
            if has_changed and "change" in one.query.on_event:
                one.cadence.call(now)
            if (question := self._ask(one, stream, name, pts=pts, now=now)) is not None:
                questions.append(question)
        return questions

    def call(self, stream: str, name: str, now: float) -> Question | None:
        """Trigger the query. Returns the question to ask now, None where it must wait."""
        one = self._find(stream, name)
        if one is None or not one.is_asked(now):
            return None
        one.cadence.call(now)
        return self._ask(one, stream, name, pts=None, now=now)

    def settled(self, question: Question) -> None:
        """Note that `question` has failed, so that its query may be asked again."""
        one = self._find(question.stream, question.query)
        if one is not None:
            one.cadence.settled(question)

    def take(self, answer: Answer, now: float, *, has_snapshot: bool = False) -> Taken:
        """Take in `answer`, which closes its question, and return what follows from it.

        An answer on demand is always news, one of a standing query as its settings say. `has_snapshot`: whether an
        event that it begins has a picture.
        """
        question = answer.question
        one = self._find(question.stream, question.query)
        if one is None:
            return Taken()
        query = one.query
        was_open = one.cadence.settled(question)
        is_late = query.deadline is not None and now - question.asked_at > query.deadline
        if is_late and query.late == "drop":
            return Taken(is_kept=False, is_news=False, is_late=True)
        is_news = self._is_news(one, answer, now)
        if not (query.makes_events and was_open and one.is_asked(now)):
            return Taken(is_news=is_news, is_late=is_late)
        event = one.tracker.take(answer, query, now=now, has_snapshot=has_snapshot)
        is_clear = reading(answer, query) is not None
        return Taken(is_news=is_news, is_late=is_late, is_clear=is_clear, event=event)

    def lapsed(self, stream: str, now: float) -> list[Event]:
        """End the stream's events whose query is not asked at this hour. Returns the ends."""
        ones = self._standing.get(stream, {}).values()
        closed = [one for one in ones if not one.is_asked(now)]
        for one in closed:
            one.last_text = None  # the first answer after is news, whatever it says
        return _ends(closed, now)

    def change(
        self,
        queries: Mapping[str, QuerySettings],
        now: float,
        *,
        is_on: Callable[[str, str], bool] | None = None,
    ) -> list[Event]:
        """Use other queries from now on. Returns the ends of events whose query is gone.

        An unchanged query goes on undisturbed. One with the same meaning keeps its event and cooldown. `is_on(stream,
        query)` overrides whether a query is enabled.
        """
        old, self._standing = self._standing, {}
        over = []
        for name, query in queries.items():
            for stream in query.streams:
                was = old.get(stream, {}).pop(name, None)
                one = was if was is not None and was.query == query else _Standing(query, True)
                one.is_on = query.enabled if is_on is None else is_on(stream, name)
                if was is not None and was.query.meaning == query.meaning:
                    one.tracker, one.last_text = was.tracker, was.last_text
                elif was is not None:
                    over.append(was)
                if not one.is_on:
                    one.last_text = None
                    over.append(one)
                self._standing.setdefault(stream, {})[name] = one
        return _ends([*over, *(one for removed in old.values() for one in removed.values())], now)

    def resume(self, events: Iterable[Event], now: float) -> list[Event]:
        """Resume each query's last event on a stream after a restart. Returns the ends of those that can't go on."""
        ends = []
        for event in events:
            one = self._find(event.stream, event.query)
            running = event if event.ended_at is None else None
            tracker = EventTracker(running, since_start=max(0.0, now - event.started_at), now=now)
            if one is not None and one.query.makes_events and one.is_on:
                one.tracker = tracker
            elif (end := tracker.lapse(now)) is not None:
                ends.append(end)
        return ends

    def _find(self, stream: str, name: str | None) -> _Standing | None:
        return self._standing.get(stream, {}).get(name or "")

    def _ask(
        self, one: _Standing, stream: str, name: str, *, pts: float | None, now: float
    ) -> Question | None:
        """Return the question where it is due and asked at this time."""
        lost = _LOST_AFTER * self.answering.timeout
        if not (one.is_asked(now) and one.cadence.is_due(pts, one.query, now=now, lost=lost)):
            return None
        query = one.query
        question = Question(
            id=uuid4().hex,
            stream=stream,
            text=query.ask,
            asked_at=now,
            max_new_tokens=query.max_new_tokens or self.answering.max_new_tokens,
            query=name,
            timeout=query.deadline if query.late == "drop" else None,
            form=query.form,
            window_s=query.window_s,
            fresh_frames=query.fresh_frames,
            recall=query.recall,
            priority=query.priority,
        )
        one.cadence.asked(question, query)
        return question

    def _is_news(self, one: _Standing, answer: Answer, now: float) -> bool:
        """Return whether to announce `answer`, as its query says. Remembers it as the last one, while it counts."""
        query, confidence = one.query, answer.confidence
        if not is_sure(confidence, query.min_confidence):
            return False
        text = " ".join(answer.text.split()).casefold()
        has_changed = text != one.last_text
        if one.is_asked(now) and query.asks(answer.question):
            one.last_text = text
        return has_changed or query.announce == "always"


def _ends(standing: Iterable[_Standing], now: float) -> list[Event]:
    """End the running events of queries that are no longer asked. Returns the ends."""
    ends = [one.tracker.lapse(now) for one in standing]
    return [end for end in ends if end is not None]
