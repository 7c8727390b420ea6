"""scene:// - a drawn scene that never ends: every picture is a function of seed and time, and so is its truth.

Shapes stand still for a while or cross the picture in a straight line, a few at a time. Who comes when is in
timeline.py, how it looks in drawing.py, what is true of it in truth.py and how one asks in questions.py.

    scene://hall?seed=7&fps=10&size=480
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from stream_sttm import registry, urls
from stream_sttm.errors import ConfigError
from stream_sttm.metrics import FRAMES_RECEIVED
from stream_sttm.scene.drawing import CANVAS, background, coverage, grain, paint
from stream_sttm.scene.questions import Asked, questions
from stream_sttm.scene.timeline import Thing, in_order, things_between
from stream_sttm.scene.truth import Truth, Watch
from stream_sttm.types import Frame


class Scene:
    """An endless drawn world, of `script` where one is given. Pure, so any thread may render any moment."""

    def __init__(self, seed: int = 0, script: Sequence[Thing] | None = None) -> None:
        self.seed = seed
        self._script = None if script is None else tuple(script)
        rng = np.random.default_rng((seed, 0))
        self._noise, self._phase = rng.uniform(0.005, 0.015), rng.uniform(0, 2 * np.pi)

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
        canvas = _wall(self.seed, size).copy()
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


@lru_cache(maxsize=8)
def _wall(seed: int, size: int) -> NDArray[np.float32]:
    return background(np.random.default_rng((seed, 2)), size)


@lru_cache(maxsize=64)
def _mask(shape: str, radius: float, angle: float) -> NDArray[np.float32]:
    return coverage(shape, radius, angle)


@dataclass
class SceneSource:
    """A Scene shown in real time. Scene time 0 is the moment of opening."""

    url: str
    stream: str = "scene"
    fps: float = 2.0
    max_side: int = 640
    is_live: bool = field(default=True, init=False)
    scene: Scene = field(init=False)

    def __post_init__(self) -> None:
        known = {"seed": 0.0, "fps": 10.0, "size": 480.0}
        for key, value in parse_qsl(urls.split(self.url).query, keep_blank_values=True):
            if key not in known:
                hint = registry.suggest(key, list(known))
                raise ConfigError(f"{urls.mask(self.url)}: a scene has no option {key!r}{hint}")
            try:
                known[key] = float(value)
            except ValueError:
                raise ConfigError(
                    f"{urls.mask(self.url)}: {key} must be a number, not {value!r}"
                ) from None
        if not (
            0 < known["fps"] <= 60 and 32 <= known["size"] <= 4096 and 0 <= known["seed"] < 2**32
        ):
            raise ConfigError(
                f"{urls.mask(self.url)}: needs 0 < fps <= 60, 32 <= size <= 4096, 0 <= seed < 2**32"
            )
        self.scene = Scene(int(known["seed"]))
        self._period, self._size = 1 / known["fps"], min(int(known["size"]), self.max_side)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield a frame at every tick of the scene's own rate. Ticks that the consumer misses are not drawn."""
        opened, tick = time.monotonic(), 0
        while True:
            image = await asyncio.to_thread(self.scene.render, tick * self._period, self._size)
            FRAMES_RECEIVED.labels(self.stream).inc()
            yield Frame(self.stream, image, tick * self._period, time.time())
            tick = max(tick + 1, int((time.monotonic() - opened) / self._period))
            await asyncio.sleep(opened + tick * self._period - time.monotonic())
