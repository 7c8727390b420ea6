"""The formats of answers: which tokens may come next, when an answer is finished, and its value as data.

Yes/no and a choice are decided by the probabilities of their options, without writing a word. A number and JSON are
written under a grammar, so they always parse. Knows no batch and no cache.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, assert_never

import numpy as np
import torch
from torch import Tensor

from stream_sttm.engine.answering import grammars
from stream_sttm.engine.answering.grammars import NUMBER_WORDS, Vocabulary, first_line, has_grammar
from stream_sttm.errors import AnswerFailed, QuestionRejected
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import AnswerType, Form, Question, Structured

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_YES_NO = {"yes": True, "no": False}
_INSTRUCTIONS = {
    AnswerType.YES_NO: "Answer yes or no.",
    AnswerType.CHOICE: "Answer with one of: {choices}.",
    AnswerType.NUMBER: "Answer with a number only.",
    AnswerType.JSON: "Answer with JSON only, following this schema: {schema}",
}
_OPTIONS_KEPT = 64
_GRAMMARS_KEPT = 256
_PROMPTS_KEPT = 256  # standing questions are repeated


@dataclass(frozen=True, slots=True)
class Option:
    """One possible answer, and the spellings (token ids) in which the model may write it."""

    text: str
    value: Structured
    spellings: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Options:
    """All possible answers, and whether they differ in their first token."""

    options: tuple[Option, ...]
    differ_in_first_token: bool

    @cached_property
    def tokens(self) -> int:
        """How many tokens all options have together, each in its longest spelling."""
        return sum(max(map(len, option.spellings)) for option in self.options)

    @cached_property
    def longest(self) -> int:
        """How many tokens the longest option has."""
        return max(len(ids) for option in self.options for ids in option.spellings)

    @cached_property
    def firsts(self) -> tuple[Tensor, Tensor]:
        """(options, N) ids of the tokens that each option may begin with, and (options, N) bool where they are only
        padding.
        """
        each = [sorted({ids[0] for ids in option.spellings}) for option in self.options]
        most = max(map(len, each))
        rows = [[*ids, *[ids[0]] * (most - len(ids))] for ids in each]
        fill = [[column >= len(ids) for column in range(most)] for ids in each]
        return torch.tensor(rows), torch.tensor(fill)


class Grammar:
    """The grammar of one row, and how far its answer is."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        from llguidance.numpy import allocate_token_bitmask

        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = allocate_token_bitmask(1, vocabulary)

    def allowed(self) -> Tensor:
        """Return (V,) bool: the tokens that may come next. Raises QuestionRejected where it fails."""
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        if self._matcher.is_error() or not bits.any():
            raise self._error()
        return torch.from_numpy(bits.astype(bool))

    def accept(self, token: int) -> bool:
        """Add `token` to the answer. Returns whether nothing can follow it. Raises QuestionRejected where it fails."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise self._error()
        return bool(self._matcher.is_stopped())

    def _error(self) -> QuestionRejected:
        reason = first_line(self._matcher.get_error())
        return QuestionRejected(f"json_schema: no answer can follow it: {reason}")


class AnswerFormats:
    """The formats that one model's answers may have."""

    def __init__(self, model: VideoLLM) -> None:
        self._model = model
        self._grammars: dict[Form, LLMatcher | str] = {}  # or why there is none
        self._lock = Lock()
        self._options = lru_cache(_OPTIONS_KEPT)(self._build_options)
        self._tokenize = lru_cache(_PROMPTS_KEPT)(model.ask)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What a grammar must know of the model."""
        model = self._model
        return Vocabulary(
            _tokenizer_json(model.tokenizer), model.vocabulary, tuple(sorted(model.eos))
        )

    @cached_property
    def _tokens(self) -> LLTokenizer:
        return self.vocabulary.tokens()

    def prompt(self, question: Question, history: str = "") -> Sequence[int]:
        """Return the token ids of a question, behind the text `history`.

        Where the model follows instructions, the question ends with one about its format.
        """
        form, text = question.form, f"{history}{question.text.strip()}"
        instruction = _INSTRUCTIONS.get(form.type)
        if instruction is not None and self._model.tuned.instruct:
            instruction = instruction.format(
                choices="; ".join(form.choices), schema=form.json_schema or "{}"
            )
            text = f"{text}\n{instruction}"
        return self._tokenize(text, question.turns)

    def is_prepared(self, form: Form) -> bool:
        """Return whether nothing of this form is left to compile."""
        return not has_grammar(form) or form in self._grammars

    def prepare(self, form: Form, tried: Callable[[str], None]) -> None:
        """Compile the grammar of a form where it has one, and remember what came of it. Called in any one thread.

        A JSON schema is `tried` first, which raises QuestionRejected.
        """
        if self.is_prepared(form):
            return
        try:
            if form.type is AnswerType.JSON:
                tried(form.json_schema)
        except QuestionRejected as error:
            self._remember(form, str(error))
        else:
            self._compile(form)

    def check(self, form: Form) -> None:
        """Raise QuestionRejected where no answer can have this format."""
        if has_grammar(form):
            self._compiled(form)

    def grammar(self, form: Form) -> Grammar | None:
        """Return a grammar for the answer's tokens, None where there is none."""
        if not has_grammar(form):
            return None
        return Grammar(self._compiled(form).deep_copy(), self._tokens.vocab_size)

    def options(self, form: Form) -> Options | None:
        """Return the options to choose from, None where the answer is written."""
        match form.type:
            case AnswerType.YES_NO:
                return self._options(("yes", "no"))
            case AnswerType.CHOICE:
                return self._options(form.choices)
            case AnswerType.TEXT | AnswerType.NUMBER | AnswerType.JSON:
                return None
            case _:
                assert_never(form.type)

    def _compiled(self, form: Form) -> LLMatcher:
        """Return a form's grammar. Raises QuestionRejected, without another try, where it was refused before."""
        known = self._grammars.get(form)
        found = self._compile(form) if known is None else known
        if isinstance(found, str):
            raise QuestionRejected(found)
        return found

    def _compile(self, form: Form) -> LLMatcher | str:
        """Compile a form's grammar and remember it. Returns why not in words, where no answer can follow it."""
        try:
            found: LLMatcher | str = grammars.compiled(self._tokens, form)
        except QuestionRejected as error:
            found = str(error)
        self._remember(form, found)
        return found

    def _remember(self, form: Form, found: LLMatcher | str) -> None:
        with self._lock:
            self._grammars[form] = found
            while len(self._grammars) > _GRAMMARS_KEPT:
                del self._grammars[next(iter(self._grammars))]

    def _build_options(self, texts: tuple[str, ...]) -> Options:
        options = tuple(
            Option(text, _YES_NO.get(text, text), self._spellings(text)) for text in texts
        )
        firsts = [{ids[0] for ids in option.spellings} for option in options]
        shared = any(a & b for at, a in enumerate(firsts) for b in firsts[at + 1 :])
        return Options(options, not shared)

    def _spellings(self, text: str) -> tuple[tuple[int, ...], ...]:
        """Return the ways in which a model may begin an answer with `text`: with a space or not, with a capital or
        not.
        """
        written = [text, text[:1].upper() + text[1:], text[:1].lower() + text[1:]]
        found = []
        for spelling in [*written, *(f" {one}" for one in written)]:
            ids = self._model.tokenizer(
                spelling, add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
            found.append(tuple(ids))
        spellings = tuple(dict.fromkeys(ids for ids in found if ids))
        if not spellings:
            raise QuestionRejected(f"choices: the model has no word for {text[:40]!r}")
        return spellings


def _tokenizer_json(tokenizer: Any) -> str:
    """Return a tokenizer as JSON that takes text as it is.

    Where a grammar leaves one way to go on, its text is cut into tokens. A normalizer, or a space put before it, would
    turn it into something that the grammar does not allow.
    """
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    as_dict = json.loads(backend.to_str())
    as_dict["normalizer"] = None
    cutter = as_dict.get("pre_tokenizer") or {}
    for part in [cutter, *cutter.get("pretokenizers", [])]:
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
    return json.dumps(as_dict)


def structured(text: str, form: Form) -> Structured:
    """Return a written answer as data, None for free text."""
    match form.type:
        case AnswerType.JSON:
            return _json_value(text)
        case AnswerType.NUMBER:
            return _number(text)
        case AnswerType.TEXT | AnswerType.YES_NO | AnswerType.CHOICE:
            return None
        case _:
            assert_never(form.type)


def _json_value(text: str) -> Structured:
    """Return written JSON as data that can be sent on: finite numbers and valid Unicode. Raises AnswerFailed."""
    try:
        value: Structured = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # 1e999; half of a surrogate pair; thousands of digits
        raise AnswerFailed(
            "the answer follows its schema, but holds a number or a text that JSON can't pass on; ask again"
        ) from None
    return value


def _number(text: str) -> int | float:
    word = text.strip().casefold()
    if word in NUMBER_WORDS:
        return NUMBER_WORDS.index(word)
    number = float(word)
    return int(number) if number.is_integer() and "." not in word else number


def probabilities(scores: Tensor, temperature: float) -> Tensor:
    """Return probabilities from (..., N) log-probabilities of the options (see `Defaults.temperature`)."""
    return (scores.double() / temperature).softmax(dim=-1)


def first_scores(logits: Tensor, options: Options) -> Tensor:
    """Return (R, options) log-probabilities, up to a constant, that each option is begun.

    Logits (R, V) are the first token's.
    """
    ids, fill = (part.to(logits.device) for part in options.firsts)
    return logits[:, ids].float().masked_fill(fill, -torch.inf).logsumexp(dim=-1)
