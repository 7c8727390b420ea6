"""The accuracy bench: its arithmetic, its search for budgets, its question files, and one small run of it all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import nan
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from bench import accuracy, small_caches
from bench.arms import Ground, Recipe, arm, ground, named, recipes, share, thresholds
from bench.budget import encode, nearest, played_shares, record, seen_shares
from bench.exam import DrawnStream, Item, Round, chosen, needle
from bench.film import Film
from bench.process_pool import crew
from bench.questions_file import read_questions
from bench.score import score, table
from bench.watching import Sheet, watch
from stream_sttm.errors import ConfigError
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import build_reducer
from stream_sttm.scene.questions import Asked
from stream_sttm.types import Clip
from tests.support import tiny_models


def sheet(arm: str, clip: str, right: str, *, visual: int = 100, at: float = 0.0) -> Sheet:
    """Answers to questions of kinds "a", "b", "a", ...; `right` has a 1 for each that was right."""
    items = tuple(
        Item(f"q{place}", "yes" if place < 2 else "no", "ab"[place % 2])
        for place in range(len(right))
    )
    return Sheet(arm, clip, at, visual, 0.01, items, tuple(mark == "1" for mark in right))


# scores


def test_accuracy_tokens_and_kinds_are_counted_over_all_sheets_of_an_arm() -> None:
    result = score(
        [
            sheet("none", "one", "1111"),
            sheet("none", "two", "1100"),
            sheet("less", "one", "1010", visual=30),
            sheet("less", "two", "0000", visual=20),
        ]
    )
    none, less = result.scores["none"], result.scores["less"]
    assert (none.accuracy.value, none.tokens) == (0.75, 1.0)
    assert (less.accuracy.value, less.tokens) == (0.25, 0.25)
    assert less.difference.value == -0.5
    assert none.kinds == {"a": 0.75, "b": 0.75}
    assert less.kinds == {"a": 0.5, "b": 0.0}
    assert result.majority == {"a": 0.5, "b": 0.5}
    assert (result.clips, result.rounds, result.questions) == (2, 2, 8)
    assert "less" in table(result)


def test_several_draws_of_a_random_arm_count_as_one() -> None:
    sheets = [sheet("none", "one", "1111"), sheet("random", "one", "1100")]
    result = score([*sheets, sheet("random", "one", "1111")])
    assert result.scores["random"].accuracy.value == 0.75
    assert result.questions == 4


def test_intervals_are_those_of_drawing_clips_not_questions() -> None:
    """Ten clips all right or all wrong are ten trials, however many questions each holds."""
    few = [sheet("none", str(clip), "1" if clip < 5 else "0") for clip in range(10)]
    many = [sheet("none", str(clip), ("1" if clip < 5 else "0") * 50) for clip in range(10)]
    one, other = score(few).scores["none"].accuracy, score(many).scores["none"].accuracy
    assert (one.low, one.high) == (other.low, other.high)
    assert 0.15 <= one.low <= 0.25
    assert 0.75 <= one.high <= 0.85


def test_a_difference_within_each_clip_is_sure_however_much_clips_differ() -> None:
    """Both arms are half right on average, one always a quarter better: pairing takes the clips' spread out."""
    sheets = []
    for clip in range(8):
        hard = clip % 2
        sheets.append(sheet("none", str(clip), "1000" if hard else "1110"))
        sheets.append(sheet("better", str(clip), "1100" if hard else "1111"))
    better = score(sheets).scores["better"]
    assert (better.difference.low, better.difference.high) == (0.25, 0.25)
    assert better.accuracy.high - better.accuracy.low > 0.2


def test_a_letter_counts_where_it_stands_alone() -> None:
    item = Item("?", "B", "kind", choices=4)
    for answer in ("B", "B.", "(B)", "Answer: B", "the best option is B, a dog"):
        assert item.is_right(answer), answer
    for answer in ("", "A", "Bear", "C or B", "b", "E"):
        assert not item.is_right(answer), answer
    assert Item("?", "a dog", "kind").is_right("a dog")
    assert not Item("?", "a dog", "kind").is_right("dog")


# what is asked


def test_a_round_holds_one_question_of_each_kind_and_by_age_one_of_each_needle() -> None:
    def aged(text: str, kind: str, age: float | None) -> Asked:
        return Asked(text, "yes", kind, age)

    asked = [aged("1", "was", 4.0), aged("2", "was", 40.0), aged("3", "was", 30.0)]
    asked += [aged("4", "list", None), aged("5", "list", None)]
    kinds = [item.kind for item in chosen(asked, random.Random(0), by_age=False)]
    assert sorted(kinds) == ["list", "was"]
    ages = [needle(item.age) for item in chosen(asked, random.Random(0), by_age=True)]
    assert ages == [5, 30, None]


@pytest.mark.parametrize(
    ("age", "mark"), [(None, None), (0.0, 5), (11.0, 5), (14.0, 30), (59.0, 30), (61.0, 120)]
)
def test_a_needle_counts_for_the_nearest_age_by_ratio(age: float | None, mark: int | None) -> None:
    assert needle(age) == mark


def drawn(**changes: Any) -> DrawnStream:
    whole: dict[str, Any] = {"seed": 3, "start": 10.0, "fps": 2.0, "reach": 4.0, "span": 3.5}
    return DrawnStream(**{**whole, "every": 2.0, "rounds": 3, "side": 64, **changes})


def test_a_drawn_stream_asks_when_the_memory_is_full_and_then_on_time() -> None:
    parts = list(drawn().script())
    rounds = [part for part in parts if isinstance(part, Round)]
    assert [part.at for part in rounds] == [3.5, 5.5, 7.5]
    assert [part.span for part in rounds] == [(10.0, 13.5), (12.0, 15.5), (14.0, 17.5)]
    clips = [part for part in parts if isinstance(part, Clip)]
    assert len(clips) == 8
    assert [clip.captured_at for clip in clips] == [10.5 + index for index in range(8)]
    assert parts[-1] is rounds[-1]
    assert list(drawn().script())[4] == parts[4], "the same questions every time"


# budgets


def test_the_search_comes_as_near_to_a_budget_as_it_says() -> None:
    asked: list[float] = []

    def kept(scale: float) -> float:
        asked.append(scale)
        return 1 / (1 + (scale / 0.03) ** 1.5)

    for wanted in (0.5, 0.3, 0.15):
        asked.clear()
        scale, found = nearest(kept, wanted, most=40.0)
        assert abs(found - wanted) <= 0.003
        assert kept(scale) == found
        assert len(asked) <= 12


def test_a_budget_out_of_reach_gets_the_nearest_end() -> None:
    assert nearest(lambda scale: 0.4, 0.3, most=40.0)[1] == 0.4
    assert nearest(lambda scale: max(0.35, 1 - scale), 0.3, most=40.0) == (40.0, 0.35)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> VideoLLM:
    return load_model(str(tiny_models.llava_onevision(tmp_path_factory.mktemp("tiny"))))


GROUND = Ground(frames=8, cells=16, horizon=128, reach=4.0, span=3.5)


@pytest.mark.parametrize("at_layer", [0, 2])
@pytest.mark.parametrize("fresh", [0, 1])
@pytest.mark.parametrize("method", ["sttm", "random", "frames", "none"])
def test_a_replay_counts_what_questions_to_the_engine_see(
    tiny: VideoLLM, at_layer: int, fresh: int, method: Any
) -> None:
    recipe = Recipe("it", method, 0.4, at_layer, fresh=fresh)
    options = thresholds(tiny, recipe, 0.2) if recipe.is_searched else share(recipe, GROUND)
    one = arm(recipe, GROUND, options)
    sheets = watch(tiny, [one], drawn())
    windows = record(tiny, at_layer, GROUND, encode(tiny, drawn()))
    reducer = build_reducer(one.reducer.name, options)
    shares = seen_shares(windows, reducer, frames=8, fresh=fresh)
    seen = {sheet.at: sheet.visual / 128 for sheet in sheets}
    assert len(seen) == 3
    assert [seen[at] for at in (3.5, 5.5, 7.5)] == shares[::2]
    assert method != "sttm" or 0.05 < shares[0] < 0.95


def test_playing_a_memory_counts_as_replaying_does_where_nothing_is_pruned(tiny: VideoLLM) -> None:
    recipe = Recipe("it", "sttm", 0.4, 2, fresh=1)
    reel = encode(tiny, drawn())
    reducer = build_reducer("sttm_streaming", thresholds(tiny, recipe, 0.2))
    played = played_shares(tiny, recipe, GROUND, reel, reducer)
    replayed = seen_shares(record(tiny, 2, GROUND, reel), reducer, frames=8, fresh=1)
    assert played == replayed
    pruned = replace(recipe, prune_shallow=True)
    assert len(played_shares(tiny, pruned, GROUND, reel, reducer)) == len(played)


def test_dropping_arms_keep_their_budget_with_the_fresh_view_counted() -> None:
    kept = share(Recipe("it", "frames", 0.5, 0, fresh=2), GROUND)["keep"]
    assert Fraction(kept).limit_denominator(100) * 6 + 2 == Fraction(8, 2)
    assert share(Recipe("it", "none", 1.0, 0), GROUND) == {}


# arms


def test_all_arms_that_are_not_there_to_forget_reach_equally_far_back(tiny: VideoLLM) -> None:
    for recipe in recipes(tiny, seeds=2):
        memory = GROUND.memory(recipe)
        if recipe.positions == "own" and recipe.capacity is None:
            assert (memory.horizon, memory.window_tokens) == (128, 128)


def test_the_table_has_every_arm_that_is_to_be_compared(tiny: VideoLLM) -> None:
    every = recipes(tiny, seeds=3)
    names = [recipe.name for recipe in every]
    assert names[0] == "none"
    for stem in ("sttm", "spatial_only", "temporal_only", "random", "frames"):
        assert all(f"{stem}_{budget}" in names for budget in (50, 30, 15, 5))
    assert names.count("random_30") == 3
    wanted = {"last_4", "layer_0", "layer_3", "size_bias_0.5", "fresh_view_4", "guard_on"}
    wanted |= {"positions_own", "positions_contiguous", "shallow_kept", "shallow_pruned"}
    assert wanted <= set(names)
    assert [recipe.name for recipe in named(every, ["sttm_30"])] == ["none", "sttm_30"]
    with pytest.raises(ConfigError, match="no arm 'sttm_31'; arms: none, sttm_50"):
        named(every, ["sttm_31"])


def test_a_reach_too_short_or_too_long_for_the_model_is_refused(tiny: VideoLLM) -> None:
    assert ground(tiny, 2.0, (64, 64), 4.0) == GROUND
    with pytest.raises(ConfigError, match="at least 64 are needed: raise --reach"):
        ground(tiny, 2.0, (64, 64), 1.0)
    with pytest.raises(ConfigError, match="positions allow beside questions"):
        ground(tiny, 2.0, (64, 64), 1000.0)


# question files


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Five seconds at 10 frames a second, getting brighter."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(50):
            picture = np.full((48, 64, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


STREAMING = {
    "time": "[0:00:00 - 0:00:10]",
    "video_path": "./film.mp4",
    "video_categories": "cooking",
    "questions": [
        {
            "task_type": "Object Recognition",
            "question": "What is it?",
            "time_stamp": "00:00:03",
            "answer": "C",
            "options": ["A. one", "B. two", "C. three", "D. four"],
        }
    ],
}
OVO = {
    "id": 1,
    "task": "EPM",
    "video": "film.mp4",
    "realtime": 2.5,
    "question": "Where was it?",
    "answer": "two",
    "options": ["one", "two"],
    "gt": 1,
}


def question_file(folder: Path, tree: Any) -> Path:
    path = folder / "questions.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def test_both_benchmarks_items_are_read_however_they_nest(film: Path) -> None:
    proactive = {"video_path": "film.mp4", "questions": [{"ground_truth_output": "3"}]}
    forward = {"task": "REC", "video": "film.mp4", "test_info": [{"realtime": 3}]}
    tree = [STREAMING, [STREAMING], OVO, proactive, forward]
    films, left_out = read_questions(question_file(film.parent, tree), videos=None, fps=2.0)
    assert left_out == 2
    (only,) = films
    assert only.path == film
    assert [at for at, _ in only.asked] == [2.5, 3.0, 3.0]
    ovo, streaming, _ = (item for _, item in only.asked)
    assert (ovo.truth, ovo.kind, ovo.choices) == ("B", "EPM", 2)
    assert (streaming.truth, streaming.kind, streaming.choices) == ("C", "Object Recognition", 4)
    assert "A. one\nB. two" in ovo.text
    assert "C. three\nD. four" in streaming.text


def broken(item: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**item, **changes}.items() if value is not nan}


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ("[{", "questions.json:1: is not JSON"),
        ({"questions": []}, "must hold a list of questions, not an object"),
        ([], "holds no multiple-choice question"),
        ([3], "item 0: must be an object, not a number"),
        ([broken(OVO, video="gone.mp4")], "item 0: there is no video .*gone.mp4"),
        ([OVO, broken(OVO, video=nan)], "item 1: has no field 'video_path' or 'video'"),
        ([broken(OVO, question=nan)], "has no field 'question'"),
        ([broken(OVO, question=None)], "field 'question' can't be null"),
        ([broken(OVO, options=nan)], "has no field 'options'"),
        ([broken(OVO, options=["one"])], "options must be 2 to 26 texts"),
        ([broken(OVO, gt=2)], "gt must be a number from 0 to 1, not 2"),
        ([broken(OVO, gt=nan)], "answer must be a letter from A to B, not 'two'"),
        ([broken(OVO, realtime=nan)], "has no field 'time_stamp' or 'realtime'"),
        ([broken(OVO, realtime="soon")], "the time must be seconds or HH:MM:SS, not 'soon'"),
        ([broken(OVO, realtime=-1)], "the time must be seconds"),
        ([{"video": "film.mp4", "questions": [1]}], "item 0, question 0: must be an object"),
    ],
)
def test_a_bad_question_file_is_one_clear_line_and_exit_2(
    film: Path, tree: Any, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = question_file(film.parent, tree)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_questions(path, videos=None, fps=2.0)
    assert "\n" not in str(caught.value)
    assert accuracy.main(["--questions", str(path), "--jobs", "1"]) == 2
    assert str(caught.value) in capsys.readouterr().err


def test_a_missing_question_file_model_or_video_folder_is_exit_2(
    film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = question_file(film.parent, [OVO])
    for words, complaint in (
        (["--questions", "gone.json"], "gone.json: there is no such file"),
        (["--questions", str(path), "--videos", "/nowhere"], "there is no video /nowhere/film.mp4"),
        (["--questions", str(path), "--model", str(film.parent)], "there is no config.json in it"),
        (["--arms", "all"], "there is no arm 'all'"),
    ):
        assert accuracy.main([*words, "--jobs", "1"]) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("bench.accuracy: ")
        assert complaint in last


def test_a_file_that_is_no_video_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "film.mp4").write_text("no video at all")
    path = question_file(tmp_path, [OVO])
    assert accuracy.main(["--questions", str(path), "--jobs", "1"]) == 2
    assert "film.mp4" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_question_sees_what_was_shown_by_its_time_and_nothing_after(film: Path) -> None:
    item = Item("?", "A", "kind", choices=2)
    asked = ((0.0, item), (1.7, item), (1.7, item), (99.0, item))
    parts = list(Film(film, 2.0, asked).script())
    shown = [part.captured_at if isinstance(part, Clip) else part.at for part in parts]
    assert shown == pytest.approx([0.5, 0.0, 1.5, 1.7, 2.5, 3.5, 4.5, 99.0])
    assert [len(part.items) for part in parts if isinstance(part, Round)] == [1, 2, 1]
    assert Film(film, 2.0, asked).size() == (48, 64)


def test_a_film_is_read_no_further_than_its_last_question(film: Path) -> None:
    parts = list(Film(film, 2.0, ((2.0, Item("?", "A", "kind", choices=2)),)).script())
    assert [isinstance(part, Round) for part in parts] == [False, False, True]


# long runs


def test_needles_and_ages_are_shares_of_their_own_questions() -> None:
    def aged(arm: str, at: float, right: str, age: float | None, kind: str = "count") -> Sheet:
        one = sheet(arm, "one", right, at=at)
        return replace(one, items=tuple(replace(item, age=age, kind=kind) for item in one.items))

    sheets = [aged("fifo", 10.0, "10", 5.0), aged("fifo", 119.0, "1110", 33.0)]
    sheets += [aged("fifo", 60.0, "0", None), aged("fifo", 60.0, "1", None, "was")]
    assert small_caches.by_needle(sheets) == {"fifo": {5: 0.5, 30: 0.75}}
    assert small_caches.needles(sheets, "fifo") == {5: 2, 30: 4, 120: 0}
    ages = small_caches.by_age(sheets, 120.0)["fifo"]
    assert [ages[0], ages[3], ages[5]] == [0.5, 0.0, 0.75]
    text, extra = small_caches.report(score(sheets, against="fifo"), sheets, 120.0)
    assert "asked" in text
    assert extra["fifo"]["needles"] == {"5": 0.5, "30": 0.75}
    assert extra["fifo"]["by_age"] == [0.5, None, None, 0.0, None, 0.75]


# all of it


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    told = capsys.readouterr()
    assert "streams: 1 of 1" in told.err
    line: dict[str, Any] = json.loads(told.out.splitlines()[-1])
    return line


@pytest.mark.slow
def test_the_quick_table_ends_with_the_line_that_others_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--quick", "--streams", "1", "--rounds", "2", "--jobs", "1", "--calibrate", "2"]
    assert accuracy.main(words) == 0
    told = last_line(capsys)
    assert {"none", "sttm_50", "sttm_30", "sttm_15", "random_30"} <= set(told["arms"])
    for own in told["arms"].values():
        assert 0 <= own["accuracy"] <= 1
        assert own["interval"][0] <= own["accuracy"] <= own["interval"][1]
    assert told["arms"]["none"]["tokens"] == 1
    assert told["arms"]["sttm_15"]["tokens"] < told["arms"]["sttm_50"]["tokens"] < 1
    assert told["questions"] > 0
    for own in told["types"].values():
        assert set(own) == {"accuracy", "majority"}


@pytest.mark.slow
def test_a_long_run_ends_with_the_same_line_and_needles(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--long", "--minutes", "0.6", "--streams", "1", "--jobs", "1", "--calibrate", "2"]
    assert accuracy.main([*words, "--reach", "32"]) == 0
    told = last_line(capsys)
    assert {"fifo", "sttm", "last_4", "recall_never", "recall_auto", "recall_always"} <= set(
        told["arms"]
    )
    assert {"now", "before"} >= set(told["arms"]["recall_auto"]["by_time"])
    assert told["arms"]["recall_always"]["tokens"] > told["arms"]["recall_never"]["tokens"]
    assert all("needles" in own and len(own["by_age"]) == 6 for own in told["arms"].values())
    assert told["arms"]["fifo"]["tokens"] < 0.4


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_any_checkpoint_is_asked_a_question_file(
    film: Path, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make: Callable[[Path], Path] = tiny_models.FAMILIES[family]
    items = [broken(OVO, realtime=0.5 + 0.5 * place, gt=place % 2) for place in range(10)]
    path, reach = question_file(film.parent, items), "4" if family == "llava_onevision" else "32"
    words = ["--model", str(make(tmp_path / "model")), "--questions", str(path), "--jobs", "1"]
    words += ["--reach", reach, "--arms", "sttm_30,last_4"]
    assert accuracy.main(words) == 0
    told = last_line(capsys)
    assert told["questions"] == 10
    assert set(told["arms"]) == {"none", "sttm_30", "last_4"}
    assert told["types"].keys() == {"EPM"}
    assert told["types"]["EPM"]["majority"] == 0.5


def half(model: VideoLLM, piece: int) -> float:
    """Work for a crew."""
    return piece / 2 + 0 * len(model.layers)


@pytest.mark.slow
def test_a_crew_of_processes_keeps_the_order_of_its_pieces() -> None:
    with crew("demo", 2) as workers:
        assert workers.do("halves", half, list(range(5))) == [0, 0.5, 1, 1.5, 2]


def test_every_arm_answers_from_the_same_features(tiny: VideoLLM) -> None:
    """The vision tower is shared between arms; what each remembers is what it would have seen alone."""
    none = arm(Recipe("none", "none", 1.0, 0), GROUND, {})
    merged = Recipe("sttm", "sttm", 0.4, 2)
    two = arm(merged, GROUND, thresholds(tiny, merged, 0.2))
    both = watch(tiny, [none, two], drawn())
    alone = [one for settled in (none, two) for one in watch(tiny, [settled], drawn())]
    assert {(s.arm, s.at, s.visual, s.right) for s in both} == {
        (s.arm, s.at, s.visual, s.right) for s in alone
    }
