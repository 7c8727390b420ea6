"""What may be asked about a span of a drawn scene, and the right answers, in the words the bundled model speaks.

An answer is about everything seen at any time of the span. Where a thing is barely in the picture, or only just
within the span, what depends on it has no clear answer, and None says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stream_sttm.sources.drawing import COLOURS, SHAPES
from stream_sttm.sources.timeline import Thing, region_of

# What can be asked, and how. A subject is a thing's name ("red circle"), for `colour` a shape alone.
KINDS: dict[str, str] = {
    "list": "what objects are there?",
    "count": "how many objects are there?",
    "exist": "is there a {}?",
    "motion": "which way does the {} move?",
    "where": "where is the {}?",
    "colour": "what colour is the {}?",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
SEEN = 1.5  # seconds in view that make a thing clearly seen
SLACK = 0.5  # seconds by which a span's ends may be off: clocks, codecs, sampling
TRAVELLED = 16.0  # canvas units after which a direction is clear


class Asked(NamedTuple):
    """A question with its right answer."""

    text: str
    truth: str
    kind: str


def around(start: float, end: float) -> tuple[float, float]:
    """The span within which something may blur the answers about [start, end]."""
    return start - SLACK, end + SLACK


def answer(
    kind: str, things: list[Thing], start: float, end: float, subject: str | None = None
) -> str | None:
    """The right answer, None where there is no clear one; `things` are all in view within `around(start, end)`."""
    if kind not in KINDS or (subject is None) != (kind in ("list", "count")):
        raise ValueError(
            f"no such question: kind {kind!r} about {subject!r}; kinds: {', '.join(KINDS)}"
        )
    clear = [thing for thing in things if _seconds(thing, start, end) >= SEEN]
    unclear = [thing for thing in things if thing not in clear]
    if kind in ("list", "count"):
        names = [thing.name for thing in clear]
        if unclear or len(set(names)) < len(names) or len(names) >= len(NUMBERS):
            return None
        return _listed(names) if kind == "list" else NUMBERS[len(names)]
    about = [o for o in things if subject in (o.name, o.shape if kind == "colour" else None)]
    if kind == "exist":
        return "no" if not about else "yes" if any(o in clear for o in about) else None
    if not about:
        return f"there is no {subject}"
    if len(about) > 1 or about[0] in unclear:
        return None
    return _about(kind, about[0], start, end)


def _about(kind: str, thing: Thing, start: float, end: float) -> str | None:
    """What a question of one thing's motion, place or colour is answered, where it is clear."""
    if kind == "colour":
        return thing.colour
    if kind == "motion":
        if thing.direction is None:
            return "it stands still"
        return thing.direction if thing.speed * _seconds(thing, start, end) >= TRAVELLED else None
    region = region_of(*thing.origin) if thing.direction is None else None
    if region is None or region == "centre":
        return region and "in the centre"
    return f"on the {region}" if region in ("left", "right") else f"at the {region}"


def questions(things: list[Thing], start: float, end: float) -> list[Asked]:
    """Every question of KINDS that has a clear answer, about what is there and about something that is not."""
    return [
        Asked(_an(KINDS[kind].format(subject)), truth, kind)
        for kind, subject in _subjects(things)
        if (truth := answer(kind, things, start, end, subject)) is not None
    ]


def _subjects(things: list[Thing]) -> Iterator[tuple[str, str | None]]:
    yield "list", None
    yield "count", None
    for index, thing in enumerate(things):
        yield "exist", thing.name
        yield "exist", _absent(things, index)
        yield "motion", thing.name
        yield "colour", thing.shape
        if thing.direction is None:
            yield "where", thing.name


def _absent(things: list[Thing], index: int) -> str:
    """Something that is not there, alike in colour or in shape to a thing that is."""
    thing, names = things[index], {o.name for o in things}
    alike = [f"{thing.colour} {shape}" for shape in SHAPES]
    if index % 2:
        alike = [f"{colour} {thing.shape}" for colour in COLOURS]
    return next(name for name in alike if name not in names)


def _seconds(thing: Thing, start: float, end: float) -> float:
    """How long a thing is clearly in view within the span."""
    first, last = thing.clearly
    return max(0.0, min(last, end) - max(first, start))


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    told = [_an(f"a {name}") for name in names]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _an(text: str) -> str:
    return text.replace("a orange", "an orange")
