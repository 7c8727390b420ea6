"""The settings of a question: its text, its answer's form, when it is asked, and what its answers trigger.

Checks a form by itself. Whether its streams exist is checked in settings.py.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from stream_sttm.config.schedule import ScheduleSettings
from stream_sttm.config.schema_size import schema_fault
from stream_sttm.config.streams import Section
from stream_sttm.config.text_check import text_fault
from stream_sttm.types import MAX_FRESH_FRAMES, AnswerType, Form, Question, Recall

MAX_CHOICES = 64
MAX_NEW_TOKENS = 1024
_TRIGGER = re.compile(r"change|manual|frigate(:[a-z0-9][a-z0-9 _-]{0,62})?")


class FormSettings(Section):
    """The form of an answer, part of every question."""

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
        if fault := text_fault(choices):
            raise ValueError(fault)
        plain = [" ".join(choice.split()) for choice in choices]
        if any(not 1 <= len(choice) <= 200 for choice in plain):
            raise ValueError("each must have 1 to 200 characters")
        if len({choice.casefold() for choice in plain}) < len(plain):
            raise ValueError("two are the same")
        return plain

    @field_validator("json_schema")
    @classmethod
    def _is_small(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None and (fault := schema_fault(schema)):
            raise ValueError(fault)
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
        """The form as the engine takes it."""
        schema = "" if self.json_schema is None else json.dumps(self.json_schema, allow_nan=False)
        return Form(self.type, tuple(self.choices), schema)


class AskSettings(FormSettings):
    """The options of any question: its answer's form, what it looks at, and its priority."""

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
    recall: Recall | None = Field(
        None,
        description="Whether it sees what has left the memory: never, auto, always; null: memory.recall.when. With window_s: never.",
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Of the questions that wait, the greatest is answered first.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_NEW_TOKENS,
        description="Longest answer in tokens; null: answering.max_new_tokens.",
    )


class QuerySettings(AskSettings):
    """One standing question."""

    enabled: bool = Field(True, description="Whether it is asked; can be switched while running.")
    streams: list[str] = Field(min_length=1, description="Names of the streams it is asked of.")
    ask: str = Field(min_length=1, max_length=100_000, description="The question, in words.")
    every: float | None = Field(
        10.0, gt=0, description="Seconds of stream between two answers; null: only on_event."
    )
    on_event: list[str] = Field(
        ["manual"],
        max_length=32,
        description="What has it asked at once: change (of the picture), manual (the API), frigate or frigate:person.",
    )
    min_gap: float = Field(
        1.0, ge=0, description="Seconds of stream by which on_event keeps from the question before."
    )
    schedule: ScheduleSettings | None = Field(
        None,
        description="When it is asked: {zone: Europe/Berlin, hours: [mon-fri 08:00-18:00], quiet: [13:00-14:00]}.",
    )
    deadline: float | None = Field(
        None, gt=0, description="Seconds that an answer may take; null: answering.timeout."
    )
    late: Literal["tell", "drop"] = Field(
        "tell", description="What becomes of an answer after its deadline; counted either way."
    )
    alert_on: list[str] = Field(
        [],
        max_length=MAX_CHOICES,
        description="The choices that make an event; of yes_no it is yes.",
    )
    on_after: int = Field(
        1, ge=1, le=1000, description="Answers in a row with which an event begins."
    )
    off_after: int = Field(
        1, ge=1, le=1000, description="Answers to the contrary in a row with which it ends."
    )
    cooldown: float = Field(0.0, ge=0, description="Seconds between the starts of two events.")
    escalate: float | None = Field(
        None, gt=0, description="Seconds after which an event that goes on is told once more."
    )
    min_confidence: float = Field(
        0.0,
        ge=0,
        le=1,
        description="An answer less certain is kept, but neither announced nor counted for an event.",
    )
    announce: Literal["always", "on_change"] = Field(
        "on_change", description="Publish every answer, or only one that differs from the last."
    )

    @field_validator("ask")
    @classmethod
    def _is_text(cls, ask: str) -> str:
        if not ask.strip():
            raise ValueError("is empty; write what you want to know")
        if fault := text_fault([ask]):
            raise ValueError(fault)
        return ask

    @field_validator("on_event")
    @classmethod
    def _are_triggers(cls, triggers: list[str]) -> list[str]:
        plain = [" ".join(trigger.lower().split()) for trigger in triggers]
        if not all(_TRIGGER.fullmatch(trigger) for trigger in plain):
            raise ValueError("each must be change, manual, frigate, or frigate:LABEL")
        return plain

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if self.every is None and not self.on_event:
            raise ValueError("every: null and no on_event: it would never be asked")
        if self.alert_on and self.type is not AnswerType.CHOICE:
            raise ValueError("alert_on belongs to type choice")
        if not set(self.alert_on) <= set(self.choices):
            raise ValueError("alert_on: each must be one of the choices, as written there")
        for name in ("on_after", "off_after", "cooldown", "escalate"):
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and not self.makes_events:
                raise ValueError(f"{name}: only type yes_no, and choice with alert_on, have events")
        if self.min_confidence and self.type is AnswerType.TEXT:
            raise ValueError("min_confidence: nothing says how certain a text is")
        return self

    @property
    def makes_events(self) -> bool:
        """Whether its answers make events: of yes_no while it is yes, of choice while it is one of alert_on."""
        return self.type is AnswerType.YES_NO or bool(self.alert_on)

    @property
    def meaning(self) -> tuple[Any, ...]:
        """The settings that give its answers their meaning. A change of any other keeps a running event."""
        look = self.window_s, self.fresh_frames, self.recall
        return self.ask, self.form, tuple(self.alert_on), *look

    def asks(self, question: Question) -> bool:
        """Return whether `question` is this query as it is now, so that its answer means what its answers mean."""
        look = question.window_s, question.fresh_frames, question.recall
        return (question.text, question.form, tuple(self.alert_on), *look) == self.meaning

    def is_open(self, now: float) -> bool:
        """Return whether it is asked at this hour."""
        return self.schedule is None or self.schedule.is_open(now)
