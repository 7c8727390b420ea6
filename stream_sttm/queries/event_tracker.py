"""Turn the answers of one standing query on one stream into events with a start, updates and an end.

Only yes_no queries, and choices with `alert_on`, have events. Hysteresis counts answers, not seconds, because it is
there to survive false answers, and a count holds through gaps and irregular intervals. An answer that is unclear or not
certain enough neither counts nor breaks a row. Pure: the wall clock is passed in. Durations are sums of its forward
steps, so that a clock set back prolongs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import assert_never
from uuid import uuid4

from stream_sttm.config.queries import QuerySettings
from stream_sttm.types import Answer, AnswerType, Event, EventKind


def is_sure(confidence: float | None, least: float) -> bool:
    """Return whether an answer is as certain as that. One without a confidence is where that is 0, NaN never."""
    return not least if confidence is None else confidence >= least


def reading(answer: Answer, query: QuerySettings) -> bool | None:
    """Return whether the answer says that what the query watches for happens. None where it is unclear."""
    value, confidence = answer.structured, answer.confidence
    if not is_sure(confidence, query.min_confidence):
        return None
    match query.type:
        case AnswerType.YES_NO:
            return value if isinstance(value, bool) else None
        case AnswerType.CHOICE | AnswerType.TEXT | AnswerType.NUMBER | AnswerType.JSON:
            return value in query.alert_on if isinstance(value, str) else None
        case _:
            assert_never(query.type)


@dataclass(slots=True)
class EventTracker:
    """The running event, if any, and the count of answers towards its start or end."""

    event: Event | None = None
    since_start: float = inf  # seconds since an event last began
    now: float | None = None  # the wall clock at which `since_start` was updated
    _row: int = field(default=0, init=False)  # answers in a row against the present state
    _first: float = field(default=0.0, init=False)  # the wall clock of that row's first frame

    def take(
        self, answer: Answer, query: QuerySettings, *, now: float, has_snapshot: bool = False
    ) -> Event | None:
        """Take in `answer`. Returns the event that it begins, updates or ends. `has_snapshot` goes into a new one."""
        self._age(now)
        is_happening = reading(answer, query)
        if is_happening is None:
            return None
        if is_happening == (self.event is not None):
            self._row = 0
            return None if self.event is None else self._updated(self.event, answer, query)
        if self._row == 0:
            self._first = answer.captured_at
        self._row += 1
        if self.event is not None:
            return self._ended(self.event, answer) if self._row >= query.off_after else None
        if self._row < query.on_after or self.since_start < query.cooldown:
            return None
        return self._begun(answer, has_snapshot=has_snapshot)

    def lapse(self, now: float) -> Event | None:
        """End the running event because its query is no longer asked. Returns the end, without a state, or None."""
        self._age(now)
        event, self.event, self._row = self.event, None, 0
        if event is None:
            return None
        at = max(now, event.updated_at)
        return replace(
            event, kind=EventKind.END, updated_at=at, ended_at=at, state=None, confidence=None
        )

    def _age(self, now: float) -> None:
        """Advance the clock to `now`."""
        self.since_start += max(0.0, now - self.now) if self.now is not None else 0.0
        self.now = now

    def _begun(self, answer: Answer, *, has_snapshot: bool) -> Event:
        at, self._row, self.since_start = answer.captured_at, 0, 0.0
        question = answer.question
        self.event = Event(
            id=uuid4().hex,
            kind=EventKind.NEW,
            stream=question.stream,
            query=question.query or "",
            started_at=at,
            updated_at=at,
            ended_at=None,
            state=answer.structured,
            confidence=answer.confidence,
            answer_id=question.id,
            span=(min(self._first, at), at),
            has_snapshot=has_snapshot,
        )
        return self.event

    def _updated(self, event: Event, answer: Answer, query: QuerySettings) -> Event | None:
        """Extend the event's span. Returns an update where one has to be sent."""
        has_changed = answer.structured != event.state
        escalates = (
            query.escalate is not None
            and not event.escalated
            and self.since_start >= query.escalate
        )
        at = max(event.updated_at, answer.captured_at)
        self.event = replace(
            event,
            kind=EventKind.UPDATE,
            updated_at=at,
            state=answer.structured,
            confidence=answer.confidence,
            answer_id=answer.question.id,
            span=(event.span[0], max(event.span[1], answer.captured_at)),
            escalated=event.escalated or escalates,
        )
        is_news = has_changed or escalates or query.announce == "always"
        return self.event if is_news else None

    def _ended(self, event: Event, answer: Answer) -> Event:
        at = max(event.updated_at, answer.captured_at)
        self.event, self._row = None, 0
        return replace(
            event,
            kind=EventKind.END,
            updated_at=at,
            ended_at=at,
            state=answer.structured,
            confidence=answer.confidence,
            answer_id=answer.question.id,
        )
