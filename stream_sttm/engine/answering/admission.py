"""Which questions are admitted: what a model has room for and the configuration allows. Knows no stream."""

from __future__ import annotations

from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.errors import QuestionRejected
from stream_sttm.types import Question


def check(
    question: Question, *, formats: AnswerFormats, plan: MemoryPlan, limits: AnsweringSettings
) -> None:
    """Raise QuestionRejected for a question that is empty or too long, or that can't have an answer of its format."""
    if not question.text.strip():
        raise QuestionRejected("the question is empty")
    if len(question.text) > limits.max_question_chars:
        raise QuestionRejected(
            f"the question has {len(question.text)} characters; at most {limits.max_question_chars} are taken"
        )
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
