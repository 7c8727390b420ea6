"""Whether a question can be asked at all: one check, and one text for each fault.

HTTP and MQTT call `check` where a question comes in. The engine calls it again, because limits can change meanwhile and
not every question comes from outside. Needs no model: engine/answering/admission.py checks what the model has room for.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from stream_sttm.config.faults import fault_line
from stream_sttm.config.queries import MAX_NEW_TOKENS, AskSettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.config.text_check import text_fault
from stream_sttm.errors import QuestionRejected
from stream_sttm.types import Form, Question

MAX_TURNS = 32
MAX_FAULTS = 5  # that are named at once


class _Asked(AskSettings):
    """The fields of a question that have limits of their own."""

    turns: list[Any] = Field([], max_length=MAX_TURNS)


def check(question: Question, answering: AnsweringSettings) -> None:
    """Raise QuestionRejected where the question's text, form, span or conversation is not allowed."""
    _check_text(question, answering.max_question_chars)
    try:
        _Asked(
            type=question.form.type,
            choices=list(question.form.choices),
            json_schema=_schema(question.form),
            window_s=question.window_s,
            fresh_frames=question.fresh_frames,
            recall=question.recall,
            priority=question.priority,
            # A client of OpenAI's interface may allow more. The engine knows how long an answer can be.
            max_new_tokens=min(question.max_new_tokens, MAX_NEW_TOKENS),
            turns=list(question.turns),
        )
    except ValidationError as error:
        raise QuestionRejected(fault_lines(error)) from None
    except RecursionError:
        raise QuestionRejected("json_schema: is nested too deeply") from None


def fault_lines(error: ValidationError) -> str:
    """Return the first faults of what was asked as one line."""
    return "; ".join(fault_line(fault) for fault in error.errors()[:MAX_FAULTS])


def _check_text(question: Question, longest: int) -> None:
    if not question.text.strip():
        raise QuestionRejected("question: is empty; write what you want to know")
    parts = [question.text, *(part for turn in question.turns for part in turn)]
    length = sum(map(len, parts))
    if length > longest:
        raise QuestionRejected(f"question: has {length} characters; at most {longest} are taken")
    named = {"question": parts, "id": [question.id], "choices": question.form.choices}
    for name, texts in named.items():
        if fault := text_fault(texts):
            raise QuestionRejected(f"{name}: {fault}")


def _schema(form: Form) -> Any:
    """Return the form's JSON schema, None where there is none or it can't be read, which its grammar reports."""
    try:
        return json.loads(form.json_schema) if form.json_schema else None
    except (ValueError, RecursionError):
        return None
