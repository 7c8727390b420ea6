"""Answers in a form: decided by probability without writing, or written under a grammar so that they always parse."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from stream_sttm.config.settings import MemorySettings, ReducerSettings
from stream_sttm.engine.answering import batch as answering
from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.answering.formats import AnswerFormats, structured
from stream_sttm.engine.answering.sequence import Completion
from stream_sttm.engine.plan import plan_for
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.snapshot import take_view
from stream_sttm.engine.view import View
from stream_sttm.errors import QuestionRejected
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import build_reducer
from stream_sttm.types import FREE_TEXT, AnswerType, Form, Question

YES_NO, NUMBER = Form(AnswerType.YES_NO), Form(AnswerType.NUMBER)
ALIKE = ("a red circle", "a red square", "a", "nothing")  # the first three begin alike


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture
def view(tiny_model: VideoLLM) -> View:
    memory = MemorySettings(window_tokens=64, horizon=300)
    plan = plan_for(tiny_model, ReducerSettings(), memory)
    session = StreamSession(tiny_model, build_reducer("none"), plan, stream="cam", fps=2.0)
    width = tiny_model.text.config.hidden_size
    frames = torch.randn(3, 2, 2, width, generator=torch.Generator().manual_seed(0))
    session.append(frames, [0.0, 0.5, 1.0])
    return take_view(session)


def choice(*texts: str) -> Form:
    return Form(AnswerType.CHOICE, texts)


def schema(told: object) -> Form:
    return Form(AnswerType.JSON, (), json.dumps(told))


def asked(text: str, form: Form = FREE_TEXT, most: int = 24) -> Question:
    return Question(f"{text} {form}", "cam", text, 0.0, most, form=form)


def answers(model: VideoLLM, view: View, *questions: Question) -> list[Completion]:
    batch = AnswerBatch(model, view, questions, AnswerFormats(model))
    done = batch.step()
    while batch.questions:
        done += batch.step()
    by_id = {one.question.id: one for one in done}
    return [by_id[question.id] for question in questions]


def logs_after(model: VideoLLM, view: View, question: Question, *said: int) -> Tensor:
    """(V,) log-probabilities of the next token when `said` was said already, by reading all of it as the question."""
    known = AnswerFormats(model)
    ids = [*known.prompt(question), *said]
    known.prompt = lambda *_: ids  # type: ignore[method-assign]
    seen: list[Tensor] = []
    batch = AnswerBatch(model, view, [asked("", most=1)], known)
    batch._choose_tokens = lambda logits: seen.append(logits) or []  # type: ignore[method-assign,func-returns-value]
    batch.step()
    return seen[0][0].log_softmax(dim=0)


def test_yes_or_no_takes_no_step_beyond_reading_the_question(
    tiny_model: VideoLLM, view: View
) -> None:
    batch = AnswerBatch(
        tiny_model, view, [asked("is it there?", YES_NO)], AnswerFormats(tiny_model)
    )
    (done,) = batch.step()
    assert batch.questions == []
    assert done.tokens.answer == 0
    assert done.text == ("yes" if done.structured else "no")


def test_confidence_of_yes_is_its_share_of_the_first_token(
    tiny_model: VideoLLM, view: View
) -> None:
    question = asked("is it there?", YES_NO)
    options = AnswerFormats(tiny_model).options(YES_NO)
    assert options is not None
    logs = logs_after(tiny_model, view, question)
    begun = [{ids[0] for ids in option.spellings} for option in options.options]
    yes, no = (sum(logs[token].exp() for token in tokens) for tokens in begun)
    (done,) = answers(tiny_model, view, question)
    assert done.structured is bool(yes > no)
    assert done.confidence == pytest.approx(float(max(yes, no) / (yes + no)), rel=1e-3)


def test_options_that_begin_alike_are_scored_to_their_end(tiny_model: VideoLLM, view: View) -> None:
    question = asked("what is it?", choice(*ALIKE))
    options = AnswerFormats(tiny_model).options(question.form)
    assert options is not None
    assert not options.differ_in_first_token
    first, scores = logs_after(tiny_model, view, question), []
    for option in options.options:
        ids = max(option.spellings, key=lambda ids: float(first[ids[0]]))
        score = sum(
            float(logs_after(tiny_model, view, question, *ids[:at])[token])
            for at, token in enumerate(ids)
        )
        after = logs_after(tiny_model, view, question, *ids)
        scores.append(score + float(after[sorted(tiny_model.eos)].logsumexp(dim=0)))
    best = torch.tensor(scores).softmax(dim=0)
    (done,) = answers(tiny_model, view, question)
    assert done.text == done.structured == ALIKE[int(best.argmax())]
    assert done.confidence == pytest.approx(float(best.max()), rel=1e-3)


def test_scoring_in_pieces_changes_nothing(
    tiny_model: VideoLLM, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = asked("what is it?", choice(*ALIKE))
    (whole,) = answers(tiny_model, view, question)
    monkeypatch.setattr(answering, "PIECE", 5)
    (pieces,) = answers(tiny_model, view, question)
    assert pieces.text == whole.text
    assert pieces.confidence == pytest.approx(whole.confidence, rel=1e-4)


def test_forms_answered_together_are_what_each_is_alone(tiny_model: VideoLLM, view: View) -> None:
    questions = [
        asked("what is it?", choice(*ALIKE)),
        asked("tell me all that there is to see in this long, long question, please", most=5),
        asked("is it there?", YES_NO),
        asked("how many?", NUMBER),
        asked("which?", choice("open", "shut")),
    ]
    together = answers(tiny_model, view, *questions)
    for question, one in zip(questions, together, strict=True):
        (alone,) = answers(tiny_model, view, question)
        assert (one.text, one.structured, one.tokens) == (
            alone.text,
            alone.structured,
            alone.tokens,
        )
        if alone.confidence is not None:
            assert one.confidence == pytest.approx(alone.confidence, rel=1e-3)


@pytest.mark.parametrize("text", ["how many?", "", "12", "сколько?", "how many red circles?"])
def test_number_always_parses(tiny_model: VideoLLM, view: View, text: str) -> None:
    (done,) = answers(tiny_model, view, asked(text, NUMBER))
    assert isinstance(done.structured, int | float)
    assert done.confidence is not None
    assert 0 < done.confidence <= 1


@pytest.mark.parametrize(
    ("text", "value"),
    [(" two", 2), ("Zero", 0), ("-3", -3), ("2.50", 2.5), ("007", 7), (" 12", 12)],
)
def test_number_is_read_in_words_and_digits(text: str, value: float) -> None:
    assert structured(text, NUMBER) == value
    assert type(structured(text, NUMBER)) is type(value)


def test_json_follows_its_schema_whatever_the_model_would_say(
    tiny_model: VideoLLM, view: View
) -> None:
    told = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["person", "car"]},
            "sure": {"type": "boolean"},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["kind", "sure", "count"],
        "additionalProperties": False,
    }
    (done,) = answers(tiny_model, view, asked("what is it?", schema(told), most=200))
    assert done.error is None
    assert done.structured == json.loads(done.text)
    assert isinstance(done.structured, dict)
    assert set(done.structured) == {"kind", "sure", "count"}
    assert done.structured["kind"] in ("person", "car")
    assert type(done.structured["sure"]) is bool
    assert 0 <= done.structured["count"] <= 9


def test_json_that_does_not_end_in_its_tokens_is_told(tiny_model: VideoLLM, view: View) -> None:
    told = schema({"type": "array", "items": {"type": "string"}, "minItems": 50})
    (done,) = answers(tiny_model, view, asked("what is it?", told, most=8))
    assert "has not ended after 8 tokens; raise max_new_tokens" in str(done.error)


def test_number_is_never_cut(tiny_model: VideoLLM, view: View) -> None:
    (whole,) = answers(tiny_model, view, asked("how many?", NUMBER))
    (cut,) = answers(tiny_model, view, asked("how many?", NUMBER, most=1))
    assert cut.error is not None or cut.structured == whole.structured


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "json_schema: no answer can follow it"),
        ({"type": "nonsense"}, "json_schema: "),
        ({"$ref": "http://127.0.0.1/schema.json"}, "json_schema: "),
        ({"$ref": "#/nowhere"}, "json_schema: "),
        ({"type": "string", "pattern": "(("}, "json_schema: "),
    ],
)
def test_schema_that_can_not_be_met_is_refused_in_a_line(
    tiny_model: VideoLLM, told: object, line: str
) -> None:
    with pytest.raises(QuestionRejected, match=line) as caught:
        AnswerFormats(tiny_model).check(schema(told))
    assert "\n" not in str(caught.value)


def test_model_is_told_the_form_unless_it_was_not_taught_that(tiny_model: VideoLLM) -> None:
    known = AnswerFormats(tiny_model)
    told = tiny_model.tokenizer.decode(known.prompt(asked("which?", choice("open", "shut"))))
    assert "which?\nanswer with one of: open; shut." in told.casefold()
    assert known.prompt(asked("which?")) == tiny_model.ask("which?")
