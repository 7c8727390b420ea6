"""How one asks about a drawn scene: every kind of question in several wordings, with what it may be asked about."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stream_sttm.scene.drawing import COLOURS, SHAPES
from stream_sttm.scene.timeline import Thing
from stream_sttm.scene.truth import NAMES, NUMBERS, UNADDRESSED, Truth, a

# The first wording of each kind is the plain one. {} is a name or, for the colour kinds, a shape.
WORDINGS: dict[str, tuple[str, ...]] = {
    "list": (
        "what objects are there?",
        "what is in view?",
        "list the objects.",
        "what do you see now?",
    ),
    "count": ("how many objects are there?", "how many things are in view?", "count the objects."),
    "describe": ("describe the scene.", "describe what you see.", "what is happening?"),
    "exist": ("is there {a}?", "do you see {a}?", "is {a} in view?"),
    "alarm": ("is anything {} in view?", "is there anything {}?", "do you see anything {} now?"),
    "colour": (
        "what colour is the {}?",
        "which colour has the {}?",
        "what is the colour of the {}?",
    ),
    "where": ("where is the {}?", "where do you see the {}?", "in which place is the {}?"),
    "motion": ("which way does the {} move?", "how does the {} move?", "where is the {} going?"),
    "still": ("is the {} still there?", "is the {} still in view?"),
    "left": ("what left last?", "what was the last object to leave?", "what has just gone?"),
    "appeared": ("what appeared last?", "what was the last object to appear?", "what came last?"),
    "was": ("was there {a}?", "have you seen {a}?", "did {a} come by?"),
    "colour_was": ("what colour was the {}?", "which colour had the {}?"),
    "where_was": ("where was the {}?", "where did you see the {}?"),
}
SHAPE_ALARMS = ("is any {} in view?", "do you see any {} now?")


class Asked(NamedTuple):
    """A question with its right answer; `age` is how long ago, in seconds, what it asks for was last visible."""

    text: str
    truth: str
    kind: str
    age: float | None = None


def questions(truth: Truth, rng: random.Random) -> list[Asked]:
    """Every question with a clear answer about what was seen, and about as much that was not, each worded at random."""
    asked = []
    for kind, subject in _subjects(truth, rng):
        right = truth.answer(kind, subject)
        if right is not None:
            asked.append(Asked(worded(kind, subject, rng), right, kind, _age(truth, kind, subject)))
    return asked


def balanced(asked: Sequence[Asked], count: int, rng: random.Random) -> list[Asked]:
    """At most `count` of them, in turn by kind, and within a kind by sort of answer, so that none is common."""
    sorts: dict[str, dict[str, list[Asked]]] = {}
    for question in rng.sample(asked, len(asked)):
        sorts.setdefault(question.kind, {}).setdefault(_sort(question.truth), []).append(question)
    kinds = [[rng.sample(found, len(found)) for found in of.values()] for of in sorts.values()]
    chosen: list[Asked] = []
    while kinds and len(chosen) < count:
        for kind in rng.sample(kinds, len(kinds)):
            sort = rng.choice(kind)
            chosen.append(sort.pop())
            if not sort:
                kind.remove(sort)
        kinds = [kind for kind in kinds if kind]
    return chosen[:count]


def _sort(truth: str) -> str:
    for absent in ("there is no", "there was no"):
        if truth.startswith(absent):
            return absent
    return truth if truth in ("yes", "no", "nothing", "it stands still", *NUMBERS) else "open"


def worded(kind: str, subject: str | None, rng: random.Random | None = None) -> str:
    """Return a question in words: the plain ones, or any where `rng` is given."""
    wordings = SHAPE_ALARMS if kind == "alarm" and subject in SHAPES else WORDINGS[kind]
    wording = wordings[0] if rng is None else rng.choice(wordings)
    return wording.format(subject, a=a(subject or "thing"))


def _age(truth: Truth, kind: str, subject: str | None) -> float | None:
    if kind == "left":
        return min((sight.age for sight in truth.seen if sight.gone), default=None)
    if kind not in ("was", "colour_was", "where_was", "still") or subject is None:
        return None
    ages = [sight.age for sight in truth.about(subject)]
    return min(ages) if ages and min(ages) > 0 else None


def _subjects(truth: Truth, rng: random.Random) -> Iterator[tuple[str, str | None]]:
    for kind in UNADDRESSED:
        yield kind, None
    for sight in truth.seen:
        thing = sight.thing
        for kind in ("exist", "was", "motion", "where", "still", "where_was"):
            yield kind, thing.name
        yield "colour", thing.shape
        yield "colour_was", thing.shape
        yield "alarm", rng.choice((thing.colour, thing.colour, thing.shape))
    seen = {sight.thing.name for sight in truth.seen}
    never = [name for name in NAMES if name not in seen]
    things: list[Thing | None] = [sight.thing for sight in truth.seen]
    for known in things or [None]:
        alike = never
        if known is not None and rng.random() < 0.7:  # hard to tell apart: the same colour or shape
            alike = [name for name in never if {known.colour, known.shape} & {*name.split()}]
        name = rng.choice(alike or never)
        for kind in ("exist", "was", rng.choice(("where", "motion", "where_was"))):
            yield kind, name
        yield rng.choice(("colour", "colour_was")), rng.choice(SHAPES)
        yield "alarm", rng.choice((*COLOURS, *SHAPES))
