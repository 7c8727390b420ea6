"""Earlier answers as text before a question that looks back: which, in what words, and to whom."""

from __future__ import annotations

import pytest

from stream_sttm.config.recall import RecallSettings
from stream_sttm.config.settings import MemorySettings, ReducerSettings
from stream_sttm.engine.answering.history_prompt import history_prompt
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.plan import plan_for
from stream_sttm.engine.recall.archived import PastAnswer
from stream_sttm.engine.snapshot import take_view
from stream_sttm.errors import ConfigError
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Answer, AnswerType, Form, Question, Recall
from tests.engine.recall.test_recall import STREAM, _engine, _run, _show

HEAD = "What was asked and answered about this video before:"


def test_events_are_told_a_line_each_by_how_long_ago_they_were() -> None:
    events = [
        PastAnswer("gate", "Is it\nopen?", "yes", 0.0, 20_000.0 - 5340),
        PastAnswer("person", "Who is there?", "  nobody\n at all ", 19_000.0, 19_010.0),
        PastAnswer("scene", "What is there?", "x" * 300, 19_960.0, 19_999.6),
        PastAnswer("late", "And now?", "no", 20_001.0, 20_001.0),
    ]
    assert history_prompt(events, now=20_000.0) == (
        f"{HEAD}\n"
        "- 5.6 h to 89 min ago: Is it open? yes\n"
        "- 17 min to 16 min ago: Who is there? nobody at all\n"
        f"- 40 s to 0 s ago: What is there? {'x' * 200}…\n"
        "- 0 s ago: And now? no\n"
        "\n"
    )
    assert history_prompt([], now=0.0) == ""


def _watched(model: VideoLLM, log: int) -> Engine:
    """For a minute, asked two standing questions every ten seconds."""
    engine = _engine(model, "auto", log=log)
    object.__setattr__(engine.plan, "question_tokens", 400)  # its context has room for 64
    for turn in range(6):
        _show(engine, 5, first=5 * turn)
        for query, text in (("gate", "open?"), ("person", f"who {turn}?")):
            engine.ask(
                Question(f"{query}{turn}", STREAM, text, 0.0, 6, query, form=Form(AnswerType.YES_NO), recall="never")
            )  # fmt: skip
        _run(engine)
    return engine


def _asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, recall: Recall, query: str | None = None
) -> tuple[str, Answer]:
    """Return the words that the model read last, and its answer."""
    read, forms = list[str](), engine.formats
    asked = forms._tokenize
    monkeypatch.setattr(forms, "_tokenize", lambda text, turns=(): read.append(text) or asked(text, turns))  # type: ignore[func-returns-value]  # fmt: skip
    engine.ask(Question("q", STREAM, "What was there? ", 0.0, 6, query, recall=recall))
    [answer] = [one for one in _run(engine) if isinstance(one, Answer)]
    monkeypatch.setattr(forms, "_tokenize", asked)
    prompts = [text for text in read if text != "What was there? "]  # what is searched by
    return prompts[-1], answer


def test_a_question_that_looks_back_is_told_what_was_answered_before_the_memory_begins(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _watched(tiny_model, log=3)
    events = {event.question: event for event in engine.sessions.saved_past(STREAM).snapshot.events}  # type: ignore[union-attr]
    text, answer = _asked(engine, monkeypatch, "always")
    begin = take_view(engine.sessions.of(STREAM)).span[0]  # type: ignore[arg-type]
    told = [
        event
        for event in (events["open?"], *(events[f"who {turn}?"] for turn in range(6)))
        if event.since <= begin
    ][-3:]
    assert len(told) == 3
    assert told[-1].since + 10 > begin, "the newest of those are told"
    lines = [f"- {59 - event.since:.0f} s ago: {event.question} {event.answer}" for event in told]
    assert text == "\n".join([HEAD, *lines, "", "What was there?"])
    assert answer.question.text == "What was there? "
    assert answer.tokens.question == len(tiny_model.ask(text))
    assert _asked(engine, monkeypatch, "never")[0] == "What was there?"


def test_a_standing_question_is_not_told_its_own_answers(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, _ = _asked(_watched(tiny_model, log=64), monkeypatch, "always", query="person")
    assert "who" not in text
    assert text.count("open?") >= 1


def test_what_a_question_has_no_room_for_is_not_told(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _watched(tiny_model, log=64)
    counts = []
    for room in (40, 60, 100):
        object.__setattr__(engine.plan, "question_tokens", room)
        text, answer = _asked(engine, monkeypatch, "always")
        assert answer.tokens.question + 6 <= room
        counts.append(text.count("\n- "))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_by_default_nothing_is_told_and_a_model_that_takes_no_text_refuses_it(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RecallSettings().log == 0
    assert _asked(_watched(tiny_model, log=0), monkeypatch, "always")[0] == "What was there?"
    wanted = MemorySettings(recall=RecallSettings(when="auto", log=4))
    with pytest.raises(
        ConfigError, match=r"memory\.recall\.log: the model follows no instructions"
    ):
        plan_for(load_model("demo"), ReducerSettings(), wanted)
