"""The engine as its caller sees it: outcomes for everything, clear refusals, one stream's failure its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from stream_sttm.config.settings import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.engine.engine import Engine
from stream_sttm.engine.outcomes import Lost, Observed, Outcome, Unanswered
from stream_sttm.engine.plan import plan_for, reducer_for
from stream_sttm.errors import (
    ConfigError,
    NoVideoYet,
    OutOfMemory,
    QuestionRejected,
    TooManyQuestions,
    UnknownStream,
)
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers.sttm_streaming import SttmStreaming
from stream_sttm.types import Answer, AnswerType, Clip, Form, Frame, Question


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _clip(stream: str, index: int, frames: int = 2, side: int = 48) -> Clip:
    generator = np.random.default_rng(11)
    image = generator.integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Clip(
        stream,
        index,
        tuple(Frame(stream, image, float(index + i), 900.0 + index + i) for i in range(frames)),
    )


def _question(stream: str, text: str, *, id_: str = "q", at: float = 1000.0) -> Question:
    return Question(id_, stream, text, at, 6)


def _engine(model: VideoLLM, clock: Clock | None = None, **settings: object) -> Engine:
    engine = Engine(
        model,
        memory=MemorySettings(window_tokens=512, horizon=1920),
        answering=AnsweringSettings(max_question_chars=40, max_waiting=2),
        clock=clock or Clock(),
        **settings,  # type: ignore[arg-type]
    )
    engine.open("door", fps=2)
    engine.open("yard", fps=2)
    return engine


def _run(engine: Engine) -> list[Outcome]:
    outcomes: list[Outcome] = []
    while not engine.is_idle:
        outcomes += engine.step()
    return outcomes


def test_clips_and_questions_come_back_as_outcomes(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    [observed] = _run(engine)
    assert isinstance(observed, Observed)
    assert 0 < observed.after_merge <= observed.before_merge
    engine.ask(_question("door", "what is there?"))
    [answer] = _run(engine)
    assert isinstance(answer, Answer)
    newest = 901.0
    assert answer.span[1] == newest
    assert answer.tokens.answer <= 6
    payload = answer.as_dict(published_at=newest + 1.5)
    assert payload["event_to_answer_ms"] == 1500.0
    assert payload["model"] == tiny_model.name


def test_a_question_never_encodes_video_again(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    _run(engine)

    def refuse(_: object) -> torch.Tensor:
        raise AssertionError("encoded again")

    monkeypatch.setattr(tiny_model, "encode", refuse)
    engine.ask(_question("door", "what is there?"))
    assert [type(outcome) for outcome in _run(engine)] == [Answer]


class Tower:
    """A model's vision tower that counts the windows it saw."""

    def __init__(self, model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.windows = 0
        self._encode = model.encode
        monkeypatch.setattr(model, "encode", self)

    def __call__(self, pixels: Any) -> torch.Tensor:
        self.windows += 1
        return self._encode(pixels)


def _vision_tokens(stream: str) -> tuple[float, ...]:
    """Of a stream's visual tokens, how many were encoded and how many reused."""
    found = (
        REGISTRY.get_sample_value(
            "stream_sttm_vision_tokens_total", {"stream": stream, "work": work}
        )
        for work in ("encoded", "reused")
    )
    return tuple(count or 0.0 for count in found)


def test_a_clip_that_shows_nothing_new_never_sees_the_vision_tower_and_is_counted(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = Tower(tiny_model, monkeypatch)
    engine = _engine(tiny_model)
    before = _vision_tokens("door")
    outcomes = []
    for index in range(4):
        engine.observe(replace(_clip("door", index), same_as=0 if index else None))
        outcomes += _run(engine)
    assert tower.windows == 1
    seen = [outcome for outcome in outcomes if isinstance(outcome, Observed)]
    assert [one.after_merge for one in seen][1:] == [0, 0, 0]
    [count] = {one.before_merge for one in seen}
    assert _vision_tokens("door") == (before[0] + count, before[1] + 3 * count)
    engine.ask(_question("door", "what is there?"))
    [answer] = _run(engine)
    assert isinstance(answer, Answer)
    assert answer.span == (900.0 + (tiny_model.frames_per_token - 1), 904.0)


def test_a_clip_whose_original_was_dropped_on_its_way_is_encoded_and_stands_in_for_it(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = Tower(tiny_model, monkeypatch)
    engine = _engine(tiny_model)
    clips = [_clip("door", index) for index in range(6)]
    seen = []
    for clip in (clips[0], *(replace(clip, same_as=1) for clip in clips[2:5])):  # 1 is missing
        engine.observe(clip)
        _run(engine)
        seen.append(tower.windows)
    assert seen == [1, 2, 2, 2]


def _pictures(index: int, *, changed: bool) -> Clip:
    """Return a window of a still picture, or of one with a bright spot in it, marked as the gate does."""
    plain = _clip("door", index)
    image = plain.frames[0].image.copy()
    if changed:
        image[8:16, 8:16] = 255
    where = np.zeros((6, 6), np.bool_)
    where[1, 1] = True
    frames = tuple(replace(frame, image=image) for frame in plain.frames)
    return replace(plain, frames=frames, changed=where if changed else None)


def test_where_little_has_changed_a_family_that_can_encodes_that_alone(
    tiny_model: VideoLLM,
) -> None:
    can = type(tiny_model).encode_regions is not VideoLLM.encode_regions
    for regions in (True, False):
        engine = _engine(tiny_model)
        engine.open("door", fps=2, regions=regions)
        engine.observe(_pictures(0, changed=False))
        [whole] = _run(engine)
        assert isinstance(whole, Observed)
        before = _vision_tokens("door")
        engine.observe(replace(_pictures(1, changed=True), same_as=0))
        [part] = _run(engine)
        encoded, reused = (
            now - then for now, then in zip(_vision_tokens("door"), before, strict=True)
        )
        assert isinstance(part, Observed)
        assert encoded + reused == whole.before_merge == part.before_merge
        assert (0 < encoded < whole.before_merge / 2) == (can and regions)
        engine.observe(replace(_clip("door", 2), same_as=1))  # and on from there
        [still] = _run(engine)
        assert isinstance(still, Observed)
        assert _vision_tokens("door")[1] == before[1] + reused + whole.before_merge


def test_what_was_encoded_in_parts_is_encoded_as_a_whole_once_it_is_still(
    tiny_model: VideoLLM,
) -> None:
    """And only that: a model that had all of the last change needs no more."""
    can = type(tiny_model).encode_regions is not VideoLLM.encode_regions
    for regions in (True, False):
        engine = _engine(tiny_model)
        engine.open("door", fps=2, regions=regions)
        engine.observe(_pictures(0, changed=False))
        engine.observe(replace(_pictures(1, changed=True), same_as=0))
        _run(engine)
        clips = [replace(_clip("door", 2), same_as=1, wants_whole=True)]
        clips += [replace(_clip("door", index), same_as=2) for index in (3, 4)]
        for clip in clips:
            before = _vision_tokens("door")
            engine.observe(clip)
            [outcome] = _run(engine)
            assert isinstance(outcome, Observed)
            after = _vision_tokens("door")
            is_encoded = clip.wants_whole and can and regions
            assert after[0] - before[0] == (outcome.before_merge if is_encoded else 0)
            assert sum(after) - sum(before) == outcome.before_merge


def test_where_the_clip_it_builds_on_was_dropped_all_is_encoded(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model)
    engine.open("door", fps=2, regions=True)
    engine.observe(_pictures(0, changed=False))
    _run(engine)
    before = _vision_tokens("door")
    engine.observe(replace(_pictures(2, changed=True), same_as=1))
    [outcome] = _run(engine)
    assert isinstance(outcome, Observed)
    assert _vision_tokens("door") == (before[0] + outcome.before_merge, before[1])


def test_after_a_lost_or_removed_memory_a_clip_that_shows_nothing_new_is_encoded(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = Tower(tiny_model, monkeypatch)
    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    _run(engine)
    engine.close("door")
    engine.open("door", fps=2)
    for index in (1, 2):
        engine.observe(replace(_clip("door", index), same_as=0))
        _run(engine)
    assert tower.windows == 2
    saved = engine.sessions.saved("door")
    assert saved is not None
    engine.sessions.restore(saved)
    engine.observe(replace(_clip("door", 3), same_as=0))
    _run(engine)
    assert tower.windows == 3


@pytest.mark.parametrize(
    ("stream", "text", "error", "words"),
    [
        ("dor", "hi", UnknownStream, "did you mean 'door'"),
        ("door", "  \n", QuestionRejected, "empty"),
        ("door", "x" * 41, QuestionRejected, "41 characters; at most 40"),
        (
            "door",
            "\U0001f600" * 40,
            QuestionRejected,
            r"have \d+ tokens; the model has room for 64",
        ),
        ("yard", "hi", NoVideoYet, "has shown no video yet"),
    ],
)
def test_a_bad_question_is_refused_in_words(
    tiny_model: VideoLLM, stream: str, text: str, error: type[Exception], words: str
) -> None:
    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    _run(engine)
    with pytest.raises(error, match=words):
        engine.ask(_question(stream, text))


def test_a_question_that_waited_too_long_is_told_so(tiny_model: VideoLLM) -> None:
    clock = Clock()
    engine = _engine(tiny_model, clock)
    engine.observe(_clip("door", 0))
    _run(engine)
    engine.ask(_question("door", "what?", at=clock.now))
    clock.now += 31
    [outcome] = _run(engine) or engine.step()
    assert isinstance(outcome, Unanswered)
    assert "30 s" in str(outcome.error)


def test_where_there_is_no_room_to_write_what_needed_none_is_answered_all_the_same(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    _run(engine)
    monkeypatch.setattr(SuffixCache, "expand", full)
    weighed = replace(_question("door", "is it there?", id_="a"), form=Form(AnswerType.YES_NO))
    engine.ask(weighed)
    engine.ask(_question("door", "what is there?", id_="b"))
    outcomes = _run(engine)
    [answer] = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Unanswered)]
    assert (answer.question.id, failed.question.id) == ("a", "b")
    assert isinstance(failed.error, OutOfMemory)


def test_a_window_that_fails_is_lost_alone_and_the_memory_answers_as_before(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tiny_model)
    for stream in ("door", "yard"):
        engine.observe(_clip(stream, 0))
    _run(engine)
    encode = tiny_model.encode

    def fail(_: object) -> torch.Tensor:
        raise RuntimeError("device-side trouble\nsecond line")

    monkeypatch.setattr(tiny_model, "encode", fail)
    engine.observe(_clip("door", 1))
    [lost] = _run(engine)
    monkeypatch.setattr(tiny_model, "encode", encode)
    assert isinstance(lost, Lost)
    assert str(lost.error) == "the model failed: device-side trouble"
    for stream in ("door", "yard"):
        engine.ask(_question(stream, "what?"))
        assert [type(outcome) for outcome in _run(engine)] == [Answer]
    engine.observe(_clip("door", 2))
    assert [type(outcome) for outcome in _run(engine)] == [Observed]


def test_a_window_larger_than_the_memory_is_lost_with_advice(tiny_model: VideoLLM) -> None:
    engine = Engine(tiny_model, memory=MemorySettings(window_tokens=16))
    engine.open("door", fps=2)
    engine.observe(_clip("door", 0, frames=8))
    [lost] = _run(engine)
    assert isinstance(lost, Lost)
    assert "set memory.window_tokens to" in str(lost.error)


def test_a_camera_that_changes_its_picture_size_goes_on(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model)
    for index, side in enumerate((48, 64, 40, 64)):
        engine.observe(_clip("door", index, side=side))
        assert [type(outcome) for outcome in _run(engine)] == [Observed]
    engine.ask(_question("door", "what?"))
    assert [type(outcome) for outcome in _run(engine)] == [Answer]


def test_wrong_settings_are_faults_at_start(tiny_model: VideoLLM) -> None:
    with pytest.raises(ConfigError, match=r"spatial_treshold.*did you mean 'spatial_threshold'"):
        _engine(tiny_model, reducer=ReducerSettings(spatial_treshold=0.5))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no reducer 'stm'"):
        _engine(tiny_model, reducer=ReducerSettings(name="stm"))
    with pytest.raises(ConfigError, match="at_layer: 4 is beyond the model's last layer, 3"):
        plan_for(tiny_model, ReducerSettings(at_layer=4), MemorySettings())
    with pytest.raises(ConfigError, match="horizon: 99999 is beyond"):
        plan_for(tiny_model, ReducerSettings(), MemorySettings(horizon=99_999))


def test_a_removed_stream_frees_its_memory_and_settles_its_questions(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    _run(engine)
    engine.ask(_question("door", "what?"))
    [gone] = engine.close("door")
    assert "removed" in str(gone.error)
    with pytest.raises(UnknownStream):
        engine.ask(_question("door", "what?"))


def test_a_stream_whose_windows_do_not_fit_says_so_once_and_to_whoever_asks(
    tiny_model: VideoLLM, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tiny_model, memory=MemorySettings(window_tokens=16), clock=Clock())
    engine.open("door", fps=2)
    for index in range(3):
        engine.observe(_clip("door", index, frames=8))
        _run(engine)
    with pytest.raises(NoVideoYet, match=r"set memory\.window_tokens to"):
        engine.ask(_question("door", "what is there?"))
    assert caplog.text.count("a window was lost") == 1


@pytest.mark.parametrize(("seconds", "rate", "frames"), [(30, 2.0, 60), (1, 0.5, 1), (0, 2.0, 0)])
def test_refresh_is_told_in_seconds_and_counted_in_frames(
    tiny_model: VideoLLM, seconds: int, rate: float, frames: int
) -> None:
    settings = ReducerSettings.model_validate({"refresh_every": seconds})
    reducer = reducer_for(tiny_model, settings, rate)
    assert isinstance(reducer, SttmStreaming)
    assert reducer.refresh_every == frames


def test_a_budget_in_tokens_per_second_holds_whatever_the_frame_rate(
    tiny_model: VideoLLM,
) -> None:
    for fps in (2.0, 4.0):
        settings = ReducerSettings.model_validate({"budget": {"tokens_per_second": 10}})
        rate = fps / tiny_model.frames_per_token
        reducer: Any = reducer_for(tiny_model, settings, rate)
        assert reducer.budget.tokens_per_frame == pytest.approx(10 / rate)


ANOTHER_PACKAGES_REDUCER = """
from dataclasses import dataclass
from typing import ClassVar

from stream_sttm.reducers.baselines import KeepAll
from stream_sttm.reducers.frames import seconds_to_frames


@dataclass(frozen=True)
class Nearby(KeepAll):
    tuned_options: ClassVar = ("temporal_threshold", "spatial_threshold")
    timed_options: ClassVar = {"every": seconds_to_frames}

    temporal_threshold: float = 0.1
    spatial_threshold: float = 0.2
    every: int = 0
    drift: float = 0.3
"""


def test_a_reducer_of_another_package_gets_the_models_thresholds_and_times_in_frames(
    tiny_model: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nearby_package.py").write_text(ANOTHER_PACKAGES_REDUCER)
    metadata = tmp_path / "nearby_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nearby-package\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[stream_sttm.reducers]\nnearby = nearby_package:Nearby\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = ReducerSettings.model_validate(
        {"name": "nearby", "spatial_threshold": 0.5, "every": 30}
    )
    reducer: Any = reducer_for(tiny_model, settings, 2.0)
    assert type(reducer).__name__ == "Nearby"
    assert reducer.temporal_threshold == tiny_model.tuned.temporal_threshold, "the model's own"
    assert reducer.spatial_threshold == 0.5, "what is configured goes before the model's own"
    assert (reducer.every, reducer.drift) == (60, 0.3)
    engine = _engine(tiny_model, reducer=settings)
    engine.observe(_clip("door", 0))
    assert any(isinstance(one, Observed) for one in _run(engine))


@pytest.mark.parametrize("name", ["sttm", "sttm_streaming"])
def test_thresholds_that_are_not_configured_are_the_models_own(
    tiny_model: VideoLLM, name: str
) -> None:
    reducer: Any = reducer_for(tiny_model, ReducerSettings(name=name), 2.0)
    assert reducer.spatial_threshold == tiny_model.tuned.spatial_threshold
    assert reducer.temporal_threshold == tiny_model.tuned.temporal_threshold


def test_other_limits_hold_from_then_on(tiny_model: VideoLLM) -> None:
    engine = _engine(tiny_model)
    engine.observe(_clip("door", 0))
    _run(engine)
    engine.ask(_question("door", "one"))
    engine.ask(_question("door", "two", id_="r"))
    engine.limit(AnsweringSettings(max_question_chars=5, max_waiting=3, max_batch=1))
    with pytest.raises(QuestionRejected, match="at most 5 are taken"):
        engine.ask(_question("door", "longer", id_="s"))
    engine.ask(_question("door", "three", id_="s"))
    with pytest.raises(TooManyQuestions, match="3 questions are waiting"):
        engine.ask(_question("door", "four", id_="t"))
    asked = [one.question.id for one in _run(engine) if isinstance(one, Answer)]
    assert sorted(asked) == ["q", "r", "s"]
