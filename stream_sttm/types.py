"""The nouns that cross borders: frames and clips in, questions, answers and events out, status beside them.

Plain frozen data, no torch, no sockets. Fields ending in `_at` are wall-clock seconds since the epoch; `pts`
is the stream's own clock in seconds, monotonic for as long as the stream is configured, reconnects included.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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
    """Sampled frames of one stream that are encoded together; `index` counts the stream's clips.

    `same_as`: index of an earlier clip whose last frame shows what each of these does, None where there is none;
    `changed` (rows, columns): but for these blocks, which tile the picture, None where that holds everywhere.
    `is_still`: nothing has changed, though it may be encoded anew. `wants_whole`: it is the same, but is to be encoded
    where what it is the same as was encoded in parts.
    """

    stream: str
    index: int
    frames: tuple[Frame, ...]
    same_as: int | None = None
    changed: NDArray[np.bool_] | None = field(default=None, compare=False)
    is_still: bool = False
    wants_whole: bool = False

    @property
    def captured_at(self) -> float:
        """Wall clock of the newest frame."""
        return self.frames[-1].captured_at


class AnswerType(StrEnum):
    """What kind of answer a question wants."""

    TEXT = "text"
    YES_NO = "yes_no"
    CHOICE = "choice"
    NUMBER = "number"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must look like: its type, what may be chosen, or a JSON schema as text."""

    type: AnswerType = AnswerType.TEXT
    choices: tuple[str, ...] = ()
    json_schema: str = ""


FREE_TEXT = Form()

MAX_FRESH_FRAMES = 4

Structured = bool | float | str | dict[str, Any] | list[Any] | None


@dataclass(frozen=True, slots=True)
class Question:
    """Something asked of one stream's memory; `query` names the standing query it came from, if any.

    `timeout`: seconds for which whoever asked waits, None for as long as the engine's own limit. `window_s`: seconds
    before the newest frame of which it is asked, None for all that is remembered. `fresh_frames`: newest frames shown
    unmerged, None for what the memory is set to. `recall`: whether the past that the memory has lost is looked through
    for it, None for what the memory is set to; with a `window_s` it never is. Of those that wait, the greatest
    `priority` is answered first. `turns`: what was asked and answered before in the same conversation, oldest first.
    With `is_streamed`, a free answer is told as it is written.
    """

    id: str
    stream: str
    text: str
    asked_at: float
    max_new_tokens: int
    query: str | None = None
    timeout: float | None = None
    form: Form = FREE_TEXT
    window_s: float | None = None
    fresh_frames: int | None = None
    recall: Recall | None = None
    priority: int = 0
    turns: tuple[tuple[str, str], ...] = ()
    is_streamed: bool = False

    @property
    def look(self) -> tuple[float | None, int | None]:
        """What it looks at: questions that agree in it can be answered from one view."""
        return self.window_s, self.fresh_frames


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What one answer cost: visual tokens seen (and what they stand for), question and answer tokens.

    Of the visual ones `recalled` had left the memory and were brought back, and `fresh` are the newest frames unmerged.
    """

    visual: int
    visual_before_merge: int
    question: int
    answer: int
    recalled: int = 0
    fresh: int = 0


@dataclass(frozen=True, slots=True)
class Seconds:
    """What it took to make what an answer was given from: `fresh`, to show the newest frames unmerged, once for all
    questions of that moment; `recall`, to find what had left the memory and to show it again, for this question alone.
    """

    fresh: float = 0.0
    recall: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The one JSON shape of it."""
        return {"fresh": round(self.fresh, 6), "recall": round(self.recall, 6)}


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's answer, with the span of video (wall clock) that the memory held when it was asked.

    `structured` is the answer as data where the question's form asks for more than text; `confidence`, from 0 to 1,
    is the probability of what was said among all that might have been, None where nothing says.
    """

    question: Question
    text: str
    span: tuple[float, float]
    tokens: TokenCounts
    model: str
    answered_at: float
    news: bool = True
    structured: Structured = None
    confidence: float | None = None
    seconds: Seconds = Seconds()

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
            "answer_type": question.form.type.value,
            "structured": self.structured,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "news": self.news,
            "frame_time": self.captured_at,
            "window": list(self.span),
            "asked_at": question.asked_at,
            "answered_at": self.answered_at,
            "event_to_answer_ms": round((published_at - self.captured_at) * 1000, 1),
            "tokens": {
                "visual": self.tokens.visual,
                "visual_before_merge": self.tokens.visual_before_merge,
                "fresh": self.tokens.fresh,
                "recalled": self.tokens.recalled,
                "question": self.tokens.question,
                "answer": self.tokens.answer,
            },
            "seconds": self.seconds.as_dict(),
            "model": self.model,
        }


class EventKind(StrEnum):
    """What is told of an event: that it begins, goes on, or is over."""

    NEW = "new"
    UPDATE = "update"
    END = "end"


@dataclass(frozen=True, slots=True)
class Event:
    """Something a standing query watches for, from its start to its end on one stream; told again at each change.

    One that has begun has one `end`, with the same `id`, before the query begins another on that stream. `state` is
    what was answered, `confidence` that answer's, `answer_id` the id of the answer that this telling rests on, `span`
    the video (wall clock) from the first frame that showed it to the newest. `escalated`: it went on for so long that
    it was told once more; `has_snapshot`: a picture of its start was taken.
    """

    id: str
    kind: EventKind
    stream: str
    query: str
    started_at: float
    updated_at: float
    ended_at: float | None
    state: Structured
    confidence: float | None
    answer_id: str
    span: tuple[float, float]
    escalated: bool = False
    has_snapshot: bool = False

    def as_dict(self, *, published_at: float) -> dict[str, Any]:
        """The one JSON shape of an event, for every sink, the HTTP interface and the store."""
        return {
            "id": self.id,
            "kind": self.kind.value,
            "stream": self.stream,
            "query": self.query,
            "started_at": self.started_at,
            "updated_at": self.updated_at,
            "ended_at": self.ended_at,
            "state": self.state,
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "answer_id": self.answer_id,
            "span": list(self.span),
            "escalated": self.escalated,
            "snapshot": f"/api/v1/events/{self.id}/snapshot.jpg" if self.has_snapshot else None,
            "event_to_answer_ms": round((published_at - self.updated_at) * 1000, 1),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The picture with which the event of that id began."""

    event: str
    frame: Frame


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
