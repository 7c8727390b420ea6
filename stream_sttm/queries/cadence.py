"""When one standing query is asked on one stream: by its rhythm, and at once when something calls for it.

Pure: the stream's clock (`pts`) and the wall clock (`now`) are passed in. A query is never asked again while its last
question is open; a call that comes meanwhile waits a little and many are one. Time lost to a gap, a jump or a slow
model is skipped, never caught up with.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_sttm.config.queries import QuerySettings
from stream_sttm.types import Question

CALL_LASTS = 30.0  # seconds; what was called for longer ago is about something else by now
_CLOCK_GRAIN = 1e-6  # seconds; stream clocks are sums of floats


@dataclass(slots=True)
class Cadence:
    """Where one query stands on one stream."""

    open_question: Question | None = None
    _due_at: float | None = None  # pts; None: not asked yet
    _asked_at: float | None = None  # pts of the last question
    _seen: float = 0.0  # newest pts
    _called_at: float | None = None  # wall clock of a call that is not answered to yet

    def call(self, now: float) -> None:
        """Something calls for an answer now."""
        self._called_at = now

    def is_due(self, pts: float | None, query: QuerySettings, *, now: float, lost: float) -> bool:
        """Whether to ask at `pts` (None: between two clips, where only a call counts); `asked` is to follow if so.

        A question open for more than `lost` seconds is taken for lost.
        """
        if pts is not None:
            self._follow(pts, query)
        question = self.open_question
        if question is not None and abs(now - question.asked_at) < lost:
            return False
        has_beat = pts is not None and query.every is not None
        if has_beat and (self._due_at is None or self._seen >= self._due_at - _CLOCK_GRAIN):
            return True
        if self._called_at is None or abs(now - self._called_at) > CALL_LASTS:
            return False
        return self._asked_at is None or self._seen >= self._asked_at + query.min_gap - _CLOCK_GRAIN

    def asked(self, question: Question, query: QuerySettings) -> None:
        """Go on from `question`, which is asked now: with the next beat, or `every` from here where it was no beat."""
        self.open_question, self._called_at = question, None
        pts, due, every = self._seen, self._due_at, query.every or 0.0
        is_beat = due is not None and due - _CLOCK_GRAIN <= pts < due + every - _CLOCK_GRAIN
        self._due_at = due + every if due is not None and is_beat else pts + every
        self._asked_at = pts

    def settled(self, question: Question) -> bool:
        """Tell that `question` was answered or has failed; whether it is the one that was open."""
        is_open = self.open_question is not None and self.open_question.id == question.id
        if is_open:
            self.open_question = None
        return is_open

    def _follow(self, pts: float, query: QuerySettings) -> None:
        """Take note of the stream's clock; where it went back, begin anew from there."""
        every = query.every or 0.0
        if self._due_at is not None and pts < self._due_at - every - _CLOCK_GRAIN:
            self._due_at = pts + every
        if self._asked_at is not None and pts < self._asked_at:
            self._asked_at = pts
        self._seen = pts
