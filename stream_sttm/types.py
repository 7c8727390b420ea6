"""The nouns that cross borders: frames and clips in, questions and answers out, status beside them.

Plain frozen data, no torch, no sockets. Fields ending in `_at` are wall-clock seconds since the epoch; `pts`
is the stream's own clock in seconds, monotonic for as long as the stream is configured, reconnects included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream_sttm.errors import StreamSTTMError

Recall = Literal["never", "auto", "always"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded picture of one stream; `image` is (H, W, 3) uint8 RGB and never written to."""

    stream: str
    image: NDArray[np.uint8]
    pts: float
    captured_at: float


@dataclass(frozen=True, slots=True)
class Clip:
    """Sampled frames of one stream that are encoded together; `index` counts the stream's clips."""

    stream: str
    index: int
    frames: tuple[Frame, ...]

    @property
    def captured_at(self) -> float:
        """Wall clock of the newest frame."""
        return self.frames[-1].captured_at


@dataclass(frozen=True, slots=True)
class Question:
    """Something asked of one stream's memory; `query` names the standing query it came from, if any.

    `timeout`: seconds for which whoever asked waits, None for as long as the engine's own limit. `recall`: whether the
    past that the memory has lost is looked through for it, None for what the configuration says.
    """

    id: str
    stream: str
    text: str
    asked_at: float
    max_new_tokens: int
    query: str | None = None
    timeout: float | None = None
    recall: Recall | None = None


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What one answer cost: visual tokens seen (and what they stand for), question and answer tokens.

    Of the visual ones `recalled` had left the memory and were brought back.
    """

    visual: int
    visual_before_merge: int
    question: int
    answer: int
    recalled: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's answer, with the span of video (wall clock) that the memory held when it was asked."""

    question: Question
    text: str
    span: tuple[float, float]
    tokens: TokenCounts
    model: str
    answered_at: float
    news: bool = True

    @property
    def captured_at(self) -> float:
        """Wall clock of the newest frame the answer rests on."""
        return self.span[1]

    def as_dict(self, *, published_at: float) -> dict[str, Any]:
        """The one JSON shape of an answer, for every sink, the HTTP interface and the store."""
        question = self.question
        return {
            "id": question.id,
            "stream": question.stream,
            "query": question.query,
            "question": question.text,
            "answer": self.text,
            "news": self.news,
            "frame_time": self.captured_at,
            "window": list(self.span),
            "asked_at": question.asked_at,
            "answered_at": self.answered_at,
            "event_to_answer_ms": round((published_at - self.captured_at) * 1000, 1),
            "tokens": {
                "visual": self.tokens.visual,
                "visual_before_merge": self.tokens.visual_before_merge,
                "recalled": self.tokens.recalled,
                "question": self.tokens.question,
                "answer": self.tokens.answer,
            },
            "model": self.model,
        }


class StreamState(StrEnum):
    """Where a stream stands, in the words users of cameras know."""

    CONNECTING = "connecting"
    ONLINE = "online"
    STALLED = "stalled"
    OFFLINE = "offline"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A stream's state as told to MQTT, HTTP and the page; `reason` is one masked line, never a URL's secret."""

    stream: str
    state: StreamState
    since: float
    reason: str = ""
    reconnects: int = 0
    last_frame_at: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The one JSON shape of a stream's status."""
        return {
            "stream": self.stream,
            "state": self.state.value,
            "since": self.since,
            "reason": self.reason,
            "reconnects": self.reconnects,
            "last_frame_at": self.last_frame_at,
            **self.details,
        }


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
    """A question that got no answer, and why."""

    question: Question
    error: StreamSTTMError


Outcome = Answer | Observed | Lost | Unanswered
