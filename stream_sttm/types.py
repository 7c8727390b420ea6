"""The data that passes between packages: frames, clips, questions, answers, events and stream states.

Plain frozen data, no torch, no sockets. Fields ending in `_at` are wall-clock seconds since the epoch. `pts` is the
stream's own clock in seconds, monotonic for as long as the stream is configured, reconnects included.
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
    """One decoded picture of one stream. `image` is (H, W, 3) uint8 RGB and is never written to."""

    stream: str
    image: NDArray[np.uint8]
    pts: float
    captured_at: float


@dataclass(frozen=True, slots=True)
class Clip:
    """Sampled frames of one stream that are encoded together. `index` counts the stream's clips.

    `same_as`: index of an earlier clip whose last frame looks like each of these, None where there is none. `changed`
    (rows, columns): the blocks of the picture that differ from it, None where none does. `is_still`: nothing has
    changed, though the clip may be encoded again. `wants_whole`: it looks the same, but must be encoded where the
    earlier clip was encoded in parts.
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
    """The type of answer that a question asks for."""

    TEXT = "text"
    YES_NO = "yes_no"
    CHOICE = "choice"
    NUMBER = "number"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Form:
    """The form of an answer: its type, the choices, or a JSON schema as text."""

    type: AnswerType = AnswerType.TEXT
    choices: tuple[str, ...] = ()
    json_schema: str = ""


FREE_TEXT = Form()

MAX_FRESH_FRAMES = 4

Structured = bool | float | str | dict[str, Any] | list[Any] | None


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one stream's memory. `query` names the standing query it came from, if any.

    `timeout`: seconds that the asker waits, None for the engine's own limit. `window_s`: seconds before the newest
    frame that it is about, None for all that is remembered. `fresh_frames`: newest frames shown unmerged, None for the
    memory's setting. `recall`: whether the archived past is searched, None for the memory's setting, and never with a
    `window_s`. The greatest `priority` is answered first. `turns`: earlier questions and answers of the same
    conversation, oldest first. With `is_streamed`, a free answer is reported while it is written. `caller`: whose
    question it is, for turns and shares of the queue, None where it is nobody's. It is never shown.
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
    caller: str | None = None

    @property
    def look(self) -> tuple[float | None, int | None]:
        """Window and fresh frames. Questions that agree in both can be answered from one view."""
        return self.window_s, self.fresh_frames


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """The token counts of one answer: visual tokens seen, the tokens they were merged from, question, answer.

    Of the visual ones, `recalled` were brought back from the archive, and `fresh` are the newest frames unmerged.
    """

    visual: int
    visual_before_merge: int
    question: int
    answer: int
    recalled: int = 0
    fresh: int = 0


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds spent to prepare an answer's context.

    `fresh`: to add the newest frames unmerged, once for all questions of that moment. `recall`: to find archived video
    and add it again, for this question alone.
    """

    fresh: float = 0.0
    recall: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return its only JSON form."""
        return {"fresh": round(self.fresh, 6), "recall": round(self.recall, 6)}


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's answer, with the span of video (wall clock) that the memory held when it was asked.

    `structured`: the answer as data, where the question's form is more than text. `confidence`: the probability (0-1)
    of this answer among all possible ones, None where it is unknown.
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
        """Wall clock of the newest frame that the answer is based on."""
        return self.span[1]

    def as_dict(self, *, published_at: float) -> dict[str, Any]:
        """Return the only JSON form of an answer, for every sink, the HTTP interface and the store."""
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
    """The kind of a message about an event: it begins, goes on, or has ended."""

    NEW = "new"
    UPDATE = "update"
    END = "end"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a standing query watches for, from its start to its end on one stream. Sent again at each change.

    Each event that begins has one `end` with the same `id`, before the query begins another on that stream. `state`
    and `confidence` are those of the answer `answer_id`, on which this message is based. `span`: the video (wall clock)
    from the first frame that showed it to the newest. `escalated`: it lasted so long that it was sent once more.
    `has_snapshot`: a picture of its start was taken.
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
        """Return the only JSON form of an event, for every sink, the HTTP interface and the store."""
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
    """The picture with which the event of this id began."""

    event: str
    frame: Frame


class StreamState(StrEnum):
    """The state of a stream, in the words that users of cameras know."""

    CONNECTING = "connecting"
    ONLINE = "online"
    STALLED = "stalled"
    OFFLINE = "offline"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """A stream's state as MQTT, HTTP and the page show it. `reason` is one line without a URL's secret."""

    stream: str
    state: StreamState
    since: float
    reason: str = ""
    reconnects: int = 0
    last_frame_at: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the only JSON form of a stream's status."""
        return {
            "stream": self.stream,
            "state": self.state.value,
            "since": self.since,
            "reason": self.reason,
            "reconnects": self.reconnects,
            "last_frame_at": self.last_frame_at,
            **self.details,
        }
