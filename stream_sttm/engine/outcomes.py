"""Outcomes of the engine's work: clips that are in a memory or lost, and questions with an answer, a part of one, or
none.

Plain frozen data, no torch, no sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_sttm.errors import StreamSTTMError
from stream_sttm.types import Answer, Clip, Question


@dataclass(frozen=True, slots=True)
class Observed:
    """A clip that is now in its stream's memory, counted in visual tokens."""

    clip: Clip
    before_merge: int
    after_merge: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A clip that did not get into its stream's memory, and why."""

    clip: Clip
    error: StreamSTTMError


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A question that got no answer, and why; `is_rejected` where it was never taken up."""

    question: Question
    error: StreamSTTMError
    is_rejected: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """The text so far of an answer that is still being written."""

    question: Question
    text: str


Outcome = Answer | Observed | Lost | Unanswered | Progress
