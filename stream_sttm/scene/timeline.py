"""Who comes into a drawn scene, when, and where it goes: a timeline that never ends, a function of its seed alone.

Time is cut into chapters that are drawn up independently, so that any moment is known without the ones before it.
Things never overlap, never crowd, and no two within a few seconds look alike. Places are in canvas units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stream_sttm.scene.drawing import CANVAS, COLOURS, REACH, SHAPES

CHAPTER = 600.0  # seconds that are drawn up at once
LEAD = 60.0  # how far into its first chapter a scene starts, so that time 0 shows something
QUIET = 10.0  # nothing is in view at the end of a chapter: chapters need not know each other
APART = 6.0  # least seconds between two arrivals, and between two departures
CROWD, CROWD_SPAN = 4, 10.0  # at most so many different things within so many seconds
STRETCH = (25.0, 90.0)  # seconds for which a scene stays about as busy as it is
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
FLASH = (3.0, 4.5)  # seconds that a thing which only flashes up is there
MARGIN = 4.0  # a place this near to a border between regions belongs to none


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape on its way through the scene; places in canvas units, `origin` where it is on arrival."""

    colour: str
    shape: str
    radius: float
    angle: float
    paint: tuple[float, float, float]
    origin: tuple[float, float]
    direction: str | None
    speed: float
    arrives: float
    leaves: float

    @property
    def name(self) -> str:
        """Colour and shape, as people say it."""
        return f"{self.colour} {self.shape}"

    @property
    def clearly(self) -> tuple[float, float]:
        """From when to when it is at least half inside the picture."""
        edge = self.radius * REACH / self.speed if self.direction else 0.0
        return self.arrives + edge, self.leaves - edge

    def centre(self, t: float) -> tuple[float, float]:
        """Where it is at time `t`."""
        dx, dy = DIRECTIONS[self.direction] if self.direction else (0, 0)
        way = self.speed * (t - self.arrives)
        return self.origin[0] + dx * way, self.origin[1] + dy * way


def region_of(x: float, y: float) -> str | None:
    """left, right, top, bottom or centre; None too near to a border between them."""
    dx, dy = x - CANVAS / 2, y - CANVAS / 2
    far = max(abs(dx), abs(dy))
    if far < 15 - MARGIN:
        return "centre"
    if far < 15 + MARGIN or abs(abs(dx) - abs(dy)) < 2 * MARGIN:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def things_between(seed: int, start: float, end: float) -> list[Thing]:
    """Return what is at least partly in view at any time of a span, by colour, then shape."""
    first, last = (int((t + LEAD) // CHAPTER) for t in (start, end))
    return in_order(
        thing
        for index in range(first, last + 1)
        for thing in _chapter(seed, index)
        if thing.arrives <= end and thing.leaves > start
    )


def in_order(things: Iterable[Thing]) -> list[Thing]:
    """Things by colour, then shape: the order in which they are listed."""
    colours = list(COLOURS)
    return sorted(things, key=lambda o: (colours.index(o.colour), SHAPES.index(o.shape)))


@lru_cache(maxsize=16)
def _chapter(seed: int, index: int) -> tuple[Thing, ...]:
    """Everything that comes and goes within one chapter, in order of arrival."""
    rng = np.random.default_rng((seed, 3, index % 2**32))
    begin = index * CHAPTER - LEAD
    things: list[Thing] = []
    at = changes = begin
    busy = 0
    while at < begin + CHAPTER - QUIET:
        if at >= changes:
            busy, changes = int(rng.choice((1, 2, 3, 4, 4))), at + rng.uniform(*STRETCH)
        for _ in range(40):
            thing = _draft(rng, at)
            if thing.leaves < begin + CHAPTER - QUIET and _fits(thing, things, busy):
                things.append(thing)
                break
        at += rng.uniform(APART, 1.5 * APART)
    return tuple(things)


def _draft(rng: np.random.Generator, at: float) -> Thing:
    """Return a thing that arrives at time `at`: it appears somewhere and stays, or comes in from a side and crosses."""
    colour, shape = list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
    radius, angle = rng.uniform((8, -0.2), (13, 0.2))
    paint_ = tuple(np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.04, 0.04, 3), 0, 1).tolist())
    low, high = REACH * radius + 1, CANVAS - REACH * radius - 1
    place = rng.uniform(low, high, 2)
    direction, speed = None, 0.0
    stays = rng.uniform(*FLASH) if rng.random() < 0.2 else rng.uniform(18, 50)
    if rng.random() < 0.5:
        direction = list(DIRECTIONS)[rng.integers(4)]
        speed = rng.uniform(3.6, 8.2)
        axis = 0 if direction in ("left", "right") else 1
        outside = REACH * radius + 1
        place[axis] = -outside if sum(DIRECTIONS[direction]) > 0 else CANVAS + outside
        stays = (CANVAS + 2 * outside) / speed
    else:
        while region_of(*place) is None:
            place = rng.uniform(low, high, 2)
    origin = (float(place[0]), float(place[1]))
    return Thing(
        colour, shape, radius, angle, paint_, origin, direction, speed, at, at + float(stays)
    )


def _fits(new: Thing, things: list[Thing], crowd: int) -> bool:
    """Whether `new`, the latest to arrive, leaves the scene clear to read: not crowded, nothing touching or alike."""
    recent = [o for o in things if o.leaves > new.arrives - CROWD_SPAN]
    return (
        len(recent) < crowd
        and all(abs(o.leaves - new.leaves) >= APART for o in things)
        and all(o.name != new.name for o in recent)
        and all(_stay_apart(new, o) for o in recent)
    )


def _stay_apart(new: Thing, other: Thing) -> bool:
    """Whether two things keep a distance for as long as both are there."""
    start, end = new.arrives, min(new.leaves, other.leaves)
    if end <= start:
        return True
    t = np.linspace(start, end, int((end - start) / 0.2) + 2)
    a, b = (np.array([o.centre(start), o.centre(end)]) for o in (new, other))
    gap = (a - b)[:1] + (t[:, None] - start) / (end - start) * ((a - b)[1:] - (a - b)[:1])
    return bool(np.hypot(*gap.T).min() > REACH * (new.radius + other.radius) + 1.5)
