"""What is true of a drawn scene that somebody watched: now, at the end, and before, as far back as was seen.

Answers are in the words the bundled model speaks. Where a thing is barely in the picture, or came or went just then,
what depends on it has no clear answer, and None says so. How questions are worded is in questions.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream_sttm.scene.drawing import COLOURS, SHAPES
from stream_sttm.scene.timeline import Thing, region_of

NUMBERS = ("zero", "one", "two", "three", "four", "five")
SLACK = 0.5  # seconds by which a span's ends may be off: clocks, codecs, sampling
EVERY = 0.5  # seconds between two looks at a span that was watched throughout
NOW = 1.0  # the last seconds of a span, for which something has to hold to be so now
TRAVELLED = 16.0  # canvas units after which a direction is clear

# Kinds of questions; those about one thing take its name ("red circle"), SHAPE_KINDS its shape, an alarm may take
# its colour or shape alone.
PRESENT = ("list", "count", "describe", "exist", "alarm", "colour", "where", "motion", "still")
PAST = ("left", "appeared", "was", "colour_was", "where_was")
KINDS = PRESENT + PAST
SHAPE_KINDS = ("colour", "colour_was")
UNADDRESSED = ("list", "count", "describe", "left", "appeared")


@dataclass(frozen=True, slots=True)
class Watch:
    """When somebody looked: `moments` in rising order, the last looks from `now` on; all may be off by `slack`.

    A thing seen clearly at `enough` moments was seen.
    """

    moments: tuple[float, ...]
    now: float
    slack: float = 0.0
    enough: int = 2

    @classmethod
    def span(cls, start: float, end: float) -> Watch:
        """Somebody who looked all the time from `start` to `end`."""
        moments = (*np.arange(start, end, EVERY).tolist(), end)
        return cls(moments, end - NOW, SLACK, 3)

    @property
    def around(self) -> tuple[float, float]:
        """The span within which something may matter to an answer."""
        return self.moments[0] - self.slack, self.moments[-1] + self.slack

    def looks(self, start: float, end: float) -> Sequence[float]:
        """Return the moments within a span."""
        return self.moments[bisect_left(self.moments, start) : bisect_right(self.moments, end)]


class Sight:
    """One thing as it was seen: `now` True, False, or None where that is unclear; `ever` likewise."""

    def __init__(self, thing: Thing, watch: Watch) -> None:
        self.thing, self._watch = thing, watch
        self.clear = watch.looks(*thing.clearly)
        visible = watch.looks(thing.arrives - watch.slack, thing.leaves + watch.slack)
        self.first, self.last = (visible[0], visible[-1]) if visible else (np.inf, -np.inf)
        self.ever = len(self.clear) >= watch.enough or (None if visible else False)
        self.now = self._now()

    def _now(self) -> bool | None:
        since, until = self._watch.now - self._watch.slack, self._watch.around[1]
        if self.thing.clearly[0] <= since and self.thing.clearly[1] >= until:
            return True
        return None if self.thing.arrives <= until and self.thing.leaves > since else False

    @property
    def gone(self) -> bool:
        """Clearly seen once, clearly not there now."""
        return self.ever is True and self.now is False

    @property
    def age(self) -> float:
        """Seconds since it was last visible."""
        return self._watch.moments[-1] - self.last

    @property
    def motion(self) -> str | None:
        """The way it moves, `it stands still`, or None where it was not watched for long enough."""
        if self.thing.direction is None:
            return "it stands still"
        travelled = self.thing.speed * (self.clear[-1] - self.clear[0]) if self.clear else 0
        return self.thing.direction if travelled >= TRAVELLED else None

    @property
    def region(self) -> str | None:
        """Where it stands, or is now; None too near to a border between regions."""
        spans = [
            region_of(*self.thing.centre(t)) for t in (self._watch.now, self._watch.moments[-1])
        ]
        if self.thing.direction is None:
            spans = [region_of(*self.thing.origin)]
        if spans[0] is None or spans[0] != spans[-1]:
            return None
        where = spans[0]
        return f"{'in' if where == 'centre' else 'on' if where in ('left', 'right') else 'at'} the {where}"


class Truth:
    """Everything that was seen, ready for questions; `things` are all in view within `watch.around`."""

    def __init__(self, things: Sequence[Thing], watch: Watch) -> None:
        self.watch = watch
        self.seen = [s for s in (Sight(thing, watch) for thing in things) if s.ever is not False]

    def answer(self, kind: str, subject: str | None = None) -> str | None:
        """Return the right answer, None where there is no clear one. Raises ValueError for no such question."""
        if kind not in KINDS or (subject is None) != (kind in UNADDRESSED):
            raise ValueError(
                f"no such question: kind {kind!r} about {subject!r}; kinds: {', '.join(KINDS)}"
            )
        answer: str | None = getattr(self, f"_{kind}")(*([] if subject is None else [subject]))
        return answer

    def about(self, subject: str) -> list[Sight]:
        """Return what was seen of a name, a shape or a colour."""
        return [s for s in self.seen if subject in (s.thing.name, s.thing.shape, s.thing.colour)]

    @property
    def present(self) -> list[Sight] | None:
        """What is there now; None where that is unclear."""
        if any(sight.now is None for sight in self.seen):
            return None
        present = [sight for sight in self.seen if sight.now]
        return present if len(present) < len(NUMBERS) else None

    def _list(self) -> str | None:
        return None if self.present is None else _joined([a(s.thing.name) for s in self.present])

    def _count(self) -> str | None:
        return None if self.present is None else NUMBERS[len(self.present)]

    def _describe(self) -> str | None:
        phrases = []
        for sight in self.present or []:
            place = sight.region if sight.thing.direction is None else sight.motion
            if place is None:
                return None
            phrases.append(a(sight.thing.name) + (" " if " " in place else " moving ") + place)
        return None if self.present is None else _joined(phrases)

    def _exist(self, subject: str) -> str | None:
        return _yes([sight.now for sight in self.about(subject)])

    _alarm = _exist

    def _one(self, subject: str) -> Sight | None:
        """Return the only thing of that name or shape there is now, None if that is unclear."""
        about = [sight for sight in self.about(subject) if sight.now is not False]
        return about[0] if len(about) == 1 and about[0].now else None

    def _now_or_not(self, subject: str, attribute: str) -> str | None:
        if all(sight.now is False for sight in self.about(subject)):
            return f"there is no {subject}"
        one = self._one(subject)
        return (
            None
            if one is None
            else getattr(one, attribute, None) or getattr(one.thing, attribute, None)
        )

    def _colour(self, subject: str) -> str | None:
        return self._now_or_not(subject, "colour")

    def _where(self, subject: str) -> str | None:
        return self._now_or_not(subject, "region")

    def _motion(self, subject: str) -> str | None:
        return self._now_or_not(subject, "motion")

    def _still(self, subject: str) -> str | None:
        """Only of what was seen before, and once."""
        about = self.about(subject)
        seen_before = [s for s in about if s.ever and s.first < self.watch.now - NOW]
        return _yes([about[0].now]) if len(about) == 1 and seen_before else None

    def _left(self) -> str | None:
        """Return what was there and is not, the last of those to go."""
        gone = sorted((s for s in self.seen if s.now is not True), key=lambda s: s.last)
        if not gone:
            return "nothing"
        last = gone[-1]
        if not last.gone or (len(gone) > 1 and last.last - gone[-2].last < NOW):
            return None
        return a(last.thing.name) if len(self.about(last.thing.name)) == 1 else None

    def _appeared(self) -> str | None:
        """Return what was not there at first, the last of those to come."""
        begin = self.watch.moments[0]
        if any(abs(s.thing.arrives - begin) <= self.watch.slack for s in self.seen):
            return None
        came = sorted(
            (s for s in self.seen if s.first > begin + self.watch.slack), key=lambda s: s.first
        )
        if not came:
            return "nothing"
        last = came[-1]
        if not last.ever or (len(came) > 1 and last.first - came[-2].first < NOW):
            return None
        return a(last.thing.name) if len(self.about(last.thing.name)) == 1 else None

    def _was(self, subject: str) -> str | None:
        return _yes([sight.ever for sight in self.about(subject)])

    def _gone_or_never(self, subject: str, attribute: str) -> str | None:
        about = self.about(subject)
        if not about:
            return f"there was no {subject}"
        if len(about) > 1 or not about[0].gone:
            return None
        return getattr(about[0], attribute, None) or getattr(about[0].thing, attribute, None)

    def _colour_was(self, subject: str) -> str | None:
        return self._gone_or_never(subject, "colour")

    def _where_was(self, subject: str) -> str | None:
        if any(sight.thing.direction for sight in self.about(subject)):
            return None
        return self._gone_or_never(subject, "region")


def a(name: str) -> str:
    """Return a name with its article."""
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _yes(sights: Sequence[bool | None]) -> str | None:
    if any(sights):
        return "yes"
    return None if None in sights else "no"


def _joined(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return phrases[0] if phrases else "nothing"
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
