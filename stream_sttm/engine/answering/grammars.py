"""Grammars of numbers and JSON, compiled by llguidance. Without torch, because a process of its own compiles them, too.

llguidance is imported when a grammar is first needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from stream_sttm.config.schema_size import schema_fault
from stream_sttm.errors import QuestionRejected
from stream_sttm.types import AnswerType, Form

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_SPELT_NUMBERS = "|".join(f"[{word[0].upper()}{word[0]}]{word[1:]}" for word in NUMBER_WORDS)
_NUMBER = rf" ?(-?[0-9]{{1,12}}(\.[0-9]{{1,6}})?|{_SPELT_NUMBERS})"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a grammar must know of a model: its tokenizer as JSON, how many tokens it has, and which end an answer."""

    tokenizer: str
    size: int
    eos: tuple[int, ...]

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Return what `to_json` has written."""
        told = json.loads(line)
        return cls(told["tokenizer"], told["size"], tuple(told["eos"]))

    def tokens(self) -> LLTokenizer:
        """Return it as grammars take it."""
        from llguidance import LLTokenizer

        return LLTokenizer(self.tokenizer, n_vocab=self.size, eos_token=list(self.eos))


def has_grammar(form: Form) -> bool:
    """Return whether answers of this form are written under a grammar."""
    return form.type in (AnswerType.NUMBER, AnswerType.JSON)


def compiled(tokens: LLTokenizer, form: Form) -> LLMatcher:
    """Return the compiled grammar of a number or of JSON. Raises QuestionRejected where no answer can follow it."""
    from llguidance import LLMatcher

    is_json = form.type is AnswerType.JSON
    grammar = _json_grammar(form.json_schema) if is_json else LLMatcher.grammar_from_regex(_NUMBER)
    matcher = LLMatcher(tokens, grammar, log_level=0)
    if matcher.is_error():
        raise QuestionRejected(
            f"json_schema: no answer can follow it: {first_line(matcher.get_error())}"
        )
    return matcher


def _json_grammar(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        told: Any = json.loads(schema) if schema else {"type": "object"}
    except (ValueError, RecursionError) as error:
        raise QuestionRejected(f"json_schema: {first_line(str(error))}") from error
    if fault := schema_fault(told):
        raise QuestionRejected(f"json_schema: {fault}")
    try:
        # a model could write white space for ever
        return LLMatcher.grammar_from_json_schema(
            json.dumps(told), defaults={"whitespace_flexible": False}
        )
    except ValueError as error:
        raise QuestionRejected(f"json_schema: {first_line(str(error))}") from error


def first_line(text: str) -> str:
    """Return the first line of a text that is not empty, cut where it is long."""
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), "it is empty")
