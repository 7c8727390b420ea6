"""One question of a batch: what decides its answer, the answer so far, and the finished answer. Knows no batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from stream_sttm.engine.answering import formats
from stream_sttm.engine.answering.formats import Grammar, Options
from stream_sttm.engine.view import View
from stream_sttm.errors import AnswerUnfinished, NotFinite, StreamSTTMError
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import AnswerType, Question, Structured, TokenCounts


@dataclass(frozen=True, slots=True)
class Completion:
    """One question's answer and what it cost. `error` says why where it got none."""

    question: Question
    text: str
    tokens: TokenCounts
    structured: Structured = None
    confidence: float | None = None
    error: StreamSTTMError | None = None


@dataclass(slots=True)
class SequenceState:
    """A question of `asked` tokens, what decides its answer, the answer's token ids so far, and their
    log-probability.
    """

    question: Question
    asked: int
    options: Options | None
    grammar: Grammar | None
    ids: list[int] = field(default_factory=list)
    log: float = 0.0

    @property
    def begins_alike(self) -> bool:
        """Whether it chooses from options of which some begin with the same token."""
        return self.options is not None and not self.options.differ_in_first_token

    def take(self, token: int, log: float, model: VideoLLM, view: View) -> Completion | None:
        """Add a token of log-probability `log` to the answer. Returns the answer where it is finished by that."""
        is_end = token in model.eos
        self.log += log
        if not is_end:
            self.ids.append(token)
            is_end = self.grammar is not None and self.grammar.accept(token)
        if is_end or len(self.ids) >= self.question.max_new_tokens:
            return self.complete_text(model, view, is_end=is_end)
        return None

    def complete_choice(self, weights: Sequence[float], view: View) -> Completion:
        """Return the most probable of its options as the answer. Raises NotFinite where a weight is no number."""
        assert self.options is not None
        if not all(map(math.isfinite, weights)):
            raise NotFinite
        confidence, option = max(zip(weights, self.options.options, strict=True), key=itemgetter(0))
        return Completion(self.question, option.text, self._counts(view), option.value, confidence)

    def complete_text(self, model: VideoLLM, view: View, *, is_end: bool) -> Completion:
        """Return what it has written as the answer. `is_end`: the model ended it by itself."""
        question, text, tokens = self.question, model.answer(self.ids), self._counts(view)
        if self.grammar is None:
            return Completion(question, text, tokens)
        if not is_end:
            error = AnswerUnfinished(
                f"the answer has not ended after {len(self.ids)} tokens; raise max_new_tokens, "
                "or ask for less by json_schema (maxLength, maxItems)"
            )
            return Completion(question, text, tokens, error=error)
        is_number = question.form.type is AnswerType.NUMBER
        confidence = math.exp(self.log) if is_number else None
        return Completion(
            question, text, tokens, formats.structured(text, question.form), confidence
        )

    def _counts(self, view: View) -> TokenCounts:
        return TokenCounts(
            visual=view.visual,
            visual_before_merge=view.before_merge,
            question=self.asked,
            answer=len(self.ids),
            recalled=view.recalled,
            fresh=view.fresh,
        )
