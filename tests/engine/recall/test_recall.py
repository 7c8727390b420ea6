"""Recall as the engine's caller sees it: what a question wishes for, what it gets, and what it costs nobody else."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from stream_sttm.config.recall import RecallSettings
from stream_sttm.config.settings import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine.answering import batch as answering
from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.outcomes import Lost, Outcome, Progress, Unanswered
from stream_sttm.engine.plan import plan_for
from stream_sttm.errors import OutOfMemory, QuestionRejected
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.scene.truth import PAST
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Answer, AnswerType, Clip, Form, Frame, Question, Recall

STREAM, SIDE = "recalling", 48


def _clip(index: int, side: int = SIDE) -> Clip:
    generator = np.random.default_rng(index)
    frames = [
        Frame(STREAM, generator.integers(0, 255, (side, side, 3), dtype=np.uint8), at, at)
        for at in (float(2 * index), 2 * index + 1.0)
    ]
    return Clip(STREAM, index, tuple(frames))


def _engine(model: VideoLLM, when: Recall, **recall: object) -> Engine:
    settings = RecallSettings.model_validate({"when": when, "tokens": 64, **recall})
    engine = Engine(
        model,
        reducer=ReducerSettings(name="none"),
        memory=MemorySettings(
            window_tokens=96, shallow_tokens=96, horizon=1920, fresh_frames=0, recall=settings
        ),
        answering=AnsweringSettings(max_new_tokens=6),
        clock=lambda: 0.0,
    )
    engine.open(STREAM, fps=1)
    return engine


def _run(engine: Engine) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while not engine.is_idle:
        outcomes += engine.step()
    return outcomes


def _show(engine: Engine, clips: int, first: int = 0) -> None:
    for index in range(first, first + clips):
        engine.observe(_clip(index))
        _run(engine)


def _ask(engine: Engine, *wishes: Recall | None) -> dict[str, Answer]:
    for place, recall in enumerate(wishes):
        text = "what was there?" if place % 2 else "is it still there now?"
        engine.ask(Question(f"q{place}", STREAM, text, 0.0, 6, recall=recall))
    answers = [outcome for outcome in _run(engine) if isinstance(outcome, Answer)]
    return {answer.question.id: answer for answer in answers}


def test_a_question_gets_as_much_of_the_past_as_it_wishes_for(tiny_model: VideoLLM) -> None:
    before = REGISTRY.get_sample_value("stream_sttm_recalled_tokens_total", {"stream": STREAM}) or 0
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    kept = REGISTRY.get_sample_value("stream_sttm_archive_bytes", {"stream": STREAM})
    assert kept is not None
    assert kept > 0
    answers = _ask(engine, None, "always", "never")
    assert [answers[f"q{n}"].tokens.recalled for n in range(3)] == [64, 64, 0]
    assert answers["q0"].tokens.visual == answers["q2"].tokens.visual + 64
    assert answers["q0"].as_dict(published_at=0.0)["tokens"]["recalled"] == 64
    assert answers["q0"].seconds.recall > 0
    assert answers["q0"].seconds.recall != answers["q1"].seconds.recall, "each has its own"
    assert answers["q2"].seconds.recall == 0
    assert answers["q0"].span[0] < answers["q2"].span[0]
    assert answers["q0"].span[1] == answers["q2"].span[1] == 59.0
    after = REGISTRY.get_sample_value("stream_sttm_recalled_tokens_total", {"stream": STREAM})
    assert after == before + 128


def test_what_fresh_frames_cost_is_told_once_for_all_that_share_them(tiny_model: VideoLLM) -> None:
    """The same pictures again and again, so that a fresh view shows more than the memory holds."""
    engine = Engine(
        tiny_model,
        memory=MemorySettings(window_tokens=96, horizon=1920, fresh_frames=0),
        clock=lambda: 0.0,
    )
    engine.open(STREAM, fps=1)
    for index in range(4):
        engine.observe(replace(_clip(0), index=index))
        _run(engine)
    session = engine.sessions.of(STREAM)
    assert session is not None
    cells = session.grid[0] * session.grid[1]
    for place, fresh in enumerate((2, 2, None)):
        engine.ask(Question(f"q{place}", STREAM, "what is it?", 0.0, 6, fresh_frames=fresh))
    got = {one.question.id: one for one in _run(engine) if isinstance(one, Answer)}
    assert [got[f"q{n}"].tokens.fresh for n in range(3)] == [2 * cells, 2 * cells, 0]
    first, second, none = (got[f"q{n}"].as_dict(published_at=0.0)["seconds"] for n in range(3))
    assert first == second
    assert first["fresh"] > 0
    assert none == {"fresh": 0.0, "recall": 0.0}


def test_what_others_recall_changes_no_answer(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    together = _ask(engine, "always", "never", "always", "never")
    alone = [
        _ask(engine, *["never"] * n, wish)[f"q{n}"] for n, wish in enumerate(("always", "never"))
    ]
    assert [together["q0"].text, together["q1"].text] == [one.text for one in alone]
    assert [together["q2"].text, together["q3"].text] == [one.text for one in alone]


def test_a_question_about_the_last_seconds_recalls_nothing(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    plain = Question("all", STREAM, "what was there?", 0.0, 6)
    looks = {
        "last": replace(plain, id="last", window_s=3.0),
        "wishing": replace(plain, id="wishing", window_s=3.0, recall="always"),
        "fresh": replace(plain, id="fresh", fresh_frames=2),
        "all": plain,
    }
    for question in looks.values():
        engine.ask(question)
    got = {one.question.id: one for one in _run(engine) if isinstance(one, Answer)}
    assert {id_: got[id_].tokens.recalled for id_ in looks} == {
        "last": 0,
        "wishing": 0,
        "fresh": 64,
        "all": 64,
    }
    assert all(got[id_].span[0] >= 56 for id_ in ("last", "wishing"))


@pytest.mark.parametrize(
    "form",
    [
        Form(AnswerType.YES_NO),
        Form(AnswerType.CHOICE, ("one red car", "one red van")),
        Form(AnswerType.NUMBER),
    ],
    ids=lambda form: form.type,
)
def test_an_answer_from_the_past_has_its_form(tiny_model: VideoLLM, form: Form) -> None:
    engine = _engine(tiny_model, "auto")
    _show(engine, 30)
    for recall in ("always", "never"):
        engine.ask(Question(recall, STREAM, "what was it?", 0.0, 24, form=form, recall=recall))  # type: ignore[arg-type]
    answers = {one.question.id: one for one in _run(engine) if isinstance(one, Answer)}
    assert {id_: one.tokens.recalled for id_, one in answers.items()} == {"always": 64, "never": 0}
    assert all(one.structured is not None for one in answers.values())


def test_an_answer_from_the_past_is_told_as_it_is_written(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    engine.ask(Question("q", STREAM, "what was there?", 0.0, 6, is_streamed=True))
    *told, last = _run(engine)
    assert isinstance(last, Answer)
    assert last.tokens.recalled == 64
    assert all(isinstance(one, Progress) for one in told)
    assert len(told) == last.tokens.answer - 1


@pytest.mark.parametrize("is_at_once", [True, False])
def test_who_can_not_be_answered_is_told_so_once(
    tiny_model: VideoLLM, is_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tiny_model, "auto")
    _show(engine, 30)
    for place, recall in enumerate(("always", "never", "always")):
        engine.ask(Question(f"q{place}", STREAM, "what?", 0.0, 6, recall=recall))  # type: ignore[arg-type]
    outcomes = [] if is_at_once else engine.step()
    monkeypatch.setattr(tiny_model, "logits", lambda _: 1 / 0)
    outcomes += _run(engine)
    assert [type(outcome) for outcome in outcomes] == [Unanswered] * 3
    asked = [outcome.question.id for outcome in outcomes if isinstance(outcome, Unanswered)]
    assert sorted(asked) == ["q0", "q1", "q2"]


@pytest.mark.parametrize("is_read_at_once", [True, False])
@pytest.mark.parametrize("wish", ["auto", "always"])
def test_a_batch_that_finds_no_room_takes_no_answer_of_others_with_it(
    tiny_model: VideoLLM, wish: Recall, is_read_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are answered by the very step that sets the question aside."""
    engine = _engine(tiny_model, "auto")
    _show(engine, 30)
    begin = AnswerBatch._allocate

    def full_for_one(batch: AnswerBatch) -> None:
        """Room for a batch of several, on a device that has none for whoever asks alone."""
        if len(batch.questions) == 1:
            raise torch.OutOfMemoryError("out of memory")
        begin(batch)

    monkeypatch.setattr(AnswerBatch, "_allocate", full_for_one)
    monkeypatch.setattr(answering, "PIECE", 512 if is_read_at_once else 8)
    monkeypatch.setattr(tiny_model, "tuned", replace(tiny_model.tuned, recall_from=-1.0))
    wishes: dict[str, Recall] = {"here": "never", "there": "never", "back": wish}
    for id_, recall in wishes.items():
        form = Form(AnswerType.YES_NO)
        engine.ask(Question(id_, STREAM, "is it there?", 0.0, 6, form=form, recall=recall))
    outcomes = _run(engine)
    answers = [one.question.id for one in outcomes if isinstance(one, Answer)]
    [failed] = [one for one in outcomes if isinstance(one, Unanswered)]
    assert (sorted(answers), failed.question.id) == (["here", "there"], "back")
    assert isinstance(failed.error, OutOfMemory)
    assert "\n" not in str(failed.error)
    monkeypatch.setattr(AnswerBatch, "_allocate", begin)
    assert _ask(engine, "always")["q0"].tokens.recalled == 64


@pytest.mark.parametrize("is_sought", [True, False])
def test_on_its_own_a_question_recalls_only_where_it_looks_back(
    tiny_model: VideoLLM, is_sought: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tiny_model.tuned
    engine = _engine(tiny_model, "auto")
    _show(engine, 30)
    share = -1.0 if is_sought else 2.0
    monkeypatch.setattr(tiny_model, "tuned", replace(tuned, recall_from=share))
    answers = _ask(engine, None, None, "never")
    assert [answers[f"q{n}"].tokens.recalled > 0 for n in range(3)] == [is_sought, is_sought, False]


def test_without_recall_nothing_is_kept_and_the_whole_horizon_is_the_memorys(
    tiny_model: VideoLLM,
) -> None:
    engine = _engine(tiny_model, "never")
    _show(engine, 12)
    assert engine.plan.recall is None
    assert engine.plan.horizon == 1920
    assert REGISTRY.get_sample_value("stream_sttm_archive_bytes", {"stream": STREAM}) == 0
    assert _ask(engine, None, "auto")["q1"].tokens.recalled == 0
    with pytest.raises(QuestionRejected, match=r"set memory.recall.when to auto or always"):
        engine.ask(Question("q", STREAM, "what?", 0.0, 6, recall="always"))
    plan = plan_for(
        tiny_model,
        ReducerSettings(),
        MemorySettings(horizon=1600, recall=RecallSettings(when="auto")),
    )
    assert plan.recall is not None
    assert (plan.horizon, plan.recall.room) == (1200, 400)


def test_the_past_outlives_a_memory_that_was_lost(tiny_model: VideoLLM, tmp_path: Path) -> None:
    engine = _engine(tiny_model, "always", dir=str(tmp_path))
    _show(engine, 4)
    assert _ask(engine, None)["q0"].tokens.recalled > 0
    encode = tiny_model.encode
    try:
        tiny_model.encode = None  # type: ignore[method-assign,assignment]
        engine.observe(_clip(4))
        assert [type(outcome) for outcome in _run(engine)] == [Lost]
    finally:
        tiny_model.encode = encode  # type: ignore[method-assign]
    _show(engine, 1, first=5)
    answer = _ask(engine, None)["q0"]
    assert answer.tokens.recalled == 64
    assert answer.span[0] < 8, "it was shown before the memory was lost"
    assert answer.span[1] == 11.0
    assert list(tmp_path.iterdir()) == []
    engine.close(STREAM)
    engine.open(STREAM, fps=1)
    _show(engine, 1)
    assert _ask(engine, None)["q0"].tokens.recalled == 0


def test_what_only_the_past_shows_is_told_by_whoever_recalls_it() -> None:
    """Things that were gone long before the memory begins, asked of a drawn scene by their place and colour."""
    engine = Engine(
        load_model("demo"),
        reducer=ReducerSettings.model_validate(
            {"spatial_threshold": 0.97, "temporal_threshold": 0.97}
        ),
        memory=MemorySettings(
            window_tokens=128, shallow_tokens=2048, recall=RecallSettings(when="auto")
        ),
    )
    scene, seconds = Scene(3), 70
    engine.open("drawn", fps=2)
    for index in range(seconds):
        frames = [Frame("drawn", scene.render(at, 96), at, at) for at in (index, index + 0.5)]
        engine.observe(Clip("drawn", index, tuple(frames)))
        _run(engine)
    begin = seconds - engine.sessions.of("drawn").span_seconds - 2
    asked = [
        one
        for one in scene.questions(0.0, seconds - 0.5)
        if one.kind in PAST and one.age is not None and seconds - one.age < begin
    ]
    right = dict.fromkeys(("never", "always"), 0)
    for wish in right:
        for place, one in enumerate(asked):
            engine.ask(Question(str(place), "drawn", one.text, time.time(), 40, recall=wish))  # type: ignore[arg-type]
            [answer] = [outcome for outcome in _run(engine) if isinstance(outcome, Answer)]
            right[wish] += answer.text == one.truth
            assert (answer.tokens.recalled > 0) == (wish == "always")
    assert right["always"] > right["never"]
