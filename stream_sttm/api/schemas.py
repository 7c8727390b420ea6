"""OpenAPI schemas of an answer over HTTP. `Answer.as_dict` writes the answer itself."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stream_sttm.types import AnswerType, Structured


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokensShape(_Shape):
    """The token counts of an answer."""

    visual: int = Field(description="Visual tokens that were seen.")
    visual_before_merge: int = Field(description="What they stand for.")
    fresh: int = Field(description="Of the visual ones, those of the newest frames unmerged.")
    recalled: int = Field(description="Of the visual ones, those that had left the memory.")
    question: int
    answer: int


class SecondsShape(_Shape):
    """Seconds spent to prepare an answer's context."""

    fresh: float = Field(
        description="To show the newest frames unmerged, once for all questions of that moment."
    )
    recall: float = Field(
        description="To find what had left the memory and show it again, for this question alone."
    )


class AnswerShape(_Shape):
    """One answer."""

    id: str
    stream: str
    query: str | None = Field(description="The standing query that asked, if one did.")
    question: str
    answer: str
    answer_type: AnswerType
    structured: Structured = Field(description="The answer as data, where its type is not text.")
    confidence: float | None
    news: bool = Field(description="Whether it differs from the query's last.")
    frame_time: float = Field(description="Wall clock of the newest frame it rests on.")
    window: tuple[float, float] = Field(description="Wall clock of the oldest and newest frame.")
    asked_at: float
    answered_at: float
    event_to_answer_ms: float
    tokens: TokensShape
    seconds: SecondsShape
    model: str


class RefusedShape(_Shape):
    """The reason why one of several streams gives no answer."""

    stream: str
    error: str


class SeveralShape(_Shape):
    """The answers of several streams, in the order in which they were named."""

    answers: list[AnswerShape | RefusedShape]


ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": AnswerShape | SeveralShape,
        "description": "The answer; of several streams, `answers`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
