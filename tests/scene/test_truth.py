"""Facts about what is true of a watched scene: now and before, and never a guess where it is unclear."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from stream_sttm.scene.drawing import COLOURS, SHAPES
from stream_sttm.scene.questions import SHAPE_ALARMS, WORDINGS, balanced, questions, worded
from stream_sttm.scene.timeline import DIRECTIONS, Thing
from stream_sttm.scene.truth import KINDS, NAMES, NUMBERS, SHAPE_KINDS, UNADDRESSED, Truth, Watch
from stream_sttm.sources.scene import Scene

REGIONS = {"in the centre", "on the left", "on the right", "at the top", "at the bottom"}


def thing(name="red circle", *, at=(20.0, 48.0), move=None, arrives=0.0, leaves=100.0):
    colour, shape = name.split()
    return Thing(
        colour, shape, 10.0, 0.0, COLOURS[colour], at, move, 5.0 if move else 0.0, arrives, leaves
    )


def truth(*things, start=0.0, end=20.0):
    return Scene(0, script=things).seen(Watch.span(start, end))


def test_a_thing_in_view_is_told_of_in_every_way():
    seen = truth(thing(arrives=-50))
    told = {kind: seen.answer(kind) for kind in UNADDRESSED}
    assert told == {
        "list": "a red circle",
        "count": "one",
        "describe": "a red circle on the left",
        "left": "nothing",
        "appeared": "nothing",
    }
    about = {
        kind: seen.answer(kind, "red circle")
        for kind in ("exist", "was", "where", "motion", "still")
    }
    assert about == {
        "exist": "yes",
        "was": "yes",
        "where": "on the left",
        "motion": "it stands still",
        "still": "yes",
    }
    assert seen.answer("colour", "circle") == "red"
    assert [seen.answer("alarm", what) for what in ("red", "circle", "blue", "star")] == [
        "yes",
        "yes",
        "no",
        "no",
    ]


def test_what_has_gone_is_told_of_as_past():
    seen = truth(thing("blue star", at=(48.0, 20.0), leaves=12.0, arrives=-50))
    assert seen.answer("list") == "nothing"
    assert seen.answer("count") == "zero"
    assert seen.answer("left") == "a blue star"
    for kind, told in {
        "exist": "no",
        "was": "yes",
        "still": "no",
        "where_was": "at the top",
    }.items():
        assert seen.answer(kind, "blue star") == told
    for kind in ("where", "motion"):
        assert seen.answer(kind, "blue star") == "there is no blue star"
    assert seen.answer("colour_was", "star") == "blue"
    assert seen.answer("colour", "star") == "there is no star"


def test_the_last_to_come_and_the_last_to_leave_are_named():
    seen = truth(
        thing("red circle", arrives=-50, leaves=5.0),
        thing("blue star", arrives=-50, leaves=12.0),
        thing("green cross", arrives=3.0),
        thing("white square", arrives=9.0),
    )
    assert seen.answer("left") == "a blue star"
    assert seen.answer("appeared") == "a white square"
    assert seen.answer("list") == "a green cross and a white square"


@pytest.mark.parametrize(
    ("things", "kinds"),
    [
        ([thing(arrives=19.2)], ("list", "count", "exist", "where", "appeared")),  # just came
        ([thing(leaves=19.4)], ("list", "count", "exist", "motion", "left", "still")),  # just left
        ([thing(arrives=-50, leaves=0.7)], ("was", "left", "where_was")),  # only just seen
        ([thing(at=(33.0, 48.0))], ("where", "describe")),  # between left and centre
        ([thing(leaves=10.0), thing("blue star", leaves=10.4)], ("left",)),  # both at once
        ([thing(arrives=5.0), thing("blue star", arrives=5.5)], ("appeared",)),
        ([thing(leaves=8.0), thing(arrives=12.0)], ("left", "appeared", "still")),  # came back
        ([thing(move="right", arrives=17.5, at=(30.0, 48.0))], ("motion", "describe")),
    ],
)
def test_what_is_unclear_has_no_answer(things, kinds):
    seen = truth(*things)
    for kind in kinds:
        assert seen.answer(kind, None if kind in UNADDRESSED else "red circle") is None, kind


def test_only_the_frames_that_were_looked_at_count():
    flash = thing(arrives=4.0, leaves=7.0)
    scene = Scene(0, script=[flash])
    assert scene.seen(Watch.span(0.0, 20.0)).answer("was", "red circle") == "yes"
    missed = Watch((0.0, 0.5, 10.0, 10.5, 19.5, 20.0), 19.5)
    assert scene.seen(missed).answer("was", "red circle") == "no"
    caught = Watch((0.0, 0.5, 5.0, 5.5, 19.5, 20.0), 19.5)
    assert scene.seen(caught).answer("left") == "a red circle"


def test_a_moving_thing_has_the_place_where_it_is_now():
    crossing = thing(move="right", at=(-12.0, 48.0), arrives=0.0, leaves=24.0)
    assert truth(crossing, end=6.0).answer("where", "red circle") == "on the left"
    assert truth(crossing, end=19.0).answer("where", "red circle") == "on the right"
    assert truth(crossing, end=19.0).answer("motion", "red circle") == "right"
    assert truth(crossing, end=19.0).answer("describe") == "a red circle moving right"


@pytest.mark.parametrize("seed", range(4))
def test_every_question_of_a_scene_has_an_answer_in_the_models_words(seed):
    scene = Scene(seed)
    asked = [q for t in np.arange(0.0, 600.0, 8) for q in scene.questions(t, t + 30)]
    assert {question.kind for question in asked} == set(KINDS)
    listed = {"nothing"}
    for text, told, kind, age in asked:
        if told.startswith(("there is no", "there was no")):
            assert kind in ("colour", "where", "motion", "colour_was", "where_was")
            assert age is None
            continue
        match kind:
            case "exist" | "alarm" | "still" | "was":
                assert told in ("yes", "no")
            case "count":
                assert told in NUMBERS
            case "motion":
                assert told in (*DIRECTIONS, "it stands still")
            case "where" | "where_was":
                assert told in REGIONS
            case "colour" | "colour_was":
                assert told in COLOURS
                assert any(shape in text for shape in SHAPES)
            case "left" | "appeared":
                assert told == "nothing" or told.split(" ", 1)[1] in NAMES
            case _:
                listed.add(told)
        assert "a orange" not in text + told
        assert age is None or 0 < age < 31
    assert len(listed) > 20


def test_list_count_and_exist_agree():
    checked = 0
    for seed in range(4):
        for t in np.arange(0.0, 900.0, 5):
            seen = Scene(seed).seen(Watch.span(t, t + 8))
            told, count = seen.answer("list"), seen.answer("count")
            assert (told is None) == (count is None)
            if told is not None:
                names = [] if told == "nothing" else told.replace(" and ", ", ").split(", ")
                assert len(names) == NUMBERS.index(count)
                assert all(seen.answer("exist", n.split(" ", 1)[1]) == "yes" for n in names)
                checked += len(names)
    assert checked > 300


def test_the_age_of_a_memory_is_the_time_since_it_was_last_visible():
    seen = truth(thing("blue star", at=(48.0, 20.0), leaves=12.0, arrives=-50))
    asked = questions(seen, random.Random(1))
    ages = {
        q.age
        for q in asked
        if q.kind in ("left", "colour_was", "where_was") and "no" not in q.truth
    }
    assert ages == {8.0 - 0.5} or ages == {8.0}


def test_a_balanced_choice_favours_no_kind_and_no_answer():
    chosen = []
    for seed in range(40):
        asked = Scene(seed).questions(100.0, 140.0)
        chosen += balanced(asked, 10, random.Random(seed))
    kinds = Counter(question.kind for question in chosen)
    assert max(kinds.values()) < 2.5 * np.mean([*kinds.values()])
    for kind in ("exist", "alarm", "was", "still"):
        yes = np.mean([q.truth == "yes" for q in chosen if q.kind == kind])
        assert 0.25 < yes < 0.75


def test_a_balanced_choice_repeats_nothing_and_takes_all_where_asked_for_more():
    asked = Scene(3).questions(0.0, 60.0)
    assert sorted(balanced(asked, 10_000, random.Random(0))) == sorted(asked)


def test_every_kind_has_wordings_and_the_first_is_plain():
    assert set(WORDINGS) == set(KINDS)
    assert worded("exist", "orange star") == "is there an orange star?"
    assert worded("alarm", "cross") == SHAPE_ALARMS[0].format("cross")
    assert worded("list", None) == "what objects are there?"
    for kind in KINDS:
        subject = None if kind in UNADDRESSED else "star" if kind in SHAPE_KINDS else "red star"
        assert "{" not in worded(kind, subject, random.Random(1))


def test_an_unknown_kind_or_a_missing_subject_is_a_mistake_of_the_caller():
    for kind, subject in (("mood", None), ("exist", None), ("list", "red circle")):
        with pytest.raises(ValueError, match="no such question"):
            Scene(0).truth(kind, 0, 8, subject=subject)


def test_things_are_listed_by_colour_then_shape():
    seen = Truth([thing("red star"), thing("red circle")], Watch.span(1.0, 20.0))
    assert seen.answer("count") == "two"
    order = [
        list(COLOURS).index(s.thing.colour)
        for s in truth(thing("white star"), thing("green star")).seen
    ]
    assert all(a < b for a, b in pairwise(order))
