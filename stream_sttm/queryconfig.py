"""The part of the configuration that says what is asked: a standing question, and how its answer must look.

Knows of a form only whether it can be one; what a question is asked of is checked with the streams.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from stream_sttm.streamconfig import Section
from stream_sttm.types import MAX_FRESH_FRAMES, AnswerType, Form

MAX_CHOICES = 64
MAX_SCHEMA_CHARS = 20_000


class FormSettings(Section):
    """How an answer must look; part of whatever asks."""

    type: Annotated[AnswerType, Strict(False)] = Field(
        AnswerType.TEXT,
        description="What the answer is: text, yes_no, choice, number, or json. All but text always parse.",
    )
    choices: list[str] = Field(
        [],
        max_length=MAX_CHOICES,
        description="What a choice chooses from: two or more short texts.",
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema of a json answer; null: any object."
    )

    @field_validator("choices")
    @classmethod
    def _are_told_apart(cls, choices: list[str]) -> list[str]:
        plain = [" ".join(choice.split()) for choice in choices]
        if any(not 1 <= len(choice) <= 200 for choice in plain):
            raise ValueError("each must have 1 to 200 characters")
        if len({choice.casefold() for choice in plain}) < len(plain):
            raise ValueError("two are the same")
        return plain

    @field_validator("json_schema")
    @classmethod
    def _is_short(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
            raise ValueError(f"has more than {MAX_SCHEMA_CHARS} characters")
        return schema

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if (self.type is AnswerType.CHOICE) != bool(self.choices):
            raise ValueError("choices belong to type choice, which needs two or more of them")
        if self.type is AnswerType.CHOICE and len(self.choices) < 2:
            raise ValueError("choices: one is no choice; give two or more")
        if self.json_schema is not None and self.type is not AnswerType.JSON:
            raise ValueError("json_schema belongs to type json")
        return self

    @property
    def form(self) -> Form:
        """The same for the engine."""
        schema = "" if self.json_schema is None else json.dumps(self.json_schema)
        return Form(self.type, tuple(self.choices), schema)


class AskSettings(FormSettings):
    """What can be said with any question: its answer's form, what it looks at, and how soon it is answered."""

    window_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds before the newest frame that the question is about; null: all that is remembered.",
    )
    fresh_frames: int | None = Field(
        None,
        ge=0,
        le=MAX_FRESH_FRAMES,
        description="Newest frames shown to it unmerged; null: memory.fresh_frames.",
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Of the questions that wait, the greatest is answered first.",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=1024, description="Longest answer in tokens; null: answering.max_new_tokens."
    )


class QuerySettings(AskSettings):
    """One standing question."""

    streams: list[str] = Field(min_length=1, description="Names of the streams it is asked of.")
    ask: str = Field(min_length=1, max_length=100_000, description="The question, in words.")
    every: float = Field(10.0, gt=0, description="Seconds of stream between two answers.")
    announce: Literal["always", "on_change"] = Field(
        "on_change", description="Publish every answer, or only one that differs from the last."
    )
