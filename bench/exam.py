"""What the arms are shown and asked: windows of frames and, between them, rounds of questions with known answers.

`DrawnStream` is a stretch of a drawn world. Knows no model, no arm and no memory, only how far back is asked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream_sttm.scene.questions import Asked, balanced
from stream_sttm.sources.scene import Scene
from stream_sttm.types import Clip, Frame

NEEDLES = (5, 30, 120)  # seconds ago; a needle counts for the nearest, by ratio
STREAM = "bench"
CLIP_FRAMES = 2
LONGEST, LONGEST_CHOICE = 40, 16  # tokens of an answer in words, and of one that names a letter


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its right answer; `age`: seconds since what it is about was last seen.

    With `choices` the answer is a letter, and the first letter that stands alone in what is said counts.
    """

    text: str
    truth: str
    kind: str
    age: float | None = None
    choices: int = 0

    @property
    def longest(self) -> int:
        """How many tokens an answer may have."""
        return LONGEST_CHOICE if self.choices else LONGEST

    def is_right(self, answer: str) -> bool:
        """Whether an answer is the right one, word for word or by its letter."""
        if not self.choices:
            return answer == self.truth
        last = chr(ord("A") + self.choices - 1)
        found = re.search(rf"(?<![A-Za-z])[A-{last}](?![A-Za-z'])", answer)
        return found is not None and found[0] == self.truth


@dataclass(frozen=True, slots=True)
class Round:
    """Questions asked together at `at` seconds of stream; `span` is what they are about, where that is known."""

    at: float
    items: tuple[Item, ...]
    span: tuple[float, float] | None = None


class Footage(Protocol):
    """Something to watch; frames and rounds in the order of time."""

    @property
    def name(self) -> str:
        """Tells it from all others."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second that are looked at."""
        ...

    def script(self) -> Iterator[Clip | Round]:
        """Every window and every round."""
        ...


@dataclass(frozen=True, slots=True)
class DrawnStream:
    """A stretch of the drawn world `seed` from scene time `start` on, asked about every `every` seconds.

    The first round comes when `reach` seconds have been shown, which is when a memory of that length is full. A round
    is about the last `span` seconds: from the oldest moment in that memory to now. It holds one question of each
    kind, or, with `by_age`, one of each kind and age.
    """

    seed: int
    start: float
    fps: float
    reach: float
    span: float
    every: float
    rounds: int
    side: int
    by_age: bool = False

    @property
    def name(self) -> str:
        """The world's seed."""
        return f"world {self.seed}"

    def script(self) -> Iterator[Clip | Round]:
        """Windows drawn as they are needed, and a round whenever one is due."""
        scene, asked, step = Scene(self.seed), 0, CLIP_FRAMES / self.fps
        for index in range(self.windows):
            times = [self.start + index * step + frame / self.fps for frame in range(CLIP_FRAMES)]
            frames = [Frame(STREAM, scene.render(at, self.side), at, at) for at in times]
            yield Clip(STREAM, index, tuple(frames))
            if (index + 1) * step >= self.reach + asked * self.every - 1e-6:
                asked += 1
                yield self._round(scene, times[-1])

    @property
    def windows(self) -> int:
        """How many windows it takes to ask every round."""
        seconds = self.reach + (self.rounds - 1) * self.every
        return -int(-(seconds - 1e-6) * self.fps // CLIP_FRAMES)

    def _round(self, scene: Scene, now: float) -> Round:
        span = (now - self.span, now)
        drawn = random.Random(f"{self.seed} {now:.3f}")
        return Round(now - self.start, chosen(scene.questions(*span), drawn, self.by_age), span)


def chosen(questions: Sequence[Asked], drawn: random.Random, by_age: bool) -> tuple[Item, ...]:
    """One question of each kind (and age), so drawn that within a kind no sort of answer is common."""
    groups: dict[int | None, list[Asked]] = {}
    for asked in questions:
        groups.setdefault(needle(asked.age) if by_age else None, []).append(asked)
    return tuple(
        Item(asked.text, asked.truth, asked.kind, asked.age)
        for group in groups.values()
        for asked in balanced(group, len({one.kind for one in group}), drawn)
    )


def needle(age: float | None) -> int | None:
    """Which of NEEDLES an age counts for."""
    if age is None:
        return None
    return min(
        NEEDLES, key=lambda mark: max(age, 0.5) / mark if age > mark else mark / max(age, 0.5)
    )
