"""A batch works in bounded steps, and what one of its questions fails on ends that one alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY
from torch import Tensor

from stream_sttm.config.settings import AnsweringSettings, MemorySettings
from stream_sttm.engine import forward
from stream_sttm.engine.answering.batch import PIECE
from stream_sttm.engine.answering.formats import AnswerFormats, Grammar
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.outcomes import Outcome, Unanswered
from stream_sttm.errors import (
    AnswerFailed,
    NotFinite,
    NoVideoYet,
    QuestionError,
    QuestionRejected,
    StreamSTTMError,
)
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import FREE_TEXT, Answer, AnswerType, Clip, Form, Frame, Question

YES_NO, NUMBER = Form(AnswerType.YES_NO), Form(AnswerType.NUMBER)
JSON = Form(AnswerType.JSON, (), '{"type": "boolean"}')
ALIKE = Form(AnswerType.CHOICE, ("a red circle", "a red square", "a"))
FORMS = (FREE_TEXT, YES_NO, NUMBER, JSON, ALIKE)


class Panic(BaseException):
    """What a Rust library raises when it panics is no Exception either."""


def _clip(index: int, seed: int = 11) -> Clip:
    image = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    frames = (Frame("door", image, float(index), 900.0 + index),) * 2
    return Clip("door", index, frames)


def _run(engine: Engine) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while not engine.is_idle:
        outcomes += engine.step()
    return outcomes


@pytest.fixture
def engine(tiny_model: VideoLLM) -> Engine:
    engine = Engine(
        tiny_model,
        memory=MemorySettings(window_tokens=256, horizon=1024, fresh_frames=0),
        answering=AnsweringSettings(max_question_chars=400, max_batch=16, timeout=300),
        clock=lambda: 1000.0,
    )
    engine.open("door", fps=2)
    engine.observe(_clip(0))
    _run(engine)
    return engine


@pytest.fixture
def plain(engine: Engine) -> Iterator[Engine]:
    """An engine whose model is not told the choices, so that its prompts are short."""
    tuned = engine.model.tuned
    engine.model.tuned = replace(tuned, instruct=False)
    yield engine
    engine.model.tuned = tuned


def _asked(engine: Engine, *questions: Question) -> dict[str, Answer | StreamSTTMError]:
    for question in questions:
        engine.ask(question)
    told: dict[str, Answer | StreamSTTMError] = {}
    for outcome in _run(engine):
        if isinstance(outcome, Answer):
            told[outcome.question.id] = outcome
        elif isinstance(outcome, Unanswered):
            told[outcome.question.id] = outcome.error
    assert set(told) == {question.id for question in questions}
    return told


def _question(id_: str, form: Form = FREE_TEXT, text: str = "who is it?") -> Question:
    return Question(id_, "door", text, 1000.0, 12, form=form)


def _counted(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> list[tuple[int, int]]:
    """By step of the engine: launches of the layers, and the tokens that they ran."""
    steps: list[tuple[int, int]] = []
    run_layers, step = forward.run_layers, engine.step

    def counting(model: VideoLLM, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        launches, tokens = steps[-1]
        steps[-1] = (launches + 1, tokens + hidden.shape[0] * hidden.shape[1])
        return run_layers(model, hidden, *args, **kwargs)

    def stepping() -> list[Outcome]:
        steps.append((0, 0))
        return step()

    monkeypatch.setattr(forward, "run_layers", counting)
    monkeypatch.setattr(engine, "step", stepping)
    return steps


def _long(number: int, words: int = 8) -> tuple[str, ...]:
    """Choices that begin alike and end each in its own way."""
    return tuple(f"the one that is {at} {'x ' * words}{at}" for at in range(number))


@pytest.mark.parametrize("rows", [1, 16])
def test_no_step_reads_more_than_a_piece_however_many_options_there_are(
    plain: Engine, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    steps = _counted(monkeypatch, plain)
    questions = [
        _question(f"q{row}", Form(AnswerType.CHOICE, _long(64)), f"which of them, {row}?")
        for row in range(rows)
    ]
    told = _asked(plain, *questions)
    assert all(isinstance(answer, Answer) for answer in told.values())
    groups = 2  # of layers, before and behind the merge; each runs the same tokens
    assert max(tokens for _, tokens in steps) <= groups * PIECE
    assert max(launches for launches, _ in steps) <= groups
    assert len(steps) > rows * 2


def test_what_options_and_questions_share_is_read_once(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form(AnswerType.CHOICE, tuple(f"the one with {'x ' * 16}{at}" for at in range(32)))
    options = plain.formats.options(form)
    assert options is not None
    steps = _counted(monkeypatch, plain)
    _asked(plain, _question("alone", form))
    alone = sum(tokens for _, tokens in steps)
    assert alone < options.tokens  # though each of two groups of layers runs each token
    steps.clear()
    _asked(plain, *(_question(f"q{row}", form) for row in range(8)))
    assert sum(tokens for _, tokens in steps) == alone


def test_answers_are_written_between_the_pieces_of_options(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Form(AnswerType.CHOICE, _long(64))
    plain.ask(replace(_question("text"), max_new_tokens=2))
    for row in range(4):
        plain.ask(_question(f"q{row}", options, f"which of them, {row}?"))
    order = [outcome.question.id for outcome in _run(plain) if isinstance(outcome, Answer)]
    assert order[0] == "text"


def test_choices_of_too_many_tokens_are_refused_in_a_line(plain: Engine) -> None:
    form = Form(AnswerType.CHOICE, _long(64, words=70))
    with pytest.raises(QuestionRejected, match=r"choices: have \d+ tokens together; at most 2048"):
        plain.ask(_question("q", form))


def test_options_that_begin_alike_are_weighed_as_if_each_question_were_alone(
    engine: Engine,
) -> None:
    forms = {"a": ALIKE, "b": Form(AnswerType.CHOICE, ("a red circle", "a")), "c": YES_NO}
    alone = {name: _asked(engine, _question(name, form))[name] for name, form in forms.items()}
    # the last is the beginning of another's answer
    more = [
        _question("d", FREE_TEXT, "who is it? a red circle"),
        _question("e", ALIKE, "who is it? a"),
    ]
    told = _asked(engine, *(_question(name, form) for name, form in forms.items()), *more)
    for name, answer in alone.items():
        together = told[name]
        assert isinstance(answer, Answer)
        assert isinstance(together, Answer)
        assert (together.text, together.structured) == (answer.text, answer.structured)
        assert together.confidence == pytest.approx(answer.confidence, rel=1e-3)


def _fails(error: BaseException, where: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Let one question fail in one place: the one of type number, or whose text is bad."""

    def grammar(patch: pytest.MonkeyPatch) -> None:
        real = getattr(Grammar, where)
        seen: dict[int, Grammar] = {}

        def fail(self: Grammar, *args: Any) -> Any:
            seen[id(self)] = self
            if self is next(iter(seen.values())):
                raise error
            return real(self, *args)

        patch.setattr(Grammar, where, fail)

    def format_of(patch: pytest.MonkeyPatch) -> None:
        real = getattr(AnswerFormats, where)

        def fail(self: AnswerFormats, question: Any, *args: Any) -> Any:
            form = question.form if isinstance(question, Question) else question
            if form == NUMBER:
                raise error
            return real(self, question, *args)

        patch.setattr(AnswerFormats, where, fail)

    return grammar if where in ("allowed", "accept") else format_of


@pytest.mark.parametrize("error", [ValueError("two\nlines"), Panic("panicked"), KeyError("x")])
@pytest.mark.parametrize("where", ["prompt", "options", "grammar", "allowed", "accept"])
def test_a_row_ends_alone_and_in_words(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    where: str,
) -> None:
    questions = [_question("bad", NUMBER)]
    questions += [_question(f"good{at}", form) for at, form in enumerate(FORMS) if form != NUMBER]
    for question in questions:
        engine.ask(question)
    _fails(error, where)(monkeypatch)
    outcomes = _run(engine)
    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Unanswered)]
    assert failed.question.id == "bad"
    assert isinstance(failed.error, AnswerFailed)
    assert "\n" not in str(failed.error)
    good = {outcome.question.id for outcome in outcomes if isinstance(outcome, Answer)}
    assert good == {question.id for question in questions} - {"bad"}
    assert "Traceback" not in caplog.text


def test_a_batch_of_which_no_question_can_be_read_ends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(3):
        engine.ask(_question(f"q{at}", NUMBER))
    _fails(ValueError("no"), "prompt")(monkeypatch)
    assert [type(outcome) for outcome in _run(engine)] == [Unanswered] * 3
    assert engine.is_idle


def test_what_a_grammar_refuses_is_the_asker_s_fault(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Grammar) -> Tensor:
        raise self._error()

    monkeypatch.setattr(Grammar, "allowed", refuse)
    error = _asked(engine, _question("q", JSON))["q"]
    assert isinstance(error, QuestionRejected)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"const": 1}, "1e999"),
        ({"const": 1}, "-1e400"),
        ({"const": "x"}, '"\\ud800"'),
        ({"const": 1}, "9" * 5000),
    ],
)
def test_json_that_can_not_be_passed_on_is_no_answer(
    engine: Engine, tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, schema: object, text: str
) -> None:
    monkeypatch.setattr(type(tiny_model), "answer", lambda *_: text)
    form = Form(AnswerType.JSON, (), json.dumps(schema))
    error = _asked(engine, _question("q", form))["q"]
    assert isinstance(error, AnswerFailed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FORMS, ids=[form.type.value for form in FORMS])
def test_logits_that_are_no_numbers_are_no_answer_and_start_the_memory_anew(
    engine: Engine, tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, form: Form, value: float
) -> None:
    def broken(_: VideoLLM, hidden: Tensor) -> Tensor:
        return torch.full((len(hidden), tiny_model.vocabulary), value)

    before = _rebuilt()
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny_model), "logits", broken)
        told = _asked(engine, _question("q", form), _question("r"))
    assert [type(error) for error in told.values()] == [NotFinite] * 2
    assert _rebuilt() == before + 1  # once for both
    with pytest.raises(NoVideoYet, match="not a number"):
        engine.ask(_question("q", form))
    engine.observe(_clip(1))
    _run(engine)
    assert isinstance(_asked(engine, _question("q", form))["q"], Answer | QuestionError)


def _rebuilt() -> float:
    labels = {"stream": "door", "reason": "not_finite"}
    return REGISTRY.get_sample_value("stream_sttm_kv_rebuilds_total", labels) or 0.0


def test_one_row_s_logits_that_are_no_numbers_leave_others_their_answers(
    engine: Engine, tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(tiny_model).logits

    def broken(self: VideoLLM, hidden: Tensor) -> Tensor:
        logits = real(self, hidden)
        logits[0, 7] = torch.nan
        return logits

    monkeypatch.setattr(type(tiny_model), "logits", broken)
    told = _asked(engine, _question("a", YES_NO), _question("b", YES_NO))
    assert [type(told[name]) for name in ("a", "b")] == [NotFinite, Answer]


def test_a_damaged_memory_is_found_by_its_first_answer(
    engine: Engine, tiny_model: VideoLLM
) -> None:
    def damage(_: object, __: object, out: Any) -> Any:
        return out * torch.nan if isinstance(out, Tensor) else (out[0] * torch.nan, *out[1:])

    hook = tiny_model.layers[2].register_forward_hook(damage)
    engine.observe(_clip(1, seed=12))
    _run(engine)
    hook.remove()
    assert engine.sessions.of("door") is not None
    assert isinstance(_asked(engine, _question("q", YES_NO))["q"], NotFinite)
    assert engine.sessions.of("door") is None
