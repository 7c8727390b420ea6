"""A drawn world that never ends: every picture is a function of seed and time, and so is its truth.

Shapes stand still for a while or cross the picture in a straight line, a few at a time. Who comes when is in
timeline.py, how it looks in drawing.py, what is true of it in truth.py and how one asks in questions.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stream_sttm.scene.drawing import CANVAS, background, coverage, grain, paint
from stream_sttm.scene.questions import Asked, questions
from stream_sttm.scene.timeline import Thing, in_order, things_between
from stream_sttm.scene.truth import Truth, Watch


class Scene:
    """An endless drawn world, of `script` where one is given; pure, so any thread may render any moment."""

    def __init__(self, seed: int = 0, script: Sequence[Thing] | None = None) -> None:
        self.seed = seed
        self._script = None if script is None else tuple(script)
        rng = np.random.default_rng((seed, 0))
        self._noise, self._phase = rng.uniform(0.005, 0.015), rng.uniform(0, 2 * np.pi)
        self._wall: NDArray[np.float32] | None = None  # of the size that was rendered last

    def things(self, start: float, end: float) -> list[Thing]:
        """Return what is at least partly in view at any time of a span, by colour, then shape."""
        if self._script is None:
            return things_between(self.seed, start, end)
        return in_order(o for o in self._script if o.arrives <= end and o.leaves > start)

    def objects_at(self, t: float) -> list[Thing]:
        """Return what is at least partly in view at time `t`, by colour, then shape."""
        return self.things(t, t)

    def seen(self, watch: Watch) -> Truth:
        """All that is true for somebody who watched the scene so."""
        return Truth(self.things(*watch.around), watch)

    def truth(
        self, kind: str, start: float, end: float, *, subject: str | None = None
    ) -> str | None:
        """Return the right answer at `end` after watching since `start`, None where none is clear (kinds: truth.py)."""
        return self.seen(Watch.span(start, end)).answer(kind, subject)

    def questions(self, start: float, end: float) -> list[Asked]:
        """Questions with clear answers at `end` after watching since `start`; the same each time."""
        rng = random.Random(f"{self.seed} {start:.1f} {end:.1f}")
        return questions(self.seen(Watch.span(start, end)), rng)

    def render(self, t: float, size: int = 480) -> NDArray[np.uint8]:
        """Render the picture (size, size, 3) RGB at time `t` seconds."""
        scale = size / CANVAS
        wall = self._wall  # one name for it: any thread may replace it
        if wall is None or len(wall) != size:
            wall = self._wall = background(np.random.default_rng((self.seed, 2)), size)
        canvas = wall.copy()
        for thing in self.objects_at(t):
            x, y = thing.centre(t)
            mask = _mask(thing.shape, thing.radius * scale, thing.angle)
            paint(canvas, mask, np.array(thing.paint, np.float32), (x * scale, y * scale))
        light = 1 + 0.12 * np.sin(2 * np.pi * t / 97 + self._phase)
        canvas *= np.float32(255 * light)
        rng = np.random.default_rng((self.seed, 1, round(abs(t) * 1000)))
        canvas += grain(rng, size, 255 * self._noise)
        np.clip(canvas, 0, 255, out=canvas)
        return canvas.astype(np.uint8)


@lru_cache(maxsize=64)
def _mask(shape: str, radius: float, angle: float) -> NDArray[np.float32]:
    return coverage(shape, radius, angle)
