"""Whether what a standing query watches for goes on, on one stream: events with a start, updates and an end.

Only yes_no queries, and choices with `alert_on`, have events. Hysteresis counts answers, not seconds: false answers are
what it is to survive, and a count holds whatever the clock, a gap or an irregular rhythm does. An answer that says
neither, or is not certain enough, neither counts nor breaks a row. Pure; the wall clock is passed in, and durations are
sums of its forward steps, so that a clock set back prolongs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from uuid import uuid4

from stream_sttm.config.queries import QuerySettings
from stream_sttm.types import Answer, AnswerType, Event, EventKind


def reading(answer: Answer, query: QuerySettings) -> bool | None:
    """Whether what the query watches for happens, as the answer says; None where it does not say that well enough."""
    value, confidence = answer.structured, answer.confidence
    if query.min_confidence and (confidence is None or confidence < query.min_confidence):
        return None
    if query.type is AnswerType.YES_NO:
        return value if isinstance(value, bool) else None
    return value in query.alert_on if isinstance(value, str) else None


@dataclass(slots=True)
class EventTracker:
    """The event that goes on, if one does, and what it takes to begin or end one."""

    event: Event | None = None
    since_start: float = inf  # seconds since an event last began
    now: float | None = None  # the wall clock at which that was so
    _row: int = field(default=0, init=False)  # answers in a row against the present state
    _first: float = field(default=0.0, init=False)  # the wall clock of that row's first frame

    def take(
        self, answer: Answer, query: QuerySettings, *, now: float, has_snapshot: bool = False
    ) -> Event | None:
        """What `answer` makes known of an event, if anything; `has_snapshot` goes with one that begins."""
        self._age(now)
        says = reading(answer, query)
        if says is None:
            return None
        if says == (self.event is not None):
            self._row = 0
            return None if self.event is None else self._gone_on(self.event, answer, query)
        if self._row == 0:
            self._first = answer.captured_at
        self._row += 1
        if self.event is not None:
            return self._ended(self.event, answer) if self._row >= query.off_after else None
        if self._row < query.on_after or self.since_start < query.cooldown:
            return None
        return self._begun(answer, has_snapshot=has_snapshot)

    def lapse(self, now: float) -> Event | None:
        """The end of what goes on, because nobody asks any more; its state is unknown from here."""
        self._age(now)
        event, self.event, self._row = self.event, None, 0
        if event is None:
            return None
        at = max(now, event.updated_at)
        return replace(
            event, kind=EventKind.END, updated_at=at, ended_at=at, state=None, confidence=None
        )

    def _age(self, now: float) -> None:
        """Let the time since the last call pass."""
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

    def _gone_on(self, event: Event, answer: Answer, query: QuerySettings) -> Event | None:
        """An update where it is to be told; the event's span grows either way."""
        is_other = answer.structured != event.state
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
        is_told = is_other or escalates or query.announce == "always"
        return self.event if is_told else None

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
