"""When one standing query is asked on one stream: at its interval, and at once when it is triggered.

Pure: the stream's clock (`pts`) and the wall clock (`now`) are passed in. A query is never asked again while its last
question is open. A trigger that comes meanwhile waits a little, and several count as one. Intervals missed because of a
gap, a jump or a slow model are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_sttm.config.queries import QuerySettings
from stream_sttm.types import Question

CALL_LASTS = 30.0  # seconds after which a trigger is out of date
_CLOCK_GRAIN = 1e-6  # seconds; stream clocks are sums of floats


@dataclass(slots=True)
class Cadence:
    """The timing of one query on one stream."""

    open_question: Question | None = None
    _due_at: float | None = None  # pts; None: not asked yet
    _asked_at: float | None = None  # pts of the last question
    _seen: float = 0.0  # newest pts
    _called_at: float | None = None  # wall clock of a trigger without a question so far

    def call(self, now: float) -> None:
        """Trigger the query now."""
        self._called_at = now

    def is_due(self, pts: float | None, query: QuerySettings, *, now: float, lost: float) -> bool:
        """Return whether to ask at `pts`. None means between two clips, where only a trigger counts.

        The caller then asks, and calls `asked`. A question open for more than `lost` seconds counts as lost.
        """
        if pts is not None:
            self._follow(pts, query)
        question = self.open_question
        if question is not None and abs(now - question.asked_at) < lost:
            return False
        has_interval = pts is not None and query.every is not None
        if has_interval and (self._due_at is None or self._seen >= self._due_at - _CLOCK_GRAIN):
            return True
        if self._called_at is None or abs(now - self._called_at) > CALL_LASTS:
            return False
        return self._asked_at is None or self._seen >= self._asked_at + query.min_gap - _CLOCK_GRAIN

    def asked(self, question: Question, query: QuerySettings) -> None:
        """Note that `question` is asked now. The next is due one interval on, counted from here after a trigger."""
        self.open_question, self._called_at = question, None
        pts, due, every = self._seen, self._due_at, query.every or 0.0
        is_on_grid = due is not None and due - _CLOCK_GRAIN <= pts < due + every - _CLOCK_GRAIN
        self._due_at = due + every if due is not None and is_on_grid else pts + every
        self._asked_at = pts

    def settled(self, question: Question) -> bool:
        """Note that `question` was answered or has failed. Returns whether it was the open one."""
        is_open = self.open_question is not None and self.open_question.id == question.id
        if is_open:
            self.open_question = None
        return is_open

    def _follow(self, pts: float, query: QuerySettings) -> None:
        """Update the stream's clock. Where it went back, start again from there."""
        every = query.every or 0.0
        if self._due_at is not None and pts < self._due_at - every - _CLOCK_GRAIN:
            self._due_at = pts + every
        if self._asked_at is not None and pts < self._asked_at:
            self._asked_at = pts
        self._seen = pts
