"""A video file as footage: read through the service's own source and sampler, asked about at given times.

A question sees what has been shown by its time and nothing after. Knows no question file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from bench.exam import CLIP_FRAMES, STREAM, Item, Round
from stream_sttm.errors import NotVideo
from stream_sttm.sampling import Sampler
from stream_sttm.sources import open_source
from stream_sttm.types import Clip, Frame

MAX_SIDE = 640  # as the service's own


@dataclass(frozen=True, slots=True)
class Film:
    """A video file and what is asked at which second of it, in order."""

    path: Path
    fps: float
    asked: tuple[tuple[float, Item], ...]

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def script(self) -> Iterator[Clip | Round]:
        """Return the file's windows and, between them, its questions. Raises SourceError where it can't be read."""
        rounds = [
            Round(at, tuple(item for _, item in items))
            for at, items in groupby(self.asked, key=lambda one: one[0])
        ]
        is_begun = False
        for clip in self.clips():
            while is_begun and rounds and clip.captured_at > rounds[0].at:
                yield rounds.pop(0)
            if not rounds:
                return
            is_begun = True
            yield clip
        yield from rounds

    def size(self) -> tuple[int, int]:
        """Height and width of its pictures; raises SourceError where it can't be read."""
        frame = next(self._frames(), None)
        if frame is None:
            raise NotVideo(f"{self.path}: holds no picture")
        height, width, _ = frame.image.shape
        return height, width

    def clips(self) -> Iterator[Clip]:
        """Return the file's windows. Raises SourceError where it can't be read."""
        sampler, first = Sampler(self.fps, CLIP_FRAMES), None
        for frame in self._frames():
            first = frame.pts if first is None else first
            seconds = frame.pts - first
            clip = sampler.add(replace(frame, pts=seconds, captured_at=seconds))
            if clip is not None:
                yield clip
        last = sampler.flush()
        if last is not None:
            yield last

    def _frames(self) -> Iterator[Frame]:
        """Return the source's frames, its loop run for one at a time."""
        url = self.path.resolve().as_uri()
        source = open_source(url, stream=STREAM, fps=self.fps, max_side=MAX_SIDE)
        with asyncio.Runner() as runner:
            runner.run(source.__aenter__())
            try:
                frames = source.frames()
                while (frame := runner.run(anext(frames, None))) is not None:
                    yield frame
            finally:
                runner.run(source.__aexit__(None, None, None))
