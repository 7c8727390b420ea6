"""Which questions the engine takes: those that can be asked at all and have room. Knows no stream."""

from __future__ import annotations

from stream_sttm.config import question_check
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.errors import QuestionRejected
from stream_sttm.types import Question

MAX_OPTION_TOKENS = 2048  # of all choices together


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
    tokens = len(formats.prompt(question)) + max(
        question.max_new_tokens, _longest_option(question, formats)
    )
    if tokens > plan.question_tokens:
        raise QuestionRejected(
            f"the question and the longest answer to it have {tokens} tokens; "
            f"the model has room for {plan.question_tokens}"
        )


def _longest_option(question: Question, formats: AnswerFormats) -> int:
    """Return the tokens of the longest option, 0 where there are none. Raises QuestionRejected for too many in all."""
    options = formats.options(question.form)
    if options is None:
        return 0
    if options.tokens > MAX_OPTION_TOKENS:
        raise QuestionRejected(
            f"choices: have {options.tokens} tokens together; at most {MAX_OPTION_TOKENS} are taken; "
            "give fewer or shorter ones"
        )
    return options.longest
