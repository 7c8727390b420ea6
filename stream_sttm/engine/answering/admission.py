"""Which questions the engine takes: those that can be asked at all and have room. Knows no stream."""

from __future__ import annotations

from stream_sttm.config import question_check
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.errors import QuestionRejected
from stream_sttm.types import Question


def check(
    question: Question, *, formats: AnswerFormats, plan: MemoryPlan, limits: AnsweringSettings
) -> None:
    """Raise QuestionRejected for a question that can't be asked, or to which there can be no answer."""
    question_check.check(question, limits)
    formats.check(question.form)
    if question.recall == "always" and plan.recall is None:
        raise QuestionRejected(
            "the question is to recall what has left the memory, but nothing of that is kept; "
            "set memory.recall.when to auto or always"
        )
    tokens = len(formats.prompt(question)) + question.max_new_tokens
    if tokens > plan.question_tokens:
        raise QuestionRejected(
            f"the question and the longest answer to it have {tokens} tokens; "
            f"the model has room for {plan.question_tokens}"
        )
