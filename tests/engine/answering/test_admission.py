"""Whatever somebody asks, admission answers in words: for each family, told the form of its answer or not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from stream_sttm.config.settings import AnsweringSettings, MemorySettings
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import NoVideoYet, QuestionRejected, StreamSTTMError
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import AnswerType, Form, Question

# what breaks tokenizers, templates, grammars, stores and JSON
_PARTS = [
    *("", " ", "\n", "a", "B", "é", "日本", "\U0001f600", "\u200b", "\u202e", "\ufffd", "\ufffe"),
    *("\x00", "\x07", "\x1a", "\x7f", "\ud800", "\udfff", "\ud83d\udc4b"),
    *("<|end|>", "<|video_pad|>", "\x1aquestion\x1a", "{choices}", "{0}", "%s", "$ref", "\\", '"'),
    *('{"type": "string"}', '{"pattern": "["}', '{"allOf": []}', "[]", "null", "1e999", "NaN"),
]


class Panic(BaseException):
    """What a Rust library raises when it panics is no Exception either."""


def _engine(model: VideoLLM) -> Engine:
    engine = Engine(
        model,
        memory=MemorySettings(window_tokens=256, horizon=1024),
        answering=AnsweringSettings(max_question_chars=200),
    )
    engine.open("door", fps=2)
    return engine


@pytest.fixture(params=[True, False], ids=["instruct", "plain"])
def engine(request: pytest.FixtureRequest, tiny_model: VideoLLM) -> Iterator[Engine]:
    """An engine of a tiny model of each family, told the form of its answer or not."""
    tuned = tiny_model.tuned
    tiny_model.tuned = replace(tuned, instruct=request.param)
    yield _engine(tiny_model)
    tiny_model.tuned = tuned


def _question(**fields: Any) -> Question:
    return replace(Question("q", "door", "Who?", 1000.0, 4), **fields)


def _refusal(engine: Engine, question: Question) -> StreamSTTMError:
    with pytest.raises(StreamSTTMError) as refused:
        engine.ask(question)
    line = str(refused.value)
    assert line.encode().decode() == line
    assert "\n" not in line
    return refused.value


def test_no_text_ends_admission_otherwise_than_in_a_line(engine: Engine) -> None:
    chance = random.Random(5)

    def text() -> str:
        return "".join(chance.choices(_PARTS, k=chance.randrange(5)))

    for _ in range(300):
        form = Form(
            chance.choice(list(AnswerType)),
            tuple(text() for _ in range(chance.randrange(4))),
            chance.choice(["", text()]),
        )
        turns = tuple((text(), text()) for _ in range(chance.randrange(3)))
        asked = _question(id=text(), text=text(), form=form, turns=turns)
        _refusal(engine, asked)  # a stream without video refuses what is well asked, too


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"form": Form(AnswerType.CHOICE, ("\ud800", "b"))},
            "choices: is no valid Unicode; send UTF-8",
        ),
        (
            {"form": Form(AnswerType.CHOICE, ("a\0", "b"))},
            "choices: has the control character U+0000; leave it out",
        ),
        ({"text": "a\x1bb"}, "question: has the control character U+001B; leave it out"),
        ({"turns": (("a", "\udfff"),)}, "question: is no valid Unicode; send UTF-8"),
        (
            {"form": Form(AnswerType.JSON, (), r'{"title": "\ud800"}')},
            "json_schema: is no valid Unicode; send UTF-8",
        ),
        (
            {"form": Form(AnswerType.JSON, (), r'{"properties": {"\u0000": {}}}')},
            "json_schema: has the control character U+0000; leave it out",
        ),
        (
            {"form": Form(AnswerType.JSON, (), '{"maximum": NaN}')},
            "json_schema: has NaN or an infinite number, which is not JSON",
        ),
        ({"id": "a\0"}, "id: has the control character U+0000; leave it out"),
    ],
)
def test_text_that_can_not_be_passed_on_is_refused(
    engine: Engine, fields: dict[str, Any], line: str
) -> None:
    refusal = _refusal(engine, _question(**fields))
    assert isinstance(refusal, QuestionRejected)
    assert str(refusal) == line


@pytest.mark.parametrize("text", ["a\tb\nc", "日本 \U0001f600", "<|end|> <|video_pad|>", "{0} %s"])
def test_odd_but_valid_text_is_taken(engine: Engine, text: str) -> None:
    form = Form(AnswerType.CHOICE, (text, "b"))
    assert isinstance(_refusal(engine, _question(text=text, form=form)), NoVideoYet)


@pytest.mark.parametrize(
    "error",
    [TypeError("two\nlines"), Panic("a Rust panic \ud800"), MemoryError(), RecursionError()],
)
def test_any_error_of_a_tokenizer_is_that_question_s_own(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(AnswerFormats, "prompt", fail)
    refusal = _refusal(_engine(tiny_model), _question())
    assert isinstance(refusal, QuestionRejected)
    assert str(refusal).startswith("the model can't read the question: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_not_held_up(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(AnswerFormats, "prompt", fail)
    with pytest.raises(error):
        _engine(tiny_model).ask(_question())
